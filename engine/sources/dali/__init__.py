"""Input pipelines on NVIDIA DALI: video and JPEG to frames, .lseg files to planned payloads, on a GPU or a CPU.

All three give batches through the same small contract, `BatchSource`: so many at a time, counted exactly, prefetched.
Videos and images are sources of frames too, for `Engine.encode` and `Engine.segment`.
"""

from __future__ import annotations

from pathlib import Path

from ....errors import InputError
from ..base import FrameSource
from .batches import BatchSource, FrameBatch, PayloadBatch
from .images import DaliImages
from .jpeg import is_jpeg
from .payloads import DaliPayloads
from .video import DaliVideo

__all__ = ["BatchSource", "DaliImages", "DaliPayloads", "DaliVideo", "FrameBatch", "PayloadBatch", "open_dali"]


def open_dali(path: Path, device: int | None = None) -> FrameSource:
    """A folder of JPEGs, one JPEG, or a video, by what it holds, as a source of frames.

    Raises InputError, BackendMissingError, as `DaliImages` and `DaliVideo`.
    """
    if path.is_dir():
        return DaliImages(path, device=device)
    if not path.is_file():
        raise InputError(f"no such file or folder: {path}", hint="DALI reads files; kind='video' reads pipes too")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    bare_film = path.suffix.lower() in {".mjpeg", ".mjpg"}  # begins as a single JPEG does
    return DaliImages(path, device=device) if is_jpeg(start) and not bare_film else DaliVideo(path, device=device)
