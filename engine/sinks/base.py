"""What every sink shares: claiming its output before any work is done, and one error for a write that fails."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from ...errors import OutputError, UsageError
from ..result import ClassifiedResult, Result

T = TypeVar("T", bound=Result | ClassifiedResult, contravariant=True)


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn an OSError (full disk, lost permission) into OutputError; a closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {name}: {error.strerror or error}",
            hint="free space or choose another place; what was written before stays readable",
        ) from error


def claim_file(path: Path, overwrite: bool) -> None:
    """Raise UsageError unless a file can be made at `path`: its folder exists, and it is free or may be overwritten.

    Devices and pipes may be written to whatever `overwrite` says.
    """
    if path.is_dir():
        raise UsageError(f"output {path} is a folder, expected a file name")
    if path.is_file() and not overwrite:
        raise UsageError(f"output exists: {path}", hint="choose another name, or overwrite it with --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} to", hint=f"mkdir -p {path.parent}")


def refuse_source(source: str | os.PathLike[str], *outputs: str | os.PathLike[str] | None) -> None:
    """Raise UsageError where an output is the source itself, be it a file or a folder.

    Writing begins while the source is still read, so that even one that may be overwritten would be lost.
    """
    read = Path(source)
    for output in outputs:
        written = None if output is None else Path(output)
        if written is not None and read.exists() and written.exists() and read.samefile(written):
            raise UsageError(f"output {output} is the source itself", hint="choose another name")


class Sink(ABC, Generic[T]):
    """Takes results, one a frame, in order. A context manager: closing makes what was written readable.

    `frames` counts what was written. `write` raises OutputError where the output cannot be written, UsageError for a
    result of another kind than `takes`.
    """

    takes: ClassVar[tuple[type[Result | ClassifiedResult], ...]] = (Result,)

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self._closed = False
        self._failed = False

    @abstractmethod
    def _write(self, result: T) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def write(self, result: T) -> None:
        """Write one frame's result."""
        if self._closed:
            raise UsageError(f"{self.name} is closed")
        if not isinstance(result, self.takes):
            raise UsageError(f"{self.name} takes label maps, found the class of a frame", hint="a JsonLinesSink")
        try:
            with writing(self.name):
                self._write(result)
        except Exception:  # Ctrl-C is no failure: the output is finished as usual
            self._failed = True
            raise
        self.frames += 1

    def close(self) -> None:
        """Finish the output; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._failed:  # the first error is the one to see
            with suppress(Exception):
                self._close()
            return
        with writing(self.name):
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
