"""Classified images: folders and idx files, views against Pillow and by hand, and what happens when files lie."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentseg.errors import InputError, UsageError
from latentseg.training.augment import to_float
from latentseg.training.image_sets import (
    CentreViews,
    centre_view,
    check_names,
    image_set,
    random_window,
    read_idx,
)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """As the format says, plain, or gzip for a name that ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """Seven 5x9 images of classes 2, 3 and 7; of the four that are tested, none is of class 3."""
    pixels = np.arange(7 * 45).reshape(7, 5, 9).astype(np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([3, 2, 7, 7, 3, 2, 2], np.uint8))
    write_idx(tmp_path / "t10k-images.idx3-ubyte", pixels[:4] + 100)
    write_idx(tmp_path / "t10k-labels.idx1-ubyte", np.array([7, 2, 2, 7], np.uint8))
    return tmp_path


def test_idx_files_plain_and_compressed(idx: Path) -> None:
    train, test = image_set("idx", idx, "train"), image_set("idx", idx, None)
    assert train.names == test.names == ("2", "3", "7")
    assert train.labels.tolist() == [1, 0, 2, 2, 1, 0, 0]
    assert test.labels.tolist() == [2, 0, 0, 2]
    assert len(test.images) == 4
    image = train.images[-1]
    assert image.shape == (5, 9, 3)
    assert image[0, :, 0].tolist() == [(6 * 45 + i) % 256 for i in range(9)]
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()
    assert [i[0, 0, 0] for i in train.images[1:4]] == [45, 90, 135]
    with pytest.raises(IndexError):
        _ = train.images[7]


