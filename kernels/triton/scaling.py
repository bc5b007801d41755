"""float2int and int2float as Triton kernels (driving paper, equations 2 and 4), bit for bit what NumPy and C++ give.

    q = rint(levels * (x - lo) / (hi - lo))     clipped to 0 .. levels; 0 where hi = lo
    x = q * ((hi - lo) / levels) + lo

With CODEBOOK, q is how many of its midpoints lie below x, and x is centre number min(q, L - 1).

A row is what shares a range: a frame, or one channel of a frame. Each operation is rounded to float32 on its own: the
kernels must be compiled without fused multiply-add (torch_ops.py and compile.py see to it).
"""

from __future__ import annotations

import triton
import triton.language as tl

# Adding and taking away 2^23 rounds a float32 in 0 .. 2^22 to the nearest integer, halves to even.
ROUNDER = tl.constexpr(8388608.0)


@triton.jit
def minmax(x, partial, size, parts, BLOCK: tl.constexpr, TURNS: tl.constexpr):
    """The smallest and largest value of TURNS * BLOCK values of a row: float32 (rows, parts, 2).

    x: float32 (rows, size). Grid: (rows, parts), with parts * TURNS * BLOCK >= size. NaN: `quantize` finds it.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    x += row.to(tl.int64) * size
    for turn in range(TURNS):
        at = (part * TURNS + turn) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        value = tl.load(x + at, mask=inside, other=0.0)
        low = tl.minimum(low, tl.where(inside, value, float("inf")))
        high = tl.maximum(high, tl.where(inside, value, float("-inf")))
    target = partial + 2 * (row * parts + part)
    tl.store(target, tl.min(low, 0))
    tl.store(target + 1, tl.max(high, 0))


@triton.jit
def quantize(
    x, partial, q, ranges, bad, size, parts, range_rows,
    BITS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, CODEBOOK: tl.constexpr = False,
):  # fmt: skip
    """float2int. Grid: (rows, blocks), with blocks * BLOCK >= size.

    x: float32 (rows, size).  partial: float32 (range_rows, parts, 2): the smallest and largest of its row % range_rows
    are a row's range; parts <= PARTS.  q: uint8 (rows, size).  ranges: float32 (rows, 2), the range that was used.
    bad: int32 (rows,), set by the caller to 0; 1 afterwards where a value or the range is not finite, and q not usable.

    With CODEBOOK, partial: float32 (2^BITS,), the midpoints and infinity behind the last; ranges, parts and range_rows
    are not used.
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + row.to(tl.int64) * size + at, mask=inside, other=0.0)
    if CODEBOOK:
        # A binary search, bit by bit: whether midpoint (symbol | step - 1) lies below.
        symbol = tl.zeros((BLOCK,), tl.int32)
        for bit in tl.static_range(BITS):
            step = 1 << (BITS - 1 - bit)
            midpoint = tl.load(partial + (symbol | (step - 1)))
            symbol = tl.where(midpoint < value, symbol | step, symbol)
        wrong = inside & (value * 0.0 != 0.0)
    else:
        symbol, wrong = _in_range(value, inside, partial, ranges, row, parts, range_rows, BITS, PARTS)
    tl.store(q + row.to(tl.int64) * size + at, symbol.to(tl.uint8), mask=inside)
    tl.atomic_max(bad + row, tl.max(wrong.to(tl.int32), 0))


@triton.jit
def _in_range(value, inside, partial, ranges, row, parts, range_rows, BITS: tl.constexpr, PARTS: tl.constexpr):
    """The symbols of a row's values in its range, and where a value or the range is not finite."""
    part = tl.arange(0, PARTS)
    mine = partial + 2 * ((row % range_rows) * parts + part)
    # + 0.0 turns -0.0 into 0.0: one range, one byte sequence.
    lo = tl.min(tl.load(mine, mask=part < parts, other=float("inf")), 0) + 0.0
    hi = tl.max(tl.load(mine + 1, mask=part < parts, other=float("-inf")), 0) + 0.0
    if tl.program_id(1) == 0:
        tl.store(ranges + 2 * row, lo)
        tl.store(ranges + 2 * row + 1, hi)
    levels: tl.constexpr = float((1 << BITS) - 1)
    span = (hi - lo) + tl.zeros_like(value)
    scaled = tl.div_rn(levels * (value - lo), tl.where(span > 0, span, 1.0))
    clipped = tl.minimum(tl.maximum(tl.where(span > 0, scaled, 0.0), 0.0), levels)
    symbol = (clipped + ROUNDER) - ROUNDER
    # Only NaN and infinity times zero are not zero. The format wants 255 (hi - lo) finite as well.
    wrong = inside & ((value * 0.0 != 0.0) | ((255.0 * span) * 0.0 != 0.0))
    return symbol.to(tl.int32), wrong


@triton.jit
def dequantize(
    q, ranges, out, size, range_rows, BITS: tl.constexpr, BLOCK: tl.constexpr, CODEBOOK: tl.constexpr = False
):
    """int2float. Grid: (rows, blocks), with blocks * BLOCK >= size.

    q: uint8 (rows, size).  ranges: float32 (range_rows, 2), lo and hi; a row takes number row % range_rows.
    out: float16 or float32 (rows, size).

    With CODEBOOK, ranges: float32 (2^BITS,), the values of the symbols; range_rows is not used.
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    symbol = tl.load(q + row.to(tl.int64) * size + at, mask=inside, other=0)
    if CODEBOOK:
        value = tl.load(ranges + tl.minimum(symbol.to(tl.int32), (1 << BITS) - 1))
    else:
        mine = ranges + 2 * (row % range_rows)
        lo = tl.load(mine) + tl.zeros((BLOCK,), tl.float32)
        levels: tl.constexpr = float((1 << BITS) - 1)
        step = tl.div_rn(tl.load(mine + 1) - lo, tl.full((BLOCK,), levels, tl.float32))
        value = symbol.to(tl.float32) * step + lo
    tl.store(out + row.to(tl.int64) * size + at, value.to(out.dtype.element_ty), mask=inside)
