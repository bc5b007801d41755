"""JPEG through Pillow (libjpeg-turbo): frames to bytes and back, and the quality whose size is nearest to a target."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import missing_extra

Frame = NDArray[np.uint8]
LOWEST, HIGHEST = 1, 100
SUBSAMPLING = {"4:4:4": 0, "4:2:0": 2}


def encode(frame: Frame, quality: int, *, subsampling: str = "4:2:0", optimise: bool = True) -> bytes:
    """Baseline JPEG file of an RGB frame `(H, W, 3)` uint8.

    `optimise`: Huffman tables made for this frame in a second pass, which saves a few percent and decodes at the same
    speed; otherwise the standard's example tables.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "video") from None
    target = io.BytesIO()
    image = Image.fromarray(frame)
    image.save(target, "JPEG", quality=quality, subsampling=SUBSAMPLING[subsampling], optimize=optimise)
    return target.getvalue()


def decode(data: bytes) -> Frame:
    """RGB frame `(H, W, 3)` uint8 of a JPEG (or any still image that Pillow reads) held in memory."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "video") from None
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@dataclass(frozen=True)
class Match:
    """The JPEG setting nearest to a size."""

    quality: int
    subsampling: str
    optimise: bool
    mean_bytes: float
    reached: bool  # false: even the lowest quality is larger than asked for (or even the highest smaller)


def nearest_quality(
    frames: Sequence[Frame],
    target_bytes: float,
    *,
    subsampling: str = "4:2:0",
    optimise: bool = True,
    encoder: Callable[..., bytes] = encode,
) -> Match:
    """The quality (1 to 100) at which the mean size over `frames` is nearest to `target_bytes`.

    Size grows with quality (libjpeg scales one quantisation table by it), so that a bisection finds the first quality
    that is not smaller than the target; the nearer of that and the one below is taken.
    """
    sizes: dict[int, float] = {}

    def mean_bytes(quality: int) -> float:
        if quality not in sizes:
            lengths = [len(encoder(frame, quality, subsampling=subsampling, optimise=optimise)) for frame in frames]
            sizes[quality] = sum(lengths) / len(lengths)
        return sizes[quality]

    low, high = LOWEST, HIGHEST
    while low < high:
        middle = (low + high) // 2
        if mean_bytes(middle) < target_bytes:
            low = middle + 1
        else:
            high = middle
    candidates = [quality for quality in (low - 1, low) if quality >= LOWEST]
    best = min(candidates, key=lambda quality: abs(mean_bytes(quality) - target_bytes))
    reached = mean_bytes(LOWEST) <= target_bytes <= mean_bytes(HIGHEST)
    return Match(best, subsampling, optimise, mean_bytes(best), reached)
