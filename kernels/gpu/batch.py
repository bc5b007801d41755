"""What the GPU decoder gets for a batch of frames: one run of bytes, made and checked on the host.

    ranges     float32 (frames * R, 2): lo and step of int2float; R is C with a range a channel, else 1. Or, with a
               codebook, the values of the 2^n symbols: R = 2^(n - 1)
    channels   int32 (frames, C): mode + 4 f + 2^8 g + 2^16 centre
    lanes      int32 (frames, tiles, C, 2): a lane's first byte among the payloads, and its bytes (0: constant channel)
    payloads   the frames' bytes

Each part starts at a multiple of 16 bytes, so that one copy to the device brings all of it, aligned. Lanes run by tile
and then channel: neighbours in that order have tiles of one shape, and so the same number of steps. Where the parts
start follows from the number of frames alone; how long the last one is, the payloads say.

A frame that cannot be planned may keep its place as a blank one: rows of zeros, which the kernel decodes to one value a
frame, out of no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ...bitstream import context_model as model
from ...bitstream.context_payload import CONSTANT, plan_tiles, unpack_context
from ...bitstream.header import StreamHeader
from ...bitstream.payload import scale_count
from ...errors import ArtifactError, InputError
from ..dequantize import codebook_table, steps
from ..dispatch import Implementation, choose, native_scaling
from .shapes import SOUND

ALIGNMENT = 16
# Positions in the output, and bits in the payloads, are 31-bit numbers in the kernel.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """Where a batch's parts start, in bytes, and how many lanes and ranges (pairs of floats) a frame has."""

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


@dataclass(frozen=True)
class Batch(Layout):
    """A planned batch. data: uint8, all parts."""

    data: NDArray[np.uint8]

    @property
    def word_count(self) -> int:
        """32-bit words of the payloads."""
        return (len(self.data) - self.payloads) // 4


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_gpu_stream(header: StreamHeader) -> None:
    """Raise ArtifactError for a stream that no kernels are compiled for."""
    if header.coder != "context":
        raise ArtifactError(
            f"a stream of coder {header.coder}, expected context: kernels are compiled for its tiles alone",
            hint="--backend onnxruntime, or encode the source again with --key-interval 1 (coder context)",
        )


def ranges_a_frame(header: StreamHeader) -> int:
    """R: pairs of floats that int2float takes for a frame of this stream."""
    pairs = {"channel": header.latent_shape[0], "codebook": 1 << (header.bits - 1)}
    return pairs.get(header.scaling.mode, 1)


def batch_layout(header: StreamHeader, frames: int) -> Layout:
    """Where the parts of a batch of this stream's frames start.

    Raises ArtifactError for a batch whose output is too large for the kernel, or of no frames.
    """
    channels = header.latent_shape[0]
    lanes_a_frame = len(plan_tiles(header).top) * channels
    ranges = ranges_a_frame(header)
    symbols = frames * header.symbols
    if frames < 1 or symbols > _MOST or 2 * frames * lanes_a_frame > _MOST:
        raise ArtifactError(
            f"a batch of {frames} frames, {symbols} symbols, expected at least one frame and at most {_MOST} symbols",
            hint="make the batch smaller" if frames > 0 else "",
        )
    what = _aligned(8 * frames * ranges)
    lanes = _aligned(what + 4 * frames * channels)
    payloads = _aligned(lanes + 8 * frames * lanes_a_frame)
    return Layout(frames, lanes_a_frame, ranges, 0, what, lanes, payloads)


def payload_limit(header: StreamHeader) -> int:
    """The most bytes that a frame's payload of coder "context" can have: ranges, channels, and each lane at its longest
    with its length."""
    plan = plan_tiles(header)
    lanes = (plan.rows * plan.columns * (model.STATE_BITS + 8) + model.STATE_BITS + 7) // 8 + 4
    return 8 * scale_count(header) + header.latent_shape[0] * (3 + int(lanes.sum()))


def batch_room(header: StreamHeader, frames: int) -> int:
    """Bytes that any batch of so many frames of this stream fits into."""
    return batch_layout(header, frames).payloads + _aligned(frames * payload_limit(header))


