"""NumPy reference of the context coder (coder 2, docs/format.md): all lanes of one tile shape step together.

A lane is a tile of one channel. It carries one state through its symbols; each symbol's table follows from the errors
of the neighbours that the lane has coded before it. The encoder walks a lane backwards, the decoder forwards.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bitstream import context_model as model
from ..bitstream.context_payload import (
    CENTRED,
    CONSTANT,
    PREDICTED,
    Channels,
    ContextPayload,
    TilePlan,
    pack_bits,
    pack_head,
    plan_tiles,
    unpack_context,
)
from ..bitstream.header import StreamHeader
from ..errors import InputError
from .dequantize import symbol_values

Ints = NDArray[np.int64]


class Neighbours(NamedTuple):
    """What lies left, two left, above, above left and above right, each of the shape of the tiles."""

    w: Ints
    ww: Ints
    n: Ints
    nw: Ints
    ne: Ints


def neighbours(tiles: Ints, start: Ints) -> Neighbours:
    """The neighbours of every position of int64 (lanes, rows, columns); start (lanes,) stands before the first one."""
    w, ww, n, nw, ne = (np.empty_like(tiles) for _ in range(5))
    w[:, :, 1:] = tiles[:, :, :-1]
    w[:, 1:, 0] = tiles[:, :-1, 0]
    w[:, 0, 0] = start
    n[:, 1:] = tiles[:, :-1]
    n[:, 0] = w[:, 0]
    ww[:, :, 1:] = w[:, :, :-1]
    ww[:, :, 0] = w[:, :, 0]
    nw[:, :, 1:] = n[:, :, :-1]
    nw[:, :, 0] = n[:, :, 0]
    ne[:, :, :-1] = n[:, :, 1:]
    ne[:, :, -1] = n[:, :, -1]
    nw[:, 0] = ne[:, 0] = w[:, 0]
    return Neighbours(w, ww, n, nw, ne)


def median(w: Ints, n: Ints, nw: Ints) -> Ints:
    """The median of W, N and W + N - NW."""
    low, high = np.minimum(w, n), np.maximum(w, n)
    result: Ints = np.clip(w + n - nw, low, high)
    return result


def activity(w: Ints, ww: Ints, n: Ints, ne: Ints) -> Ints:
    """The weighted sum of the neighbours' absolute errors."""
    return 2 * w + ww + 2 * n + ne


def _errors(tiles: Ints, mode: Ints, centre: Ints, bits: int) -> Ints:
    """Errors against the prediction, int64 (lanes, rows, columns); mode, centre (lanes,)."""
    near = neighbours(tiles, centre)
    predicted = np.where((mode == PREDICTED)[:, None, None], median(near.w, near.n, near.nw), centre[:, None, None])
    half = 1 << (bits - 1)
    return ((tiles - predicted + half) & (2 * half - 1)) - half


def _levels(errors: Ints, mode: Ints) -> Ints:
    near = neighbours(np.abs(errors), np.where(mode == PREDICTED, model.START_ERROR, 0))
    return model.level(activity(near.w, near.ww, near.n, near.ne))


def _cut(channel: Ints, plan: TilePlan, rows: int, columns: int, which: Ints) -> Ints:
    """Tiles of one shape out of int64 (h, w): (tiles, rows, columns)."""
    y, x = plan.top[which, None] + np.arange(rows), plan.left[which, None] + np.arange(columns)
    tiles: Ints = channel[y[:, :, None], x[:, None, :]]
    return tiles


def _fit(channel: Ints, plan: TilePlan, bits: int) -> tuple[int, int, int, int]:
    """(mode, f, g, centre) for one channel (h, w): the cheapest tables for what its symbols are."""
    counts = np.bincount(channel.reshape(-1), minlength=1 << bits)
    if counts.max() == channel.size:
        return CONSTANT, 0, 0, int(counts.argmax())
    centre = int(np.searchsorted(2 * np.cumsum(counts), channel.size))
    tiles = [_cut(channel, plan, rows, columns, which) for rows, columns, which in plan.shapes()]

    def under(mode: int) -> list[tuple[Ints, Ints]]:
        modes = [np.full(len(t), mode) for t in tiles]
        return [(_errors(t, m, np.full(len(t), centre), bits), m) for t, m in zip(tiles, modes, strict=True)]

    def size(errors: list[tuple[Ints, Ints]]) -> int:
        return sum(int(np.abs(e).sum()) for e, _ in errors)

    centred, predicted = under(CENTRED), under(PREDICTED)
    mode, chosen = (PREDICTED, predicted) if size(predicted) < size(centred) else (CENTRED, centred)
    seen = np.zeros((model.LEVELS, 256), np.int64)
    for errors, modes in chosen:
        np.add.at(seen, (_levels(errors, modes), errors + 128), 1)
    cost = seen @ model.costs().T  # (levels, tables)
    total = cost[np.arange(model.LEVELS), model.table_map()].sum(axis=2)
    f, g = np.unravel_index(int(total.argmin()), total.shape)
    return mode, int(f), int(g), centre


