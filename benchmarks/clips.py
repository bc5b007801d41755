"""The frames that a measurement runs on, all in memory, with their ground truth where there is one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError, missing_extra

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
DEFAULT_FRAMES = 128
_PAIRS_HINT = "each line: IMAGE LABEL, relative to the file's own folder"


@dataclass
class Clip:
    """Frames `(H, W, 3)` uint8 of one size, and what is known about them.

    name, labels_name: short, for tables and recorded rows (no folder of this machine). labels: `(H, W)` uint8 a frame,
    or None. video: the file, where the frames come from one. notes: for people, about what was left out.
    """

    name: str
    frames: list[Frame]
    frame_rate: tuple[int, int] = (0, 1)
    labels: list[Labels] | None = None
    labels_name: str | None = None
    video: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.frames[0].shape[0], self.frames[0].shape[1]


def load_clip(
    source: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None, frames: int = DEFAULT_FRAMES
) -> Clip:
    """Load at most `frames` frames of a video, an image folder, or a text file of "IMAGE LABEL" lines.

    labels: a folder of label images (grey or palette: the stored number is the class), one for each image under the
    same name without suffix (for a video: in natural order, one a frame); or a text file of "IMAGE LABEL" lines that
    names the source's images.

    Raises
    ------
    InputError: something is missing, unreadable, of another size, or no label image. UsageError: labels given twice.
    """
    if frames < 1:
        raise UsageError(f"{frames} frames, expected at least 1")
    path = Path(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        if labels is not None:
            raise UsageError("a text file of pairs names its own labels", hint="leave out --labels")
        return _load_pairs(path, frames)
    clip, names = _load_source(source, frames)
    if labels is not None:
        clip.labels = list(_labels_for(names, Path(labels), clip))
        clip.labels_name = _short(Path(labels))
    return clip


def _load_source(source: str | os.PathLike[str], limit: int) -> tuple[Clip, list[str] | None]:
    """The clip, and the file stem of each frame (None for a video)."""
    from ..engine.sources import open_frames
    from ..engine.sources.images import SUFFIXES, natural_key
    from ..engine.sources.video import VideoSource

    path = Path(source)
    with open_frames(source) as opened:
        taken = list(itertools.islice(opened, limit))
        clip = Clip(_short(path), [frame.rgb for frame in taken], opened.frame_rate)
        if opened.length is not None and opened.length > limit:
            clip.notes.append(f"only the first {limit} of about {opened.length} frames were used (--frames)")
        clip.notes.extend(f"passed over: {damage.reason}" for damage in opened.damages)
        if isinstance(opened, VideoSource):
            clip.video = path if path.is_file() else None
            return clip, None
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    visible = [file for file in files if file.is_file() and not file.name.startswith(".")]
    ordered = sorted(visible, key=lambda file: natural_key(file.name))  # as the source itself orders them
    return clip, [ordered[frame.index].stem for frame in taken]


def _load_pairs(path: Path, limit: int) -> Clip:
    from ..engine.sources.images import read_image

    pairs = read_pairs(path)
    clip = Clip(f"{path.resolve().parent.name}/{path.name}", [], labels=[], labels_name=path.name)
    if len(pairs) > limit:
        clip.notes.append(f"only the first {limit} of {len(pairs)} pairs were used (--frames)")
    for image, label in pairs[:limit]:
        frame = read_image(image)
        clip.frames.append(frame)
        if frame.shape[:2] != clip.size:
            raise InputError(f"{image} is {frame.shape[:2]}, expected {clip.size} as the first: one size is measured")
        assert clip.labels is not None
        clip.labels.append(read_labels(label, clip.size))
    return clip


def read_pairs(path: Path) -> list[tuple[Path, Path]]:
    """The (image, label) paths of a text file, empty lines skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the pairs in {path}: {error}", hint=_PAIRS_HINT) from error
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise InputError(f"{path}, line {number}: {len(parts)} words, expected 2", hint=_PAIRS_HINT)
        pairs.append((path.parent / parts[0], path.parent / parts[1]))
    if not pairs:
        raise InputError(f"{path} names no pairs", hint=_PAIRS_HINT)
    return pairs


def read_labels(path: Path, size: tuple[int, int]) -> Labels:
    """A label image as `(H, W)` uint8: the stored number (grey value or palette index) is the class."""
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            if image.mode not in {"L", "P"}:
                raise InputError(f"{path} has mode {image.mode}, expected class numbers in one 8-bit channel")
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the labels in {path}: {error}") from error
    if labels.shape != size:
        raise InputError(f"{path} is {labels.shape[0]}x{labels.shape[1]}, expected {size[0]}x{size[1]} as its frame")
    return labels


def _labels_for(names: list[str] | None, where: Path, clip: Clip) -> Iterator[Labels]:
    """The label image of each frame, by its name; in natural order for a video, whose frames have none."""
    from ..engine.sources.images import natural_key

    if where.is_dir():
        files = [file for file in where.iterdir() if file.suffix.lower() == ".png" and file.name[0] != "."]
        by_name = {file.stem: file for file in sorted(files, key=lambda file: natural_key(file.name))}
    else:
        by_name = {image.stem: label for image, label in read_pairs(where)}
    ordered = list(by_name) if names is None else names
    if names is None and len(ordered) < len(clip.frames):
        raise InputError(f"{where} holds {len(ordered)} labels, expected one for each of {len(clip.frames)} frames")
    for name in ordered[: len(clip.frames)]:
        if name not in by_name:
            raise InputError(f"{where} has no labels for the image {name!r}", hint="name each label image as its frame")
        yield read_labels(by_name[name], clip.size)


def _short(path: Path) -> str:
    """A name for rows: the last part of the path, and nothing of this machine's folders."""
    return path.resolve().name or str(path)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "video") from None
    return Image
