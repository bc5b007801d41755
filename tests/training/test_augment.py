"""Augmentation: image and label stay aligned, draws are a function of the generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from latentseg.errors import UsageError
from latentseg.training.augment import jitter, random_patch, random_view, recolour, to_float
from latentseg.training.train_codec import CodecConfig


def aligned_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red channel says its label: blocks of 12x12 pixels, label 0..9, red = 20 * label + 20."""
    label = (np.arange(height)[:, None] // 12 + np.arange(width)[None] // 12) % 10
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 20 * label + 20
    return image, label.astype(np.uint8)


@pytest.mark.parametrize("size", [(48, 64), (37, 53)])
def test_view_keeps_image_and_label_aligned(size: tuple[int, int]) -> None:
    image, label = aligned_pair(60, 83)
    agree = []
    for seed in range(12):
        x, y = random_view(image, label, size, np.random.default_rng(seed), jitter_strength=0.0)
        assert x.shape == (3, *size)
        assert y.shape == size
        known = y != 255
        agree.append(((x[0][known] * 255 - 20) / 20 - y[known]).abs().lt(0.5).float().mean().item())
    # Only the borders of blocks are blended by the interpolation.
    assert min(agree) > 0.6
    assert np.mean(agree) > 0.75


def test_same_generator_same_view() -> None:
    image, label = aligned_pair(40, 40)
    first, second = (random_view(image, label, (32, 32), np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    other = random_view(image, label, (32, 32), np.random.default_rng(6))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("shape", [(300, 400), (31, 17), (1, 1)])
def test_patch_of_any_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for seed in range(5):
        patch = random_patch(image, 64, np.random.default_rng(seed), (0.5, 1.25))
        assert patch.shape == (3, 64, 64)
        assert patch.min() >= 0
        assert patch.max() <= 1


def test_jitter_of_strength_zero_is_the_identity() -> None:
    x = to_float(np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8))
    torch.testing.assert_close(jitter(x.clone(), np.random.default_rng(0), 0.0), x, atol=1e-6, rtol=0)


def luma(x: torch.Tensor) -> torch.Tensor:
    return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]


def test_recolour_stretches_the_distance_from_grey() -> None:
    x = 0.4 + 0.2 * torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = recolour(x, np.random.default_rng(0), (1.5, 1.5), 0.0)
    torch.testing.assert_close(found, luma(x) + 1.5 * (x - luma(x)), atol=1e-5, rtol=0)


def test_recolour_turns_hues_and_leaves_luma_and_grey() -> None:
    x = 0.4 + 0.2 * torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0] = 0.5
    turned = [recolour(x, np.random.default_rng(seed), (1.0, 1.0), 180.0) for seed in range(20)]
    for y in turned:
        torch.testing.assert_close(luma(y), luma(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(y[:, 0, 0], x[:, 0, 0], atol=1e-5, rtol=0)
    # What is blue among them was red: the angle comes from the generator.
    assert len({tuple(y[:, 1, 1].argsort().tolist()) for y in turned}) > 2
    assert torch.equal(turned[3], recolour(x, np.random.default_rng(3), (1.0, 1.0), 180.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"saturation": (0.0, 1.0)}, "saturation from 0.0 to 1.0"),
        ({"saturation": (2.0, 1.0)}, "0 < LO <= HI"),
        ({"saturation": (1.0, float("inf"))}, "both finite"),
        ({"hue": 181.0}, "expected 0 to 180"),
        ({"hue": float("nan")}, "expected 0 to 180"),
    ],
)
def test_colours_out_of_range(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CodecConfig(**given)
