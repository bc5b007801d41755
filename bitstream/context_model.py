"""The model of coder 2: fixed code tables, and the rule that picks one for each symbol. All of it exact.

A symbol is coded as its error e against a prediction, in one of `TABLES` tables for heavy-tailed laws of growing scale.
Which one follows from the errors of its neighbours: their weighted sum s has a level, and the channel's two numbers
(f, g) say which table a level takes: the one whose scale is nearest F_f + G_g * s, with F and G a quarter of an octave
apart. Nothing else about the laws is in the stream. Integers, and IEEE operations rounded one by one, make the tables
the same wherever they are built, and their CRC is checked before they are used (docs/format.md has the rules;
kernels/native/context_model.cpp is the twin).
"""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..errors import VerificationError

STATE_BITS = 11
STATES = 1 << STATE_BITS
TABLES = 44
STEPS = 48  # of f and of g
LEVELS = 16
ESCAPE = 256  # the token behind the 256 errors: eight bits that hold the error follow
TABLES_CRC = 0x28D07288  # of decoding_tables(), little-endian
START_ERROR = 8  # what a lane's first symbol finds about it where the channel is predicted; 0 where it is not

# 2^(16 + i/4), and 2^(16 + (i - 1/2)/4), rounded.
_QUARTER = (65536, 77936, 92682, 110218)
_BETWEEN = (60097, 71468, 84990, 101070)
# Twice a usual s of each level.
_TWICE_S = (0, 1, 2, 4, 7, 11, 17, 25, 36, 52, 75, 107, 152, 216, 307, 500)


def level(s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Level of an activity s >= 0: floor(2 log2(s + 1)), at most LEVELS - 1."""
    square = (s + 1).astype(np.float64) ** 2
    return np.minimum(np.frexp(square)[1].astype(np.int64) - 1, LEVELS - 1)


@cache
def table_map() -> NDArray[np.uint8]:
    """Which table a level takes: uint8 (STEPS, STEPS, LEVELS), indexed [f][g][level]."""
    octave = np.arange(STEPS)
    floor = np.array([_QUARTER[i & 3] << ((i >> 2) + 5) for i in octave], np.int64)  # 2^(21 + f/4)
    slope = np.array([_QUARTER[i & 3] << (i >> 2) for i in octave], np.int64)  # 2^(16 + g/4), of half an s
    scale = floor[:, None, None] + slope[None, :, None] * np.array(_TWICE_S, np.int64)
    edges = np.array([_BETWEEN[j & 3] << ((j >> 2) + 5) for j in range(1, TABLES)], np.int64)
    return np.searchsorted(edges, scale, side="right").astype(np.uint8)


@cache
def counts() -> NDArray[np.int64]:
    """How many of a table's STATES each token has: int64 (TABLES, 257); column e + 128 for error e, 256 the escape.

    Table j has weights (1 + e^2 / 2^(j/2 - 7))^-2. An error that would have less than one state is left to the escape.
    """
    result = np.zeros((TABLES, 257), np.int64)
    squares = (np.arange(-128, 128, dtype=np.int64) ** 2 << 23).astype(np.float64)
    for j in range(TABLES):
        scale = np.float64(_QUARTER[2 * (j & 1)] << (j >> 1))  # 2^(16 + j/2)
        root = scale / (scale + squares)
        weight = root * root
        share = weight * np.float64(STATES) / np.cumsum(weight)[-1]
        # Rounding the running sum, not each share, so that the errors of rounding do not add up.
        running = np.floor(np.cumsum(np.where(share >= 1.0, share, 0.0)) + 0.5).astype(np.int64)
        result[j, :256] = np.diff(running, prepend=0)
        if (share < 1.0).any():
            result[j, ESCAPE] = max(1, STATES - int(running[-1]))
        result[j, 128] += STATES - result[j].sum()
    return result


@cache
def decoding_tables() -> NDArray[np.uint32]:
    """What a state means: uint32 (TABLES, STATES).

    Bits 0..10: the next state before the fresh bits are added; 11..14: how many fresh bits; 15..18: how many bits of an
    escaped error follow them (0 or 8); 19..26: the error, as a signed byte (0 with an escape).
    """
    result = np.zeros((TABLES, STATES), np.uint32)
    places = np.arange(STATES) * ((STATES >> 1) + (STATES >> 3) + 3) % STATES
    for j, row in enumerate(counts()):
        token = np.empty(STATES, np.int64)
        token[places] = np.repeat(np.arange(257), row)
        # The states of a token, in order, stand for row[token], row[token] + 1, ...
        order = np.argsort(token, kind="stable")
        x = np.empty(STATES, np.int64)
        x[order] = row[token[order]] + np.arange(STATES) - (np.cumsum(row) - row)[token[order]]
        fresh = STATE_BITS + 1 - np.frexp(x.astype(np.float64))[1]
        escape = token == ESCAPE
        error = np.where(escape, 0, (token - 128) & 255)
        result[j] = ((x << fresh) - STATES) | fresh << 11 | np.where(escape, 8, 0) << 15 | error << 19
    found = zlib.crc32(result.astype("<u4").tobytes())
    if found != TABLES_CRC:
        raise VerificationError(
            f"this machine builds other code tables: CRC {found:08X}, expected {TABLES_CRC:08X}",
            hint="its floating point does not round as IEEE 754 says: write and read streams with another coder",
        )
    return result


@cache
def costs() -> NDArray[np.int64]:
    """What an error costs in a table, in 1/256 bit: int64 (TABLES, 256), column e + 128."""
    row = counts()
    bits = np.round(256.0 * (STATE_BITS - np.log2(np.maximum(row, 1).astype(np.float64)))).astype(np.int64)
    return np.where(row[:, :256] > 0, bits[:, :256], bits[:, 256:] + 8 * 256)
