"""The fused entropy decode + int2float of coder 2 (docs/format.md) as one Triton kernel, batched over frames.

    out[f, c, y, x] = symbol(f, c, y, x) * step[f, c] + lo[f, c]        (driving paper, equation 4)
    out[f, c, y, x] = value[f, symbol(f, c, y, x)]                      (with a codebook)

A thread owns a lane (a tile of one channel) and steps through its symbols; a program owns LANES of them. What differs
from the CPU decoders, and why:

- The language has no arrays that a thread can index, so the row above (symbol and absolute error, packed in 32 bits)
  goes through `history`, a scratch buffer of [2][columns][lanes] a program, which stays in L1. Its rows alternate, and
  a barrier ends each, so no layout that the compiler may choose makes a thread read what another has yet to write.
- The same buffer, read transposed behind that barrier, gives the output by rows: the stores are coalesced, which they
  would not be if each thread stored its own lane's symbols.
- Bits come through a 64-bit register that a masked load refills: a lane loads once in some ten symbols.
- All lanes of a program take as many steps as its largest tile has symbols; what lies behind a smaller one is masked.

Bounds: a lane's place and size come from the host's plan, which has checked them (kernels/gpu/batch.py). Bits behind
the buffer read as 0, a state is below 2048 whatever the bits are, and a damaged lane writes only into its own tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...bitstream import context_model as model

STATE_BITS = tl.constexpr(model.STATE_BITS)
STATES = tl.constexpr(model.STATES)
STEPS = tl.constexpr(model.STEPS)
LEVELS = tl.constexpr(model.LEVELS)
START_ERROR = tl.constexpr(model.START_ERROR)
HALF_LEVELS = tl.constexpr(model.LEVELS // 2)  # as many as 8-bit table numbers fit into 64 bits


@triton.jit
def _refill(words, word_count, buffer, have, word):
    """At least 32 bits in the buffer, for lanes that have used theirs."""
    empty = have < 32
    fresh = tl.load(words + word, mask=empty & (word < word_count), other=0)
    fresh = fresh.to(tl.uint32, bitcast=True).to(tl.uint64)
    buffer = tl.where(empty, buffer | (fresh << have.to(tl.uint64)), buffer)
    return buffer, tl.where(empty, have + 32, have), tl.where(empty, word + 1, word)


@triton.jit
def _symbol(
    words, word_count, tables, low_map, high_map, predicted, centre, mask, active,
    buffer, have, word, used, state, w, n, nw, w_error, ww_error, n_error, ne_error,
):  # fmt: skip
    """One symbol of every active lane: (buffer, have, word, used, state, symbol, |error|); of others its prediction."""
    activity = 2 * w_error + ww_error + 2 * n_error + ne_error
    # floor(2 log2(s + 1)) is the exponent of (s + 1)^2, which float32 holds exactly.
    square = ((activity + 1) * (activity + 1)).to(tl.float32)
    level = tl.minimum((square.to(tl.int32, bitcast=True) >> 23) - 127, LEVELS - 1)
    numbers = tl.where(level < HALF_LEVELS, low_map, high_map)
    table = (numbers >> ((level & (HALF_LEVELS - 1)) * 8).to(tl.int64)).to(tl.int32) & 255
    entry = tl.load(tables + table * STATES + state, mask=active, other=0)
    fresh = (entry >> 11) & 15
    escaped = (entry >> 15) & 15  # 0, or the 8 bits of an error
    bits = buffer.to(tl.uint32).to(tl.int32, bitcast=True)  # at most 19 of them are used
    state = tl.where(active, (entry & (STATES - 1)) + (bits & ((1 << fresh) - 1)), state)
    error = tl.where(escaped > 0, bits >> fresh, entry >> 19) & 255
    error = (error ^ 128) - 128
    low, high = tl.minimum(w, n), tl.maximum(w, n)
    median = tl.minimum(tl.maximum(w + n - nw, low), high)
    symbol = (tl.where(predicted, median, centre) + error) & mask
    taken = tl.where(active, fresh + escaped, 0)
    buffer, have, used = buffer >> taken.to(tl.uint64), have - taken, used + taken
    buffer, have, word = _refill(words, word_count, buffer, have, word)
    return buffer, have, word, used, state, symbol, tl.abs(error)


@triton.jit
def _write_row(
    history, out, ranges, range_row, first, lane, columns, writes,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, FLOATS: tl.constexpr, CODEBOOK: tl.constexpr,
):  # fmt: skip
    """The row in `history` of every lane's tile, to its place in the output."""
    range_of = ranges + 2 * range_row
    if FLOATS and not CODEBOOK:
        lo, step = tl.load(range_of), tl.load(range_of + 1)
    for start in range(0, COLUMNS, CHUNK):
        x = start + tl.arange(0, CHUNK)
        inside = writes[:, None] & (x[None, :] < columns[:, None])
        symbol = tl.load(history + x[None, :] * LANES + lane[:, None], mask=inside, other=0) & 255
        target = out + first[:, None] + x[None, :]
        if FLOATS:
            if CODEBOOK:
                value = tl.load(range_of[:, None] + symbol)
            else:
                value = symbol.to(tl.float32) * step[:, None] + lo[:, None]
            tl.store(target, value.to(out.dtype.element_ty), mask=inside)
        else:
            tl.store(target, symbol.to(tl.uint8), mask=inside)


