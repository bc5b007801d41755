"""An .lseg stream as a source of payloads, from a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...bitstream import Frame, Reader
from ...errors import InputError, UsageError
from .base import Source


class StreamSource(Source[Frame]):
    """The frames of an .lseg stream, still coded. `header` is the stream's.

    `size` is the source size that the header names, (0, 0) where it names none. Damaged frames are passed over and
    reported in `damages`.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(name)
        self._file = file
        try:
            self._reader = Reader(file)
        except InputError as error:
            file.close()
            raise type(error)(f"{name}: {error}", hint=error.hint) from error
        except OSError as error:
            file.close()
            raise _unreadable(name, error) from error
        self.header = self._reader.header
        self.size = self.header.source_size
        self.frame_rate = self.header.frame_rate
        self.damages = self._reader.damages

    @classmethod
    def open(cls, path: Path) -> StreamSource:
        try:
            return cls(path.open("rb"), str(path))
        except OSError as error:
            raise _unreadable(str(path), error) from error

    @classmethod
    def stdin(cls) -> StreamSource:
        return cls(open_stdin(), "stdin")

    def __iter__(self) -> Iterator[Frame]:
        count = 0
        try:
            for frame in self._reader:
                count += 1
                yield frame
        except OSError as error:
            raise _unreadable(self.name, error) from error
        if count == 0:
            lost = f"; {self.damages[0].reason}" if self.damages else ""
            raise InputError(f"{self.name}: a stream with no readable frame{lost}", hint="encode the source again")

    def close(self) -> None:
        self._file.close()


def open_stdin() -> BinaryIO:
    """Stdin as a binary file of its own.

    Not `sys.stdin.buffer`: a thread that waits in it while the interpreter exits aborts the process, because shutdown
    wants that object's lock.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("the input is '-' (stdin), but stdin is a terminal", hint="pipe something in, or name a file")
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (OSError, ValueError, AttributeError):  # stdin was replaced by an object without a descriptor, or closed
        buffer = getattr(sys.stdin, "buffer", None)
        if buffer is None:
            raise InputError(
                "stdin is closed, expected a stream on it", hint="pipe a stream in, or give a file"
            ) from None
        found: BinaryIO = buffer
        return found


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(f"cannot read {name}: {error.strerror or error}")
