"""Classified images: folders of classes as ImageNet has them, and the idx files of the MNIST family.

An image has the size that its file gives it, until a view of it is cut and resized to a square by Pillow's bicubic
filter. idx images stay in memory as they are stored; files of folders are decoded when they are asked for, since
ImageNet is larger than a machine's memory.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..engine.sources.images import SUFFIXES, files_in, is_image, natural_key, read_image
from ..errors import InputError, UsageError, missing_extra

Image = NDArray[np.uint8]
Rng = np.random.Generator

# Aspect ratios of the random windows, as usual for ImageNet.
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class ImageSet:
    """Images RGB uint8 (H, W, 3) of any sizes, their classes as int64 (n,), and the classes' names.

    area: the usual range of a training window's share of the image. margin: shorter side of an image over the side of
    the centre crop that is tested.
    """

    images: Sequence[Image]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    area: tuple[float, float]
    margin: float

    def limited(self, per_class: int | None) -> ImageSet:
        """The first `per_class` images of each class (None: all), in the order that they had."""
        if per_class is None:
            return self
        kept = [np.flatnonzero(self.labels == index)[:per_class] for index in range(len(self.names))]
        order = np.sort(np.concatenate(kept))
        return ImageSet(_Picked(self.images, order), self.labels[order], self.names, self.area, self.margin)


class _Lazy(Sequence[Image]):
    """A sequence of images that are made when they are asked for, by `_image`."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self._image(i) for i in range(*index.indices(self._length))]
        return self._image(range(self._length)[index])

    def _image(self, index: int) -> Image:
        raise NotImplementedError


class _Files(_Lazy):
    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(len(paths))
        self._paths = paths

    def _image(self, index: int) -> Image:
        return read_image(self._paths[index])


class _Stored(_Lazy):
    """Images of one array: uint8 (n, H, W) grey or (n, H, W, 3)."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__(len(pixels))
        self._pixels = pixels

    def _image(self, index: int) -> Image:
        found = self._pixels[index]
        return np.ascontiguousarray(np.broadcast_to(found[..., None], (*found.shape, 3)) if found.ndim == 2 else found)


class _Picked(_Lazy):
    def __init__(self, images: Sequence[Image], order: NDArray[np.int64]) -> None:
        super().__init__(len(order))
        self._images, self._order = images, order

    def _image(self, index: int) -> Image:
        return self._images[int(self._order[index])]


class CentreViews(_Lazy):
    """What is tested of a set's images: the centre, RGB uint8 (size, size, 3), of each."""

    def __init__(self, images: ImageSet, size: int) -> None:
        super().__init__(len(images.images))
        self._images, self._size, self._margin = images.images, size, images.margin

    def _image(self, index: int) -> Image:
        return centre_view(self._images[index], self._size, self._margin)


# --- views ------------------------------------------------------------------------------------------------------------


def _cut(image: Image, box: tuple[float, float, float, float], size: int) -> Image:
    try:
        from PIL import Image as pillow
    except ImportError:
        raise missing_extra("pillow", "video") from None
    found = pillow.fromarray(image).resize((size, size), pillow.Resampling.BICUBIC, box=box)
    return np.asarray(found)


def centre_view(image: Image, size: int, margin: float) -> Image:
    """The centre crop that one gets with the shorter side resized to margin * size: RGB uint8 (size, size, 3)."""
    height, width = image.shape[:2]
    side = min(height, width) / margin
    left, top = (width - side) / 2, (height - side) / 2
    return _cut(image, (left, top, left + side, top + side), size)


