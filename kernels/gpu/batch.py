"""What the GPU decoder gets for a batch of frames: one run of bytes, made and checked on the host.

    ranges     float32 (frames * R, 2): lo and step of int2float; R is C with a range a channel, else 1
    channels   int32 (frames, C): mode + 4 f + 2^8 g + 2^16 centre
    lanes      int32 (frames, tiles, C, 2): a lane's first byte among the payloads, and its bytes (0: constant channel)
    payloads   the frames' bytes

Each part starts at a multiple of 16 bytes, so that one copy to the device brings all of it, aligned. Lanes run by tile
and then channel: neighbours in that order have tiles of one shape, and so the same number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...bitstream import context_model as model
from ...bitstream.context_payload import CONSTANT, plan_tiles, unpack_context
from ...bitstream.header import StreamHeader
from ...errors import ArtifactError, InputError
from ..dequantize import steps
from ..dispatch import Implementation, choose, native_scaling
from .shapes import SOUND

ALIGNMENT = 16
# Positions in the output, and bits in the payloads, are 31-bit numbers in the kernel.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Batch:
    """A planned batch. data: uint8, all parts; the others say where in it each part starts, in bytes."""

    data: NDArray[np.uint8]
    frames: int
    lanes_a_frame: int
    ranges_a_frame: int
    ranges: int
    channels: int
    lanes: int
    payloads: int

    @property
    def lane_count(self) -> int:
        return self.frames * self.lanes_a_frame

    @property
    def word_count(self) -> int:
        """32-bit words of the payloads."""
        return (len(self.data) - self.payloads) // 4


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_gpu_stream(header: StreamHeader) -> None:
    """Raise ArtifactError for a stream that the GPU decoder does not decode."""
    if header.coder != "context":
        raise ArtifactError(
            f"a stream of coder {header.coder}, expected context: the GPU decodes no other",
            hint="decode it on the CPU, or encode it anew: latentseg encode --coder context",
        )


def plan_batch(payloads: Sequence[bytes], header: StreamHeader, implementation: Implementation = "auto") -> Batch:
    """Take payloads of one stream apart and lay them out for the device.

    Raises InputError for a damaged payload (naming its place in the batch), ArtifactError for another coder's stream or
    a batch whose output or payloads are too large for the kernel.
    """
    check_gpu_stream(header)
    channels = header.latent_shape[0]
    lanes_a_frame = len(plan_tiles(header).top) * channels
    ranges_a_frame = channels if header.scaling.mode == "channel" else 1
    frames = len(payloads)
    ranges = 0
    what = _aligned(ranges + 8 * frames * ranges_a_frame)
    lanes = _aligned(what + 4 * frames * channels)
    bits = _aligned(lanes + 8 * frames * lanes_a_frame)
    size = sum(len(payload) for payload in payloads)
    symbols = frames * int(np.prod(header.latent_shape))
    if frames == 0 or symbols > _MOST or 8 * size > _MOST or 2 * frames * lanes_a_frame > _MOST:
        raise ArtifactError(
            f"a batch of {frames} frames, {symbols} symbols and {size} bytes, expected at least one frame, at most "
            f"{_MOST} symbols and {_MOST // 8} bytes",
            hint="make the batch smaller" if frames else "",
        )
    # Behind the last payload's bytes up to a whole word there are zeros.
    data = np.zeros(bits + _aligned(size), np.uint8)
    view = Batch(data, frames, lanes_a_frame, ranges_a_frame, ranges, what, lanes, bits)
    tables = (
        data[ranges : 8 * frames * ranges_a_frame].view(np.float32).reshape(frames, ranges_a_frame, 2),
        data[what : what + 4 * frames * channels].view(np.int32).reshape(frames, channels),
        data[lanes : lanes + 8 * frames * lanes_a_frame].view(np.int32).reshape(frames, -1, channels, 2),
    )
    native = choose(implementation)
    at = 0
    for index, payload in enumerate(payloads):
        rows = [table[index] for table in tables]
        try:
            if native is None:
                _plan_frame(payload, header, at, *rows)
            else:
                flat = (row.reshape(-1) for row in rows)
                stream = *header.latent_shape, header.bits, *native_scaling(header), *header.tile
                native.context_lanes(bytes(payload), *stream, at, *flat)
        except (ValueError, InputError) as error:
            raise InputError(f"frame {index} of the batch: {error}") from None
        data[bits + at : bits + at + len(payload)] = np.frombuffer(payload, np.uint8)
        at += len(payload)
    return view


def _plan_frame(
    payload: bytes,
    header: StreamHeader,
    at: int,
    ranges: NDArray[np.float32],
    channels: NDArray[np.int32],
    lanes: NDArray[np.int32],
) -> None:
    """The NumPy reference of the native `context_lanes`: one frame's rows, for a payload that stands at byte `at`."""
    parts = unpack_context(payload, header, plan_tiles(header))
    ranges[:, 0] = parts.lo
    ranges[:, 1] = steps(header.bits, parts.lo, parts.hi)
    found = parts.channels
    channels[:] = found.mode + 4 * found.f + (found.g << 8) + (found.centre << 16)
    sizes = np.where((found.mode == CONSTANT)[:, None], 0, parts.sizes)
    lanes[:, :, 0] = np.where(sizes > 0, parts.offsets + at, 0).T
    lanes[:, :, 1] = sizes.T


def check_damage(damaged: NDArray[np.int32]) -> None:
    """Raise InputError if context_decode found damage: `damaged` is what it wrote, (frames,)."""
    found = np.flatnonzero(damaged != SOUND)
    if len(found):
        frame = int(found[0])
        raise InputError(
            f"frame {frame} of the batch: payload damaged: lane {damaged[frame]} does not end where its length says"
        )


def table_map_words() -> NDArray[np.int64]:
    """`context_model.table_map` as the kernel takes it: int64 (STEPS * STEPS, 2), eight table numbers a word."""
    numbers = model.table_map().reshape(-1, 2, model.LEVELS // 2).astype(np.int64)
    words: NDArray[np.int64] = (numbers << 8 * np.arange(model.LEVELS // 2)).sum(axis=2)
    return words
