"""Labels laid over the frames in their class colours, as a video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import OutputError, UsageError, missing_extra
from ..bundle import ClassInfo
from ..result import Result
from .base import Sink, claim_file

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi")
_DEFAULT_RATE = Fraction(25)
# Fragments, flushed: what was written plays even when the process is killed before the file is closed.
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_FLUSHED = {"flush_packets": "1"}
_KEYFRAME_INTERVAL = 25


class OverlaySink(Sink[Result]):
    """Writes an H.264 video (MPEG-4 where this PyAV has no x264) of each result's frame with its labels over it.

    Results without an RGB frame show the class colours alone. Odd sizes are padded to even ones, as 4:2:0 colour needs,
    by repeating the last row and column. A lost frame leaves the one before it standing.

    Parameters
    ----------
    path: ends in .mp4, .m4v, .mov, .mkv or .avi. frame_rate: (num, den); (0, 1), unknown, plays at 25, and so does a
    rate that no video can hold.
    alpha: weight of the class colour, 0 to 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: Sequence[ClassInfo],
        frame_rate: tuple[int, int] = (0, 1),
        alpha: float = 0.5,
        overwrite: bool = False,
    ) -> None:
        super().__init__(os.fspath(path))
        self._path = Path(path)
        claim_file(self._path, overwrite)
        if self._path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"overlay {path}: expected a name that ends in {', '.join(SUFFIXES)}")
        if not 0.0 <= alpha <= 1.0:
            raise UsageError(f"overlay weight is {alpha}, expected 0 to 1")
        try:
            import av
        except ImportError as error:
            raise missing_extra("av", "video") from error
        self._av = av
        rate = Fraction(*frame_rate)
        self._rate = rate if rate > 0 and max(rate.as_integer_ratio()) < 1 << 31 else _DEFAULT_RATE
        self._alpha = alpha
        self._palette = palette(classes)
        self._container: Any = None
        self._stream: Any = None

    def _write(self, result: Result) -> None:
        picture = _pad_to_even(blend(result.rgb, result.labels, self._palette, self._alpha))
        try:
            if self._container is None:
                self._open(picture.shape[0], picture.shape[1])
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = result.index
            frame.time_base = 1 / self._rate
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise self._failed_with(error) from error

    def _open(self, height: int, width: int) -> None:
        options = _FLUSHED | (_FRAGMENTED if self._path.suffix.lower() in {".mp4", ".m4v", ".mov"} else {})
        # Or FFmpeg takes what stands before a colon in the name for a protocol.
        self._container = self._av.open(f"file:{self._path}", "w", options=options)
        x264 = "libx264" in self._av.codecs_available
        self._stream = self._container.add_stream("libx264" if x264 else "mpeg4", rate=self._rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = 1 / self._rate
        self._stream.codec_context.gop_size = _KEYFRAME_INTERVAL
        # Without look-ahead a frame is in the file soon after it was written, and not 40 frames later.
        x264_options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency"}
        self._stream.options = x264_options if x264 else {"qscale": "4"}

    def _close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if not self._failed:
                container.mux(self._stream.encode(None))
            container.close()
        except self._av.FFmpegError as error:
            with suppress(Exception):
                container.close()
            raise self._failed_with(error) from error

    def _failed_with(self, error: Exception) -> OutputError:
        return OutputError(
            f"cannot write {self.name}: {getattr(error, 'strerror', None) or error}",
            hint="free space or choose another place; what was written before stays readable",
        )


def palette(classes: Sequence[ClassInfo]) -> npt.NDArray[np.uint8]:
    """(256, 3) uint8: the colour of each label; black where no class is.

    Raises UsageError for classes without colours, or more than labels can name: a classifier's.
    """
    plain = next((c.name for c in classes if c.color is None), None)
    if plain is not None or len(classes) > 256:
        what = f"{len(classes)} classes" if plain is None else f"the class '{plain}' without a colour"
        raise UsageError(f"label maps of {what}, expected a segmenter's classes", hint="a JsonLinesSink shows classes")
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(classes)] = np.array([c.color for c in classes], np.uint8).reshape(-1, 3)
    return colors


def blend(
    rgb: npt.NDArray[np.uint8] | None,
    labels: npt.NDArray[np.uint8],
    colors: npt.NDArray[np.uint8],
    alpha: float = 0.5,
) -> npt.NDArray[np.uint8]:
    """Class colours over a frame: (H, W, 3) uint8, alpha * colour + (1 - alpha) * rgb, to 1/256.

    rgb: (H, W, 3) uint8, or None for the colours alone. labels: (H, W) uint8. colors: (256, 3), see `palette`.
    """
    flat = colors[labels]
    if rgb is None:
        return flat
    weight = round(alpha * 256)
    mixed = flat.astype(np.uint16) * np.uint16(weight) + rgb.astype(np.uint16) * np.uint16(256 - weight)
    return (mixed >> 8).astype(np.uint8)


def _pad_to_even(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width, _ = picture.shape
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
