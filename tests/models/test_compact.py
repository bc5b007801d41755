"""The compact networks: contracts, PCA start, rate model against a plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latentseg.models import registry
from latentseg.models.complexity import count
from latentseg.models.rate_model import LaplaceRateModel


def natural_patches(count_: int) -> torch.Tensor:
    """Smooth random 8x8 RGB patches (count, 192): a random walk of colours, far from white noise."""
    rng = np.random.default_rng(0)
    low = torch.tensor(rng.uniform(0, 1, (count_, 3, 3, 3)), dtype=torch.float32)
    smooth = F.interpolate(low, size=(8, 8), mode="bicubic", align_corners=True).clamp(0, 1)
    noise = 0.05 * torch.tensor(rng.standard_normal((count_, 3, 8, 8)), dtype=torch.float32)
    return F.pixel_unshuffle((smooth + noise).clamp(0, 1), 8)[:, :, 0, 0]


def test_pca_start_is_the_pca() -> None:
    patches = natural_patches(600)
    codec = registry.create("compact-codec", channels=12).eval()
    codec.pca_init(patches, step=20.0)
    # Independent truth: singular value decomposition in NumPy, projection onto the 12 leading directions.
    data = patches.double().numpy() - 0.5
    mean = data.mean(0)
    _, _, vt = np.linalg.svd(data - mean, full_matrices=False)
    expected = (data - mean) @ vt[:12].T @ vt[:12] + mean + 0.5
    image = F.pixel_shuffle(patches[:, :, None, None], 8)
    with torch.no_grad():
        z = codec.compress(image)
        decoded = F.pixel_unshuffle(codec.decompress(z), 8)[:, :, 0, 0]
    inside = (expected > 0) & (expected < 1)  # outside, the decompressor clamps
    np.testing.assert_allclose(decoded.numpy()[inside], expected[inside], atol=2e-4)
    # An orthonormal coefficient in units of 1/255, divided by the step.
    scores = (data - mean) @ vt[:12].T * 255.0 / 20.0
    np.testing.assert_allclose(np.abs(z[:, :, 0, 0].numpy()), np.abs(scores), atol=5e-3)


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (104, 136)])
def test_codec_shapes_and_straight_through(size: tuple[int, int]) -> None:
    codec = registry.create("compact-codec", channels=7)
    x = torch.rand(2, 3, *size)
    z = codec.compress(x)
    assert z.shape == (2, 7, size[0] // 8, size[1] // 8)
    assert codec.decompress(z).shape == x.shape
    big = torch.tensor([[-500.0, -1.6, 0.4, 0.5, 1.5, 500.0]], requires_grad=True)
    q = codec.quantised(big)
    assert q.tolist() == [[-128.0, -2.0, 0.0, 0.0, 2.0, 127.0]]  # half to even, clipped to the range
    q.sum().backward()
    assert big.grad is not None
    assert big.grad.tolist() == [[1.0] * 6]


def test_fixed_scaling_is_plain_rounding() -> None:
    mode, lo, hi = registry.create("compact-codec", bits=6).scaling
    assert (mode, lo, hi) == ("fixed", -32.0, 31.0)
    assert hi - lo == 2**6 - 1


def reference_bits(row: list[float], a: float, s: float, p: float, q: float) -> list[float]:
    """The docstring's formula, symbol by symbol, in double precision."""

    def cdf(x: float) -> float:
        return 0.5 * math.exp(x) if x < 0 else 1 - 0.5 * math.exp(-x)

    bits, errors, before = [], [0.0, 0.0], 0.0
    for z in row:
        e = z - a * before
        scale = s + p * abs(errors[-1]) + q * abs(errors[-2])
        bits.append(-math.log2(cdf((e + 0.5) / scale) - cdf((e - 0.5) / scale)))
        errors.append(e)
        before = z
    return bits


def test_rate_model_against_the_formula() -> None:
    model = LaplaceRateModel(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    rng = np.random.default_rng(1)
    z = torch.tensor(rng.integers(-6, 7, (1, 2, 3, 9)), dtype=torch.float32)
    found = model.bits(z)
    for c in range(2):
        a = torch.sigmoid(20 * model.mean_logit[c]).item()
        s, p, q = (F.softplus(20 * w[c]).item() for w in (model.scale_floor, model.weight1, model.weight2))
        for y in range(3):
            expected = reference_bits(z[0, c, y].tolist(), a, s, p, q)
            np.testing.assert_allclose(found[0, c, y].detach().numpy(), expected, rtol=2e-4, atol=2e-4)
    assert model(z).item() == pytest.approx(found.sum().item())


def test_rate_model_is_a_distribution_and_finite_far_out() -> None:
    model = LaplaceRateModel(1)
    row = torch.arange(-400.0, 401.0)
    # The first symbol of a row has no history, so the probabilities of all its values sum to one.
    bits = model.bits(row[:, None, None, None])[:, 0, 0, 0]
    assert torch.exp2(-bits.double()).sum().item() == pytest.approx(1.0, abs=1e-4)
    far = torch.tensor([[[[-128.0, 127.0, -128.0, 127.0]]]], requires_grad=True)
    total = model(far)
    total.backward()
    assert torch.isfinite(total)
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_segmenters_share_trunk_and_head_and_stay_compact() -> None:
    rgb, latent = registry.create("compact-rgb"), registry.create("compact-latent", channels=32)
    shapes = {n: p.shape for n, p in rgb.trunk.state_dict().items()}
    assert shapes == {n: p.shape for n, p in latent.trunk.state_dict().items()}
    for module in (rgb, latent):
        assert 1e6 <= sum(p.numel() for p in module.parameters()) <= 3e6
    frame = count(rgb, (1, 3, 360, 480)).macs
    from_latent = count(latent, (1, 32, 45, 60)).macs
    assert from_latent < frame  # the saving before any decoding is counted


@pytest.mark.parametrize("size", [(8, 8), (24, 72), (56, 104)])
def test_segmenter_shapes(size: tuple[int, int]) -> None:
    rgb, latent = registry.create("compact-rgb", classes=5).eval(), registry.create("compact-latent", channels=4).eval()
    with torch.no_grad():
        assert rgb(torch.rand(1, 3, *size)).shape == (1, 5, size[0] // 2, size[1] // 2)
        assert latent(torch.rand(1, 4, size[0] // 8, size[1] // 8)).shape == (1, 11, size[0] // 2, size[1] // 2)
