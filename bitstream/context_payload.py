"""The payload of one frame under coder 2 (context): what lies where. Bits themselves: kernels/context_reference.py.

    scales    as under coder 1
    channels  three bytes each: mode + 4 f, g, centre
    lengths   bytes of each lane, as the difference to the lane before it in its channel: zigzag, base 128
    lanes     the lanes' bytes, in order: channel, then tile in raster order

A channel of one single value (mode CONSTANT) has no lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .context_model import STATE_BITS, STEPS
from .header import StreamHeader
from .payload import pack_number, scale_count, unpack_number, unpack_scales

CONSTANT, CENTRED, PREDICTED = 0, 1, 2
# The most that one symbol takes: all of the state's bits, and an escaped error.
_SYMBOL_BITS = STATE_BITS + 8


@dataclass(frozen=True)
class TilePlan:
    """How each channel is cut into tiles, in raster order: (tiles,) int64 each, known from the stream header alone."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def shapes(self) -> list[tuple[int, int, NDArray[np.int64]]]:
        """(rows, columns, which tiles), for each of the at most four shapes."""
        pairs = sorted(set(zip(self.rows.tolist(), self.columns.tolist(), strict=True)), reverse=True)
        return [(r, c, np.flatnonzero((self.rows == r) & (self.columns == c))) for r, c in pairs]


@dataclass(frozen=True)
class Channels:
    """What the payload says about each channel: (C,) int64 each."""

    mode: NDArray[np.int64]
    f: NDArray[np.int64]
    g: NDArray[np.int64]
    centre: NDArray[np.int64]


@dataclass(frozen=True)
class ContextPayload:
    """A payload taken apart and checked, up to the lanes' bits.

    lo, hi: float32, shape (1,) or (C,).
    offsets, sizes: (C, tiles) int64, where each lane's bytes lie in the payload; 0 bytes in a constant channel.
    """

    lo: NDArray[np.float32]
    hi: NDArray[np.float32]
    channels: Channels
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def plan_tiles(header: StreamHeader) -> TilePlan:
    """Cuts the channels of this stream's frames into tiles."""
    _, height, width = header.latent_shape
    rows, columns = header.tile
    top, left = np.arange(0, height, rows, dtype=np.int64), np.arange(0, width, columns, dtype=np.int64)
    tops, lefts = np.repeat(top, len(left)), np.tile(left, len(top))
    return TilePlan(tops, lefts, np.minimum(rows, height - tops), np.minimum(columns, width - lefts))


def pack_channels(channels: Channels) -> bytes:
    """Three bytes a channel."""
    rows = np.stack([channels.mode + 4 * channels.f, channels.g, channels.centre], axis=1)
    return rows.astype(np.uint8).tobytes()


def pack_sizes(sizes: NDArray[np.int64], mode: NDArray[np.int64]) -> bytes:
    """The lanes' lengths: int64 (C, tiles), of the channels that are not constant."""
    steps = np.diff(sizes[mode != CONSTANT], axis=1, prepend=0)
    return b"".join(pack_number(int(n)) for n in np.where(steps < 0, -2 * steps - 1, 2 * steps).reshape(-1))


def unpack_context(payload: bytes, header: StreamHeader, plan: TilePlan) -> ContextPayload:
    """Takes a payload apart; the lanes' lengths must add up to its end exactly (InputError)."""
    lo, hi = unpack_scales(payload, header)
    count = header.latent_shape[0]
    start = 8 * scale_count(header)
    offset = start + 3 * count
    if len(payload) < offset:
        raise InputError(f"payload damaged: {len(payload)} bytes, expected {offset} up to the end of the channels")
    raw = np.frombuffer(payload, np.uint8, 3 * count, start).reshape(count, 3).astype(np.int64)
    channels = Channels(raw[:, 0] & 3, raw[:, 0] >> 2, raw[:, 1], raw[:, 2])
    wrong = (channels.mode > PREDICTED) | (channels.f >= STEPS) | (channels.g >= STEPS)
    wrong |= (channels.centre >> header.bits) > 0
    wrong |= (channels.mode == CONSTANT) & ((channels.f > 0) | (channels.g > 0))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise InputError(f"payload damaged: channel {i} has parameters {raw[i].tolist()}")
    sizes = np.zeros((count, len(plan.top)), np.int64)
    most = (plan.rows * plan.columns * _SYMBOL_BITS + STATE_BITS + 7) // 8
    for channel in np.flatnonzero(channels.mode != CONSTANT):
        size = 0
        for tile in range(len(plan.top)):
            number, offset = unpack_number(payload, offset)
            size += -(number + 1) // 2 if number & 1 else number // 2
            if not 1 <= size <= most[tile]:
                raise InputError(f"payload damaged: a lane of {size} bytes, expected 1..{most[tile]}")
            sizes[channel, tile] = size
    total = int(sizes.sum())
    if offset + total != len(payload):
        raise InputError(f"payload damaged: lanes of {total} bytes behind byte {offset}, but it has {len(payload)}")
    ends = offset + np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    return ContextPayload(lo, hi, channels, ends - sizes, sizes)
