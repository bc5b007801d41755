"""Images as a source: every pixel format to RGB, natural order, one size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentseg.engine.sources import open_frames, open_source
from latentseg.engine.sources.images import natural_key, read_image
from latentseg.errors import BackendMissingError, InputError, UsageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def as_rgb(grey: Any) -> Any:
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def test_colour_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    alpha = np.concatenate([RGB, GREY[:, :, None]], axis=2)
    Image.fromarray(alpha).save(tmp_path / "rgba.png")
    for name in ("rgb.png", "rgba.png"):
        found = read_image(tmp_path / name)
        np.testing.assert_array_equal(found, RGB)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous


def test_grey(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "l.png")
    Image.fromarray(np.stack([GREY, GREY[::-1]], axis=2), "LA").save(tmp_path / "la.png")
    Image.fromarray(GREY > 127).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "l.png"), as_rgb(GREY))
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), as_rgb(GREY))
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), as_rgb((GREY > 127) * np.uint8(255)))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path, name: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), as_rgb(DEEP >> 8))


def test_16_bit_colour_keeps_its_upper_byte(tmp_path: Path) -> None:
    # Pillow cannot write 16-bit colour: a binary PPM by hand, big-endian.
    deep = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    (tmp_path / "deep.ppm").write_bytes(b"P6\n7 5\n65535\n" + deep.astype(">u2").tobytes())
    found = read_image(tmp_path / "deep.ppm").astype(int)
    # Its PPM reader scales by 255/65535 instead of shifting; the two differ by rounding only.
    assert np.abs(found - (deep >> 8)).max() <= 1


def test_32_bit_grey_outside_16_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match="from 70000 to 70000, expected 0 to 65535"):
        read_image(tmp_path / "i.tif")
    with pytest.raises(InputError, match="float image"):
        read_image(tmp_path / "f.tif")


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 3)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "p.png")
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), colors[GREY % 3])


def test_folder_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1, 100):
        Image.fromarray(np.full((3, 5, 3), number, np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not one either")
    with open_frames(tmp_path) as source:
        assert (source.size, source.length, source.frame_rate, source.live) == ((3, 5), 4, (0, 1), False)
        frames = list(source)
    assert [int(f.rgb[0, 0, 0]) for f in frames] == [1, 9, 10, 100]
    assert [(f.index, f.timestamp_us) for f in frames] == [(i, i * 40_000) for i in range(4)]


def test_natural_key_orders_mixed_names() -> None:
    names = ["b1", "a10", "a2", "A1", "a", "1", "a02b", "10a"]
    assert sorted(names, key=natural_key) == ["1", "10a", "a", "A1", "a2", "a02b", "a10", "b1"]


def test_single_image_whatever_its_name(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "snapshot.mp4")
    with open_frames(tmp_path / "snapshot.mp4") as source:
        assert source.length == 1
        np.testing.assert_array_equal(next(iter(source)).rgb, RGB)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (13, 17)])
def test_awkward_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "x.png")
    with open_frames(tmp_path / "x.png") as source:
        assert source.size == size
        assert next(iter(source)).rgb.shape == (*size, 3)


def test_mixed_sizes_name_the_first_that_differs(tmp_path: Path) -> None:
    for number, size in enumerate([(4, 6), (4, 6), (6, 4), (8, 8)]):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=r"2\.png is 6x4, expected 4x6 as 0\.png") as caught:
        open_source(tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files") as caught:
        open_source(tmp_path)
    assert (caught.value.exit_code, bool(caught.value.hint)) == (3, True)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no images \(found \.mp4\)"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="is a folder, expected a file"):
        open_source(tmp_path, "video")


def test_file_that_is_no_image_is_found_at_once(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("hello")
    with pytest.raises(InputError, match=r"2\.png is not an image"):
        open_source(tmp_path)


def test_cut_image_is_passed_over_and_the_others_come_out(tmp_path: Path) -> None:
    big = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(big).save(tmp_path / f"{number}.png")
    cut = (tmp_path / "1.png").read_bytes()[:2000]
    (tmp_path / "1.png").write_bytes(cut)
    with open_frames(tmp_path) as source:
        assert [f.index for f in source] == [0, 2]
        assert source.lost == 1
        assert source.damages[0].frame_index == 1
        assert "1.png" in source.damages[0].reason
    with open_frames(tmp_path / "1.png") as source, pytest.raises(InputError, match="damaged image"):
        list(source)


def test_missing_unreadable_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="is empty, 0 bytes"):
        open_source(tmp_path / "empty.png")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is played.
    (tmp_path / "x.png").write_bytes(b"x")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        open_source(tmp_path / "x.png")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(InputError, match="exceeds limit"):
        open_source(tmp_path / "x.png")


def test_unknown_kind_and_pillow_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="unknown kind of source 'film'"):
        open_source(tmp_path / "x.png", "film")
    with pytest.raises(UsageError, match="images cannot be read from stdin"):
        open_source("-", "images")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BackendMissingError, match="pillow"):
        open_source(tmp_path / "x.png")
