"""The real frames that `latentseg build` makes fp16 and int8 with, and judges them on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Images = list[npt.NDArray[np.uint8]]


def real_frames(args: argparse.Namespace, most: int | None = None) -> tuple[Images, Images | None]:
    """The frames of `--frames`, or frames and labels of `--data`, `--layout` and `--split`.

    most: at most so many, spread over what is given; None: all.
    """
    from ..engine.sources.images import SUFFIXES
    from ..training.data import labelled, read_frames, read_pairs

    if args.frames is not None:
        images = 0 if most is None else sum(path.suffix.lower() in SUFFIXES for path in args.frames.rglob("*"))
        return read_frames(args.frames, every=max(1, images // (most or 1)), limit=most), None
    classes, pairs = labelled(args.layout or "camvid", args.data, args.split or "train")
    if most is not None:
        count = min(most, len(pairs))
        pairs = [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]
    return read_pairs(pairs, classes)
