"""The roles against NumPy, at every awkward size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from _tiny_bundle import block_means, labels, symbols, write_tiny_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.engine.bundle import Bundle
from latentseg.engine.geometry import crop, pad_to_stride
from latentseg.engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from latentseg.errors import ArtifactError, InputError, UsageError

SIZES = [(1, 1), (1, 8), (7, 9), (8, 8), (13, 17), (16, 24), (31, 37), (64, 1)]


def frames_of(n: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bytes_in_masks_out(tiny_bundle: Bundle, height: int, width: int) -> None:
    frames = frames_of(2, height, width)
    header = tiny_bundle.header(height, width)
    with Compressor(tiny_bundle) as compressor, Segmenter(tiny_bundle) as segmenter:
        np.testing.assert_array_equal(compressor.latents(frames), block_means(frames))
        payloads = compressor.encode(frames, header)
        latents = segmenter.entropy_decode(payloads, header)
        np.testing.assert_array_equal(latents, symbols(frames).astype(np.float32))
        found = segmenter.labels(latents, (height, width))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, labels(frames))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_decoding_first(tiny_bundle: Bundle, height: int, width: int) -> None:
    frames = frames_of(3, height, width)
    header = tiny_bundle.header(height, width)
    with Compressor(tiny_bundle) as compressor, Decompressor(tiny_bundle) as decompressor:
        decoded = decompressor.frames(
            decompressor.entropy_decode(compressor.encode(frames, header), header), (height, width)
        )
    expected = symbols(frames).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    np.testing.assert_array_equal(decoded, expected)
    with RgbSegmenter(tiny_bundle) as rgb:
        np.testing.assert_array_equal(rgb.labels(decoded), decoded.argmax(3))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17))
def test_padding_repeats_the_edge(height: int, width: int, stride: int) -> None:
    frames = frames_of(2, height, width)
    pad = ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0))
    padded = pad_to_stride(frames, stride)
    np.testing.assert_array_equal(padded, np.pad(frames, pad, mode="edge"))
    np.testing.assert_array_equal(crop(padded, (height, width)), frames)


def test_no_padding_no_copy() -> None:
    frames = frames_of(1, 16, 24)
    assert pad_to_stride(frames, 8) is frames


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 0, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_frames_that_are_none(tiny_bundle: Bundle, frames: npt.NDArray[np.uint8]) -> None:
    with Compressor(tiny_bundle) as compressor, pytest.raises(UsageError, match=r"expected uint8 \[N, H, W, 3\]"):
        compressor.latents(frames)
    with RgbSegmenter(tiny_bundle) as rgb, pytest.raises(UsageError):
        rgb.labels(frames)


def test_latents_of_another_size(tiny_bundle: Bundle) -> None:
    with Segmenter(tiny_bundle) as segmenter, pytest.raises(UsageError, match=r"expected \[N, 3, 2, 2\]"):
        segmenter.labels(np.zeros((1, 3, 2, 3), np.float32), (16, 16))


def test_damaged_payload(tiny_bundle: Bundle) -> None:
    header = tiny_bundle.header(16, 16)
    with Segmenter(tiny_bundle) as segmenter:
        for payload in (b"", b"\xff" * 40):
            with pytest.raises(InputError):
                segmenter.entropy_decode([payload], header)


def test_nan_latent_is_not_coded(tiny_bundle: Bundle) -> None:
    latents = np.zeros((1, 3, 2, 2), np.float32)
    latents[0, 1, 1, 1] = np.nan
    with Compressor(tiny_bundle) as compressor, pytest.raises(InputError) as caught:
        compressor.entropy_encode(latents, tiny_bundle.header(16, 16))
    assert caught.value.exit_code == 3


def test_wrong_codec(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", codec_seed="other")
    header = other.header(16, 16)
    with Compressor(other) as compressor, Segmenter(tiny_bundle) as segmenter:
        payloads = compressor.encode(frames_of(1, 16, 16), header)
        with pytest.raises(ArtifactError, match="was written by codec"):
            segmenter.entropy_decode(payloads, header)


def test_model_of_another_role(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from latentseg.engine.bundle import write_bundle

    models = {role: (tiny_bundle.model_path(role), 1.0, 0) for role in ("compressor", "segmenter")}
    models["segmenter"] = (tiny_bundle.model_path("rgb_segmenter"), 1.0, 0)
    mixed = write_bundle(tmp_path / "mixed", "mixed", tiny_bundle.codec, models, tiny_bundle.classes)
    with pytest.raises(ArtifactError, match="expected float32 with 4 dimensions"):
        Segmenter(mixed)
