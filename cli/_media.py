"""Two small pieces that the verbs put between a source and the engine, or between the engine and a folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from ..engine.result import Result
from ..engine.sinks import Sink
from ..engine.sinks.base import writing
from ..engine.sources import FrameSource, SourceFrame
from ..errors import UsageError, missing_extra


class Limited(FrameSource):
    """The first `limit` frames of another source, which is closed with it."""

    def __init__(self, source: FrameSource, limit: int) -> None:
        super().__init__(source.name)
        self.size, self.frame_rate, self.live = source.size, source.frame_rate, source.live
        self.length = limit if source.length is None else min(limit, source.length)
        self.damages = source.damages
        self._source, self._limit = source, limit

    def __iter__(self) -> Iterator[SourceFrame]:
        return islice(self._source, self._limit)

    def close(self) -> None:
        self._source.close()


class FramePngSink(Sink):
    """Writes each result's frame as `<folder>/000000.png`, `000001.png`, ... by frame index. Makes the folder.

    Raises UsageError where the folder holds files already and `overwrite` is false.
    """

    def __init__(self, folder: str, overwrite: bool = False) -> None:
        super().__init__(folder)
        try:
            import PIL.Image  # noqa: F401  fails before any work is done
        except ImportError as error:
            raise missing_extra("pillow", "video") from error
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"output {folder} is a file, expected a folder for PNGs, or a video's name")
        if self._folder.is_dir() and any(self._folder.iterdir()) and not overwrite:
            raise UsageError(f"output exists: {folder} holds files", hint="choose an empty folder, or add --overwrite")
        with writing(self.name):
            self._folder.mkdir(parents=True, exist_ok=True)

    def _write(self, result: Result) -> None:
        from PIL import Image

        assert result.rgb is not None
        buffer = io.BytesIO()
        Image.fromarray(result.rgb).save(buffer, "PNG", compress_level=1)
        path = self._folder / f"{result.index:06d}.png"
        try:
            path.write_bytes(buffer.getbuffer())  # made in memory first: a full disk leaves no cut file behind
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise

    def _close(self) -> None:
        return None
