"""JPEGs through DALI on the CPU, against Pillow; damaged ones between good ones; the header reader."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from _clip import clip
from PIL import Image

from latentseg.engine.geometry import pad_to_stride
from latentseg.errors import InputError, UsageError

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'latentseg[dali]'")

from latentseg.engine.sources.dali import DaliImages
from latentseg.engine.sources.dali.jpeg import jpeg_size


def jpeg(picture: npt.NDArray[np.uint8], **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", **options)
    return out.getvalue()


def pillow(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def frames(source: DaliImages) -> npt.NDArray[np.uint8]:
    return np.concatenate([batch.host() for batch in source.batches()])


def rotated() -> Any:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"quality": 90},
    "4:2:2": {"quality": 75, "subsampling": 1},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "coarse": {"quality": 10},
    "progressive": {"quality": 80, "progressive": True},
    "restarts": {"quality": 80, "restart_marker_blocks": 3},
    "rotated by EXIF": {"quality": 80, "exif": rotated()},
    "thumbnail": {"quality": 80, "comment": b"\xff\xd9 within a comment"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(37, 53), (1, 1), (8, 16), (127, 3)])
def test_pixels_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    data = [jpeg(picture, **KINDS[kind]) for picture in clip(3, *size)]
    assert jpeg_size(data[0]) == size
    with DaliImages(data, 2, threads=1) as source:
        assert source.size == size
        np.testing.assert_array_equal(frames(source), np.stack([pillow(d) for d in data]))


def test_grey_becomes_three_channels() -> None:
    data = jpeg(clip(1)[0, :, :, 0])
    with DaliImages([data], threads=1) as source:
        np.testing.assert_array_equal(frames(source)[0], pillow(data))


@pytest.mark.parametrize("stride", [8, 16, 53])
def test_padding_to_the_stride(stride: int) -> None:
    data = [jpeg(picture) for picture in clip(3)]
    expected = np.stack([pillow(d) for d in data])
    with DaliImages(data, 2, threads=1, stride=stride) as source:
        np.testing.assert_array_equal(frames(source), pad_to_stride(expected, stride))
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in source]), expected)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    """Whole by its header and its end, and with most of the coded data missing: libjpeg only warns."""
    scan = data.index(b"\xff\xda")
    return data[: scan + 16] + b"\xff\xd9"


def bad_codes(data: bytes) -> bytes:
    """Whole by its header and its end, with a Huffman table of more codes than there can be: DALI fails."""
    at = data.index(b"\xff\xc4")
    return data[: at + 5] + b"\xff" * 16 + data[at + 21 :]


@pytest.mark.parametrize("damage", [cut, bad_codes, lambda data: b"", lambda data: b"hello" * 20])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9])
def test_damaged_files_are_named_and_passed_over(damage: Any, batch: int, tmp_path: Path) -> None:
    good = [jpeg(picture) for picture in clip(8)]
    bad = {2, 3, 7}
    files = [tmp_path / f"frame{n}.jpg" for n in range(8)]
    for n, file in enumerate(files):
        file.write_bytes(damage(good[n]) if n in bad else good[n])
    for source in (DaliImages(tmp_path, batch, threads=1), DaliImages(files, batch, threads=1)):
        with source:
            for _ in range(2):  # the second time too
                found = list(source.batches())
                indices = [int(index) for b in found for index in b.indices]
                assert indices == [0, 1, 4, 5, 6]
                for frame, index in zip(np.concatenate([b.host() for b in found]), indices, strict=True):
                    np.testing.assert_array_equal(frame, pillow(good[index]))
                assert sorted(d.frame_index or 0 for d in source.damages) == sorted(bad)
                assert source.lost == 3
                for d in source.damages:
                    assert d.reason.startswith(f"{files[d.frame_index or 0]}: ")


def test_coded_data_that_is_missing_is_grey_as_with_pillow() -> None:
    data = emptied(jpeg(clip(1)[0]))
    with DaliImages([data], threads=1) as source:
        np.testing.assert_array_equal(frames(source)[0], pillow(data))


def test_damaged_first_and_all_damaged(tmp_path: Path) -> None:
    good = jpeg(clip(1)[0])
    with DaliImages([cut(good), good], 2, threads=1) as source:
        assert [b.indices.tolist() for b in source.batches()] == [[1]]
        assert [d.reason for d in source.damages] == [
            f"image 0: cut JPEG: its {len(cut(good))} bytes end before the picture begins"
        ]
    with pytest.raises(InputError, match="none of 2 images could be read; image 0: cut JPEG"):
        DaliImages([cut(good), cut(good)])
    with (
        DaliImages([bad_codes(good), bad_codes(good)], 2, threads=1) as source,
        pytest.raises(InputError, match="none of 2 images could be read; image 0: "),
    ):
        next(source.batches())


def test_another_size_comes_behind_what_was_good(tmp_path: Path) -> None:
    data = [jpeg(picture) for picture in clip(5)] + [jpeg(clip(1, 38, 53)[0])]
    with DaliImages(data, 2, threads=1) as source:
        found = source.batches()
        assert [next(found).indices.tolist() for _ in range(3)] == [[0, 1], [2, 3], [4]]
        with pytest.raises(InputError, match="image 5 is 38x53, expected 37x53"):
            next(found)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_another_size_behind_a_damaged_file_is_still_an_error(batch: int) -> None:
    good, other = [jpeg(picture) for picture in clip(4)], jpeg(clip(1, 38, 53)[0])
    found: list[int] = []
    with (
        DaliImages([good[0], bad_codes(good[1]), good[2], other, good[3]], batch, threads=1) as source,
        pytest.raises(InputError, match="image 3 is 38x53, expected 37x53"),
    ):
        found.extend(frame.index for frame in source)
    assert found == [0, 2]


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    for n, picture in enumerate(clip(4)):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(picture))
    with DaliImages(tmp_path, 3, threads=1) as source:
        (tmp_path / "1.jpg").unlink()
        assert [b.indices.tolist() for b in source.batches()] == [[0, 2, 3]]
        assert [d.reason for d in source.damages] == [f"{tmp_path}/1.jpg: cannot read it: No such file or directory"]


def test_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    pictures = clip(12)
    for n in range(12):
        (tmp_path / f"frame{n + 1}.{'JPG' if n % 2 else 'jpeg'}").write_bytes(jpeg(pictures[n]))
    (tmp_path / "notes.txt").write_text("not read")
    (tmp_path / ".hidden.jpg").write_bytes(b"not read")
    with DaliImages(tmp_path, 5, threads=1) as source:
        np.testing.assert_array_equal(frames(source), np.stack([pillow(jpeg(p)) for p in pictures]))


def test_sources_that_hold_no_jpeg(tmp_path: Path) -> None:
    empty, png = tmp_path / "empty", tmp_path / "png"
    empty.mkdir()
    png.mkdir()
    Image.fromarray(clip(1)[0]).save(png / "a.png")
    for source, says in (
        ([], "an empty sequence"),
        (empty, "holds no JPEGs .found nothing"),
        (png, r"holds no JPEGs .found \.png"),
        (png / "a.png", "not a JPEG: .* begin with 89 50 4e 47"),
        (tmp_path / "none.jpg", "no such file"),
        ([jpeg(clip(1)[0]), tmp_path / "none.jpg"], "no such file"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            DaliImages(source)
        assert caught.value.hint
    with pytest.raises(UsageError, match="stride is 0"):
        DaliImages([jpeg(clip(1)[0])], stride=0)
    with pytest.raises(UsageError, match=r"hardware_share is 1\.5"):
        DaliImages([jpeg(clip(1)[0])], hardware_share=1.5)


def test_a_header_that_is_cut_anywhere_is_an_input_error() -> None:
    data = jpeg(clip(1, 8, 8)[0], comment=b"\xff\xd9")
    assert jpeg_size(data) == (8, 8)
    assert jpeg_size(data + b"trailing bytes") == (8, 8)
    for length in range(len(data)):
        with pytest.raises(InputError):
            jpeg_size(data[:length])
    random = np.random.default_rng(0)
    for _ in range(300):  # bytes that are wrong anywhere: a size or an InputError, nothing else
        wrong = bytearray(data)
        for at in random.integers(2, len(data), 3):
            wrong[at] = random.integers(256)
        with contextlib.suppress(InputError):
            assert min(jpeg_size(bytes(wrong))) > 0


@pytest.mark.parametrize(
    ("code", "bits", "components", "says"),
    [(0xC3, 8, 3, "SOF3"), (0xC9, 8, 3, "SOF9"), (0xC1, 12, 3, "12 bits"), (0xC0, 8, 4, "4 components")],
)
def test_kinds_of_jpeg_that_are_refused(code: int, bits: int, components: int, says: str) -> None:
    data = bytearray(jpeg(clip(1)[0]))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4], data[at + 9] = code, bits, components
    with pytest.raises(InputError, match=says):
        jpeg_size(bytes(data))
