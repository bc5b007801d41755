"""What the tests of the trainers share: tiny data, tiny networks, short loops, and a way to kill a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentseg.cli import main
from latentseg.training import checkpoint
from latentseg.training.loop import LoopConfig
from latentseg.training.train_codec import CodecConfig, train_codec
from latentseg.training.train_segmenter import SegmenterConfig

TINY = {"channels": 4, "width": 8, "encoder_units": 1, "decoder_units": 1}
CODEC = CodecConfig(target_bpp=0.5, patch=32, batch=2, pca_patches=400)
SEGMENTER = SegmenterConfig(size=(24, 32), batch=2)
NARROW = {"width": 8, "dilations": [1, 2]}


def loop(steps: int, **changes: object) -> LoopConfig:
    return LoopConfig(**{"steps": steps, "warmup": 2, "interval": 2, "bf16": False, "threads": 1, **changes})  # type: ignore[arg-type]


def tiny_codec(folder: Path, steps: int = 2) -> Path:
    """The weights of a codec of some steps on three of the frames."""
    return train_codec("compact-codec", frames(3), folder, CODEC, loop(steps), options=TINY, progress=False)


def frames(count: int, height: int = 40, width: int = 56) -> list[NDArray[np.uint8]]:
    """Smooth frames with a moving edge."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack([(x * 3 + 9 * i) % 256, (y * 5) % 256, 255 * (x > 10 + i)], -1).astype(np.uint8) for i in range(count)
    ]


def labels(count: int) -> list[NDArray[np.uint8]]:
    """The sides of the edge, two classes."""
    return [(f[..., 2] // 255).astype(np.uint8) for f in frames(count)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a result."""
    return checkpoint.load(path)[0]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class KilledError(Exception):
    pass


class Counted(list):  # type: ignore[type-arg]
    """Frames that count how often one is taken, and kill the run that takes one more than `last`."""

    def __init__(self, items: list[NDArray[np.uint8]], last: int = 10**9) -> None:
        super().__init__(items)
        self.taken, self.last = 0, last

    def __getitem__(self, index: object) -> Any:
        self.taken += 1
        if self.taken > self.last:
            raise KilledError
        return super().__getitem__(index)  # type: ignore[index]


class PlainRate(nn.Module):
    def bits(self, z: Tensor) -> Tensor:
        return z.abs()


class PlainCodec(nn.Module):
    """A codec that rounds twice the image; its rate model says that a symbol of size n takes n bits."""

    def __init__(self) -> None:
        super().__init__()
        self.rate_model = PlainRate()

    def compress(self, x: Tensor) -> Tensor:
        return x * 2

    def quantised(self, z: Tensor, step: Tensor) -> Tensor:
        return (z / step).round() * step

    def decompress(self, z: Tensor) -> Tensor:
        return z / 2


def scores(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """What a command line prints with --json."""
    capsys.readouterr()
    assert main([*argv, "--json", "-q"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
