"""A bundle made ready for one batch size on this GPU: engines that are built here, and kernels, its own where they fit.

Engines are for frames of one size and tuned for one batch, each network alike, so that no arm has the better tuned
engine. A bundle's own engines are left alone: it may have one of a wide profile for one network and none for another.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.bundle import Bundle, load_bundle
from ..engine.manifest import LABELLING_ROLES, read_manifest
from ..engine.tensorrt.api import open_flavour
from ..engine.tensorrt.gpus import this_gpu
from ..engine.tensorrt.sidecar import ENGINE_FOLDER, Profile, engine_name
from ..errors import ArtifactError, InputError, LatentsegError, UsageError, missing_extra
from ..kernels.gpu.images import INDEX_NAME, KernelSet, load_kernels, save_kernels

_KERNELS = "kernels"
_LARGE = 1 << 20  # pixels
_FLOATS = ("float16", "float32")  # what segmenters take


def kernels_for(bundle: Bundle, capability: int) -> tuple[KernelSet, str]:
    """(kernels of the bundle's streams for a GPU, where from): the bundle's own, else compiled here.

    Where there are some that do not fit or are damaged, the second says why they were not taken.
    Raises BackendMissingError without Triton where they must be compiled.
    """
    codec, codebook = bundle.codec, bundle.codec.scaling.mode == "codebook"
    try:
        kernels = load_kernels(bundle.path / _KERNELS)
        kernels.check_stream(codec.bits, codec.tile, codebook)
        for floats in _FLOATS:
            kernels.find("context_decode", floats, capability)
        return kernels, "the bundle's own"
    except (ArtifactError, InputError) as error:
        from ..kernels.triton.compile import compile_kernels

        reason = ""
        if (bundle.path / _KERNELS / INDEX_NAME).exists():
            said = str(error).replace(f"{bundle.path}{os.sep}", "")  # rows are published: no path of a machine
            reason = f", not the bundle's own: {said}"
        start = time.perf_counter()
        kernels = compile_kernels(codec.bits, codec.tile, [capability], codebook=codebook)
        return kernels, f"compiled here in {time.perf_counter() - start:.1f} s{reason}"


def smallest(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) that an engine for frames of `size` takes at least: `size` alone, but for large frames.

    Before a build the CPU runs some networks at the smallest size and at twice that, to compare two ONNX files.
    """
    return size if size[0] * size[1] <= _LARGE else (min(size[0], 256), min(size[1], 512))


def weights(bundle: Bundle) -> str:
    """What a bundle says of its networks: "random" (`gpu_networks.py`), so that labels mean nothing, or "trained"."""
    told = [facts.get("weights") for facts in bundle.manifest.get("training", {}).values()]
    return "random" if "random" in told else "trained"


class Ungated(Bundle):
    """A bundle of random weights whose segmenters have an fp16 file, made without the accuracy gate.

    Logits of random weights lie near ties: in fp16 2 % of the labels of the paper's networks became others, which no
    limit for trained networks admits and which says nothing of speed.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        """folder: where the files are made."""
        super().__init__(bundle.path, read_manifest(bundle.path))
        self._folder = folder
        report = {"fp16": {"report": {"gate": "none: random weights"}}}
        self.manifest = {**self.manifest, "variants": dict.fromkeys(LABELLING_ROLES, report)}

    def variants(self, role: str) -> tuple[str, ...]:
        return ("fp32", "fp16") if role in LABELLING_ROLES else super().variants(role)

    def model_path(self, role: str, variant: str = "fp32") -> Path:
        if variant != "fp16":
            return super().model_path(role, variant)
        path = self._folder / f"{role}-fp16.onnx"
        if not path.is_file():
            try:
                import onnx
            except ImportError:
                raise missing_extra("onnx", "export") from None
            from ..export.precision import graph, half

            onnx.save(half.to_half(graph.load(super().model_path(role))), path)
        return path


class Workshop:
    """A copy of a bundle in `folder`, for batches of one size on this machine's GPU with one flavour of TensorRT.

    Attributes
    ----------
    bundle: the copy, with kernels, and engines as far as they were asked for.  kernels: where those are from.
    made: {role precision: how its engine was built}.

    Raises BackendMissingError without the flavour, a GPU, or Triton where kernels must be compiled.
    """

    def __init__(
        self, bundle: Bundle, flavour: str, folder: Path, size: tuple[int, int], batch: int,
        images: Sequence[npt.NDArray[np.uint8]],
    ) -> None:  # fmt: skip
        """size: (H, W) of the frames.  images: real frames (H, W, 3), to rewrite a precision that the bundle lacks."""
        self._flavour, self._images = flavour, images
        open_flavour(flavour)
        self._frames = Profile((1, *smallest(size)), (batch, *size), (batch, *size))
        kernels, self.kernels = kernels_for(bundle, this_gpu().capability)
        ignore = shutil.ignore_patterns(ENGINE_FOLDER, _KERNELS)
        shutil.copytree(bundle.path, folder, ignore=ignore, copy_function=_link)
        save_kernels(kernels, folder / _KERNELS)
        self.bundle = load_bundle(folder)
        self._models = Ungated(self.bundle, folder.parent) if weights(bundle) == "random" else self.bundle
        self.made: dict[str, str] = {}
        self._failed: dict[str, LatentsegError] = {}

    def engine(self, role: str, precision: str) -> Path:
        """An engine file of the copy. Raises what building it raises, also when it is asked for again."""
        what = f"{role} {precision}"
        if what in self._failed:
            raise self._failed[what]
        if what not in self.made:
            try:
                self.made[what] = self._build(role, precision)
            except LatentsegError as error:
                self._failed[what] = error
                raise
        return self.bundle.path / ENGINE_FOLDER / engine_name(role, precision, self._flavour)

    def facts(self, needed: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Where the kernels and these (role, precision)'s engines are from."""
        return {"kernels": self.kernels, **{f"{r} {p}": self.made[f"{r} {p}"] for r, p in needed}}

    def _build(self, role: str, precision: str) -> str:
        from ..export.tensorrt import build_role

        own = precision == "fp32" or precision in self._models.variants(role)
        start = time.perf_counter()
        folder = self.bundle.path / ENGINE_FOLDER
        images = None if own else list(self._images)
        build_role(self._models, role, precision, self._flavour, self._frames, (), folder, images=images)
        return f"built here in {time.perf_counter() - start:.1f} s, for {self._frames}"


def _link(source: str, target: str) -> None:
    """Models are large and are only read: a second name for the file, or a copy where there is none to be had."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_flavour(flavour: str) -> dict[str, Any]:
    """What there is to measure on. Raises BackendMissingError without the flavour or a GPU, before anything is done."""
    version, gpu = open_flavour(flavour).version, this_gpu()
    return {"gpu": gpu.name, "capability": gpu.capability / 10, "version": version}


def is_memory(error: LatentsegError) -> bool:
    """Whether the GPU's memory is what lacked."""
    text = str(error).lower().replace("_", " ")
    return not isinstance(error, UsageError) and ("out of memory" in text or "outofmemory" in text)
