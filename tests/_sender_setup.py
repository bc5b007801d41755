"""The fake machine of `_fused_setup.py` with an engine of the compressor; frames, and the CPU's payloads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_engines import Context, write_fake_engine
from _fused_setup import SIZE, Setup
from _kernel_images import kernels

from latentseg.engine.bundle import Bundle, load_bundle
from latentseg.engine.roles import Compressor
from latentseg.engine.run import Work
from latentseg.engine.tensorrt.sender import FusedCompressor
from latentseg.kernels.gpu.images import save_kernels

MARK = 251  # a frame whose first value this is has a NaN in its latent


class Machine(Setup):
    """The fake machine with an engine of the compressor."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        write_fake_engine(self.bundle, self.cuda, "compressor")

    def rescale(self, mode: str) -> Bundle:
        """The bundle with another scaling."""
        path = self.bundle.path / "manifest.json"
        raw = json.loads(path.read_text())
        raw["codec"]["scaling"] = {"mode": mode}
        if mode == "codebook":
            raw["codec"]["scaling"]["centres"] = np.sort(np.random.default_rng(0).uniform(0, 255, 200)).tolist()
            self.cuda.codebook = True
            made = replace(kernels(80, 90, tile=self.header.tile), codebook=True)
            save_kernels(made, self.bundle.path / "kernels", overwrite=True)
        path.write_text(json.dumps(raw))
        self.bundle = load_bundle(self.bundle.path)
        self.header = self.bundle.header(*SIZE)
        return self.bundle

    def compressor(
        self, batch: int = 3, slots: int = 2, threads: int = 2, size: tuple[int, int] = SIZE, **options: Any
    ) -> FusedCompressor:
        options = {"device": self.device, **options}
        return FusedCompressor(self.bundle, self.bundle.header(*size), size, batch, slots, threads, **options)


def works(frames: Any) -> list[Work]:
    return [Work(10 * place, 40 * place, rgb=frame) for place, frame in enumerate(frames)]


def sized(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 251, (count, height, width, 3), np.uint8)


def truth(bundle: Bundle, frames: np.ndarray) -> list[bytes]:
    """The payloads that the engine on the CPU gives."""
    with Compressor(bundle) as compressor:
        return compressor.encode(frames, bundle.header(*frames.shape[1:3]))


def spoil(monkeypatch: pytest.MonkeyPatch, value: float = np.nan) -> None:
    """Give the latents of marked frames a value that no symbol stands for."""
    good = Context.compute

    def compute(self: Context, array: np.ndarray) -> np.ndarray:
        found = good(self, array)
        if found.ndim == 4:
            found[array[:, 0, 0, 0] == MARK, 1, 2, 3] = value
        return found

    monkeypatch.setattr(Context, "compute", compute)