def plan_batch(
    payloads: Sequence[bytes],
    header: StreamHeader,
    implementation: Implementation = "auto",
    into: NDArray[np.uint8] | None = None,
    refused: dict[int, InputError] | None = None,
) -> Batch:
    """Take payloads of one stream apart and lay them out for the device.

    into: uint8 to lay them out in, contiguous and aligned to 4 bytes, such as pinned memory; None makes a new array.
    refused: takes the error of each damaged payload, by its place in the batch, which becomes a blank frame.

    Raises InputError for a damaged payload (naming its place in the batch) where `refused` is None; ArtifactError for
    another coder's stream, a batch whose output or payloads are too large for the kernel, or more than `into` holds.
    """
    check_gpu_stream(header)
    layout = batch_layout(header, len(payloads))
    limit = payload_limit(header)
    errors = {} if refused is None else refused
    for index, payload in enumerate(payloads):
        if len(payload) > limit:
            errors[index] = InputError(f"payload damaged: {len(payload)} bytes, expected at most {limit}")
    size = sum(len(payload) for index, payload in enumerate(payloads) if index not in errors)
    if 8 * size > _MOST:
        raise ArtifactError(
            f"a batch of {len(payloads)} frames with {size} bytes, expected at most {_MOST // 8}",
            hint="make the batch smaller",
        )
    end = layout.payloads + _aligned(size)
    if into is None:
        into = np.zeros(end, np.uint8)
    if end > len(into):
        raise ArtifactError(f"a batch of {end} bytes, expected at most the {len(into)} that there is room for")
    data = into[:end]
    tables = _tables(layout, header.latent_shape[0], data)
    native = choose(implementation)
    at = 0
    for index, payload in enumerate(payloads):
        rows = [table[index] for table in tables]
        try:
            if index in errors:
                raise errors[index]
            if native is None:
                _plan_frame(payload, header, at, *rows)
            else:
                flat = (row.reshape(-1) for row in rows)
                stream = *header.latent_shape, header.bits, *native_scaling(header), *header.tile
                native.context_lanes(bytes(payload), *stream, at, *flat)
        except (ValueError, InputError) as error:
            if refused is None:
                raise InputError(f"frame {index} of the batch: {error}") from None
            errors[index] = InputError(str(error))
            for row in rows:
                row[...] = 0
            continue
        start = layout.payloads + at
        data[start : start + len(payload)] = np.frombuffer(payload, np.uint8)
        at += len(payload)
    # Behind the last payload's bytes up to a whole word there are zeros.
    end = layout.payloads + _aligned(at)
    data[layout.payloads + at : end] = 0
    return Batch(**asdict(layout), data=data[:end])


def _tables(
    layout: Layout, channels: int, data: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """The parts before the payloads as views of `data`, each by frames."""

    def part(start: int, size: int) -> NDArray[np.uint8]:
        return data[start : start + size * layout.frames]

    ranges, lanes = layout.ranges_a_frame, layout.lanes_a_frame
    return (
        part(layout.ranges, 8 * ranges).view(np.float32).reshape(layout.frames, ranges, 2),
        part(layout.channels, 4 * channels).view(np.int32).reshape(layout.frames, channels),
        part(layout.lanes, 8 * lanes).view(np.int32).reshape(layout.frames, -1, channels, 2),
    )


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
    if header.scaling.mode == "codebook":
        ranges[...] = codebook_table(header.scaling.centres).reshape(-1, 2)
    else:
        ranges[:, 0] = parts.lo
        ranges[:, 1] = steps(header.bits, parts.lo, parts.hi)
    found = parts.channels
    channels[:] = found.mode + 4 * found.f + (found.g << 8) + (found.centre << 16)
    sizes = np.where((found.mode == CONSTANT)[:, None], 0, parts.sizes)
    lanes[:, :, 0] = np.where(sizes > 0, parts.offsets + at, 0).T
    lanes[:, :, 1] = sizes.T


def damage_found(damaged: NDArray[np.int32]) -> dict[int, InputError]:
    """The error of each frame that context_decode found damaged, by its place in the batch.

    damaged: what the kernel wrote, (frames,).
    """
    return {
        int(frame): InputError(f"payload damaged: lane {damaged[frame]} does not end where its length says")
        for frame in np.flatnonzero(damaged != SOUND)
    }


def check_damage(damaged: NDArray[np.int32]) -> None:
    """Raise InputError if context_decode found damage: `damaged` is what it wrote, (frames,)."""
    for frame, error in damage_found(damaged).items():
        raise InputError(f"frame {frame} of the batch: {error}")


def table_map_words() -> NDArray[np.int64]:
    """`context_model.table_map` as the kernel takes it: int64 (STEPS * STEPS, 2), eight table numbers a word."""
    numbers = model.table_map().reshape(-1, 2, model.LEVELS // 2).astype(np.int64)
    words: NDArray[np.int64] = (numbers << 8 * np.arange(model.LEVELS // 2)).sum(axis=2)
    return words
