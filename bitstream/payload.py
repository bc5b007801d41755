"""The payload of one frame under coder 1 (Huffman): what lies where. Bits themselves: kernels/entropy.py.

    scales    "tensor": lo, hi (f32); "channel": C times lo, then C times hi (f32); others: nothing
    tables    one ("frame") or C ("channel") code tables (huffman.pack_lengths)
    lengths   bytes of each lane whose table has more than one symbol, in lane order, as base-128 numbers,
              lowest seven bits first, top bit set when more follow
    lanes     the lanes' bytes, in order

Symbols run in raster order (channel, row, column). With one dictionary a frame, lanes cut the whole run every
`lane_symbols`; with one a channel, each channel begins a new lane, so that a lane has one table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .header import StreamHeader
from .huffman import unpack_lengths

# The longest lane has MAX_LANE_SYMBOLS * 12 bits: 4 base-128 digits are enough.
_MAX_DIGITS = 4


@dataclass(frozen=True)
class LanePlan:
    """How a frame's symbols are cut: known from the stream header alone.

    starts, counts: (lanes,) int64, a lane's first symbol in raster order and how many it has.
    tables: (lanes,) int64, the table it uses.
    """

    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: NDArray[np.int64]


@dataclass(frozen=True)
class Payload:
    """A payload taken apart and checked, up to the lanes' bits.

    lo, hi: float32, shape (1,) or (C,).
    lengths: (tables, 256) uint8 code lengths; singles: (tables,) the only symbol of a table without lengths.
    lane_offsets, lane_bytes: (lanes,) int64, where each lane's bytes lie in the payload.
    """

    lo: NDArray[np.float32]
    hi: NDArray[np.float32]
    lengths: NDArray[np.uint8]
    singles: NDArray[np.int64]
    lane_offsets: NDArray[np.int64]
    lane_bytes: NDArray[np.int64]


def plan_lanes(header: StreamHeader) -> LanePlan:
    """Cuts a frame of this stream into lanes."""
    c, h, w = header.latent_shape
    segments, size = (c, h * w) if header.coder == "huffman-channel" else (1, c * h * w)
    within = np.arange(0, size, header.lane_symbols, dtype=np.int64)
    counts = np.minimum(size - within, header.lane_symbols)
    tables = np.repeat(np.arange(segments, dtype=np.int64), len(within))
    return LanePlan(np.tile(within, segments) + tables * size, np.tile(counts, segments), tables)


def scale_count(header: StreamHeader) -> int:
    """How many (lo, hi) pairs a payload of this stream carries."""
    return {"tensor": 1, "channel": header.latent_shape[0]}.get(header.scaling.mode, 0)


def pack_scales(lo: NDArray[np.float32], hi: NDArray[np.float32]) -> bytes:
    """All lo, then all hi, as little-endian float32."""
    return lo.astype("<f4").tobytes() + hi.astype("<f4").tobytes()


def unpack_scales(payload: bytes, header: StreamHeader) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(lo, hi) as float32 of shape (1,) or (C,); from the stream header when the scaling is fixed, 0 with a codebook.

    Raises InputError for a payload that ends inside, or a range that is not finite with lo <= hi.
    """
    n = scale_count(header)
    if n == 0:
        return np.array([header.scaling.lo], np.float32), np.array([header.scaling.hi], np.float32)
    if len(payload) < 8 * n:
        raise InputError(f"payload damaged: {len(payload)} bytes, expected {8 * n} bytes of scales at its start")
    both = np.frombuffer(payload, "<f4", 2 * n).astype(np.float32)
    lo, hi = both[:n], both[n:]
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(np.float32(255) * (hi - lo)) & (lo <= hi)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InputError(f"payload damaged: scaling range [{lo[i]}, {hi[i]}], expected finite lo <= hi")
    return lo, hi


def pack_number(value: int) -> bytes:
    """A base-128 number: lowest seven bits first, top bit set when more follow."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_number(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for digit in range(_MAX_DIGITS):
        if offset >= len(data):
            break
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << 7 * digit
        if byte < 128:
            if digit and byte == 0:
                raise InputError("payload damaged: a lane length has a leading zero")
            return value, offset
    raise InputError("payload damaged: a lane length is cut or too long")


def unpack_payload(payload: bytes, header: StreamHeader, plan: LanePlan) -> Payload:
    """Takes a payload apart; the lanes' lengths must add up to its end exactly (InputError)."""
    lo, hi = unpack_scales(payload, header)
    offset = 8 * scale_count(header)
    tables = header.latent_shape[0] if header.coder == "huffman-channel" else 1
    lengths = np.zeros((tables, 256), np.uint8)
    singles = np.zeros(tables, np.int64)
    for i in range(tables):
        lengths[i], singles[i], offset = unpack_lengths(payload, offset, header.bits)
    coded = (lengths.max(axis=1) > 0)[plan.tables]
    lane_bytes = np.zeros(len(plan.starts), np.int64)
    for lane in np.flatnonzero(coded):
        lane_bytes[lane], offset = unpack_number(payload, offset)
    total = int(lane_bytes.sum())
    if offset + total != len(payload):
        raise InputError(f"payload damaged: lanes of {total} bytes behind byte {offset}, but it has {len(payload)}")
    ends = offset + np.cumsum(lane_bytes)
    return Payload(lo, hi, lengths, singles, ends - lane_bytes, lane_bytes)