def random_window(image: Image, size: int, area: tuple[float, float], flip: bool, rng: Rng) -> Image:
    """A training view RGB uint8 (size, size, 3): a random window, resized, and with `flip` mirrored half the time.

    area: the window's share of the image; its aspect ratio is between 3:4 and 4:3, as far as the image has room.
    """
    height, width = image.shape[:2]
    wanted = rng.uniform(*area) * height * width
    ratio = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
    w, h = min(width, math.sqrt(wanted * ratio)), min(height, math.sqrt(wanted / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    view = _cut(image, (left, top, min(width, left + w), min(height, top + h)), size)
    # A copy: NumPy calls a mirrored view of one pixel contiguous, and torch refuses its strides.
    return view[:, ::-1].copy() if flip and rng.random() < 0.5 else view


# --- layouts ----------------------------------------------------------------------------------------------------------


def _image_folder(root: Path, split: str) -> ImageSet:
    """ROOT/SPLIT/CLASS/*.jpg: the folders' names are the classes, in order of the names."""
    where = root / split
    if not where.is_dir():
        known = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise InputError(
            f"no split '{split}' in {root}: there is no folder {where}",
            hint=f"folders found: {', '.join(known[:10])}" if known else "point --data at a folder of splits",
        )
    folders = sorted((p for p in where.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: natural_key(p.name))
    if not folders:
        raise InputError(f"{where} holds no folders, expected one for each class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found, _ = files_in(folder, SUFFIXES)
        if not found:
            raise InputError(
                f"the class folder {folder} holds no images", hint="fill it, or remove it from every split"
            )
        paths += found
        labels += [label] * len(found)
    for path in paths:
        try:
            with path.open("rb") as file:
                start = file.read(16)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        if not is_image(start):
            raise InputError(f"{path} is not an image", hint="remove it, or make it again")
    return ImageSet(_Files(paths), np.array(labels), tuple(f.name for f in folders), (0.25, 1.0), 8 / 7)


_IDX_PREFIX = {"train": "train", "test": "t10k"}


def _idx(root: Path, split: str) -> ImageSet:
    """The four files of the MNIST family, plain or .gz; a class is named by its number in the label files."""
    if split not in _IDX_PREFIX:
        raise InputError(f"no split '{split}' in layout idx", hint=f"use one of: {', '.join(_IDX_PREFIX)}")
    paths = {key: _idx_file(root, f"{prefix}-labels") for key, prefix in _IDX_PREFIX.items()}
    labels = {key: read_idx(path) for key, path in paths.items() if path is not None}
    images = _idx_file(root, f"{_IDX_PREFIX[split]}-images")
    if images is None or split not in labels:
        missing = "images" if images is None else "labels"
        raise InputError(
            f"no split '{split}' in {root}: {_IDX_PREFIX[split]}-{missing}-idx*-ubyte is not there, nor its .gz",
            hint="point --data at the folder of the idx files",
        )
    pixels, found = read_idx(images), labels[split]
    if pixels.ndim not in {3, 4} or (pixels.ndim == 4 and pixels.shape[3] != 3) or 0 in pixels.shape:
        raise InputError(
            f"{images}: images of shape {pixels.shape}, expected (n, H, W) or (n, H, W, 3), none of them 0"
        )
    if found.shape != pixels.shape[:1]:
        raise InputError(f"{paths[split]}: labels of shape {found.shape} for {len(pixels)} images")
    values = np.unique(np.concatenate([value.ravel() for value in labels.values()]))
    return ImageSet(
        _Stored(pixels), np.searchsorted(values, found), tuple(str(value) for value in values), (0.8, 1.0), 1.0
    )


def _idx_file(root: Path, stem: str) -> Path | None:
    return next(iter(sorted(p for end in ("", ".gz") for p in root.glob(f"{stem}[-.]idx*-ubyte{end}"))), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, plain or gzip. Raises InputError for anything else, or a part of one.

    Format: two zero bytes, the type (8: unsigned byte), the number of axes, each axis as big-endian u32, the values.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or not 1 <= axes <= 4 or len(data) < 4 + 4 * axes:
        raise InputError(
            f"{path} is not an idx file of bytes: it begins with {data[:4].hex()}, expected 000008 and axes"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if math.prod(shape) != len(data) - 4 - 4 * axes:
        raise InputError(f"{path}: {len(data) - 4 - 4 * axes} bytes of values, expected {math.prod(shape)} of {shape}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


LAYOUTS: dict[str, Callable[[Path, str], ImageSet]] = {"imagefolder": _image_folder, "idx": _idx}
"""Layouts of classified data; `data.LAYOUTS` has those of labelled pixels."""

# Which split is tested where none is named.
TESTED = {"imagefolder": "val", "idx": "test"}


def image_set(layout: str, root: Path, split: str | None, *, limit_per_class: int | None = None) -> ImageSet:
    """A split of a classified data set: layout "imagefolder" or "idx" under the folder `root`; None: what is tested.

    Raises UsageError for an unknown layout, InputError for data that are not there or not what the layout says.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"'{layout}' is no layout of classified images", hint=f"use one of: {', '.join(LAYOUTS)}")
    return LAYOUTS[layout](root, split or TESTED[layout]).limited(limit_per_class)


def check_names(found: Sequence[str], expected: Sequence[str], whose: str) -> None:
    """Raise UsageError where the classes of the data are not those of `whose`, one for one."""
    if list(found) == list(expected):
        return
    if len(found) != len(expected):
        detail = f"{len(found)} classes in the data, {len(expected)} of {whose}"
    else:
        place = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        detail = f"class {place} is '{found[place]}' in the data, '{expected[place]}' of {whose}"
    raise UsageError(
        f"the class lists differ: {detail}", hint="give the data set, or one with the classes, of its training"
    )


def settings_names(settings: dict[str, Any]) -> list[str]:
    """The class names that a classifier's training has stored, in order."""
    return [str(name) for name in settings.get("class_names", [])]
