"""Results as JSON Lines: one object a frame, one summary at the end. The schema is versioned.

    {"schema": 1, "type": "frame", "index": 0, "timestamp_us": 0, "size": [272, 640], "payload_bytes": 8123,
     "classes": {"sky": 0.31, ...}, "timings_ms": {"read": 0.1, "entropy_decode": 0.9, "segment": 12.3}}
    {"schema": 1, "type": "summary", "frames": 250, "lost": 0, ...}

`classes` gives each class's share of the frame's pixels, in label order. A classified frame has `top5` in its place,
the likeliest classes, likeliest first (fewer than five where there are fewer):

    "top5": [{"class": "tabby", "index": 281, "probability": 0.83}, ...]

A stream without a summary was interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..bundle import ClassInfo
from ..result import ClassifiedResult, Result
from .base import Sink, claim_file, writing

SCHEMA = 1


class JsonLinesSink(Sink[Result | ClassifiedResult]):
    """Writes to `dest`: a path, or "-" for stdout. Every line is flushed as it is written."""

    takes = (Result, ClassifiedResult)

    def __init__(self, dest: str | os.PathLike[str], classes: Sequence[ClassInfo], overwrite: bool = False) -> None:
        path = None if os.fspath(dest) == "-" else Path(dest)
        super().__init__("stdout" if path is None else str(path))
        self._names = [c.name for c in classes]
        self._path = path
        if path is None:
            self._file: BinaryIO = sys.stdout.buffer
        else:
            claim_file(path, overwrite)
            with writing(self.name):
                # Unbuffered: a line is on its way when write returns, and closing has nothing left to fail with.
                self._file = path.open("wb", buffering=0)

    def summary(self, facts: dict[str, Any]) -> None:
        """Write the last line: `facts` (JSON-ready) as an object of type "summary"."""
        with writing(self.name):
            self._line({"schema": SCHEMA, "type": "summary", **facts})

    def _write(self, result: Result | ClassifiedResult) -> None:
        found = self._top(result) if isinstance(result, ClassifiedResult) else self._shares(result)
        size = result.size if isinstance(result, ClassifiedResult) else result.labels.shape
        self._line(
            {
                "schema": SCHEMA,
                "type": "frame",
                "index": result.index,
                "timestamp_us": result.timestamp_us,
                "size": list(size),
                "payload_bytes": result.payload_bytes,
                **found,
                "timings_ms": {name: round(ms, 3) for name, ms in result.timings_ms.items()},
            }
        )

    def _shares(self, result: Result) -> dict[str, Any]:
        counts = np.bincount(result.labels.reshape(-1), minlength=len(self._names))
        shares = counts / result.labels.size
        return {"classes": {name: round(float(share), 6) for name, share in zip(self._names, shares, strict=False)}}

    def _top(self, result: ClassifiedResult) -> dict[str, Any]:
        rows = [{"class": self._names[i], "index": i, "probability": round(p, 6)} for i, p in result.top()]
        return {"top5": rows}

    def _line(self, value: dict[str, Any]) -> None:
        # A file name need not be UTF-8: its stray bytes leave as JSON's own escapes (\udcff).
        data = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
            self._file.flush()
        except OSError:
            self._cut_back(len(data) - len(view))
            raise

    def _cut_back(self, written: int) -> None:
        """Take a half-written line off the end of a file, so that every line in it parses."""
        if self._path is not None and written and self._path.is_file():
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), self._file.tell() - written)

    def _close(self) -> None:
        if self._path is not None:
            self._file.close()
