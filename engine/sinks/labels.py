"""Label maps as PNG files: 8-bit indexed, so that a pixel's value is its class and a viewer shows the class colours."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import UsageError, missing_extra
from ..bundle import ClassInfo
from ..result import Result
from .base import Sink, writing
from .overlay import palette


class LabelPngSink(Sink):
    """Writes `<folder>/000000.png`, `000001.png`, ... named by frame index. The folder is made when missing.

    Raises UsageError where the folder holds files already and `overwrite` is false.
    """

    def __init__(self, folder: str | os.PathLike[str], classes: Sequence[ClassInfo], overwrite: bool = False) -> None:
        super().__init__(os.fspath(folder))
        try:
            import PIL.Image  # noqa: F401  fails before any work is done
        except ImportError as error:
            raise missing_extra("pillow", "video") from error
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"output {folder} is a file, expected a folder for label PNGs")
        if self._folder.is_dir() and any(self._folder.iterdir()) and not overwrite:
            raise UsageError(
                f"output exists: {folder} holds files", hint="choose an empty folder, or overwrite it with --overwrite"
            )
        with writing(self.name):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._palette = palette(classes).tobytes()

    def _write(self, result: Result) -> None:
        from PIL import Image

        image = Image.fromarray(result.labels)
        image.putpalette(self._palette)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        path = self._folder / f"{result.index:06d}.png"
        # Named when it is whole: neither a full disk nor Ctrl-C in the middle of a write leaves a cut PNG behind.
        partial = path.with_suffix(".png.partial")
        try:
            partial.write_bytes(buffer.getbuffer())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def _close(self) -> None:
        return None
