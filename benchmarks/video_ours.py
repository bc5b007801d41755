"""A learned codec's streams of a clip: latents to bytes and back, frames coded alone or against the frame before."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..bitstream import StreamHeader, Writer
from ..errors import VerificationError
from ..kernels.frames import FrameDecoder, FrameEncoder, is_key
from .frontier_arms import Learned

if TYPE_CHECKING:
    from torch import nn

Frame = NDArray[np.uint8]
Latent = NDArray[np.float32]


@dataclass(frozen=True)
class Sent:
    """A clip as a stream. bytes: of all of it, the header once and every frame's framing. seconds: of coding.

    key_frames: more than the interval asks for where a frame is no smaller by the one before.
    """

    header: StreamHeader
    payloads: list[bytes]
    key_frames: int
    bytes: int
    seconds: float


class LearnedVideo:
    """A learned codec on one clip; what the steps share is computed once. compress_seconds: of the compressor."""

    def __init__(self, codec: nn.Module, frames: Sequence[Frame], rate: tuple[int, int], threads: int) -> None:
        import torch

        from ..training.evaluate import latent

        self._codec, self._rate, self._threads = codec, rate, threads
        self._size = (frames[0].shape[0], frames[0].shape[1])
        self._decompressor = Learned(codec, 1.0, "context")
        start = time.perf_counter()
        with torch.inference_mode():
            self.latents: list[Latent] = [np.ascontiguousarray(latent(codec, frame)[0].numpy()) for frame in frames]
        self.compress_seconds = time.perf_counter() - start

    def send(self, step: float, key_interval: int | None) -> Sent:
        """The clip at a quantisation step.

        key_interval: 1 for frames that are all coded alone, by the coder "context"; N for such a key frame every N
        frames, None for the first one alone, by the coder "inter". Raises UsageError for a step that the codec lacks.
        """
        from ..training.evaluate import stream_header

        coder = "context" if key_interval == 1 else "inter"
        header = stream_header(self._codec, self.latents[0].shape, self._size, coder, step)
        header = dataclasses.replace(header, frame_rate=self._rate)
        encoder = FrameEncoder(header, key_interval)
        start = time.perf_counter()
        payloads = [encoder.encode_latent(z) for z in self.latents]
        seconds = time.perf_counter() - start
        writer = Writer(io.BytesIO(), header)
        for payload in payloads:
            writer.write(payload)
        return Sent(header, payloads, sum(is_key(p, header) for p in payloads), writer.bytes_written, seconds)

    def receive(self, sent: Sent) -> tuple[list[Latent], float]:
        """The dequantised latents of a stream, and the seconds of decoding them."""
        decoder = FrameDecoder(sent.header, threads=self._threads)
        start = time.perf_counter()
        latents = [decoder.decode_latent(payload, index) for index, payload in enumerate(sent.payloads)]
        return latents, time.perf_counter() - start

    def pictures(self, latents: Sequence[Latent]) -> tuple[list[Frame], float]:
        """The RGB frames of latents, and the seconds of the decompressor."""
        start = time.perf_counter()
        frames = [self._decompressor.picture(z, self._size) for z in latents]
        return frames, time.perf_counter() - start


def check_same(latents: Sequence[Latent], others: Sequence[Latent], what: str) -> None:
    """Raise VerificationError unless two streams gave the same latents: entropy coding loses nothing."""
    for index, (z, other) in enumerate(zip(latents, others, strict=True)):
        if not np.array_equal(z, other):
            raise VerificationError(f"{what}: frame {index} came out unlike the one that was coded alone")