@triton.jit
def context_decode(
    words, word_count, lanes, channels, ranges, tables, table_map, history, damaged, out,
    frames, channel_count, height, width, ranges_a_frame,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    BITS: tl.constexpr, LANES: tl.constexpr, FLOATS: tl.constexpr, CODEBOOK: tl.constexpr,
):  # fmt: skip
    """Decode a batch. Program p has lanes p * LANES and on; lane = (frame * tiles + tile) * channels + channel.

    words: int32 (word_count,), the payloads' bytes.  lanes: int32 (lanes, 2), first byte and bytes; (.., 0) where the
    channel is constant.  channels: int32 (frames, C), mode + 4 f + 2^8 g + 2^16 centre.  ranges: float32
    (frames * ranges_a_frame, 2), lo and step; or with CODEBOOK the values of a frame's 2^BITS symbols.  tables: int32
    (44 * 2048,).  table_map: int64 (48 * 48, 2), the 16 levels' table numbers, 8 bits each.  history: int32
    (programs, 2, COLUMNS, LANES), any content.
    damaged: int32 (frames,), set by the caller to 2^31 - 1: the lowest damaged lane, channel * tiles + tile.
    out: float16 or float32 (frames, C, h, w), or uint8 with FLOATS false.
    """
    across = (width + TILE_COLUMNS - 1) // TILE_COLUMNS
    down = (height + TILE_ROWS - 1) // TILE_ROWS
    tiles = across * down
    lane = tl.arange(0, LANES)
    index = tl.program_id(0) * LANES + lane
    here = index < frames * tiles * channel_count
    channel = index % channel_count
    tile = (index // channel_count) % tiles
    frame = index // (channel_count * tiles)
    top = (tile // across) * TILE_ROWS
    left = (tile % across) * TILE_COLUMNS
    rows = tl.where(here, tl.minimum(TILE_ROWS, height - top), 0)
    columns = tl.minimum(TILE_COLUMNS, width - left)
    first = ((frame * channel_count + channel) * height + top) * width + left

    what = tl.load(channels + frame * channel_count + channel, mask=here, other=0)
    mode, centre = what & 3, (what >> 16) & 255
    map_row = table_map + 2 * (((what >> 2) & 63) * STEPS + ((what >> 8) & 255))
    low_map = tl.load(map_row, mask=here, other=0)
    high_map = tl.load(map_row + 1, mask=here, other=0)
    begin = tl.load(lanes + 2 * index, mask=here, other=0)
    size = tl.load(lanes + 2 * index + 1, mask=here, other=0)
    predicted = mode == 2
    coded = here & (mode > 0)
    range_row = tl.where(here, frame * ranges_a_frame + (0 if CODEBOOK else channel % ranges_a_frame), 0)
    mask: tl.constexpr = (1 << BITS) - 1

    # A lane starts at any byte: what lies before it in its first word is not its own.
    word = begin >> 2
    skip = 8 * (begin & 3)
    buffer = tl.load(words + word, mask=coded & (word < word_count), other=0)
    buffer = buffer.to(tl.uint32, bitcast=True).to(tl.uint64) >> skip.to(tl.uint64)
    have = 32 - skip
    word += 1
    buffer, have, word = _refill(words, word_count, buffer, have, word)
    state = (buffer & (STATES - 1)).to(tl.int32)
    used = tl.zeros_like(begin) + STATE_BITS
    buffer, have = buffer >> STATE_BITS, have - STATE_BITS
    buffer, have, word = _refill(words, word_count, buffer, have, word)

    row: tl.constexpr = COLUMNS * LANES
    history += tl.program_id(0).to(tl.int64) * (2 * row)
    start_error = tl.where(predicted, START_ERROR, 0)
    # The first row: what lies above is what lies left.
    w, w_error, ww_error = centre, start_error, start_error
    most = tl.max(tl.where(here, columns, 0), 0)
    x = 0
    while x < most:  # not `for`: the interpreter takes no tensor as the end of a range
        inside = (rows > 0) & (x < columns)
        active = coded & inside
        buffer, have, word, used, state, symbol, error = _symbol(
            words, word_count, tables, low_map, high_map, predicted, centre, mask, active,
            buffer, have, word, used, state, w, w, w, w_error, ww_error, w_error, w_error,
        )  # fmt: skip
        tl.store(history + x * LANES + lane, symbol | (error << 8), mask=inside)
        w, ww_error, w_error = symbol, w_error, error
        x += 1
    tl.debug_barrier()
    _write_row(
        history, out, ranges, range_row, first, lane, columns, rows > 0,
        LANES, COLUMNS, CHUNK, FLOATS, CODEBOOK,
    )  # fmt: skip

    last = tl.max(rows, 0)
    y = 1
    while y < last:
        above = history + ((y + 1) & 1) * row + lane
        below = history + (y & 1) * row + lane
        deep = y < rows
        near = tl.load(above, mask=deep, other=0)  # what lies above, from here to the right
        w, w_error = near & 255, near >> 8
        nw, ww_error = w, w_error
        x = 0
        while x < most:
            inside = deep & (x < columns)
            active = coded & inside
            right = tl.load(above + tl.minimum(x + 1, columns - 1) * LANES, mask=inside, other=0)
            n, n_error = near & 255, near >> 8
            buffer, have, word, used, state, symbol, error = _symbol(
                words, word_count, tables, low_map, high_map, predicted, centre, mask, active,
                buffer, have, word, used, state, w, n, nw, w_error, ww_error, n_error, right >> 8,
            )  # fmt: skip
            tl.store(below + x * LANES, symbol | (error << 8), mask=inside)
            nw, w, ww_error, w_error, near = n, symbol, w_error, error, right
            x += 1
        tl.debug_barrier()
        _write_row(
            history + (y & 1) * row, out, ranges, range_row, first + y * width, lane, columns, y < rows,
            LANES, COLUMNS, CHUNK, FLOATS, CODEBOOK,
        )  # fmt: skip
        y += 1

    # A sound lane ends in its last byte, in state 0, and the rest of that byte is 0.
    rest = 8 * size - used
    filling = buffer & ((1 << (rest & 7).to(tl.uint64)) - 1)
    well = (rest >= 0) & (rest < 8) & (state == 0) & (filling == 0)
    tl.atomic_min(damaged + frame, channel * tiles + tile, mask=coded & ~well)
