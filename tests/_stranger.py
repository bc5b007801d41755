"""A decoder of undamaged `.lseg` streams that was written from docs/format.md alone. It imports nothing of ours."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import struct
import zlib
from fractions import Fraction

# A frame's symbols, and the |e| that they were coded with; both in raster order.
Planes = tuple[list[int], list[int]]
Frame = tuple[int, int, list[int], list[tuple[float, float]], list[float]]


def decode(stream: bytes) -> list[Frame]:
    """(index, timestamp, symbols in raster order, ranges, values) of each frame; ranges or a codebook's values."""
    assert stream[:10] == b"\x89LSEG\r\n\x1a\x01\x00"
    assert stream[:100] == stream[100:200]
    assert zlib.crc32(stream[:96]) == struct.unpack_from("<I", stream, 96)[0]
    coder, dictionary, bits, scaling = stream[10:14]
    shape = c, h, w = struct.unpack_from("<3I", stream, 16)
    lo, hi = struct.unpack_from("<2f", stream, 44)
    lane, rows, columns, zero = struct.unpack_from("<IHHI", stream, 52)
    assert (coder, rows, columns) == (1, 0, 0) or (dictionary, rows * columns) == (0, lane)
    assert coder in (1, 2, 3)
    assert zero == 0
    at = 200
    centres = codebook(stream, at, bits) if scaling == 3 else []
    assert int.from_bytes(stream[14:16], "little") == len(centres)
    at += 2 * (4 * len(centres) + 4) if centres else 0
    frames = []
    old: Planes | None = None
    while at < len(stream):
        marker, index, time, size, crc, header_crc = struct.unpack_from("<4sIqIII", stream, at)
        assert marker == b"\xabLSF"
        assert header_crc == zlib.crc32(stream[at : at + 24])
        payload = stream[at + 28 : at + 28 + size]
        assert crc == zlib.crc32(payload)
        at += 28 + size
        if coder == 3:
            kind, payload = payload[0], payload[1:]
            assert kind == 0 or (kind == 1 and old)
            old = old if kind else None
        pairs = (1, c, 0, 0)[scaling]
        both = struct.unpack_from(f"<{2 * pairs}f", payload)
        fixed = [(lo, hi)] if scaling == 2 else []
        ranges = list(zip(both[:pairs], both[pairs:], strict=True)) if pairs else fixed
        if coder == 1:
            symbols = huffman(payload, 8 * pairs, *((c, h * w) if dictionary else (1, c * h * w)), lane)
        else:
            symbols, sizes = context(payload, 8 * pairs, shape, bits, rows, columns, old)
            old = (symbols, sizes) if coder == 3 else None
        values = [centres[min(q, len(centres) - 1)] for q in symbols] if centres else []
        frames.append((index, time, symbols, ranges, values))
    return frames


def codebook(stream: bytes, at: int, bits: int) -> list[float]:
    (count,) = struct.unpack_from("<H", stream, 14)
    assert max(2, 2 ** (bits - 1) + 1) <= count <= 2**bits
    size = 4 * count + 4
    copy = stream[at : at + size]
    assert copy == stream[at + size : at + 2 * size]
    assert zlib.crc32(copy[:-4]) == struct.unpack_from("<I", copy, 4 * count)[0]
    centres = list(struct.unpack_from(f"<{count}f", copy))
    assert all(low < high for low, high in itertools.pairwise(centres))
    return centres


