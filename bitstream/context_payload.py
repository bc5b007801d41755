"""The payload of one frame under coder 2 (context): what lies where. Bits themselves: kernels/context_reference.py.

    scales    as under coder 1
    head      bits: each channel's parameters, then each lane's bytes, both as differences to the channel before
    lanes     the lanes' bytes, in order: channel, then tile in raster order

A channel of one single value (mode CONSTANT) has no f, no g and no lanes.

Coder 3 (inter) puts one byte in front: KEY, and all is as under coder 2; or INTER, and channels have more modes, which
refer to the frame before. A channel that is predicted by that frame has no centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .context_model import STATE_BITS, STEPS
from .header import StreamHeader
from .payload import scale_count, unpack_scales

CONSTANT, CENTRED, PREDICTED = 0, 1, 2
# INTER frames have more modes: PREVIOUS predicts by the symbol that the frame before has at the same place, and
# REMEMBERING, added to a mode, lets its tables follow that frame's errors, too.
PREVIOUS = 3
REMEMBERING = 3
KEY, INTER = 0, 1  # coder 3's first byte
# The most that one symbol takes: all of the state's bits, and an escaped error.
_SYMBOL_BITS = STATE_BITS + 8
# What the first channel's mode, f and g are differences to; its centre: to 2^(bits - 1).
_FIRST = (CENTRED, 16, 16)
_ORDER_BITS = 4
# A lane has less than 2^26 bytes, so that no number needs more in front of its one.
_MOST_ZEROS = 26

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TilePlan:
    """How each channel is cut into tiles, in raster order: (tiles,) int64 each, known from the stream header alone."""

    top: Ints
    left: Ints
    rows: Ints
    columns: Ints

    def shapes(self) -> list[tuple[int, int, Ints]]:
        """(rows, columns, which tiles), for each of the at most four shapes."""
        pairs = sorted(set(zip(self.rows.tolist(), self.columns.tolist(), strict=True)), reverse=True)
        return [(r, c, np.flatnonzero((self.rows == r) & (self.columns == c))) for r, c in pairs]


@dataclass(frozen=True)
class Channels:
    """What the payload says about each channel: (C,) int64 each; 0 for what it leaves out."""

    mode: Ints
    f: Ints
    g: Ints
    centre: Ints


@dataclass(frozen=True)
class ContextPayload:
    """A payload taken apart and checked, up to the lanes' bits.

    lo, hi: float32, shape (1,) or (C,).
    offsets, sizes: (C, tiles) int64, where each lane's bytes lie in the payload; 0 bytes in a constant channel.
    channel_bits, length_bits: (C,) int64, what each channel's parameters and lengths take of the head.
    head: bytes of the head.
    """

    lo: NDArray[np.float32]
    hi: NDArray[np.float32]
    channels: Channels
    offsets: Ints
    sizes: Ints
    channel_bits: Ints
    length_bits: Ints
    head: int


def plan_tiles(header: StreamHeader) -> TilePlan:
    """Cuts the channels of this stream's frames into tiles."""
    _, height, width = header.latent_shape
    rows, columns = header.tile
    top, left = np.arange(0, height, rows, dtype=np.int64), np.arange(0, width, columns, dtype=np.int64)
    tops, lefts = np.repeat(top, len(left)), np.tile(left, len(top))
    return TilePlan(tops, lefts, np.minimum(rows, height - tops), np.minimum(columns, width - lefts))


def is_key(payload: bytes, header: StreamHeader) -> bool:
    """Whether a frame decodes alone: every frame of coders 1 and 2, the key frames of coder 3.

    Raises InputError where coder 3's first byte is missing, or neither KEY nor INTER.
    """
    if header.coder != "inter":
        return True
    if not payload or payload[0] not in (KEY, INTER):
        found = f"first byte {payload[0]}" if payload else "no bytes"
        raise InputError(
            f"payload damaged: {found}, expected {KEY} (key frame) or {INTER} (refers to the frame before)"
        )
    return payload[0] == KEY


def prediction(mode: Ints) -> Ints:
    """What predicts under each mode: CONSTANT, CENTRED, PREDICTED or PREVIOUS."""
    result: Ints = np.where(mode > PREVIOUS, mode - REMEMBERING, mode)
    return result


def pack_bits(values: Ints, widths: Ints) -> bytes:
    """Numbers of so many bits each, one behind the other, lowest bit first; the last byte's rest is 0."""
    ends = np.cumsum(widths)
    index = np.repeat(np.arange(len(widths)), widths)
    bit = np.arange(int(ends[-1])) - np.repeat(ends - widths, widths)
    return np.packbits((values[index] >> bit & 1).astype(np.uint8), bitorder="little").tobytes()


