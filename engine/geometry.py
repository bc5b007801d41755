"""Padding to the codec's stride and cropping back: the one place where source size and padded size meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def pad_to_stride(frames: npt.NDArray[np.uint8], stride: int) -> npt.NDArray[np.uint8]:
    """Pad (N, H, W, 3) at the bottom and the right to multiples of `stride`, repeating the last row and column.

    Frames that need no padding are returned as they are.
    """
    n, height, width, channels = frames.shape
    padded_h, padded_w = -(-height // stride) * stride, -(-width // stride) * stride
    if (padded_h, padded_w) == (height, width):
        return frames
    out = np.empty((n, padded_h, padded_w, channels), frames.dtype)
    for frame, target in zip(frames, out, strict=True):
        pad_into(frame, target)
    return out


def pad_into(frame: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Copy (H, W, 3) to the top left of `out`, which is as large or larger; its last row and column fill the rest."""
    height, width, _ = frame.shape
    out[:height, :width] = frame
    out[:height, width:] = frame[:, -1:]
    out[height:] = out[height - 1]


def crop(batch: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Crop (N, h, w, ...) to `size` = (H, W) from the top left; C-contiguous."""
    return np.ascontiguousarray(batch[:, : size[0], : size[1]])
