"""NumPy reference of the entropy coder: lanes of canonical Huffman codes (coder 1, docs/format.md).

A lane is a run of codes, highest bit first, padded with zero bits to a byte. Decoding steps all lanes together, one
symbol a step, so that a machine without a compiler still gets through a frame in a fraction of a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bitstream.header import StreamHeader
from ..bitstream.huffman import (
    LEVELS,
    MAX_CODE_BITS,
    canonical_codes,
    code_lengths,
    decode_table,
    pack_lengths,
)
from ..bitstream.payload import LanePlan, Payload, pack_number, plan_lanes, unpack_payload
from ..errors import InputError
from .dequantize import symbol_values

_TABLE = 1 << MAX_CODE_BITS


def encode(q: NDArray[np.uint8], header: StreamHeader, scales: bytes) -> bytes:
    """The payload of symbols q (uint8 (C, h, w), in range), behind `scales`."""
    plan = plan_lanes(header)
    segments = q.reshape(int(plan.tables[-1]) + 1, -1)
    lengths = np.empty((len(segments), LEVELS), np.uint8)
    codes = np.empty((len(segments), LEVELS), np.uint16)
    tables = []
    for i, segment in enumerate(segments):
        lengths[i] = code_lengths(np.bincount(segment, minlength=LEVELS))
        codes[i] = canonical_codes(lengths[i])
        tables.append(pack_lengths(lengths[i], int(segment[0])))
    bits = np.take_along_axis(lengths, segments, axis=1).reshape(-1).astype(np.int64)
    values = np.take_along_axis(codes, segments, axis=1).reshape(-1).astype(np.int64)
    ends = np.cumsum(bits)
    lane_first = ends[plan.starts] - bits[plan.starts]
    lane_bits = ends[plan.starts + plan.counts - 1] - lane_first
    lane_bytes = (lane_bits + 7) // 8
    lane_starts = np.cumsum(lane_bytes) - lane_bytes
    coded = (lengths.max(axis=1) > 0)[plan.tables]
    sizes = b"".join(pack_number(int(size)) for size in lane_bytes[coded])
    # Each code's place in bits, from the start of the lanes; a code touches at most three bytes, and no two codes share
    # a bit, so that adding is the same as or-ing.
    at = ends - bits + np.repeat(8 * lane_starts - lane_first, plan.counts)
    window = values << (24 - bits - (at & 7))
    body = np.zeros(int(lane_bytes.sum()) + 3, np.float64)
    for byte in range(3):
        part = window >> (16 - 8 * byte) & 255
        body += np.bincount((at >> 3) + byte, weights=part, minlength=len(body))[: len(body)]
    lanes = body[:-3].astype(np.uint8).tobytes()
    return scales + b"".join(tables) + sizes + lanes


def decode(payload: bytes, header: StreamHeader) -> NDArray[np.uint8]:
    """The symbols of a payload: uint8 (C, h, w)."""
    plan = plan_lanes(header)
    return _symbols(unpack_payload(payload, header, plan), payload, plan).reshape(header.latent_shape)


def decode_floats(payload: bytes, header: StreamHeader, out: NDArray[np.float32]) -> None:
    """The dequantised latent of a payload, into out (C, h, w)."""
    plan = plan_lanes(header)
    parts = unpack_payload(payload, header, plan)
    rows = _symbols(parts, payload, plan).reshape(len(parts.lo), -1).astype(np.intp)
    out.reshape(rows.shape)[:] = np.take_along_axis(symbol_values(header, parts.lo, parts.hi), rows, axis=1)


def _symbols(parts: Payload, payload: bytes, plan: LanePlan) -> NDArray[np.uint8]:
    table = np.concatenate(
        [decode_table(lengths, int(single)) for lengths, single in zip(parts.lengths, parts.singles, strict=True)]
    )
    # next24[i]: bytes i, i + 1, i + 2 of the payload as one number; zeros behind its end.
    padded = np.frombuffer(payload + bytes(3), np.uint8).astype(np.int64)
    next24 = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    limit = 8 * (len(next24) - 1)
    out = np.empty(int(plan.counts.sum()), np.uint8)
    # Longest lanes first, so that those still running are always a prefix.
    order = np.argsort(-plan.counts, kind="stable")
    counts, starts = plan.counts[order], plan.starts[order]
    base = plan.tables[order] * _TABLE
    at = 8 * parts.lane_offsets[order]
    running = len(order)
    for step in range(int(counts[0])):
        while counts[running - 1] <= step:
            running -= 1
        # A damaged lane can run on: it is held at the payload's end, and found out below.
        place = np.minimum(at[:running], limit)
        window = next24[place >> 3] >> (24 - MAX_CODE_BITS - (place & 7)) & (_TABLE - 1)
        entry = table[base[:running] + window]
        out[starts[:running] + step] = entry & 255
        at[:running] += entry >> 8
    _check_ends(parts, next24, order, at)
    return out


def _check_ends(parts: Payload, next24: NDArray[np.int64], order: NDArray[np.int64], at: NDArray[np.int64]) -> None:
    used = at - 8 * parts.lane_offsets[order]
    size = parts.lane_bytes[order]
    fits = (used + 7) // 8 == size
    # Padding: the bits of the last byte behind the last code.
    last = next24[np.where(fits, at >> 3, 0)] >> 16
    clean = (at & 7 == 0) | (last & (255 >> (at & 7)) == 0)
    bad = np.flatnonzero(~(fits & clean))
    if len(bad):
        i = int(order[bad].min())
        raise InputError(f"payload damaged: lane {i} does not end where its length says")