class _Encoder(NamedTuple):
    """The coding side of the tables: for a token of c states, where each of x = c .. 2c - 1 lies."""

    counts: Ints  # (tables, 257)
    first: Ints  # (tables, 257): a token's first row in `places`
    places: Ints  # (tables, states)


@cache
def _encoder() -> _Encoder:
    row = model.counts()
    entry = model.decoding_tables().astype(np.int64)
    token = np.where(entry >> 15 & 15, model.ESCAPE, (entry >> 19 & 255) ^ 128)
    return _Encoder(row, np.cumsum(row, axis=1) - row, np.argsort(token, axis=1, kind="stable"))


def _lane_bits(errors: Ints, tables: Ints, coder: _Encoder) -> tuple[Ints, Ints]:
    """Values and widths of a lane's parts, in reading order: int64 (lanes, 1 + 2 * symbols).

    errors, tables: (lanes, symbols). Part 0 is the state, then fresh bits and escaped error by turns.
    """
    lanes, symbols = errors.shape
    values, widths = (np.zeros((lanes, 1 + 2 * symbols), np.int64) for _ in range(2))
    x = np.full(lanes, model.STATES)
    for i in range(symbols - 1, -1, -1):
        table = tables[:, i]
        escaped = coder.counts[table, errors[:, i] + 128] == 0
        token = np.where(escaped, model.ESCAPE, errors[:, i] + 128)
        count = coder.counts[table, token]
        fresh = np.frexp((x // count).astype(np.float64))[1].astype(np.int64) - 1
        values[:, 1 + 2 * i], widths[:, 1 + 2 * i] = x & ((1 << fresh) - 1), fresh
        values[:, 2 + 2 * i], widths[:, 2 + 2 * i] = np.where(escaped, errors[:, i] & 255, 0), 8 * escaped
        x = model.STATES + coder.places[table, coder.first[table, token] + (x >> fresh) - count]
    values[:, 0], widths[:, 0] = x - model.STATES, model.STATE_BITS
    return values, widths


def encode(q: NDArray[np.uint8], header: StreamHeader, scales: bytes) -> bytes:
    """The payload of symbols q (uint8 (C, h, w), in range), behind `scales`."""
    plan = plan_tiles(header)
    wide = q.astype(np.int64)
    channels = Channels(*np.array([_fit(channel, plan, header.bits) for channel in wide], np.int64).T)
    coder = _encoder()
    lanes = np.empty((len(q), len(plan.top)), object)
    coded = np.flatnonzero(channels.mode != CONSTANT)
    for rows, columns, which in plan.shapes():
        if not len(coded):
            break
        tiles = np.concatenate([_cut(wide[c], plan, rows, columns, which) for c in coded])
        owner = np.repeat(coded, len(which))
        mode, f, g = channels.mode[owner], channels.f[owner], channels.g[owner]
        errors = _errors(tiles, mode, channels.centre[owner], header.bits)
        levels = _levels(errors, mode)
        tables = model.table_map()[f[:, None, None], g[:, None, None], levels].astype(np.int64)
        values, widths = _lane_bits(errors.reshape(len(tiles), -1), tables.reshape(len(tiles), -1), coder)
        for lane in range(len(tiles)):
            lanes[owner[lane], which[lane % len(which)]] = pack_bits(values[lane], widths[lane])
    used = lanes[coded].reshape(-1)
    sizes = np.zeros(lanes.shape, np.int64)
    sizes[coded] = np.array([len(lane) for lane in used], np.int64).reshape(len(coded), sizes.shape[1])
    return scales + pack_head(channels, sizes, header.bits) + b"".join(used)


def decode(payload: bytes, header: StreamHeader) -> NDArray[np.uint8]:
    """The symbols of a payload: uint8 (C, h, w)."""
    plan = plan_tiles(header)
    return _symbols(unpack_context(payload, header, plan), payload, header, plan)


def decode_floats(payload: bytes, header: StreamHeader, out: NDArray[np.float32]) -> None:
    """The dequantised latent of a payload, into out (C, h, w)."""
    plan = plan_tiles(header)
    parts = unpack_context(payload, header, plan)
    rows = _symbols(parts, payload, header, plan).reshape(len(parts.lo), -1).astype(np.intp)
    out.reshape(rows.shape)[:] = np.take_along_axis(symbol_values(header, parts.lo, parts.hi), rows, axis=1)


class _Lanes:
    """Lanes of one shape while they are decoded: where each stands in the payload, and its state."""

    def __init__(self, words: Ints, at: Ints, end: Ints, tables: Ints) -> None:
        self.words, self.at, self.limit, self.tables = words, at.copy(), end + 7, tables
        self.state = self._read(np.full(len(at), model.STATE_BITS))
        self.entries = model.decoding_tables().astype(np.int64)

    def _read(self, width: Ints) -> Ints:
        # A damaged lane can run on: it is held just behind its end, and found out when all is read.
        self.at = np.minimum(self.at, self.limit)
        value: Ints = self.words[self.at >> 3] >> (self.at & 7) & ((1 << width) - 1)
        self.at = self.at + width
        return value

    def step(self, level: Ints) -> Ints:
        """The lanes' next errors."""
        entry = self.entries[self.tables[np.arange(len(level)), level], self.state]
        self.state = (entry & 2047) + self._read(entry >> 11 & 15)
        more = entry >> 15 & 15
        error = np.where(more > 0, self._read(more), entry >> 19 & 255)
        return (error ^ 128) - 128


def _symbols(parts: ContextPayload, payload: bytes, header: StreamHeader, plan: TilePlan) -> NDArray[np.uint8]:
    channels = parts.channels
    out = np.empty(header.latent_shape, np.uint8)
    out[:] = channels.centre[:, None, None]
    padded = np.frombuffer(payload + bytes(8), np.uint8).astype(np.int64)
    words = padded[:-2] | padded[1:-1] << 8 | padded[2:] << 16
    coded = np.flatnonzero(channels.mode != CONSTANT)
    for rows, columns, which in plan.shapes():
        owner, tile = np.repeat(coded, len(which)), np.tile(which, len(coded))
        if not len(owner):
            break
        at = 8 * parts.offsets[owner, tile]
        end = at + 8 * parts.sizes[owner, tile]
        tables = model.table_map()[channels.f[owner], channels.g[owner]].astype(np.int64)
        lanes = _Lanes(words, at, end, tables)
        tiles = _decode_tiles(lanes, rows, columns, channels.mode[owner], channels.centre[owner], header.bits)
        bad = np.flatnonzero(~_ends_well(lanes, words, end))
        if len(bad):
            c, t = int(owner[bad[0]]), int(tile[bad[0]])
            raise InputError(f"payload damaged: tile {t} of channel {c} does not end where its length says")
        y, x = plan.top[tile, None] + np.arange(rows), plan.left[tile, None] + np.arange(columns)
        out[owner[:, None, None], y[:, :, None], x[:, None, :]] = tiles
    return out


def _decode_tiles(lanes: _Lanes, rows: int, columns: int, mode: Ints, centre: Ints, bits: int) -> NDArray[np.uint8]:
    count = len(mode)
    tiles = np.empty((count, rows, columns), np.uint8)
    start = np.where(mode == PREDICTED, model.START_ERROR, 0)
    # Symbols and absolute errors of the row above and of this one.
    above, here = (np.empty((columns, count), np.int64) for _ in range(2))
    above_error, here_error = (np.empty((columns, count), np.int64) for _ in range(2))
    for y in range(rows):
        w, w_error = (above[0], above_error[0]) if y else (centre, start)
        ww_error, nw = w_error, w
        for x in range(columns):
            n, n_error = (above[x], above_error[x]) if y else (w, w_error)
            ne_error = above_error[min(x + 1, columns - 1)] if y else w_error
            if not y:
                nw = w
            error = lanes.step(model.level(activity(w_error, ww_error, n_error, ne_error)))
            predicted = np.where(mode == PREDICTED, median(w, n, nw), centre)
            symbol = (predicted + error) & ((1 << bits) - 1)
            tiles[:, y, x] = symbol
            nw, w, ww_error, w_error = n, symbol, w_error, np.abs(error)
            here[x], here_error[x] = symbol, w_error
        above, here, above_error, here_error = here, above, here_error, above_error
    return tiles


def _ends_well(lanes: _Lanes, words: Ints, end: Ints) -> NDArray[np.bool_]:
    fits = (lanes.at > end - 8) & (lanes.at <= end) & (lanes.state == 0)
    # The rest of the last byte is 0.
    rest = words[np.minimum(lanes.at, end) >> 3] & 255
    result: NDArray[np.bool_] = fits & ((lanes.at & 7 == 0) | (rest >> (lanes.at & 7) == 0))
    return result
