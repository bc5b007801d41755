"""What is sent: frames turned into bytes before anything is timed, with the sender's own cost noted on the side."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, missing_extra
from . import jpeg
from .measure import percentiles

if TYPE_CHECKING:
    from ..bitstream import StreamHeader
    from ..engine.roles import Compressor

Frame = NDArray[np.uint8]


@dataclass
class Sent:
    """One clip as bytes in memory."""

    payloads: list[bytes]  # what the receiver decodes, one a frame
    sizes: list[int]  # bytes that cross the wire, one a frame: payload and framing
    stages: dict[str, list[float]] = field(default_factory=dict)  # the sender's seconds, one a frame
    detail: dict[str, Any] = field(default_factory=dict)  # the setting, for the row

    def cost(self) -> dict[str, dict[str, float]]:
        """The sender's milliseconds a frame, by stage (mean and percentiles), one frame at a time."""
        return {
            f"{name}_ms": {key: 1e3 * value for key, value in percentiles(seconds).items()}
            for name, seconds in self.stages.items()
        }


def send_codec(compressor: Compressor, header: StreamHeader, frames: Sequence[Frame]) -> Sent:
    """The learned codec, frame by frame, written as a whole `.lseg` stream so that the framing is counted too."""
    from ..bitstream import Writer

    stages: dict[str, list[float]] = {"compress": [], "entropy_encode": []}
    payloads, sizes = [], []
    stream = io.BytesIO()
    writer = Writer(stream, header)
    compressor.encode(frames[0][None], header)  # the first call pays for allocations; its time would be an outlier
    for frame in frames:
        begin = time.perf_counter()
        latents = compressor.latents(frame[None])
        middle = time.perf_counter()
        (payload,) = compressor.entropy_encode(latents, header)
        stages["compress"].append(middle - begin)
        stages["entropy_encode"].append(time.perf_counter() - middle)
        payloads.append(payload)
        sizes.append(writer.write(payload))
    detail = {"stream_header_bytes": len(stream.getvalue()) - sum(sizes)}
    return Sent(payloads, sizes, stages, detail)


def send_jpeg(frames: Sequence[Frame], quality: int, *, subsampling: str = "4:2:0", optimise: bool = True) -> Sent:
    """JPEG at one quality."""
    payloads, seconds = [], []
    for frame in frames:
        begin = time.perf_counter()
        payloads.append(jpeg.encode(frame, quality, subsampling=subsampling, optimise=optimise))
        seconds.append(time.perf_counter() - begin)
    detail = {"quality": quality, "subsampling": subsampling, "huffman": "optimised" if optimise else "standard"}
    return Sent(payloads, [len(payload) for payload in payloads], {"encode": seconds}, detail)


def send_jpeg_near(frames: Sequence[Frame], target_bytes: float) -> Sent:
    """JPEG 4:2:0 at the quality whose mean size is nearest to `target_bytes`, with the better kind of Huffman table.

    Both the optimised and the standard tables are tried; the one whose match shows the higher PSNR is sent, since at
    equal bytes that is the better baseline. The detail names the winner, the other's quality, and whether the target
    was within JPEG's reach at all.
    """
    from ..training.metrics import psnr

    tried = []
    for optimise in (True, False):
        match = jpeg.nearest_quality(frames, target_bytes, optimise=optimise)
        sent = send_jpeg(frames, match.quality, optimise=optimise)
        quality = [psnr(frame, jpeg.decode(data)) for frame, data in zip(frames, sent.payloads, strict=True)]
        tried.append((match, sent, sum(quality) / len(quality)))
    # Within JPEG's reach the better picture wins; out of it (even quality 1 too large) the smaller file does.
    match, sent, _ = max(tried, key=lambda t: (t[0].reached, t[2] if t[0].reached else -t[0].mean_bytes))
    sent.detail["target_bytes"] = target_bytes
    sent.detail["reached"] = match.reached
    sent.detail["tried"] = [
        {
            "huffman": s.detail["huffman"],
            "quality": m.quality,
            "mean_bytes": m.mean_bytes,
            "psnr": db if math.isfinite(db) else None,
        }
        for m, s, db in tried
    ]
    return sent


@dataclass
class Packets:
    """A clip's own compressed packets, and what a decoder must be told before the first."""

    codec: str
    data: list[bytes]
    extradata: bytes | None
    frames: int  # frames that come out of `data`, from the start of the clip

    def sizes(self) -> list[int]:
        """Bytes a packet (one packet is one frame, in decoding order, which is not the order of display)."""
        return [len(packet) for packet in self.data]


def read_packets(path: Path, frames: int) -> Packets:
    """The first packets of a video file's first video stream, as many as `frames` frames need, held in memory."""
    try:
        import av
    except ImportError:
        raise missing_extra("av", "video") from None
    try:
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # frame threads would ask for packets ahead of the frame they belong to
            data: list[bytes] = []
            decoded = 0
            for packet in container.demux(stream):
                if packet.size:
                    data.append(bytes(packet))
                decoded += len(packet.decode())
                if decoded >= frames:
                    break
            return Packets(stream.codec_context.name, data, stream.codec_context.extradata, min(decoded, frames))
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"cannot read the video packets of {path.name}: {error}") from error
