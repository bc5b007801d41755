"""Data sets: pairs of image and label files, and plain frames, read from folders that users already have.

Images are kept as uint8 in memory once read (CamVid's 367 train frames take 190 MB): decoding PNG again every epoch
would cost more than a training step of the compact networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.sources import open_frames
from ..engine.sources.images import SUFFIXES as IMAGE_SUFFIXES
from ..engine.sources.images import read_image
from ..errors import InputError, UsageError, missing_extra

IGNORE = 255
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".ts"}


@dataclass(frozen=True)
class ClassSet:
    """Class names, their display colours (RGB), and how label values of the files map to class indices.

    `mapping` has 256 entries: label value in the file to class index, `IGNORE` for what is left out of loss and scores.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    mapping: NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    image: Path
    label: Path


_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

# Cityscapes: label id in *_labelIds.png, name, colour; the other 15 of the 34 ids are void.
_CITYSCAPES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)


_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def camvid_classes() -> ClassSet:
    """The 11 classes of CamVid's 480x360 form; value 11 (unlabelled) and everything above is ignored."""
    mapping = np.full(256, IGNORE, np.uint8)
    mapping[: len(_CAMVID)] = np.arange(len(_CAMVID))
    return ClassSet(tuple(n for n, _ in _CAMVID), tuple(c for _, c in _CAMVID), mapping)


def cityscapes_classes() -> ClassSet:
    """The 19 evaluated classes of Cityscapes; the other label ids are ignored."""
    mapping = np.full(256, IGNORE, np.uint8)
    for index, (label_id, _, _) in enumerate(_CITYSCAPES):
        mapping[label_id] = index
    return ClassSet(tuple(n for _, n, _ in _CITYSCAPES), tuple(c for _, _, c in _CITYSCAPES), mapping)


def voc_classes() -> ClassSet:
    """Background and the 20 classes of PASCAL VOC; 255, the outlines of objects, and what is no class is ignored."""
    mapping = np.full(256, IGNORE, np.uint8)
    mapping[: len(_VOC)] = np.arange(len(_VOC))
    return ClassSet(_VOC, tuple(voc_color(index) for index in range(len(_VOC))), mapping)


def voc_color(index: int) -> tuple[int, int, int]:
    """RGB of an entry of VOC's palette: bit 3k + c of the index is bit 7 - k of channel c."""
    red, green, blue = (sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3))
    return red, green, blue


def _listed(folder: Path, split: str, fields: str) -> list[list[str]]:
    """The lines of `folder/SPLIT.txt`, each with as many words as `fields`. Raises InputError."""
    listing = folder / f"{split}.txt"
    if not listing.is_file():
        known = sorted(p.stem for p in folder.glob("*.txt")) if folder.is_dir() else []
        raise InputError(
            f"no split '{split}' in {folder}: {listing.name} is not there",
            hint=f"splits found: {', '.join(known)}" if known else "check --data and --layout",
        )
    rows = []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != len(fields.split()):
            raise InputError(f"{listing}, line {number}: expected '{fields}', found {line!r}")
        rows.append(parts)
    return rows


