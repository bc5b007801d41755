"""Sources: video files, cameras and stream URLs, image folders, single images, and .lseg streams or pipes."""

from __future__ import annotations

import os
from pathlib import Path

from ...bitstream.header import MAGIC
from ...errors import InputError, UsageError
from .base import FrameSource, Source, SourceFrame
from .images import ImageSource, is_image
from .stream import StreamSource, open_stdin
from .video import VideoSource

__all__ = ["KINDS", "FrameSource", "Source", "SourceFrame", "StreamSource", "open_frames", "open_source"]

# Kinds that DALI decodes, and on which device: the CPU, or the first GPU.
_DALI: dict[str, int | None] = {"dali": None, "dali-gpu": 0}
KINDS = ("video", "images", "lseg", *_DALI)
_MJPEG_SUFFIXES = frozenset({".mjpeg", ".mjpg"})  # a film that begins as a single JPEG does


def open_source(spec: str | os.PathLike[str], kind: str | None = None) -> FrameSource | StreamSource:
    """Open what `spec` names, by what it holds rather than by what it is called.

    spec: path of a video, an image, a folder of images or an .lseg stream; "-" for an .lseg stream on stdin (or
    video, with kind="video"); a URL that FFmpeg can read; "camera:0" or a /dev/video path.
    kind: "video", "images" or "lseg" where the guess is wrong; None to guess; "dali" or "dali-gpu" to decode a video
        file or JPEGs with NVIDIA DALI, on the CPU or the first GPU.

    Raises
    ------
    InputError: missing, unreadable, empty, not what it says, images of several sizes, a video without frames.
    UsageError: unknown kind. BackendMissingError: PyAV, Pillow or DALI is needed and not installed, or there is no GPU.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown kind of source '{kind}'", hint=f"known: {', '.join(KINDS)}")
    text = os.fspath(spec)
    if text == "-":
        if kind == "images" or kind in _DALI:
            raise UsageError(f"{kind} cannot be read from stdin", hint="give a file or a folder")
        return VideoSource(open_stdin(), "stdin") if kind == "video" else StreamSource.stdin()
    if "://" in text or text.startswith("camera:"):
        if kind not in {None, "video"}:
            raise UsageError(
                f"{text} can only be read as video, not as '{kind}'",
                hint="fetch it first, and give the file or pipe it in ('-')",
            )
        return VideoSource(text)
    return _open_path(Path(text), kind)


def open_frames(spec: str | os.PathLike[str], kind: str | None = None) -> FrameSource:
    """As `open_source`, for work that needs pixels: a pipe holds video, and an .lseg stream is an InputError."""
    if kind is None and (os.fspath(spec) == "-" or Path(spec).is_fifo()):
        kind = "video"
    source = open_source(spec, kind)
    if isinstance(source, StreamSource):
        source.close()
        raise InputError(
            f"{source.name} is already an .lseg stream, expected a video or images",
            hint="decode it first: latentseg decode",
        )
    return source


def _open_path(path: Path, kind: str | None) -> FrameSource | StreamSource:
    if not path.exists():
        raise InputError(f"no such file or folder: {path}", hint="check the path")
    if kind in _DALI:
        from .dali import open_dali

        return open_dali(path, _DALI[kind])
    if path.is_dir():
        if kind in {"video", "lseg"}:
            raise InputError(f"{path} is a folder, expected a file of kind '{kind}'")
        return ImageSource(path)
    if kind is None:
        kind = "video" if path.is_char_device() else _guess(path)
    if kind == "lseg":
        return StreamSource.open(path)
    return ImageSource(path) if kind == "images" else VideoSource(str(path))


def _guess(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".lseg" or path.is_fifo():  # reading ahead would eat a pipe's first bytes
        return "lseg"
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions") from error
    if not start:
        raise InputError(f"{path} is empty, 0 bytes", hint="give a video, an image, or an .lseg stream")
    if start.startswith(MAGIC):
        return "lseg"
    return "images" if is_image(start) and suffix not in _MJPEG_SUFFIXES else "video"
