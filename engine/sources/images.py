"""Images as a source: one file, or a folder of them in natural order (frame2 before frame10)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...bitstream import Damage
from ...errors import InputError, missing_extra
from .base import NOMINAL_FRAME_US, FrameSource, SourceFrame

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")


def is_image(start: bytes) -> bool:
    """Whether a file that begins with these bytes (16 or more) is an image of a kind that `ImageSource` reads."""
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    pnm = start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace()
    return webp or pnm or start.startswith(_MAGICS)


class ImageSource(FrameSource):
    """A single image, or every image directly in a folder.

    All are opened (headers only) before the first is read: one that is no image or has another size is an InputError
    at once. One whose pixels then cannot be read is passed over and reported in `damages`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._files = _images_in(path) if path.is_dir() else [path]
        self.length = len(self._files)
        self.size = _size(self._files[0])
        for file in self._files[1:]:
            found = _size(file)
            if found != self.size:
                raise InputError(
                    f"{file} is {found[0]}x{found[1]}, expected {self.size[0]}x{self.size[1]} as {self._files[0].name}",
                    hint="a stream has one size: put images of each size in a folder of their own",
                )

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, file in enumerate(self._files):
            try:
                rgb = read_image(file)
            except InputError as error:
                self.damages.append(Damage(0, str(error), index, lost=1))
                continue
            yield SourceFrame(index, index * NOMINAL_FRAME_US, rgb)
        if self.lost == len(self._files):
            raise InputError(f"{self.name}: none of {self.lost} images could be read; {self.damages[0].reason}")


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read one image as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels; 16-bit keeps its upper 8 bits; palettes are looked up; alpha is dropped.
    Raises InputError where it is missing, cut, or of a kind with no 8-bit meaning (float).
    """
    with _open(path) as image:
        try:
            return _to_rgb(image, path)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's own choice of classes for damaged files
            raise InputError(f"{path}: damaged image: {error}", hint="make the file again") from error


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which digits count as numbers: frame2 < frame10. Equal ones (a1, a01) keep one fixed order."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def files_in(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], list[Path]]:
    """(files of these suffixes in natural order, all files) of a folder, hidden ones left out. Raises InputError."""
    try:
        entries = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror or error}") from error
    return sorted((p for p in entries if p.suffix.lower() in suffixes), key=lambda p: natural_key(p.name)), entries


def _images_in(folder: Path) -> list[Path]:
    images, entries = files_in(folder, SUFFIXES)
    if not images:
        if not entries:
            raise InputError(f"{folder} holds no files, expected images", hint="give a folder with images in it")
        found = ", ".join(sorted({p.suffix or p.name for p in entries})[:5])
        raise InputError(
            f"{folder} holds no images (found {found}), expected {', '.join(sorted(SUFFIXES))}",
            hint="give a folder with images in it, or the path of one video",
        )
    return images


def _open(path: Path) -> Image.Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise missing_extra("pillow", "video") from error
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        # UnidentifiedImageError repeats the path; everything else says what is wrong.
        known = isinstance(error, UnidentifiedImageError)
        raise InputError(f"{path} is not an image" if known else f"cannot read {path}: {error}") from error


def _size(path: Path) -> tuple[int, int]:
    with _open(path) as image:
        return image.height, image.width


def _to_rgb(image: Image.Image, path: Path) -> npt.NDArray[np.uint8]:
    if image.mode == "F":
        raise InputError(f"{path}: float image, expected 8 or 16 bits", hint="convert it to 8 bits first")
    if image.mode.startswith("I"):
        return _grey_to_rgb(_upper_byte(np.asarray(image), path))
    if image.mode in {"L", "LA"}:
        return _grey_to_rgb(np.asarray(image.getchannel("L")))
    # Pillow itself reads 16-bit colour as its upper 8 bits.
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _upper_byte(grey: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    # Pillow's own conversion of 16-bit grey to 8 clips at 255, which turns most of an image white.
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 0xFFFF:
        raise InputError(f"{path}: grey values from {low} to {high}, expected 0 to 65535")
    return (grey.astype(np.uint16) >> 8).astype(np.uint8)


def _grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)
