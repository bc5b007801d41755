"""JPEG bytes and the search for the quality whose size is nearest, against trying every quality."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentseg.benchmarks import jpeg


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, size=(3, 6, 8, 3))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2) + rng.integers(-9, 10, size=(3, 24, 32, 3))
    return list(np.clip(smooth, 0, 255).astype(np.uint8))


def mean_size(frames: list[NDArray[np.uint8]], quality: int, subsampling: str, optimise: bool) -> float:
    sizes = []
    for frame in frames:
        target = io.BytesIO()
        options = {"subsampling": {"4:4:4": 0, "4:2:0": 2}[subsampling], "optimize": optimise}
        Image.fromarray(frame).save(target, "JPEG", quality=quality, **options)
        sizes.append(len(target.getvalue()))
    return sum(sizes) / len(sizes)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("optimise", [True, False])
def test_nearest_of_all_qualities(frames: list[NDArray[np.uint8]], subsampling: str, optimise: bool) -> None:
    sizes = {quality: mean_size(frames, quality, subsampling, optimise) for quality in range(1, 101)}
    for target in (sizes[5], sizes[40] + 0.4, sizes[77] - 3.0, 0.5 * (sizes[90] + sizes[91])):
        match = jpeg.nearest_quality(frames, target, subsampling=subsampling, optimise=optimise)
        assert match.reached
        assert match.mean_bytes == sizes[match.quality]
        nearest = min(abs(size - target) for size in sizes.values())
        # Sizes need not grow strictly on so tiny a frame; what the search may miss is a byte or two.
        assert abs(match.mean_bytes - target) <= nearest + 2.0


def test_search_is_exact_where_sizes_grow() -> None:
    def encoder(frame: NDArray[np.uint8], quality: int, **_: object) -> bytes:
        return bytes(quality * 10)

    frame = [np.zeros((1, 1, 3), np.uint8)]
    for target, quality in ((10.0, 1), (14.0, 1), (16.0, 2), (504.9, 50), (505.1, 51), (1000.0, 100)):
        match = jpeg.nearest_quality(frame, target, encoder=encoder)
        assert (match.quality, match.reached) == (quality, True)
    assert jpeg.nearest_quality(frame, 9.0, encoder=encoder) == jpeg.Match(1, "4:2:0", True, 10.0, False)
    assert jpeg.nearest_quality(frame, 1001.0, encoder=encoder) == jpeg.Match(100, "4:2:0", True, 1000.0, False)


def test_round_trip_shape_and_closeness(frames: list[NDArray[np.uint8]]) -> None:
    for frame in [*frames, frames[0][:7, :5], frames[0][:1, :1]]:
        back = jpeg.decode(jpeg.encode(np.ascontiguousarray(frame), 95, subsampling="4:4:4"))
        assert back.shape == frame.shape
        assert back.dtype == np.uint8
        assert np.abs(back.astype(int) - frame).mean() < 6
