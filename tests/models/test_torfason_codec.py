"""The compressive autoencoder: its PCA start against a PCA by NumPy, its symbols' bits, bad options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentseg.errors import UsageError
from latentseg.models.torfason_codec import TorfasonCodec
from latentseg.models.torfason_init import pca_init


def pictures(count: int, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Smooth colour noise, so that a PCA of 8x8 blocks has something to find."""
    noise = torch.from_numpy(np.random.default_rng(seed).random((count, 3, side // 4, side // 4), np.float32))
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)


def numpy_pca(x: torch.Tensor, channels: int, codec: TorfasonCodec) -> np.ndarray:
    """What a PCA with `channels` components leaves of the 8x8 blocks of standardised images (N, 3, H, W)."""
    mean, deviation = codec.compressor.mean.numpy(), codec.compressor.deviation.numpy()
    standard = (x.numpy() - mean) / deviation
    n, c, h, w = standard.shape
    blocks = standard.reshape(n, c, h // 8, 8, w // 8, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, c * 64)
    middle = blocks.mean(0)
    _, _, vectors = np.linalg.svd(blocks - middle, full_matrices=False)
    basis = vectors[:channels]
    restored = (blocks - middle) @ basis.T @ basis + middle
    shaped = restored.reshape(n, h // 8, w // 8, c, 8, 8).transpose(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
    return shaped * deviation + mean


@pytest.mark.parametrize("channels", [1, 8, 32])
def test_the_start_is_the_pca_of_8x8_blocks(channels: int) -> None:
    torch.manual_seed(0)
    codec = TorfasonCodec(channels, width=48)
    x = pictures(12)
    pca_init(codec, x)
    with torch.no_grad():
        z = codec.compress(x)
        restored = codec.decompress(z)  # in training mode: without the clamp
    assert z.shape == (12, channels, 6, 6)
    # The mean block is taken as one colour a quarter of it (see pca_init): a little of it may differ.
    torch.testing.assert_close(restored, torch.from_numpy(numpy_pca(x, channels, codec)), atol=0.02, rtol=0)
    # The Hadamard turn: all channels have their share of the variance, about that of the centres.
    share = z.var((0, 2, 3)) / z.var((0, 2, 3)).sum()
    assert float(share.max()) < 6 / channels
    assert float(z.std()) == pytest.approx(1, abs=0.3)


def test_a_start_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="12 channels and width 64"):
        pca_init(TorfasonCodec(12, width=64), pictures(12))
    with pytest.raises(UsageError, match="8 channels and width 32"):
        pca_init(TorfasonCodec(8, width=32), pictures(12))
    with pytest.raises(UsageError, match="36 blocks of 8x8 pixels, expected at least 192"):
        pca_init(TorfasonCodec(8, width=48), pictures(1))


@pytest.mark.parametrize(("centres", "bits"), [(2, 1), (3, 2), (6, 3), (8, 3), (9, 4), (256, 8)])
def test_symbols_have_the_fewest_bits_that_hold_the_centres(centres: int, bits: int) -> None:
    codec = TorfasonCodec(8, centres, width=8)
    assert codec.bits == bits
    assert len(codec.scaling[3]) == centres


@pytest.mark.parametrize("centres", [0, 1, 257])
def test_codebooks_of_another_size_are_refused(centres: int) -> None:
    with pytest.raises(UsageError, match=f"{centres} centres, expected 2 to 256"):
        TorfasonCodec(8, centres)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 72), (40, 24)])
def test_shapes_and_the_clamp(height: int, width: int) -> None:
    codec = TorfasonCodec(8, width=16).eval()
    x = torch.rand(2, 3, height, width)
    with torch.no_grad():
        z = codec.compress(x)
        y = codec(10 * x)
    assert z.shape == (2, 8, height // 8, width // 8)
    assert y.shape == x.shape
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
