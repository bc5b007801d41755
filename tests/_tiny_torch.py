"""The tiny bundle's arithmetic as torch networks of the registry, and trained runs of them: what NumPy repeats by hand.

tiny-codec: block means, fixed range 0..255, whose decoder repeats them 8x8. tiny-latent, tiny-rgb: the label is the
largest channel, of 11 classes. Both halves of the codec, and the segmenters, have a 1x1 convolution that changes
nothing, so that there is something to count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _registered import registered
from torch import Tensor, nn
from torch.nn import functional as F

from latentseg.models import registry
from latentseg.training import checkpoint

CLASSES = 11


def _same() -> nn.Conv2d:
    found = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.ones_(found.weight)
    return found


class _Compressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = _same()

    def forward(self, x: Tensor) -> Tensor:
        return self.same(F.avg_pool2d((x * 255).round(), 8))  # type: ignore[no-any-return]


class _Decompressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = _same()

    def forward(self, z: Tensor) -> Tensor:
        return F.interpolate(self.same(z), scale_factor=8, mode="nearest") / 255


class Codec(nn.Module):
    """Block means; the step can be chosen."""

    stride, channels, bits, tile, scaling = 8, 3, 8, (4, 4), ("fixed", 0.0, 255.0)

    def __init__(self) -> None:
        super().__init__()
        self.compressor, self.decompressor = _Compressor(), _Decompressor()
        self.mark = nn.Parameter(torch.zeros(1))

    def compress(self, x: Tensor) -> Tensor:
        return self.compressor(x)  # type: ignore[no-any-return]

    def decompress(self, z: Tensor) -> Tensor:
        return self.decompressor(z)  # type: ignore[no-any-return]


class Segmenter(nn.Module):
    """Logits at full resolution: the three channels, and 8 that never win."""

    align_corners, logit_stride = False, 1

    def __init__(self, stride_in: int, classes: int) -> None:
        super().__init__()
        self.stride_in, self.classes, self.same = stride_in, classes, _same()
        self.mark = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.same(x), (0, 0, 0, 0, 0, self.classes - 3), value=-1.0)
        return x if self.stride_in == 1 else F.interpolate(x, scale_factor=8, mode="nearest")


def _latent(classes: int = CLASSES) -> Segmenter:
    return Segmenter(8, classes)


def _rgb(classes: int = CLASSES) -> Segmenter:
    return Segmenter(1, classes)


@contextmanager
def networks() -> Iterator[None]:
    """Known to the registry until the end of the block."""
    with registered(("tiny-codec", "codec", Codec), ("tiny-latent", "latent_segmenter", _latent),
                    ("tiny-rgb", "rgb_segmenter", _rgb)):  # fmt: skip
        yield


def write_run(folder: Path, network: str, seed: int = 0, classes: int = CLASSES, **settings: Any) -> str:
    """A run of a tiny network; seeds differ in a tensor that nothing uses. Returns the content id."""
    options = {} if network == "tiny-codec" else {"classes": classes}
    module = registry.create(network, **options)
    with torch.no_grad():
        module.mark.fill_(seed)  # type: ignore[union-attr, operator]
    folder.mkdir(parents=True)
    facts = {"settings": {"loop": {"seed": seed}, **settings}, "steps": 10 + seed, "seconds": 1.5}
    checkpoint.save_weights(folder / "model.safetensors", network, options, module.state_dict(), facts)
    return checkpoint.load_weights(folder).content_id