def camvid_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of `root/SPLIT.txt`, whose lines are "image label", relative to `root` (SegNet's layout of CamVid)."""
    return _checked([Pair(root / image, root / label) for image, label in _listed(root, split, "image label")], root)


def voc_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of VOC's folders: JPEGImages/ID.jpg, SegmentationClass/ID.png, the ids in ImageSets/Segmentation/SPLIT.txt.

    The labels of the split "trainaug" (VOC's train images and those of Hariharan et al. 2011) are in
    SegmentationClassAug, as they are usually kept.
    """
    labels = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    names = [name for (name,) in _listed(root / "ImageSets" / "Segmentation", split, "id")]
    return _checked([Pair(root / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png") for name in names], root)


def cityscapes_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of the Cityscapes folder layout: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/.../*_labelIds.png."""
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    pairs = []
    for image in images:
        stem = image.name.removesuffix("_leftImg8bit.png")
        pairs.append(Pair(image, root / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png"))
    return _checked(pairs, root / "leftImg8bit" / split)


LAYOUTS = {
    "camvid": (camvid_classes, camvid_pairs),
    "cityscapes": (cityscapes_classes, cityscapes_pairs),
    "voc": (voc_classes, voc_pairs),
}


def class_set(layout: str) -> ClassSet:
    """The classes of a layout's data, without the data."""
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}'", hint=f"use one of: {', '.join(LAYOUTS)}")
    return LAYOUTS[layout][0]()


def labelled(layout: str, root: Path, split: str) -> tuple[ClassSet, list[Pair]]:
    """Classes and pairs of a data set: layout "camvid", "cityscapes" or "voc" under the folder `root`.

    split: a split of the data; with ":fit" or ":tune" behind it, a part of that split: see `carve`.
    """
    name, colon, part = split.partition(":")
    classes, pairs = class_set(layout), LAYOUTS[layout][1](root, name)
    return classes, carve(pairs, part) if colon else pairs


def carve(pairs: Sequence[Pair], part: str) -> list[Pair]:
    """The part of a split to learn from ("fit"), or the one to choose settings by ("tune"), so that no other split is.

    Of each sequence (file names alike up to their first underscore: a drive of CamVid, a city of Cityscapes, a year of
    VOC) the last fifth, in the order of the names, is for tuning. The pair in front of it is in neither part: in a
    drive it shows nearly what the first of them shows.
    """
    if part not in {"fit", "tune"}:
        raise UsageError(f"no part '{part}' of a split", hint="a split may end in ':fit' or ':tune'")
    sequences: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.image.name):
        sequences.setdefault(pair.image.name.partition("_")[0], []).append(pair)
    chosen: list[Pair] = []
    for found in sequences.values():
        cut = len(found) - len(found) // 5
        chosen += found[cut:] if part == "tune" else found[: cut - (cut < len(found))]
    if not chosen:
        raise InputError(f"no pairs to tune on: {len(pairs)} in sequences of less than five", hint="leave ':tune' out")
    return chosen


def _checked(pairs: list[Pair], where: Path) -> list[Pair]:
    if not pairs:
        raise InputError(f"no labelled images under {where}", hint="check --data, --layout and --split")
    for pair in pairs:
        for path in (pair.image, pair.label):
            if not path.is_file():
                raise InputError(f"missing file {path}", hint=f"{where} lists it")
    return pairs


def read_label(path: Path, classes: ClassSet) -> NDArray[np.uint8]:
    """One label file, single-channel 8-bit, as class indices uint8 (H, W) with `IGNORE` where there is no class."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("pillow", "video") from None
    try:
        with Image.open(path) as image:
            if image.mode not in {"L", "P"}:
                raise InputError(f"{path}: a label image has one 8-bit channel, found mode {image.mode}")
            label: NDArray[np.uint8] = classes.mapping[np.asarray(image)]
            return label
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read label {path}: {error}") from None


def read_pairs(pairs: Sequence[Pair], classes: ClassSet) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """All images and labels of `pairs`, checked to have equal sizes pair by pair."""
    images = [read_image(p.image) for p in pairs]
    labels = [read_label(p.label, classes) for p in pairs]
    for pair, image, label in zip(pairs, images, labels, strict=True):
        if image.shape[:2] != label.shape:
            raise InputError(f"{pair.label}: label is {label.shape}, its image {image.shape[:2]}")
    return images, labels


def read_frames(root: Path, every: int = 1, limit: int | None = None) -> list[NDArray[np.uint8]]:
    """Frames for a codec: all images under a folder (recursively), or of a video file, every n-th of them.

    Returns RGB uint8 arrays (H, W, 3), which may differ in size. Raises InputError where nothing is found.
    """
    if not root.exists():
        raise InputError(f"no such file or folder: {root}")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    frames: list[NDArray[np.uint8]] = []
    counter = 0
    for path in files:
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            with open_frames(path) as video:
                source = [frame.rgb for frame in video]
        elif suffix in IMAGE_SUFFIXES:
            source = [read_image(path)]
        else:
            continue
        for frame in source:
            if counter % every == 0:
                frames.append(frame)
            counter += 1
            if limit is not None and len(frames) >= limit:
                return frames
    if not frames:
        raise InputError(f"no image or video under {root}", hint="expected PNG, JPEG, WebP, TIFF, or a video file")
    return frames
