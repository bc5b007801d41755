"""NumPy reference of the context coder (coders 2 and 3, docs/format.md): all lanes of one tile shape step together.

A lane is a tile of one channel. It carries one state through its symbols; each symbol's table follows from the errors
of the neighbours that the lane has coded before it. The encoder walks a lane backwards, the decoder forwards.

Frames of coder 3 leave their symbols and absolute errors to the next one (`History`), which may be predicted by the
symbols, and let its tables follow the errors.
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
    INTER,
    KEY,
    PREDICTED,
    PREVIOUS,
    REMEMBERING,
    Channels,
    ContextPayload,
    TilePlan,
    is_key,
    pack_bits,
    pack_head,
    plan_tiles,
    prediction,
    unpack_context,
)
from ..bitstream.header import StreamHeader
from ..errors import InputError
from .context_neighbours import (
    History,
    activity,
    around,
    cut,
    errors_of,
    levels_of,
    median,
    paste,
    start_errors,
)
from .dequantize import symbol_values

Ints = NDArray[np.int64]

# Where the tables say that a frame saves less than so many bits a lane by the frame before, both ways are tried.
TRY_BOTH_BITS = 32


class _Choice(NamedTuple):
    """How a channel is coded, and what that costs by the tables, in 1/256 bit."""

    mode: int
    f: int
    g: int
    centre: int
    cost: int


def _fit(channel: Ints, plan: TilePlan, bits: int, before: tuple[Ints, Ints] | None) -> tuple[_Choice, int]:
    """The cheapest for one channel (h, w), and what it saves by the frame before.

    before: that frame's symbols of the channel and `around` of its errors; None in a key frame.
    """
    counts = np.bincount(channel.reshape(-1), minlength=1 << bits)
    if counts.max() == channel.size:
        return _Choice(CONSTANT, 0, 0, int(counts.argmax()), 0), 0
    centre = int(np.searchsorted(2 * np.cumsum(counts), channel.size))
    shapes = plan.shapes()
    tiles = [cut(channel, plan, rows, columns, which) for rows, columns, which in shapes]
    zeros = [np.zeros_like(part) for part in tiles]
    previous = t = zeros
    if before is not None:
        previous, t = ([cut(b, plan, rows, columns, which) for rows, columns, which in shapes] for b in before)

    def under(mode: int) -> list[Ints]:
        return [
            errors_of(part, np.full(len(part), mode), np.full(len(part), centre), bits, p)
            for part, p in zip(tiles, previous, strict=True)
        ]

    def size(errors: list[Ints]) -> int:
        return sum(int(np.abs(e).sum()) for e in errors)

    def choice(mode: int, errors: list[Ints]) -> _Choice:
        seen = np.zeros((model.LEVELS, 256), np.int64)
        for e, sums in zip(errors, t if mode > PREVIOUS else zeros, strict=True):
            np.add.at(seen, (levels_of(e, np.full(len(e), mode), sums), e + 128), 1)
        cost = seen @ model.costs().T  # (levels, tables)
        total = cost[np.arange(model.LEVELS), model.table_map()].sum(axis=2)
        f, g = np.unravel_index(int(total.argmin()), total.shape)
        return _Choice(mode, int(f), int(g), centre, int(total.min()))

    centred, predicted = under(CENTRED), under(PREDICTED)
    alone = PREDICTED if size(predicted) < size(centred) else CENTRED
    errors = {alone: predicted if alone == PREDICTED else centred}
    choices = [choice(alone, errors[alone])]
    if before is not None:
        errors[PREVIOUS] = under(PREVIOUS)
        modes = alone + REMEMBERING, PREVIOUS, PREVIOUS + REMEMBERING
        choices += [choice(m, errors[m - REMEMBERING if m > PREVIOUS else m]) for m in modes]
    best = min(choices, key=lambda c: c.cost)  # the first of equals
    return best, choices[0].cost - best.cost


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
    return _encode(q, header, scales, None)[0]


def encode_frame(
    q: NDArray[np.uint8], header: StreamHeader, scales: bytes, before: History | None
) -> tuple[bytes, History]:
    """A payload of coder 3, and what it leaves: a key frame without `before`, else whichever takes fewer bytes."""
    if before is not None:
        payload, errors, saving, lanes = _encode(q, header, scales, before)
        if saving > TRY_BOTH_BITS * 256 * lanes:
            return bytes([INTER]) + payload, History(q, errors)
    alone, alone_errors, _, _ = _encode(q, header, scales, None)
    if before is not None and len(payload) < len(alone):
        return bytes([INTER]) + payload, History(q, errors)
    return bytes([KEY]) + alone, History(q, alone_errors)


def _encode(
    q: NDArray[np.uint8], header: StreamHeader, scales: bytes, before: History | None
) -> tuple[bytes, NDArray[np.uint8], int, int]:
    """The payload, absolute errors, what the frame before saves in 1/256 bit, and how many lanes there are."""
    plan = plan_tiles(header)
    wide = q.astype(np.int64)
    previous, t = (wide, wide) if before is None else (before.symbols.astype(np.int64), around(before.errors))
    fitted = [
        _fit(channel, plan, header.bits, None if before is None else (previous[c], t[c]))
        for c, channel in enumerate(wide)
    ]
    channels = Channels(*np.array([choice[:4] for choice, _ in fitted], np.int64).T)
    coder = _encoder()
    lanes = np.empty((len(q), len(plan.top)), object)
    coded = np.flatnonzero(channels.mode != CONSTANT)
    absolute = np.zeros(q.shape, np.uint8)
    for rows, columns, which in plan.shapes():
        if not len(coded):
            break
        tiles, old, sums = (
            np.concatenate([cut(a[c], plan, rows, columns, which) for c in coded]) for a in (wide, previous, t)
        )
        owner, tile = np.repeat(coded, len(which)), np.tile(which, len(coded))
        mode, f, g = channels.mode[owner], channels.f[owner], channels.g[owner]
        errors = errors_of(tiles, mode, channels.centre[owner], header.bits, old)
        levels = levels_of(errors, mode, np.where((mode > PREVIOUS)[:, None, None], sums, 0))
        tables = model.table_map()[f[:, None, None], g[:, None, None], levels].astype(np.int64)
        values, widths = _lane_bits(errors.reshape(len(tiles), -1), tables.reshape(len(tiles), -1), coder)
        for lane in range(len(tiles)):
            lanes[owner[lane], tile[lane]] = pack_bits(values[lane], widths[lane])
        paste(absolute, owner, plan, tile, np.abs(errors))
    used = lanes[coded].reshape(-1)
    sizes = np.zeros(lanes.shape, np.int64)
    sizes[coded] = np.array([len(lane) for lane in used], np.int64).reshape(len(coded), sizes.shape[1])
    payload = scales + pack_head(channels, sizes, header.bits) + b"".join(used)
    return payload, absolute, sum(saving for _, saving in fitted), len(used)


def decode(payload: bytes, header: StreamHeader) -> NDArray[np.uint8]:
    """The symbols of a payload: uint8 (C, h, w)."""
    plan = plan_tiles(header)
    return _frame(unpack_context(payload, header, plan), payload, header, plan).symbols


def decode_floats(payload: bytes, header: StreamHeader, out: NDArray[np.float32]) -> None:
    """The dequantised latent of a payload, into out (C, h, w)."""
    plan = plan_tiles(header)
    parts = unpack_context(payload, header, plan)
    _to_floats(_frame(parts, payload, header, plan), parts, header, out)


def decode_frame(
    payload: bytes, header: StreamHeader, before: History | None, out: NDArray[np.float32] | None = None
) -> History:
    """The symbols and errors of a payload of coder 3; into `out`, where given, the dequantised latent.

    before: of the frame before; it is there where the payload is not a key frame.
    """
    plan, key = plan_tiles(header), is_key(payload, header)
    parts = unpack_context(payload[1:], header, plan, not key)
    found = _frame(parts, payload[1:], header, plan, None if key else before)
    if out is not None:
        _to_floats(found, parts, header, out)
    return found


def _to_floats(found: History, parts: ContextPayload, header: StreamHeader, out: NDArray[np.float32]) -> None:
    rows = found.symbols.reshape(len(parts.lo), -1).astype(np.intp)
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


def _frame(
    parts: ContextPayload, payload: bytes, header: StreamHeader, plan: TilePlan, before: History | None = None
) -> History:
    channels = parts.channels
    found = History(np.empty(header.latent_shape, np.uint8), np.zeros(header.latent_shape, np.uint8))
    found.symbols[:] = channels.centre[:, None, None]
    previous = t = np.zeros(header.latent_shape, np.int64)
    if before is not None:
        previous, t = before.symbols.astype(np.int64), around(before.errors)
        previous[prediction(channels.mode) != PREVIOUS] = 0
        t[channels.mode <= PREVIOUS] = 0
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
        old, sums = (np.concatenate([cut(a[c], plan, rows, columns, which) for c in coded]) for a in (previous, t))
        tiles = _decode_tiles(lanes, channels.mode[owner], channels.centre[owner], header.bits, old, sums)
        bad = np.flatnonzero(~_ends_well(lanes, words, end))
        if len(bad):
            c, i = int(owner[bad[0]]), int(tile[bad[0]])
            raise InputError(f"payload damaged: tile {i} of channel {c} does not end where its length says")
        for planes, part in zip(found, tiles, strict=True):
            paste(planes, owner, plan, tile, part)
    return found


def _decode_tiles(lanes: _Lanes, mode: Ints, centre: Ints, bits: int, previous: Ints, t: Ints) -> tuple[Ints, Ints]:
    """Symbols and absolute errors, (lanes, rows, columns) both.

    previous, t: of the frame before, as they: symbols, 0 where they do not predict, and what `around` says, 0 where no
    tables follow it.
    """
    count, rows, columns = previous.shape
    tiles, errors = (np.empty((count, rows, columns), np.int64) for _ in range(2))
    predicted = prediction(mode) == PREDICTED
    start = start_errors(mode)
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
            error = lanes.step(model.level(activity(w_error, ww_error, n_error, ne_error) + t[:, y, x]))
            # Where the frame before predicts, centre is 0.
            expected = np.where(predicted, median(w, n, nw), centre) + previous[:, y, x]
            symbol = (expected + error) & ((1 << bits) - 1)
            nw, w, ww_error, w_error = n, symbol, w_error, np.abs(error)
            tiles[:, y, x], errors[:, y, x] = symbol, w_error
            here[x], here_error[x] = symbol, w_error
        above, here, above_error, here_error = here, above, here_error, above_error
    return tiles, errors


def _ends_well(lanes: _Lanes, words: Ints, end: Ints) -> NDArray[np.bool_]:
    fits = (lanes.at > end - 8) & (lanes.at <= end) & (lanes.state == 0)
    # The rest of the last byte is 0.
    rest = words[np.minimum(lanes.at, end) >> 3] & 255
    result: NDArray[np.bool_] = fits & ((lanes.at & 7 == 0) | (rest >> (lanes.at & 7) == 0))
    return result