def pack_head(channels: Channels, sizes: Ints, bits: int) -> bytes:
    """The channels' parameters and the lanes' lengths, of symbols of so many bits. sizes: int64 (C, tiles)."""
    coded = channels.mode != CONSTANT
    centred = prediction(channels.mode) != PREVIOUS
    mode, f, g = _FIRST
    steps = np.zeros((len(coded), 4), np.int64)
    steps[:, 0] = np.diff(channels.mode, prepend=mode)
    steps[coded, 1] = np.diff(channels.f[coded], prepend=f)
    steps[coded, 2] = np.diff(channels.g[coded], prepend=g)
    steps[centred, 3] = np.diff(channels.centre[centred], prepend=1 << (bits - 1))
    values, widths = _codes(steps, 0)
    widths[~coded, 1:3] = 0
    widths[~centred, 3] = 0
    parts = [(values.reshape(-1), widths.reshape(-1))]
    if coded.any():
        lengths = [_codes(np.diff(sizes[coded], axis=0, prepend=0).reshape(-1), k) for k in range(1 << _ORDER_BITS)]
        order = int(np.argmin([widths.sum() for _, widths in lengths]))
        parts += [(np.array([order]), np.array([_ORDER_BITS])), lengths[order]]
    return pack_bits(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _codes(steps: Ints, order: int) -> tuple[Ints, Ints]:
    """Exponential-Golomb codes of signed numbers, to be written lowest bit first: values and widths."""
    numbers = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    zeros = np.frexp(((numbers >> order) + 1).astype(np.float64))[1].astype(np.int64) - 1
    rest = numbers - (((1 << zeros) - 1) << order)
    return (1 << zeros) | rest << (zeros + 1), 2 * zeros + 1 + order


class _HeadReader:
    """Reads numbers from bit `at` on; past the payload's end there are zeros, and an InputError."""

    def __init__(self, payload: bytes, at: int) -> None:
        self._payload, self.at, self._end = payload, at, 8 * len(payload)

    def take(self, width: int) -> int:
        """The next bits, at most 57."""
        value = self._window() & ((1 << width) - 1)
        self.at += width
        if self.at > self._end:
            raise InputError(f"payload damaged: {len(self._payload)} bytes, and the channels or lane lengths go on")
        return value

    def signed(self, order: int) -> int:
        """The next number in the exponential-Golomb code of this order."""
        window = self._window()
        zeros = (window & -window).bit_length() - 1
        if not 0 <= zeros <= _MOST_ZEROS:
            raise InputError("payload damaged: a number among the channels or lane lengths is cut or too long")
        self.at += zeros + 1
        number = (((1 << zeros) - 1) << order) + self.take(zeros + order)
        return -(number + 1) // 2 if number & 1 else number // 2

    def _window(self) -> int:
        byte = self.at >> 3
        return int.from_bytes(self._payload[byte : byte + 8], "little") >> (self.at & 7)


def unpack_context(payload: bytes, header: StreamHeader, plan: TilePlan, inter: bool = False) -> ContextPayload:
    """Takes a payload apart; the lanes' lengths must add up to its end exactly (InputError).

    payload: of coder 3, what lies behind its first byte.  inter: whether that byte was INTER.
    """
    lo, hi = unpack_scales(payload, header)
    start = 8 * scale_count(header)
    reader = _HeadReader(payload, 8 * start)
    channels, channel_bits = _read_channels(reader, header, PREVIOUS + REMEMBERING if inter else PREDICTED)
    count = header.latent_shape[0]
    sizes, length_bits = np.zeros((count, len(plan.top)), np.int64), np.zeros(count, np.int64)
    coded = np.flatnonzero(channels.mode != CONSTANT)
    order = reader.take(_ORDER_BITS) if len(coded) else 0
    most = (plan.rows * plan.columns * _SYMBOL_BITS + STATE_BITS + 7) // 8
    before = [0] * len(plan.top)
    for channel in coded:
        at = reader.at
        for tile, size in enumerate(before):
            size += reader.signed(order)
            if not 1 <= size <= most[tile]:
                raise InputError(f"payload damaged: a lane of {size} bytes, expected 1..{most[tile]}")
            before[tile] = size
        sizes[channel] = before
        length_bits[channel] = reader.at - at
    if reader.take(-reader.at % 8):
        raise InputError("payload damaged: the bits behind the lane lengths are not 0")
    offset, total = reader.at // 8, int(sizes.sum())
    if offset + total != len(payload):
        raise InputError(f"payload damaged: lanes of {total} bytes behind byte {offset}, but it has {len(payload)}")
    ends = offset + np.cumsum(sizes.reshape(-1)).reshape(sizes.shape)
    return ContextPayload(lo, hi, channels, ends - sizes, sizes, channel_bits, length_bits, offset - start)


def _read_channels(reader: _HeadReader, header: StreamHeader, last_mode: int) -> tuple[Channels, Ints]:
    """Each channel's parameters, and how many bits they take."""
    rows = np.zeros((header.latent_shape[0], 4), np.int64)
    widths = np.zeros(len(rows), np.int64)
    (mode, f, g), centre = _FIRST, 1 << (header.bits - 1)
    for channel, row in enumerate(rows):
        at = reader.at
        mode += reader.signed(0)
        if mode != CONSTANT:
            f, g = f + reader.signed(0), g + reader.signed(0)
        previous = mode in (PREVIOUS, PREVIOUS + REMEMBERING)
        if not previous:
            centre += reader.signed(0)
        ranges = ((mode, last_mode + 1), (f, STEPS), (g, STEPS), (centre, 1 << header.bits))
        if not all(0 <= value < limit for value, limit in ranges):
            raise InputError(f"payload damaged: channel {channel} has parameters {[value for value, _ in ranges]}")
        row[:] = (mode, f, g, 0 if previous else centre) if mode != CONSTANT else (mode, 0, 0, centre)
        widths[channel] = reader.at - at
    return Channels(*rows.T), widths
