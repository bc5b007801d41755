"""Where a payload's bytes go: scales, code tables, lane lengths, lanes, and what each channel takes of them.

Nothing is decoded. Under coder 1 with one code a frame ("huffman-frame") lanes run from one channel into the next, so
that bytes have no channel there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .context_model import STATE_BITS
from .context_payload import CONSTANT, is_key, plan_tiles, unpack_context
from .header import TILED_CODERS, StreamHeader
from .huffman import unpack_lengths
from .payload import plan_lanes, scale_count, unpack_payload

# A lane's last byte is filled with 0 to 7 bits. How many, only decoding the lane would tell, so the mean stands here.
FILL_BITS = 3.5


@dataclass(frozen=True)
class Anatomy:
    """Bytes of one payload, parts of coders 2 and 3's head in eighths; scales + tables + lengths + lanes is all of it.

    tables: code tables (coder 1), or the channels' parameters and what else the head has but lengths (coders 2 and 3;
        and coder 3's first byte).
    lengths: the lanes' lengths; lanes: the lanes themselves.
    count: lanes that have bytes (channels of a single value have none).
    state_bits: bits of the lanes that hold where each begins: 11 a lane under coders 2 and 3, none under coder 1.
    channels: (C,) float64, what each channel takes: its table or parameters, lane lengths, lanes, its range where it
        has its own, and an equal share of the few bits of a head that are no channel's; None where lanes run through
        channels.
    """

    scales: int
    tables: float
    lengths: float
    lanes: int
    count: int
    state_bits: int
    channels: NDArray[np.float64] | None

    @property
    def lane_overhead(self) -> float:
        """Bytes that cutting into lanes costs: lengths and states, and filling at its mean of 3.5 bits a lane.

        Left out: symbols at a lane's edge are predicted from fewer neighbours, which costs bits of the symbols.
        """
        return self.lengths + (self.state_bits + FILL_BITS * self.count) / 8


def dissect(payload: bytes, header: StreamHeader) -> Anatomy:
    """Takes a frame's payload apart. Raises InputError for one whose parts do not add up, or lie."""
    scales = 8 * scale_count(header)
    own_scale = 8 * (header.scaling.mode == "channel")
    lengths: NDArray[np.float64] | NDArray[np.int64]
    tables: NDArray[np.float64] | NDArray[np.int64]
    if header.coder in TILED_CODERS:
        kind_bytes = int(header.coder == "inter")
        parts = unpack_context(payload[kind_bytes:], header, plan_tiles(header), not is_key(payload, header))
        coded = parts.channels.mode != CONSTANT
        lane_bytes, lengths = parts.sizes, parts.length_bits / 8
        table_bytes = kind_bytes + parts.head - float(lengths.sum())
        tables = parts.channel_bits / 8
        tables += (table_bytes - tables.sum()) / len(tables)
        count = int(coded.sum()) * parts.sizes.shape[1]
        state_bits = STATE_BITS * count
    else:
        lanes = unpack_payload(payload, header, plan_lanes(header))
        tables = _table_bytes(payload, scales, len(lanes.lengths), header.bits)
        table_bytes = float(tables.sum())
        lane_bytes = lanes.lane_bytes.reshape(len(tables), -1)
        coded = lanes.lengths.max(axis=1) > 0
        lengths = (_digits(lane_bytes) * coded[:, None]).sum(axis=1)
        count = int(coded.sum()) * lane_bytes.shape[1]
        state_bits = 0
    by_table = own_scale + tables + lengths + lane_bytes.sum(axis=1)
    channels = None if header.coder == "huffman-frame" else by_table.astype(np.float64)
    used = table_bytes, float(lengths.sum()), int(lane_bytes.sum())
    return Anatomy(scales, *used, count, state_bits, channels)


def _digits(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of each number in base 128; a payload has no superfluous ones, and no number needs five."""
    digits = np.ones_like(numbers)
    for digit in (1, 2, 3):
        digits += numbers >> 7 * digit > 0
    return digits


def _table_bytes(payload: bytes, offset: int, tables: int, bits: int) -> NDArray[np.int64]:
    """(tables,) bytes of each code table; the payload is known to be sound."""
    sizes = np.empty(tables, np.int64)
    for i in range(tables):
        end = unpack_lengths(payload, offset, bits)[2]
        sizes[i], offset = end - offset, end
    return sizes
