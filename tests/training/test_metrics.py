"""Metrics against scikit-image, hand counts and brute force."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentseg.errors import InputError, UsageError
from latentseg.training.metrics import ConfusionMatrix, bpp, compression_factor, psnr, ssim


def pair(shape: tuple[int, ...], noise: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    base = 128 + 90 * np.sin(x / 7.0) * np.cos(y / 5.0)
    base = base if len(shape) == 2 else base[..., None] + np.arange(shape[2]) * 10.0
    noisy = base + rng.normal(0, noise, shape)
    return np.clip(base, 0, 255).astype(np.uint8), np.clip(noisy, 0, 255).astype(np.uint8)


# --- images ---


@pytest.mark.parametrize("shape", [(11, 11, 3), (37, 53, 3), (13, 97), (64, 48, 1)])
@pytest.mark.parametrize("noise", [0.5, 20.0, 200.0])
def test_against_scikit_image(shape: tuple[int, ...], noise: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pair(shape, noise)
    expected = metrics.structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=None if a.ndim == 2 else -1,
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)


def test_ssim_by_its_definition() -> None:
    # One 11x11 window: the formula of the paper with weighted moments.
    a, b = (x.astype(float) for x in pair((11, 11), 30.0))
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    w = np.outer(line, line) / line.sum() ** 2
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(a, b) == pytest.approx(expected, abs=1e-12)


def test_known_values() -> None:
    a = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == 1.0
    # One level everywhere: MSE 1. In uint8 a difference of -1 would wrap to 255.
    assert psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr(a + np.uint8(1), a) == pytest.approx(20 * math.log10(255))
    assert psnr(np.array([0.0]), np.array([0.5]), data_range=1.0) == pytest.approx(20 * math.log10(2))


def test_ssim_is_fast_enough_for_video() -> None:
    a, b = pair((360, 480, 3), 10.0)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        ssim(a, b)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # about 0.05 s on an idle core; a loop over pixels would take many seconds


def test_images_that_do_not_fit() -> None:
    a = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(16, 16, 3\) and \(16, 15, 3\)"):
        psnr(a, a[:, :15])
    with pytest.raises(InputError, match="differ in shape"):
        ssim(a, a[..., :1])
    with pytest.raises(InputError, match="11x11"):
        ssim(a[:10], a[:10])
    with pytest.raises(InputError, match="empty"):
        psnr(a[:0], a[:0])


# --- rates ---


def test_rates() -> None:
    assert bpp(1000, 8000) == 1.0
    assert compression_factor(1000, 8000) == 24.0
    # The paper's bpp of 24 / 66 is a compression factor of 66 against 24-bit RGB.
    assert bpp(100, 200) * compression_factor(100, 200) == 24.0
    with pytest.raises(UsageError):
        bpp(1, 0)
    with pytest.raises(UsageError):
        compression_factor(0, 1)


# --- label maps ---


def test_confusion_by_hand() -> None:
    cm = ConfusionMatrix(4)
    cm.update(np.array([[0, 0, 1], [1, 2, 255]], np.uint8), np.array([[0, 1, 1], [1, 0, 3]], np.uint8))
    assert cm.matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cm.iou(), [1 / 3, 2 / 3, 0.0, np.nan])
    np.testing.assert_allclose(cm.dice(), [1 / 2, 4 / 5, 0.0, np.nan])
    assert cm.miou() == pytest.approx(1 / 3)
    assert cm.mean_dice() == pytest.approx(1.3 / 3)
    assert cm.pixel_accuracy() == pytest.approx(3 / 5)


@pytest.mark.parametrize("ignore", [255, 0, 7, None])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_confusion_by_brute_force(ignore: int | None, dtype: type) -> None:
    rng = np.random.default_rng(5)
    classes = 6
    cm = ConfusionMatrix(classes, ignore)
    sets: dict[str, list[set[tuple[int, int]]]] = {k: [set() for _ in range(classes)] for k in ("truth", "guess")}
    for image in range(3):
        truth: Any = rng.integers(0, classes - 1, (7, 11)).astype(dtype)  # the last class never appears in the labels
        guess: Any = rng.integers(0, classes, (7, 11)).astype(dtype)
        if ignore is not None:
            truth[rng.random(truth.shape) < 0.2] = ignore
        cm.update(truth, guess)
        for place, (t, g) in enumerate(zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True)):
            if t != ignore:
                sets["truth"][t].add((image, place))
                sets["guess"][g].add((image, place))
    ious, dices = [], []
    for t, g in zip(sets["truth"], sets["guess"], strict=True):
        ious.append(len(t & g) / len(t | g) if t | g else np.nan)
        dices.append(2 * len(t & g) / (len(t) + len(g)) if t | g else np.nan)
    np.testing.assert_allclose(cm.iou(), ious)
    np.testing.assert_allclose(cm.dice(), dices)
    assert cm.miou() == pytest.approx(np.nanmean(ious))
    assert cm.mean_dice() == pytest.approx(np.nanmean(dices))
    right = sum(len(t & g) for t, g in zip(sets["truth"], sets["guess"], strict=True))
    assert cm.pixel_accuracy() == pytest.approx(right / sum(map(len, sets["truth"])))


def test_to_dict_is_json() -> None:
    cm = ConfusionMatrix(3)
    cm.update(np.array([0, 1], np.uint8), np.array([0, 0], np.uint8))
    found = json.loads(json.dumps(cm.to_dict(["sky", "road", "pole"]), allow_nan=False))
    assert found["iou"] == {"sky": 0.5, "road": 0.0, "pole": None}
    assert found["pixels"] == 2
    assert found["miou"] == 0.25
    with pytest.raises(UsageError, match="3 classes"):
        cm.to_dict(["sky"])


def test_nothing_counted_is_nan_not_an_error() -> None:
    cm = ConfusionMatrix(2)
    cm.update(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))
    cm.update(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8))
    assert math.isnan(cm.miou())
    assert math.isnan(cm.mean_dice())
    assert math.isnan(cm.pixel_accuracy())
    assert cm.to_dict()["miou"] is None


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (np.array([3]), np.array([0]), "label 3 is not a class: expected 0 to 2 or 255"),
        (np.array([-1]), np.array([0]), "label -1"),
        (np.array([0]), np.array([3]), "prediction 3 is not a class: expected 0 to 2$"),
        (np.array([0]), np.array([255]), "prediction 255"),
        (np.array([0, 1]), np.array([0]), "differ in shape"),
        (np.array([0.0]), np.array([0]), "labels must be integers, found float64"),
    ],
)
def test_wrong_label_maps_change_nothing(labels: NDArray[Any], predictions: NDArray[Any], message: str) -> None:
    cm = ConfusionMatrix(3)
    with pytest.raises(InputError, match=message):
        cm.update(labels, predictions)
    assert cm.matrix.sum() == 0


def test_imports_no_torch() -> None:
    code = "import sys, latentseg.training.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