def test_idx_in_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    write_idx(tmp_path / "train-images-idx4-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1], np.uint8))
    np.testing.assert_array_equal(image_set("idx", tmp_path, "train").images[1], pixels[1])


def test_the_first_of_each_class(idx: Path) -> None:
    found = image_set("idx", idx, "train", limit_per_class=2)
    assert found.labels.tolist() == [1, 0, 2, 2, 1, 0]
    assert [int(image[0, 0, 0]) for image in found.images] == [45 * i for i in range(6)]
    assert image_set("idx", idx, "train", limit_per_class=1).labels.tolist() == [1, 0, 2]
    assert found.names == ("2", "3", "7")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file of bytes: it begins with , expected"),
        (b"\0\0\x0d\x01\0\0\0\0", "not an idx file of bytes: it begins with 00000d01"),
        (b"\0\0\x08\x03\0\0\0\x02", "not an idx file of bytes"),
        (struct.pack(">4B2I", 0, 0, 8, 2, 3, 5) + bytes(14), r"14 bytes of values, expected 15 of \(3, 5\)"),
        (struct.pack(">4B2I", 0, 0, 8, 2, 3, 5) + bytes(16), "16 bytes of values"),
        (struct.pack(">4B4I", 0, 0, 8, 4, *[2**32 - 1] * 4), "0 bytes of values"),
        (gzip.compress(bytes(99))[:-9], "cannot read"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01x")[:-4] + b"abcd", "cannot read"),
        (b"\x1f\x8b" + bytes(20), "cannot read"),
    ],
)
def test_idx_files_that_lie(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_idx(path)


def test_idx_sets_that_do_not_fit(idx: Path) -> None:
    with pytest.raises(InputError, match="no split 'val' in layout idx") as caught:
        image_set("idx", idx, "val")
    assert "train, test" in caught.value.hint
    write_idx(idx / "t10k-labels.idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(InputError, match=r"labels of shape \(3,\) for 4 images"):
        image_set("idx", idx, "test")
    (idx / "t10k-labels.idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx"):
        image_set("idx", idx, "test")
    write_idx(idx / "train-images-idx3-ubyte.gz", np.zeros((7, 5), np.uint8))
    with pytest.raises(InputError, match=r"images of shape \(7, 5\)"):
        image_set("idx", idx, "train")
    (idx / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match="train-images-idx"):
        image_set("idx", idx, "train")
    with pytest.raises(UsageError, match="'mnist' is no layout") as usage:
        image_set("mnist", idx, "train")
    assert "imagefolder, idx" in usage.value.hint


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes, three images of different sizes and kinds."""
    rng = np.random.default_rng(0)
    for name, shape in (("cat/1.png", (9, 13, 3)), ("cat/2.JPEG", (20, 6)), ("dog/10.jpg", (1, 1, 3))):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("not a class")
    return tmp_path


def test_folders_are_classes(folders: Path) -> None:
    found = image_set("imagefolder", folders, "train")
    assert found.names == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert [image.shape for image in found.images] == [(9, 13, 3), (20, 6, 3), (1, 1, 3)]
    assert {view.shape for view in CentreViews(found, 16)} == {(16, 16, 3)}


def test_folders_that_are_not_whole(folders: Path) -> None:
    with pytest.raises(InputError, match="no split 'val'") as caught:
        image_set("imagefolder", folders, None)
    assert caught.value.hint == "folders found: train"
    (folders / "train" / "cow").mkdir()
    with pytest.raises(InputError, match=r"class folder .*cow holds no images"):
        image_set("imagefolder", folders, "train")
    (folders / "train" / "cow" / "1.png").write_bytes(b"no image at all, though it is long enough")
    with pytest.raises(InputError, match=r"1\.png is not an image"):
        image_set("imagefolder", folders, "train")
    whole = (folders / "train" / "cat" / "1.png").read_bytes()
    (folders / "train" / "cow" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"1\.png.*damaged"):
        _ = image_set("imagefolder", folders, "train").images[2]
    (folders / "empty").mkdir()
    with pytest.raises(InputError, match="holds no folders"):
        image_set("imagefolder", folders, "empty")
    with pytest.raises(InputError, match=r"no split 'train' in .*nowhere"):
        image_set("imagefolder", folders / "nowhere", "train")


def test_class_lists_that_differ() -> None:
    check_names(("a", "b"), ["a", "b"], "the classifier")
    with pytest.raises(UsageError, match="3 classes in the data, 2 of the classifier"):
        check_names(("a", "b", "c"), ["a", "b"], "the classifier")
    with pytest.raises(UsageError, match="class 1 is 'c' in the data, 'b' of the classifier"):
        check_names(("a", "c"), ["a", "b"], "the classifier")


def test_the_centre_view_is_a_resize_and_a_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    # Where both are whole numbers: shorter side to 32, and the middle 28x28 of 32x48.
    resized = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC))
    found = centre_view(image, 28, 8 / 7)
    inside = np.abs(found[2:-2, 2:-2].astype(int) - resized[4:-4, 12:-12].astype(int))
    assert inside.max() <= 1  # only the crop's edge is filtered with less
    square = np.asarray(Image.fromarray(image[:, :64]).resize((40, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(centre_view(image[:, :64], 40, 1.0), square)


def test_random_windows_lie_in_the_image_and_have_the_share_they_should() -> None:
    # The red channel says the column, the green one the row: what a view shows is where it was cut.
    y, x = np.mgrid[:100, :160]
    image = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    shares, flipped, ratios = [], 0, []
    for seed in range(200):
        view = random_window(image, 32, (0.3, 0.5), True, np.random.default_rng(seed)).astype(float)
        assert view.shape == (32, 32, 3)
        left, right, top, bottom = view[16, 0, 0], view[16, -1, 0], view[0, 16, 1], view[-1, 16, 1]
        flipped += left > right
        width, height = abs(right - left) * 32 / 31, (bottom - top) * 32 / 31
        shares.append(width * height / image[..., 0].size)
        ratios.append(width / height)
    assert 70 < flipped < 130
    assert 0.27 < min(shares) < 0.33
    assert 0.45 < max(shares) < 0.53
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.4
    whole = random_window(image[:, :100], 25, (1.0, 1.0), False, np.random.default_rng(0))
    assert whole[..., 0].max() - whole[..., 0].min() > 80


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (333, 2)])
def test_windows_of_any_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for seed in range(20):
        assert random_window(image, 8, (0.05, 1.0), True, np.random.default_rng(seed)).shape == (8, 8, 3)
    assert centre_view(image, 8, 8 / 7).shape == (8, 8, 3)


def test_same_generator_same_window() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    first, again, other = (random_window(image, 16, (0.3, 1.0), True, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_view_of_one_pixel_is_a_tensor() -> None:
    """Mirrored too: NumPy calls such a view contiguous, whatever its strides are."""
    image = np.full((5, 7, 3), 9, np.uint8)
    for seed in range(8):
        view = random_window(image, 1, (0.5, 1.0), True, np.random.default_rng(seed))
        assert to_float(view).shape == (3, 1, 1)
