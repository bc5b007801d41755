"""Which optional packages are installed and what each brings, out of their metadata: nothing of them is imported."""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple


class Package(NamedTuple):
    """Distribution names (the first that is installed counts), what it brings here, and how to get it
    (both empty: nothing in this version)."""

    distributions: tuple[str, ...]
    brings: str
    get: str


PACKAGES: dict[str, Package] = {
    "numpy": Package(("numpy",), "everything", "pip install numpy"),
    "onnxruntime": Package(
        ("onnxruntime", "onnxruntime-gpu"),
        "running bundles (encode, decode, run, bench)",
        "pip install 'latentseg[cpu]'",
    ),
    "av": Package(("av",), "video files, cameras and stream URLs", "pip install 'latentseg[video]'"),
    "pillow": Package(("pillow",), "images", "pip install 'latentseg[video]'"),
    "matplotlib": Package(("matplotlib",), "the plots of bench", "pip install 'latentseg[plot]'"),
    "torch": Package(("torch",), "train, eval and export, --backend torch", "pip install 'latentseg[train]'"),
    "onnx": Package(("onnx",), "export", "pip install 'latentseg[export]'"),
    "triton": Package(("triton",), "compiling the GPU kernels: build", "pip install 'latentseg[triton]'"),
    "cuda-bindings": Package(
        ("cuda-bindings",),
        "finding the GPU, launching compiled kernels on it, CUDA graphs",
        "pip install 'latentseg[gpu]'",
    ),
    "pycuda": Package(
        ("pycuda",), "memory, streams and kernels of --backend tensorrt", "pip install 'latentseg[pycuda]'"
    ),
    "tensorrt": Package(
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "engines on any GPU, built on that GPU: build --target tensorrt, --backend tensorrt",
        "pip install 'latentseg[tensorrt]'",
    ),
    "tensorrt-rtx": Package(
        ("tensorrt-rtx",),
        "engines for RTX GPUs, built without one: build --target tensorrt-rtx, --backend tensorrt",
        "pip install 'latentseg[tensorrt-rtx]'",
    ),
    "zstandard": Package(("zstandard",), "zstd in bench entropy", "pip install 'latentseg[bench]'"),
    "constriction": Package(("constriction",), "constriction in bench entropy", "pip install 'latentseg[bench]'"),
    "dali": Package(("nvidia-dali-cuda130",), "--kind dali and dali-gpu of a source", "pip install 'latentseg[dali]'"),
}


def version_of(name: str) -> str | None:
    """The installed version of one of PACKAGES, or None."""
    for distribution in PACKAGES[name].distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str | None]:
    """Name -> installed version or None, for every one of PACKAGES."""
    return {name: version_of(name) for name in PACKAGES}
