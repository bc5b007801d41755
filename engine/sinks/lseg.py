"""An .lseg stream as an output: a file, or stdout."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ...bitstream import StreamHeader, Writer
from .base import claim_file, writing


class StreamSink:
    """Writes payloads to `dest`: a path, or "-" for stdout. The file is made by `start`, when the header is known.

    Every frame is flushed as it is written, so that an interrupted stream is readable to its last whole frame.
    """

    def __init__(self, dest: str | os.PathLike[str], overwrite: bool = False) -> None:
        self._path = None if os.fspath(dest) == "-" else Path(dest)
        self.name = "stdout" if self._path is None else str(self._path)
        self._file: BinaryIO | None = None
        self._writer: Writer | None = None
        if self._path is not None:
            claim_file(self._path, overwrite)

    def start(self, header: StreamHeader) -> None:
        """Open the output and write the header."""
        with writing(self.name):
            # Unbuffered: the writer hands over whole frames, and nothing is left to fail when the file is closed.
            self._file = sys.stdout.buffer if self._path is None else self._path.open("wb", buffering=0)
            self._writer = Writer(self._file, header)

    def write(self, payload: bytes, timestamp_us: int) -> None:
        """Write one frame. Raises OutputError."""
        assert self._writer is not None, "start() comes before write()"
        with writing(self.name):
            self._writer.write(payload, timestamp_us)

    @property
    def frames(self) -> int:
        return self._writer.frames if self._writer else 0

    @property
    def bytes_written(self) -> int:
        return self._writer.bytes_written if self._writer else 0

    def close(self) -> None:
        """Close the file (stdout stays open); may be called twice."""
        if self._file is not None and self._path is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
