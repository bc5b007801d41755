"""Length-limited canonical Huffman codes: optimal lengths, code assignment, decode table, compact storage.

Everything here is integer arithmetic with fixed tie-breaking, so the native encoder builds the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# Longest code in bits. 12 keeps a decode table of 2-byte entries at 8 KiB (four lanes' tables fit a 32 KiB L1) and lets
# four symbols follow one 64-bit refill; on the seed paper's latents it costs 0.007 bits/symbol against no limit
# (11 would cost 0.03, pooled).
MAX_CODE_BITS = 12
LEVELS = 256

# Nibbles of a stored table. 0: absent; 1..12: that length; then runs, each with its count in the nibble(s) behind it.
_RUN_ABSENT, _RUN_REPEAT, _RUN_ABSENT_LONG = 13, 14, 15


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Optimal code lengths of at most 12 bits, by package-merge (Larmore and Hirschberg, 1990).

    counts: (256,) int64, how often each symbol occurs; not all zero. Returns (256,) uint8, 0 for symbols that do not
    occur; a symbol that is alone gets 0 too (it needs no bits). Ties: the lower symbol counts as rarer, a symbol goes
    before a package.
    """
    lengths = np.zeros(LEVELS, np.uint8)
    present = np.flatnonzero(counts)
    n = len(present)
    if n == 0:
        raise ValueError("no symbols to code")
    if n == 1:
        return lengths
    order = np.argsort(counts[present], kind="stable")
    present, leaves = present[order], counts[present][order]
    # row[i] of level l: whether the i-th lightest item is a symbol (else a package of two items of level l - 1).
    is_leaf = [np.ones(n, bool)]
    items = leaves
    for _ in range(MAX_CODE_BITS - 1):
        pairs = len(items) // 2
        packages = items[: 2 * pairs].reshape(pairs, 2).sum(axis=1)
        merged = np.concatenate([leaves, packages])
        order = np.argsort(merged, kind="stable")
        items = merged[order]
        is_leaf.append(order < n)
    # The 2n - 2 lightest items of the last level, opened level by level: each time a symbol shows up, its code grows.
    take = 2 * n - 2
    sorted_lengths = np.zeros(n, np.uint8)
    for level in reversed(is_leaf):
        symbols = int(np.count_nonzero(level[:take]))
        sorted_lengths[:symbols] += 1
        take = 2 * (take - symbols)
    lengths[present] = sorted_lengths
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The codes that go with the lengths: (256,) uint16, right-aligned, sent from the highest bit down.

    Codes count up through the symbols ordered by (length, symbol); a step to a longer length shifts left.
    """
    codes = np.zeros(LEVELS, np.uint16)
    code = 0
    for length in range(1, MAX_CODE_BITS + 1):
        code <<= 1
        symbols = np.flatnonzero(lengths == length)
        codes[symbols] = code + np.arange(len(symbols))
        code += len(symbols)
    return codes


def decode_table(lengths: NDArray[np.uint8], single: int) -> NDArray[np.uint16]:
    """For each value of the next 12 bits: symbol | code length << 8; (4096,) uint16.

    lengths: (256,) of a complete code (Kraft sum 1), or all zero: then `single` is the only symbol, of 0 bits.
    """
    if not lengths.any():
        return np.full(1 << MAX_CODE_BITS, single, np.uint16)
    # Canonical codes, left-aligned to 12 bits, count up through the table in the order (length, symbol).
    order = np.argsort(lengths, kind="stable")
    order = order[np.count_nonzero(lengths == 0) :]
    used = lengths[order].astype(np.int64)
    return np.repeat(order | used << 8, 1 << (MAX_CODE_BITS - used)).astype(np.uint16)


def pack_lengths(lengths: NDArray[np.uint8], single: int) -> bytes:
    """A table's bytes: first symbol, last symbol, then nibbles (high half first) for the lengths in between.

    Equal first and last: that symbol is alone, and no nibbles follow.
    """
    present = np.flatnonzero(lengths)
    if len(present) == 0:
        return bytes([single, single])
    first, last = int(present[0]), int(present[-1])
    values = [int(v) for v in lengths[first : last + 1]]
    nibbles: list[int] = []
    i = 0
    while i < len(values):
        value = values[i]
        run = 1
        while i + run < len(values) and values[i + run] == value:
            run += 1
        if value == 0:
            run = min(run, 273)
            if run >= 18:
                nibbles += [_RUN_ABSENT_LONG, (run - 18) >> 4, (run - 18) & 15]
            elif run >= 2:
                nibbles += [_RUN_ABSENT, run - 2]
            else:
                nibbles.append(0)
        else:
            repeats = min(run - 1, 18)
            nibbles.append(value)
            if repeats >= 3:
                nibbles += [_RUN_REPEAT, repeats - 3]
                run = 1 + repeats
            else:
                run = 1
        i += run
    if len(nibbles) % 2:
        nibbles.append(0)
    packed = bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True))
    return bytes([first, last]) + packed


def unpack_lengths(data: bytes, offset: int, bits: int) -> tuple[NDArray[np.uint8], int, int]:
    """Reads one table at `offset`; returns (lengths, single symbol, offset behind it).

    Raises InputError unless it is a complete code (Kraft sum exactly 1) of symbols below 2^bits whose first and last
    symbol occur; then every bit sequence decodes to some symbols and no decoder needs a check inside its loop.
    """
    if len(data) < offset + 2:
        raise InputError("payload damaged: it ends inside the code tables")
    first, last = data[offset], data[offset + 1]
    offset += 2
    lengths = np.zeros(LEVELS, np.uint8)
    if not first <= last < 1 << bits:
        raise InputError(f"payload damaged: code table for symbols {first} to {last}, expected 0 to {(1 << bits) - 1}")
    if first == last:
        return lengths, first, offset
    half = 0

    def nibble() -> int:
        nonlocal half
        at = offset + half // 2
        if at >= len(data):
            raise InputError("payload damaged: it ends inside the code tables")
        value = data[at] & 15 if half % 2 else data[at] >> 4
        half += 1
        return value

    symbol = first
    previous = 0
    while symbol <= last:
        value = nibble()
        run = 1
        if value == _RUN_ABSENT:
            value, run = 0, 2 + nibble()
        elif value == _RUN_ABSENT_LONG:
            value, run = 0, 18 + (nibble() << 4)
            run += nibble()
        elif value == _RUN_REPEAT:
            value, run = previous, 3 + nibble()
        if symbol + run > last + 1:
            raise InputError(f"payload damaged: a run of lengths passes the last symbol {last}")
        lengths[symbol : symbol + run] = value
        previous = value
        symbol += run
    if half % 2 and nibble() != 0:
        raise InputError("payload damaged: padding of a code table is not zero")
    used = lengths[lengths > 0].astype(np.int64)
    if lengths[first] == 0 or lengths[last] == 0 or int((1 << (MAX_CODE_BITS - used)).sum()) != 1 << MAX_CODE_BITS:
        raise InputError("payload damaged: a code table is not a complete prefix code")
    return lengths, 0, offset + half // 2
