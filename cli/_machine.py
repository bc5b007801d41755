"""What `doctor` and `inspect` know about the machine and the installation, found without importing anything heavy."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# distribution names (the first that is installed counts), what it brings, how to get it
PACKAGES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "numpy": (("numpy",), "everything", "pip install numpy"),
    "onnxruntime": (
        ("onnxruntime", "onnxruntime-gpu"),
        "running bundles: encode, decode, run, bench",
        "pip install 'latentseg[cpu]'",
    ),
    "av": (("av",), "reading and writing video, cameras and stream URLs", "pip install 'latentseg[video]'"),
    "pillow": (("pillow",), "reading and writing images", "pip install 'latentseg[video]'"),
    "matplotlib": (("matplotlib",), "plots of bench", "pip install 'latentseg[plot]'"),
    "torch": (("torch",), "train, eval, export", "pip install 'latentseg[train]'"),
    "onnx": (("onnx",), "export", "pip install 'latentseg[export]'"),
    "tensorrt": (("tensorrt", "tensorrt-cu12", "tensorrt-cu13"), "engines for NVIDIA GPUs", "pip install tensorrt"),
    "triton": (("triton",), "compiling the GPU kernels", "comes with torch on a machine with a GPU"),
    "pycuda": (("pycuda",), "GPU memory for a serving machine", "pip install pycuda"),
    "dali": (
        ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110"),
        "reading video on the GPU",
        "pip install nvidia-dali-cuda120",
    ),
}


def version_of(distributions: tuple[str, ...]) -> str | None:
    """The version of the first of these distributions that is installed, out of its metadata."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def package_versions() -> dict[str, str | None]:
    """Name -> version or None, for every package that brings something."""
    return {name: version_of(distributions) for name, (distributions, _, _) in PACKAGES.items()}


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Cores that this process may run on, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The machine as a JSON object."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
    }
