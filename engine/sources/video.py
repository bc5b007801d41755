"""Video through PyAV: files, cameras, stream URLs, and pipes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ...bitstream import Damage
from ...errors import BackendMissingError, InputError, missing_extra
from .base import NOMINAL_FRAME_US, FrameSource, SourceFrame

_LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtp", "udp", "srt", "rtmp", "rtmps"})
_OPEN_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 30.0
_CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_END_TOLERANCE_S = 0.2  # announced lengths are rounded, and the last frame's duration is often left out
_MAX_U32 = (1 << 32) - 1

T = TypeVar("T")


class VideoSource(FrameSource):
    """Frames of the first video stream of a file, URL, camera ("camera:0" or a /dev/video path) or open pipe.

    The first frame is decoded on opening, so that a source that opens has at least one. Frames are counted as they are
    decoded; times come from their PTS. Packets that do not decode are passed over and reported in `damages`.
    """

    _stream: Any

    def __init__(self, target: str | BinaryIO, name: str | None = None) -> None:
        super().__init__(name or (target if isinstance(target, str) else "pipe"))
        try:
            import av
        except ImportError as error:
            raise missing_extra("av", "video") from error
        self._av = av
        self._pipe = None if isinstance(target, str) else target
        scheme = target.split("://", 1)[0].lower() if isinstance(target, str) and "://" in target else ""
        camera = isinstance(target, str) and _is_camera(target)
        self.live = camera or scheme in _LIVE_SCHEMES
        self._container: Any = None
        self._frames: Iterator[SourceFrame] = iter(())
        self._first: SourceFrame | None = None
        if isinstance(target, str) and os.path.isfile(target):
            self._begin(target, camera, scheme)
        else:
            _in_background(lambda: self._begin(target, camera, scheme))
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate and 0 < rate.numerator <= _MAX_U32 and rate.denominator <= _MAX_U32:
            self.frame_rate = (rate.numerator, rate.denominator)
        self.length = None if self.live else self._estimate_length()

    def __iter__(self) -> Iterator[SourceFrame]:
        first, self._first = self._first, None
        if first is not None:
            yield first
            del first
            yield from self._frames

    def close(self) -> None:
        self._first = None
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._pipe is not None:
            self._pipe.close()

    def _begin(self, target: str | BinaryIO, camera: bool, scheme: str) -> None:
        self._container = self._open(target, camera, scheme)
        try:
            self._stream = self._pick_stream()
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                reason = f"; {self.damages[0].reason}" if self.damages else ""
                raise InputError(f"{self.name}: zero frames could be decoded{reason}", hint="give another video")
        except BaseException:
            self.close()
            raise

    def _open(self, target: str | BinaryIO, camera: bool, scheme: str) -> Any:
        options: dict[str, str] = {}
        kind: str | None = None
        if camera:
            assert isinstance(target, str)
            target, kind = _camera_device(target)
            if not any(kind in names.split(",") for names in self._av.formats_available):
                raise BackendMissingError(
                    f"this PyAV has no camera input '{kind}'", hint="read the camera's URL instead"
                )
        elif scheme in {"rtsp", "rtsps"}:
            options["rtsp_transport"] = "tcp"  # UDP loses packets, and every loss damages frames until the next key
        elif isinstance(target, str) and not scheme:
            target = f"file:{target}"  # or FFmpeg takes what stands before a colon (12:30:05.mp4) for a protocol
        try:
            timeout = (_OPEN_TIMEOUT_S, _READ_TIMEOUT_S) if scheme else None
            container = self._av.open(target, "r", format=kind, options=options, timeout=timeout)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            what = "cannot open" if scheme or camera else "not a video"
            raise InputError(
                f"{self.name}: {what}: {_reason(error)}", hint="give a video, a folder of images, or an .lseg stream"
            ) from error
        # FFmpeg takes any text for a recording of a terminal.
        if container.format.name == "tty":
            container.close()
            raise InputError(f"{self.name}: not a video: a text file", hint="give a video or a folder of images")
        return container

    def _pick_stream(self) -> Any:
        cover = self._av.stream.Disposition.attached_pic
        for stream in self._container.streams.video:
            if not stream.disposition & cover:
                if stream.codec_context is None:
                    raise InputError(
                        f"{self.name}: no decoder for its video in this PyAV", hint="convert it to H.264 first"
                    )
                if not self.live:
                    stream.thread_type = "AUTO"
                return stream
        kinds = sorted({s.type for s in self._container.streams}) or ["nothing"]
        raise InputError(
            f"{self.name}: no video in it, only {', '.join(kinds)}", hint="give a file with a video stream"
        )

    def _decode(self) -> Iterator[SourceFrame]:
        start, end_us = None, 0
        for index, frame in enumerate(self._raw_frames()):
            rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            if index == 0:
                self.size = (rgb.shape[0], rgb.shape[1])
            elif rgb.shape[:2] != self.size:
                raise InputError(
                    f"{self.name}: frame {index} is {rgb.shape[0]}x{rgb.shape[1]}, "
                    f"expected {self.size[0]}x{self.size[1]}: the size changes within the video",
                    hint="a stream has one size: cut the video where it changes",
                )
            if frame.pts is None:
                timestamp = index * NOMINAL_FRAME_US
            else:
                start = frame.pts if start is None else start
                timestamp = round((frame.pts - start) * frame.time_base * 1_000_000)
            end_us = timestamp + (round(frame.duration * frame.time_base * 1_000_000) if frame.duration else 0)
            yield SourceFrame(index, timestamp, rgb)
        if not (self.live or self.damages):
            self._report_early_end(end_us)

    def _report_early_end(self, end_us: int) -> None:
        """A cut file just ends, without an error: compare with the length that it announces, where it does."""
        stream, rate = self._stream, float(self._stream.average_rate or 25)
        if stream.duration and stream.time_base:
            announced = float(stream.duration * stream.time_base)
        elif self._container.duration and len(self._container.streams) == 1:
            announced = self._container.duration / self._av.time_base
        else:
            return
        missing = announced - end_us / 1e6
        if missing > max(_END_TOLERANCE_S, 2 / rate):
            reason = f"the video ends {missing:.2f} s before the {announced:.2f} s that it announces"
            self.damages.append(Damage(0, reason, None, lost=max(1, round(missing * rate))))

    def _raw_frames(self) -> Iterator[Any]:
        """Decoded frames; damage in a packet costs that packet, damage in the container ends the stream."""
        packets = self._container.demux(self._stream)
        count = 0
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, OSError) as error:
                # What the decoder still holds came before the damage.
                late = self._stream.codec_context.decode(None)
                yield from late
                lost = max(1, self._stream.frames - count - len(late))
                self.damages.append(Damage(0, f"the container ends early: {_reason(error)}", None, lost))
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._av.FFmpegError as error:  # mostly InvalidDataError; some decoders have their own
                position = packet.pos if packet.pos is not None and packet.pos >= 0 else 0
                self.damages.append(Damage(position, f"a packet does not decode: {_reason(error)}", None, lost=1))
                continue
            count += len(frames)
            yield from frames

    def _estimate_length(self) -> int | None:
        if self._stream.frames > 0:
            return int(self._stream.frames)
        rate = self.frame_rate[0] / self.frame_rate[1]
        if self._stream.duration and self._stream.time_base:
            return max(1, round(float(self._stream.duration * self._stream.time_base) * rate)) if rate else None
        if self._container.duration:
            return max(1, round(self._container.duration / self._av.time_base * rate)) if rate else None
        return None


def _in_background(work: Callable[[], T]) -> T:
    """`work()` in a thread of its own, waited for: Ctrl-C then ends the wait for a silent pipe or camera at once.

    FFmpeg swallows a KeyboardInterrupt that is raised while it reads. The thread of an interrupted wait is left behind.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="latentseg-open", daemon=True).start()
    done.wait()
    if errors:
        raise errors[0]
    return results[0]


def _is_camera(target: str) -> bool:
    return target.startswith("camera:") or (target.startswith("/dev/video") and Path(target).is_char_device())


def _camera_device(target: str) -> tuple[str, str]:
    """ "camera:N" or a device path -> what FFmpeg calls it on this system, and the name of its input format."""
    kind = _CAMERA_FORMATS.get(sys.platform, "v4l2")
    number = target.removeprefix("camera:")
    if kind == "v4l2" and number.isdecimal():
        return f"/dev/video{number}", kind
    return (f"video={number}" if kind == "dshow" and not number.startswith("video=") else number), kind


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
