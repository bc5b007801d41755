"""A PNG file a frame: label maps, or the frames themselves."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import UsageError, missing_extra
from ..bundle import ClassInfo
from ..result import Result
from .base import Sink, writing
from .overlay import palette


class PngSink(Sink[Result]):
    """Writes `<folder>/000000.png`, `000001.png`, ... named by frame index. The folder is made when missing.

    A subclass says what the picture of a result is. Raises UsageError where the folder holds files already and
    `overwrite` is false.
    """

    def __init__(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        super().__init__(os.fspath(folder))
        try:
            import PIL.Image  # noqa: F401  fails before any work is done
        except ImportError as error:
            raise missing_extra("pillow", "video") from error
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"output {folder} is a file, expected a folder for PNGs")
        with writing(self.name):
            if self._folder.is_dir() and any(self._folder.iterdir()) and not overwrite:
                raise UsageError(
                    f"output exists: {folder} holds files",
                    hint="choose an empty folder, or overwrite it with --overwrite",
                )
            self._folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _image(self, result: Result) -> Any:
        """The picture as a PIL image."""

    def _write(self, result: Result) -> None:
        buffer = io.BytesIO()
        self._image(result).save(buffer, "PNG", compress_level=1)
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


class LabelPngSink(PngSink):
    """Label maps, 8-bit indexed: a pixel's value is its class, and a viewer shows the class colours."""

    def __init__(self, folder: str | os.PathLike[str], classes: Sequence[ClassInfo], overwrite: bool = False) -> None:
        super().__init__(folder, overwrite)
        self._palette = palette(classes).tobytes()

    def _image(self, result: Result) -> Any:
        from PIL import Image

        image = Image.fromarray(result.labels)
        image.putpalette(self._palette)
        return image


class FramePngSink(PngSink):
    """Each result's RGB frame, which it must have."""

    def _image(self, result: Result) -> Any:
        from PIL import Image

        assert result.rgb is not None
        return Image.fromarray(result.rgb)
