"""H.264 and AV1 through PyAV: RGB frames to packets and back, in memory, with nothing of a container.

Frames go in as 8-bit 4:2:0, BT.601, limited range, and come back through the same. Both ways are bicubic with exact
rounding: the quick default of swscale alone costs 3 dB at high rates, and that must not be counted against a codec.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendMissingError, InputError, missing_extra

Frame = NDArray[np.uint8]
_SEI = 6  # type of an H.264 NAL unit
_NAL = re.compile(rb"\x00\x00\x00?\x01")
_VERSION = re.compile(rb"x264 - core (\d+)")


@dataclass(frozen=True)
class VideoCodec:
    """A codec and the libraries that PyAV runs it with. options: the encoder's, but for rate and key frames."""

    name: str
    encoder: str
    decoder: str
    options: Mapping[str, str] = field(hash=False)


H264 = VideoCodec("H.264", "libx264", "h264", {"preset": "slow"})
AV1 = VideoCodec("AV1", "libsvtav1", "libdav1d", {"preset": "4"})


@dataclass
class Coded:
    """A clip as packets in decoding order.

    extradata: what a decoder needs before the first packet (H.264's parameter sets); its bytes count once. seconds: of
    the encoder. keys: how many packets are key frames. version: the encoder's, where its stream says it.
    """

    codec: VideoCodec
    frames: int
    extradata: bytes
    packets: list[Any]
    keys: int
    seconds: float
    version: str | None = None

    @property
    def bytes(self) -> int:
        """All that is sent, the container left out."""
        return len(self.extradata) + sum(int(packet.size) for packet in self.packets)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise missing_extra("av", "video") from None
    return av


def _reformat(reformatter: Any, frame: Any, target: str, **sides: str) -> Any:
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return reformatter.reformat(frame, format=target, interpolation=int(Interpolation.BICUBIC | exact), **sides)


def to_planes(frames: Sequence[Frame], rate: tuple[int, int]) -> list[Any]:
    """RGB frames (H, W, 3) uint8 of one size as PyAV's frames in 4:2:0, numbered in units of 1 / rate.

    rate: (numerator, denominator) in frames a second. Raises InputError for odd sides, which 4:2:0 has not.
    """
    av = _av()
    height, width = frames[0].shape[:2]
    if height % 2 or width % 2:
        raise InputError(
            f"frames of {width}x{height}, expected even sides: 4:2:0 video has no others", hint="crop a row or column"
        )
    reformatter = av.video.reformatter.VideoReformatter()
    planes = []
    for index, frame in enumerate(frames):
        rgb = av.VideoFrame.from_ndarray(frame, "rgb24")
        plane = _reformat(reformatter, rgb, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        plane.pts, plane.time_base = index, Fraction(rate[1], rate[0])
        planes.append(plane)
    return planes


def to_frames(planes: Sequence[Any]) -> list[Frame]:
    """What `to_planes` made, as RGB frames again."""
    reformatter = _av().video.reformatter.VideoReformatter()
    return [
        _reformat(reformatter, plane, "rgb24", src_colorspace="ITU601", src_color_range="MPEG").to_ndarray()
        for plane in planes
    ]


def encode(
    planes: Sequence[Any], codec: VideoCodec, rate: tuple[int, int], crf: float, key_interval: int | None, threads: int
) -> Coded:
    """Encode a clip at a constant rate factor, from memory.

    key_interval: frames from a key frame to the next at most; 1 for key frames alone, None for the first one alone.
    Raises BackendMissingError where PyAV lacks the encoder, InputError where it refuses what it is given.
    """
    av = _av()
    from av.codec.context import Flags

    os.environ.setdefault("SVT_LOG", "1")  # its errors alone, or every run prints a page
    try:
        context = av.CodecContext.create(codec.encoder, "w")
    except av.codec.codec.UnknownCodecError:
        raise BackendMissingError(
            f"this PyAV has no encoder '{codec.encoder}'", hint="install PyAV's own wheel, or leave this codec out"
        ) from None
    context.width, context.height, context.pix_fmt = planes[0].width, planes[0].height, "yuv420p"
    context.framerate, context.time_base = Fraction(*rate), Fraction(rate[1], rate[0])
    context.gop_size = len(planes) if key_interval is None else key_interval
    context.thread_count = threads
    context.flags |= Flags.global_header
    context.options = {**codec.options, **_own(codec, threads), "crf": f"{crf:g}"}
    try:
        start = time.perf_counter()
        packets = [packet for plane in planes for packet in context.encode(plane)]
        packets += context.encode(None)
        seconds = time.perf_counter() - start
    except (av.FFmpegError, ValueError) as error:
        raise InputError(
            f"{codec.encoder} cannot encode {planes[0].width}x{planes[0].height} at CRF {crf:g}: {error}",
            hint="give another clip, or other settings",
        ) from error
    keys = sum(packet.is_keyframe for packet in packets)
    if codec.encoder != H264.encoder:  # AV1's sequence header stands before every key frame, in its packet
        return Coded(codec, len(planes), b"", packets, keys, seconds)
    found = _VERSION.search(bytes(packets[0]))
    version = None if found is None else f"core {found[1].decode()}"
    small = [without_sei(packet) for packet in packets]
    return Coded(codec, len(planes), context.extradata or b"", small, keys, seconds, version)


def _own(codec: VideoCodec, threads: int) -> dict[str, str]:
    """SVT-AV1 has its own threads: one level of parallelism more, about one thread more."""
    return {"svtav1-params": f"lp={threads}"} if codec.encoder == AV1.encoder else {}


def without_sei(packet: Any) -> Any:
    """An H.264 packet without its messages: x264's, of 700 bytes, names its options and is no part of the picture."""
    data = bytes(packet)
    starts = [found.span() for found in _NAL.finditer(data)]
    ends = [start for start, _ in starts[1:]] + [len(data)]
    kept = b"".join(data[start:end] for (start, body), end in zip(starts, ends, strict=True) if data[body] & 31 != _SEI)
    if len(kept) == len(data):
        return packet
    smaller = _av().Packet(kept)
    smaller.pts, smaller.dts, smaller.time_base = packet.pts, packet.dts, packet.time_base
    return smaller


def decode(coded: Coded, threads: int) -> tuple[list[Any], float]:
    """The planes of a coded clip in showing order, and the seconds that decoding took.

    Raises InputError where they are not as many as were coded.
    """
    context = _av().CodecContext.create(coded.codec.decoder, "r")
    context.thread_count = threads
    if coded.extradata:
        context.extradata = coded.extradata
    start = time.perf_counter()
    planes = [plane for packet in coded.packets for plane in context.decode(packet)]
    planes += context.decode(None)
    seconds = time.perf_counter() - start
    if len(planes) != coded.frames:
        raise InputError(f"{coded.codec.name}: {len(planes)} frames came out of {coded.frames}")
    return planes, seconds
