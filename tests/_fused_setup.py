"""A tiny bundle with kernels and an engine, on a machine whose GPU and TensorRT are fakes; and frames to segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_cuda import FakeCuda
from _fake_drivers import FakeDriver, FakePycuda
from _fake_engines import FakeEngines, write_fake_engine
from _kernel_images import ARGUMENTS, kernels
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.bundle import Bundle
from latentseg.engine.roles import Compressor, Segmenter
from latentseg.engine.tensorrt import api
from latentseg.engine.tensorrt.runner import FusedSegmenter
from latentseg.kernels.gpu.device import Device
from latentseg.kernels.gpu.images import save_kernels
from latentseg.kernels.gpu.launch import Gpu
from latentseg.kernels.gpu.pycuda import PycudaDevice

SIZE = (61, 83)  # latents of 8 x 11, labels of 64 x 88 before they are cropped


class Setup:
    """The machine, its bundle with kernels and an engine of the segmenter. `open` makes a runner."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle = write_tiny_bundle(folder / "tiny")
        self.header = self.bundle.header(*SIZE)
        self.cuda = FakeCuda(arguments=ARGUMENTS)
        self.cuda.tile, self.cuda.half = self.header.tile, False
        save_kernels(kernels(80, 90, tile=self.header.tile), self.bundle.path / "kernels")
        self.monkeypatch = monkeypatch
        self.module = self.install("tensorrt")
        write_fake_engine(self.bundle, self.cuda)

    def install(self, flavour: str) -> FakeEngines:
        """Make a flavour the one that is installed."""
        self.module = FakeEngines(self.cuda, flavour)
        real = api.importlib.import_module

        def find(name: str, package: str | None = None) -> Any:
            return self.module if name == self.module.__name__ else real(name, package)

        self.monkeypatch.setattr(api.importlib, "import_module", find)
        return self.module

    def device(self, bindings: bool = False) -> Device:
        """The GPU, through PyCUDA or through cuda.bindings."""
        driver = FakeDriver(self.cuda)
        return Gpu(0, driver) if bindings else PycudaDevice(0, FakePycuda(self.cuda), driver)

    def plug_in(self) -> None:
        """Make the GPU the one that everything opens."""
        self.monkeypatch.setattr("latentseg.kernels.gpu.pycuda.PycudaDevice", lambda ordinal: self.device())

    def open(self, batch: int = 3, slots: int = 2, precision: str = "fp32", **options: Any) -> FusedSegmenter:
        options = {"device": self.device, **options}
        return FusedSegmenter(self.bundle, self.header, SIZE, precision, batch, slots, **options)

    @property
    def clean(self) -> bool:
        """Whether nothing of the device is held any more."""
        return not (self.cuda.memory or self.cuda.pinned or self.cuda.graphs or self.cuda.retained)


def frames_of(count: int, seed: int = 0, spread: int = 255) -> np.ndarray:
    """uint8 (count, H, W, 3): blocks in random colours."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, spread + 1, (count, 8, 11, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return np.ascontiguousarray(blocks[:, : SIZE[0], : SIZE[1]])


def payloads_of(bundle: Bundle, count: int, seed: int = 0, spread: int = 255) -> list[bytes]:
    """`frames_of`, through the bundle's own compressor; less spread makes shorter payloads."""
    with Compressor(bundle) as compressor:
        return compressor.encode(frames_of(count, seed, spread), bundle.header(*SIZE))


def truth(bundle: Bundle, payloads: list[bytes]) -> np.ndarray:
    """The labels that the engine on the CPU gives."""
    with Segmenter(bundle) as segmenter:
        return segmenter.labels(segmenter.entropy_decode(payloads, bundle.header(*SIZE)), SIZE)
