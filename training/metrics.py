"""Scores of images, rates and label maps. NumPy only, so that a machine without torch can score what it decoded.

Compression factors are against 8-bit RGB (24 bit a pixel), never against float32 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's Gaussian window: 11x11


def psnr(image: NDArray[Any], reference: NDArray[Any], *, data_range: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(data_range^2 / MSE), the MSE over all samples in float64.

    Two arrays of one shape and any dtype; inf where they are equal. Raises InputError when the shapes differ or are
    empty.
    """
    _same_shape(image, reference)
    error = float(np.mean(np.square(image.astype(np.float64) - reference.astype(np.float64))))
    return math.inf if error == 0 else 10.0 * math.log10(data_range**2 / error)


def ssim(image: NDArray[Any], reference: NDArray[Any], *, data_range: float = 255.0) -> float:
    """Mean structural similarity (Wang et al. 2004) of two images (H,W,3) or (H,W), H and W at least 11.

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population (not sample) covariance, in float64. The
    mean is over the positions where the window lies inside the image, then over the channels: on RGB as it is, without
    a luma conversion. The same as scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False). Raises InputError for other shapes.
    """
    _same_shape(image, reference)
    window = 2 * _RADIUS + 1
    if image.ndim not in (2, 3) or min(image.shape[:2]) < window:
        raise InputError(f"SSIM needs images (H,W,3) or (H,W) of at least {window}x{window}, found {image.shape}")
    if image.ndim == 2:
        image, reference = image[..., None], reference[..., None]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    scores = []
    for channel in range(image.shape[2]):
        x = image[..., channel].astype(np.float64)
        y = reference[..., channel].astype(np.float64)
        mean_x, mean_y = _gaussian(x), _gaussian(y)
        product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
        covariance = _gaussian(x * y) - product
        # Only the sum of the two variances is needed: one filter less.
        variances = _gaussian(x * x + y * y) - squares
        scores.append(np.mean((2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))))
    return float(np.mean(scores))


def bpp(count: int, pixels: int) -> float:
    """Bits a source pixel: 8 * bytes / pixels. Raises UsageError without pixels."""
    if pixels <= 0:
        raise UsageError(f"bits a pixel need at least one pixel, not {pixels}")
    return 8.0 * count / pixels


def compression_factor(count: int, pixels: int) -> float:
    """How many times fewer bytes than 8-bit RGB: 3 * pixels / bytes. Raises UsageError without bytes."""
    if count <= 0:
        raise UsageError(f"a compression factor needs at least one byte, not {count}")
    return 3.0 * pixels / count


class ConfusionMatrix:
    """Counts of pixels by label (row) and prediction (column), pooled over everything that it was given.

    classes: labels and predictions lie in [0, classes). ignore: this label is void; its pixels count nowhere,
    whatever was predicted there. `matrix`: int64 [classes, classes].
    """

    def __init__(self, classes: int, ignore: int | None = 255) -> None:
        if classes < 1:
            raise UsageError(f"a confusion matrix needs at least one class, not {classes}")
        self.classes = classes
        self.ignore = ignore
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)

    def update(self, labels: NDArray[Any], predictions: NDArray[Any]) -> None:
        """Add two integer arrays of one shape.

        Raises InputError for other shapes, dtypes or values, and adds nothing then.
        """
        _same_shape(predictions, labels, empty=True)
        for name, array in (("labels", labels), ("predictions", predictions)):
            if not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"{name} must be integers, found {array.dtype}")
        truth, guess = labels.ravel(), predictions.ravel()
        if self.ignore is not None:
            kept = truth != self.ignore
            truth, guess = truth[kept], guess[kept]
        for name, array in (("label", truth), ("prediction", guess)):
            outside = array[(array < 0) | (array >= self.classes)]
            if outside.size:
                void = f" or {self.ignore} (ignored)" if name == "label" and self.ignore is not None else ""
                raise InputError(f"{name} {outside[0]} is not a class: expected 0 to {self.classes - 1}{void}")
        pairs = truth.astype(np.int64) * self.classes + guess
        self.matrix += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class: float64 [classes].

        nan for a class that neither labels nor predictions have; 0 for one that is predicted and never labelled.
        """
        hits = np.diagonal(self.matrix)
        return _ratio(hits, self.matrix.sum(0) + self.matrix.sum(1) - hits)

    def miou(self) -> float:
        """Mean of `iou` over the classes that labels or predictions have; nan when there is none."""
        return _mean(self.iou())

    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient (F1) of each class, float64 [classes]: 2 hits / (labelled + predicted); nan as for `iou`."""
        return _ratio(2 * np.diagonal(self.matrix), self.matrix.sum(0) + self.matrix.sum(1))

    def mean_dice(self) -> float:
        """Macro average of `dice`: the plain mean over the classes present, each computed from the pooled counts.

        Not the mean over images, and not the micro average, which is the pixel accuracy.
        """
        return _mean(self.dice())

    def pixel_accuracy(self) -> float:
        """Share of the pixels that are not ignored whose prediction is right; nan when there are none."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    def to_dict(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All scores as plain Python values for JSON: nan becomes None. names: of the classes, in order."""
        keys = [str(index) for index in range(self.classes)] if names is None else list(names)
        if len(keys) != self.classes:
            raise UsageError(f"{self.classes} classes need as many names, found {len(keys)}")
        return {
            "miou": _plain(self.miou()),
            "mean_dice": _plain(self.mean_dice()),
            "dice_averaging": "macro over classes, pooled over images",
            "pixel_accuracy": _plain(self.pixel_accuracy()),
            "pixels": int(self.matrix.sum()),
            "iou": {key: _plain(value) for key, value in zip(keys, self.iou(), strict=True)},
            "dice": {key: _plain(value) for key, value in zip(keys, self.dice(), strict=True)},
        }


def _same_shape(found: NDArray[Any], expected: NDArray[Any], *, empty: bool = False) -> None:
    if found.shape != expected.shape:
        raise InputError(f"the two arrays differ in shape: {found.shape} and {expected.shape}")
    if not empty and found.size == 0:
        raise InputError(f"nothing to compare: both arrays are empty, of shape {found.shape}")


def _gaussian(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The separable Gaussian window at every position where it fits: (H,W) -> (H-10,W-10)."""
    weights = np.exp(-0.5 * (np.arange(_RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for _ in range(2):  # along the rows' axis, and after the transposition along the other
        size = x.shape[0] - 2 * _RADIUS
        out = x[_RADIUS : _RADIUS + size] * weights[0]
        pair = np.empty_like(out)
        for offset in range(1, _RADIUS + 1):
            # The window is symmetric: one product for the two samples at this distance.
            low, high = _RADIUS - offset, _RADIUS + offset
            np.add(x[low : low + size], x[high : high + size], out=pair)
            pair *= weights[offset]
            out += pair
        x = np.ascontiguousarray(out.T)
    return x


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """part / whole, nan where whole is 0, without a warning."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
