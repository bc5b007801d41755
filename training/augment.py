"""Augmentation on the image, before any encoding: a codec must see what a camera could have sent.

Every draw comes from the generator that is passed in, so a step's batch depends on the seed and the step only and a
resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .data import IGNORE

Rng = np.random.Generator


def to_float(image: NDArray[np.uint8]) -> Tensor:
    """RGB uint8 (H, W, 3) to float32 (3, H, W) in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1).float().div_(255.0)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp_(0, 1)


def jitter(image: Tensor, rng: Rng, strength: float) -> Tensor:
    """Brightness, contrast, saturation and gamma, each by a factor drawn from [1 - strength, 1 + strength]."""
    brightness, contrast, saturation, gamma = (1.0 + strength * rng.uniform(-1, 1, 4)).tolist()
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * saturation
    image = (image - image.mean()) * contrast + image.mean() * brightness
    return image.clamp_(0, 1).pow(gamma)


# RGB to luma and two colour differences, ITU-R BT.601; for random changes of colour that leave the luma alone.
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def recolour(image: Tensor, rng: Rng, saturation: tuple[float, float], hue: float) -> Tensor:
    """Colours stronger or weaker, and turned about the grey axis; luma as it was, where nothing leaves [0, 1].

    image: RGB float32 (3, H, W) in [0, 1]. saturation: range of the factor on the colour differences, uniform in the
    logarithm. hue: the largest turn, degrees. Returns an image like the given one, clamped to [0, 1].
    """
    factor = float(np.exp(rng.uniform(np.log(saturation[0]), np.log(saturation[1]))))
    angle = np.radians(hue) * rng.uniform(-1, 1)
    turn = np.eye(3)
    turn[1:, 1:] = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = torch.from_numpy(np.linalg.inv(_YCC) @ turn @ _YCC).float()
    return torch.einsum("ij,jhw->ihw", matrix, image).clamp_(0, 1)


def random_patch(image: NDArray[np.uint8], size: int, rng: Rng, scales: tuple[float, float]) -> Tensor:
    """A square crop for codec training: a random window, rescaled by a factor from `scales`, flipped half the time.

    Returns float32 (3, size, size) in [0, 1]. Images smaller than the window are padded by edge replication.
    """
    scale = float(np.exp(rng.uniform(np.log(scales[0]), np.log(scales[1]))))
    window = round(size / scale)
    height, width = image.shape[:2]
    window = min(window, max(size, height), max(size, width))
    pad_h, pad_w = max(0, window - height), max(0, window - width)
    if pad_h or pad_w:
        image = np.pad(image, ((0, pad_h), (0, pad_w), (0, 0)), mode="edge")
        height, width = image.shape[:2]
    top, left = rng.integers(height - window + 1), rng.integers(width - window + 1)
    patch = to_float(image[top : top + window, left : left + window])
    if rng.random() < 0.5:
        patch = patch.flip(2)
    return _resize(patch, (size, size))


def random_view(
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    size: tuple[int, int],
    rng: Rng,
    scales: tuple[float, float] = (0.6, 1.9),
    jitter_strength: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """A labelled training view: random scale about the canvas, random position, flip, colour jitter.

    image uint8 (H, W, 3), label uint8 (H, W); size: canvas (height, width). Above scale 1 a window is enlarged; below,
    the image is reduced and what the canvas has left over is the image's mean colour, ignored in the label.
    Returns float32 (3, h, w) in [0, 1] and int64 (h, w).
    """
    scale = float(np.exp(rng.uniform(np.log(scales[0]), np.log(scales[1]))))
    height, width = size
    window_h, window_w = min(image.shape[0], round(height / scale)), min(image.shape[1], round(width / scale))
    top, left = rng.integers(image.shape[0] - window_h + 1), rng.integers(image.shape[1] - window_w + 1)
    window = to_float(image[top : top + window_h, left : left + window_w])
    target = torch.from_numpy(label[top : top + window_h, left : left + window_w].astype(np.int64))
    out_h, out_w = min(height, round(window_h * scale)), min(width, round(window_w * scale))
    window = jitter(_resize(window, (out_h, out_w)), rng, jitter_strength)
    target = F.interpolate(target[None, None].float(), size=(out_h, out_w), mode="nearest-exact")[0, 0].long()
    canvas = window.mean((1, 2), keepdim=True).expand(3, height, width).clone()
    canvas_label = torch.full((height, width), IGNORE, dtype=torch.int64)
    y, x = rng.integers(height - out_h + 1), rng.integers(width - out_w + 1)
    canvas[:, y : y + out_h, x : x + out_w] = window
    canvas_label[y : y + out_h, x : x + out_w] = target
    if rng.random() < 0.5:
        canvas, canvas_label = canvas.flip(2), canvas_label.flip(1)
    return canvas, canvas_label