def number(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, and the place behind it."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


# --- coder 1 ----------------------------------------------------------------------------------------------------------


def huffman_tables(data: bytes, at: int, count: int) -> tuple[list[dict[str, int] | int], int]:
    tables: list[dict[str, int] | int] = []
    for _ in range(count):
        first, last = data[at : at + 2]
        at += 2
        if first == last:
            tables.append(first)
            continue
        nibbles = [half for byte in data[at:] for half in (byte >> 4, byte & 15)]
        lengths: list[int] = []
        i = 0
        while len(lengths) < last - first + 1:
            v = nibbles[i]
            if v <= 12:
                lengths.append(v)
            elif v == 13:
                lengths += [0] * (2 + nibbles[i + 1])
            elif v == 14:
                lengths += [lengths[-1]] * (3 + nibbles[i + 1])
            else:
                lengths += [0] * (18 + 16 * nibbles[i + 1] + nibbles[i + 2])
            i += 1 if v <= 12 else 3 if v == 15 else 2
        at += (i + 1) // 2
        assert sum(Fraction(1, 2**v) for v in lengths if v) == 1
        code = before = 0
        table: dict[str, int] = {}
        for length, symbol in sorted((v, s) for s, v in enumerate(lengths, first) if v):
            code <<= length - before
            table[f"{code:0{length}b}"] = symbol
            code, before = code + 1, length
        tables.append(table)
    return tables, at


def huffman(payload: bytes, p: int, runs: int, length: int, lane: int) -> list[int]:
    tables, p = huffman_tables(payload, p, runs)
    cuts = [(run, min(lane, length - i)) for run in range(runs) for i in range(0, length, lane)]
    sizes = []
    for run, _ in cuts:
        size, p = (0, p) if isinstance(tables[run], int) else number(payload, p)
        sizes.append(size)
    symbols: list[int] = []
    for (run, count), size in zip(cuts, sizes, strict=True):
        table = tables[run]
        bits = "".join(f"{byte:08b}" for byte in payload[p : p + size])
        p += size
        for _ in range(count):
            if isinstance(table, int):
                symbols.append(table)
                continue
            n = next(n for n in range(1, 13) if bits[:n] in table)
            symbols.append(table[bits[:n]])
            bits = bits[n:]
        assert len(bits) < 8
        assert "1" not in bits
    assert p == len(payload)
    return symbols


# --- coders 2 and 3 ---------------------------------------------------------------------------------------------------

Q = (65536, 77936, 92682, 110218)
P = (60097, 71468, 84990, 101070)
T = (0, 1, 2, 4, 7, 11, 17, 25, 36, 52, 75, 107, 152, 216, 307, 500)
ESCAPE = None


def x(a: tuple[int, ...], i: int) -> int:
    return a[i % 4] * 2 ** (i // 4)


@functools.cache
def table_number(f: int, g: int, s: int) -> int:
    level = min(math.floor(2 * math.log2(s + 1)), 15)
    return sum(32 * x(Q, f) + x(Q, g) * T[level] >= 32 * x(P, j) for j in range(1, 44))


@functools.cache
def context_table(j: int) -> list[tuple[int | None, int, int]]:
    """(token, fresh bits, base) of each of the 2048 states."""
    d = float(Q[2 * (j % 2)] * 2 ** (j // 2))
    weights = []
    for e in range(-128, 128):
        r = d / (d + float(2**23 * e * e))
        weights.append(r * r)
    total = 0.0
    for weight in weights:
        total += weight
    tokens: list[int | None] = []
    counts: dict[int | None, int] = {}
    running, before = 0.0, 0
    for e, weight in zip(range(-128, 128), weights, strict=True):
        share = weight * 2048 / total
        if share >= 1:
            running += share
            tokens.append(e)
            counts[e] = math.floor(0.5 + running) - before
            before += counts[e]
    if len(tokens) < 256:
        tokens.append(ESCAPE)
        counts[ESCAPE] = max(2048 - before, 1)
    counts[0] += 2048 - sum(counts.values())
    places: list[int | None] = [ESCAPE] * 2048
    k = 0
    for token in tokens:
        for _ in range(counts[token]):
            places[1283 * k % 2048] = token
            k += 1
    seen = dict.fromkeys(tokens, 0)
    table = []
    for token in places:
        stands_for = counts[token] + seen[token]
        seen[token] += 1
        fresh = 11 - math.floor(math.log2(stands_for))
        table.append((token, fresh, stands_for * 2**fresh - 2048))
    return table


class Head:
    """The run of bits in front of the lanes."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.used = int.from_bytes(data, "little"), 0

    def read(self, count: int) -> int:
        self.used += count
        return self.bits >> (self.used - count) & (2**count - 1)

    def number(self, k: int) -> int:
        z = 0
        while not self.read(1):
            z += 1
        v = (2**z - 1) * 2**k + self.read(z + k)
        return -(v + 1) // 2 if v % 2 else v // 2


def context(
    payload: bytes, p: int, shape: tuple[int, int, int], n: int, rows: int, columns: int, old: Planes | None = None
) -> Planes:
    """Symbols and |e|. old: of the frame before, where this one refers to it."""
    c, h, w = shape
    head = Head(payload[p:])
    mode, f, g, centre = 1, 16, 16, 2 ** (n - 1)
    channels = []
    for _ in range(c):
        mode += head.number(0)
        if mode:
            f += head.number(0)
            g += head.number(0)
        if mode not in (3, 6):
            centre += head.number(0)
        assert mode in (range(7) if old else range(3))
        assert 0 <= min(f, g) <= max(f, g) < 48
        assert 0 <= centre < 2**n
        channels.append((mode, f, g, centre))
    tiles = [(y, x, min(rows, h - y), min(columns, w - x)) for y in range(0, h, rows) for x in range(0, w, columns)]
    coded = [channel for channel in channels if channel[0]]
    k = head.read(4) if coded else 0
    sizes = [[0] * len(tiles)]
    for _ in coded:
        sizes.append([before + head.number(k) for before in sizes[-1]])
    assert head.read(-head.used % 8) == 0
    p += head.used // 8
    lengths = iter(size for channel in sizes[1:] for size in channel)
    symbols: list[int] = []
    errors: list[int] = []
    for channel, (mode, f, g, centre) in enumerate(channels):
        plane = [[centre] * w for _ in range(h)]
        plane_errors = [[0] * w for _ in range(h)]
        old_symbols, old_errors = ([part[channel * h * w :][y * w :][:w] for y in range(h)] for part in old or ([], []))
        for top, left, tile_rows, tile_columns in tiles if mode else []:
            size = next(lengths)
            outer: list[list[tuple[int, int]]] = [[(0, 0)] * tile_columns for _ in range(tile_rows)]
            if mode > 2:
                span = range(left, left + tile_columns)
                outer = [
                    [(old_symbols[y][x], about(old_errors, y, x) if mode > 3 else 0) for x in span]
                    for y in range(top, top + tile_rows)
                ]
            tile = context_lane(payload[p : p + size], mode - 3 * (mode > 3), f, g, centre, n, outer)
            p += size
            for y, (line, line_errors) in enumerate(zip(*tile, strict=True)):
                plane[top + y][left : left + tile_columns] = line
                plane_errors[top + y][left : left + tile_columns] = line_errors
        symbols += [symbol for line in plane for symbol in line]
        errors += [error for line in plane_errors for error in line]
    assert p == len(payload)
    return symbols, errors


def about(errors: list[list[int]], y: int, x: int) -> int:
    """t, of the |e| of the frame before."""
    here = errors[y][x]
    total = 2 * here
    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
        total += errors[v][u] if 0 <= v < len(errors) and 0 <= u < len(errors[0]) else here
    return min(total, 255)


def context_lane(
    lane: bytes, mode: int, f: int, g: int, centre: int, n: int, outer: list[list[tuple[int, int]]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Symbols and |e| of a tile. mode: what predicts. outer: (O, t) of each place, where the frame before is used."""
    rows, columns = len(outer), len(outer[0])
    bits = int.from_bytes(lane, "little")
    used = 0

    def read(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & (2**count - 1)

    symbols = [[0] * columns for _ in range(rows)]
    sizes = [[0] * columns for _ in range(rows)]  # |e|
    state = read(11)
    for y in range(rows):
        for x in range(columns):
            west, _, north, north_west, _ = neighbours(symbols, y, x, columns, centre)
            old, t = outer[y][x]
            p = {1: centre, 2: statistics.median((west, north, west + north - north_west)), 3: old}[mode]
            e_w, e_ww, e_n, _, e_ne = neighbours(sizes, y, x, columns, 8 if mode == 2 else 0)
            token, fresh, base = context_table(table_number(f, g, 2 * e_w + e_ww + 2 * e_n + e_ne + t))[state]
            state = base + read(fresh)
            if token is ESCAPE:
                token = (read(8) + 128) % 256 - 128
            symbols[y][x] = int(p + token) % 2**n
            sizes[y][x] = abs(token)
    assert state == 0
    assert 8 * len(lane) - 8 < used <= 8 * len(lane)
    assert bits >> used == 0
    return symbols, sizes


def neighbours(a: list[list[int]], y: int, x: int, columns: int, start: int) -> tuple[int, int, int, int, int]:
    """W, WW, N, NW, NE."""
    if y == 0:
        west = a[0][x - 1] if x else start
        second = a[0][x - 2] if x > 1 else start
        return west, second, west, west, west
    north = a[y - 1][x]
    north_east = a[y - 1][x + 1] if x + 1 < columns else north
    if x == 0:
        return north, north, north, north, north_east
    return a[y][x - 1], a[y][x - 2] if x > 1 else a[y - 1][0], north, a[y - 1][x - 1], north_east


def tables_crc() -> int:
    """The CRC that the page gives for the 44 tables."""

    def word(token: int | None, fresh: int, base: int) -> int:
        escaped = token is ESCAPE
        return base + 2**11 * fresh + 2**15 * (8 if escaped else 0) + 2**19 * (0 if token is None else token % 256)

    return zlib.crc32(b"".join(struct.pack("<I", word(*state)) for j in range(44) for state in context_table(j)))
