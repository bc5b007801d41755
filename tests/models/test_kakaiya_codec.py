"""net_C, net_D: shapes at every size, and the initialisation against a PCA written in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentseg.errors import UsageError

torch = pytest.importorskip("torch")

from latentseg.models import registry  # noqa: E402
from latentseg.models.kakaiya_codec import pca_init  # noqa: E402


def smooth_images(count: int, height: int, width: int, seed: int = 0) -> NDArray[Any]:
    """float32 (count, 3, height, width) in [0, 1]: sums of random waves, so that neighbours are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    images = np.zeros((count, 3, height, width))
    for n in range(count):
        for _ in range(12):
            fy, fx = rng.normal(0, 0.25, 2)
            phase = rng.uniform(0, 6.28, 3) if rng.random() < 0.3 else np.full(3, rng.uniform(0, 6.28))
            wave = np.cos(fy * y + fx * x + phase[:, None, None])
            images[n] += wave * rng.uniform(0.2, 1)
        images[n] = (images[n] - images[n].min()) / (images[n].max() - images[n].min())
    return images.astype(np.float32)


def numpy_pca(images: NDArray[Any], block: int, components: int) -> NDArray[Any]:
    """Reconstruction of every block of `block` x `block` x 3 samples from its first principal components."""
    n, c, h, w = images.shape
    rows = images.reshape(n, c, h // block, block, w // block, block).transpose(0, 2, 4, 1, 3, 5)
    flat = rows.reshape(-1, c * block * block).astype(np.float64)
    mean = flat.mean(0)
    _, _, axes = np.linalg.svd(flat - mean, full_matrices=False)
    axes = axes[:components]
    back = (flat - mean) @ axes.T @ axes + mean
    result: NDArray[Any] = back.reshape(rows.shape).transpose(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
    return result


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (17, 23), (1, 1), (31, 5)])
def test_shapes_round_up(d: int, height: int, width: int) -> None:
    codec: Any = registry.create(f"kakaiya-codec-d{d}")
    assert (codec.stride, codec.channels, codec.bits, codec.scaling) == (2 ** (d + 1), 16, 8, ("tensor", 0.0, 0.0))
    with torch.no_grad():
        z = codec.compress(torch.rand(2, 3, height, width))
        x = codec.decompress(z)
    h, w = -(-height // codec.stride), -(-width // codec.stride)
    assert z.shape == (2, 16, h, w)
    assert x.shape == (2, 3, h * codec.stride, w * codec.stride)
    for values in (z, x):
        assert 0.0 <= float(values.min()) <= float(values.max()) <= 1.0


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="bits"):
        registry.create("kakaiya-codec-d2", bits=9)
    codec: Any = registry.create("kakaiya-codec-d3")
    with pytest.raises(UsageError, match="768"):
        pca_init(codec, torch.rand(1, 3, 64, 64))
    with pytest.raises(UsageError, match=r"\(3, 64, 64\)"):
        pca_init(codec, torch.rand(3, 64, 64))


@pytest.mark.parametrize(("d", "height", "width"), [(1, 36, 44), (2, 72, 88)])
def test_pca_init_is_a_pca(d: int, height: int, width: int) -> None:
    # Up to 64 samples a level nothing is lost before the last layer, and the 16 first of the 64 first components are
    # the 16 first: d = 1 and 2 are exactly the PCA of 4x4 and 8x8 blocks.
    torch.manual_seed(0)
    images = smooth_images(6, height, width)
    codec: Any = registry.create(f"kakaiya-codec-d{d}")
    pca_init(codec, torch.from_numpy(images))
    with torch.no_grad():
        z = codec.compress(torch.from_numpy(images))
        found = codec.decompress(z).numpy()
    expected = np.clip(numpy_pca(images, codec.stride, 16), 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    lows, highs = z.amin(dim=(0, 2, 3)).numpy(), z.amax(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(lows, 0.05, atol=1e-3)
    np.testing.assert_allclose(highs, 0.95, atol=1e-3)


def test_pca_init_d3_is_hierarchical() -> None:
    torch.manual_seed(0)
    images = smooth_images(8, 160, 176)
    codec: Any = registry.create("kakaiya-codec-d3")
    pca_init(codec, torch.from_numpy(images))
    with torch.no_grad():
        found = codec(torch.from_numpy(images)).numpy()
    # The first level's 64 of 192 components lose a little more than one PCA of the whole 16x16 block.
    error = np.mean((found - images) ** 2)
    best = np.mean((numpy_pca(images, 16, 16) - images) ** 2)
    coarse = np.mean((numpy_pca(images, 16, 8) - images) ** 2)
    assert best * 0.99 <= error <= min(1.1 * best, coarse)


def test_pca_init_can_learn() -> None:
    # Every parameter that matters gets a gradient: no channel starts dead, no clamp is closed.
    torch.manual_seed(0)
    images = torch.from_numpy(smooth_images(6, 72, 88))
    codec: Any = registry.create("kakaiya-codec-d2")
    pca_init(codec, images)
    ((codec(images) - images) ** 2).mean().backward()
    last = [layer for layer in codec.compressor if isinstance(layer, torch.nn.Conv2d)][-1]
    assert bool((last.weight.grad.abs().amax(dim=(1, 2, 3)) > 0).all())


@pytest.mark.shared
def test_pca_init_on_camvid(shared_data: Path) -> None:
    image = pytest.importorskip("PIL.Image")

    def load(pattern: str, step: int) -> Any:
        paths = sorted((shared_data / "camvid" / pattern).glob("*.png"))[::step]
        return (
            torch.stack([torch.from_numpy(np.array(image.open(p).convert("RGB"))).permute(2, 0, 1) for p in paths])
            / 255
        )

    codec: Any = registry.create("kakaiya-codec-d2")
    pca_init(codec, load("train", 12))
    frames = load("val", 10)
    with torch.no_grad():
        error = ((codec(frames) - frames) ** 2).mean(dim=(1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 26.8
