"""Code tables against a heap-built Huffman code, a dynamic programme for the length limit, and Kraft's sum."""

from __future__ import annotations

import heapq
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream.huffman import (
    MAX_CODE_BITS,
    canonical_codes,
    code_lengths,
    decode_table,
    pack_lengths,
    unpack_lengths,
)
from latentseg.errors import InputError

counts_strategy = st.dictionaries(st.integers(0, 255), st.integers(1, 10_000), min_size=2, max_size=256)


def as_counts(counts: dict[int, int]) -> np.ndarray:
    out = np.zeros(256, np.int64)
    for symbol, count in counts.items():
        out[symbol] = count
    return out


def heap_huffman(counts: list[int]) -> tuple[int, int]:
    """(total bits, longest code) of a Huffman code without a limit."""
    heap = [(count, 0) for count in counts]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        (a, deep_a), (b, deep_b) = heapq.heappop(heap), heapq.heappop(heap)
        total += a + b
        heapq.heappush(heap, (a + b, 1 + max(deep_a, deep_b)))
    return total, heap[0][1]


def limited_cost(counts: list[int], limit: int) -> int:
    """Total bits of the best code with lengths up to `limit`: level by level, how many nodes become symbols."""
    ordered = sorted(counts, reverse=True)

    @cache
    def best(level: int, placed: int, nodes: int) -> float:
        if placed == len(ordered):
            return 0
        left = len(ordered) - placed
        if level > limit or nodes << (limit - level) < left:
            return float("inf")
        return min(
            level * sum(ordered[placed : placed + k]) + best(level + 1, placed + k, min(2 * (nodes - k), left))
            for k in range(min(nodes, left) + 1)
        )

    return int(best(1, 0, 2))


@given(counts_strategy)
@settings(max_examples=60, deadline=None)
def test_cost_equals_a_heap_built_code(counts: dict[int, int]) -> None:
    lengths = code_lengths(as_counts(counts))
    cost, longest = heap_huffman(list(counts.values()))
    ours = sum(count * int(lengths[symbol]) for symbol, count in counts.items())
    assert sum(Fraction(1, 2 ** int(v)) for v in lengths if v) == 1
    assert set(np.flatnonzero(lengths).tolist()) == set(counts)
    if longest <= MAX_CODE_BITS:
        assert ours == cost
    else:
        assert ours > cost
        assert lengths.max() == MAX_CODE_BITS


@pytest.mark.parametrize("n", [14, 17, 24])
def test_limited_codes_are_optimal(n: int) -> None:
    # Fibonacci counts make the deepest Huffman tree there is: the limit binds.
    counts = [1, 1]
    while len(counts) < n:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(as_counts(dict(enumerate(counts))))
    assert lengths.max() == MAX_CODE_BITS
    assert heap_huffman(counts)[1] == n - 1 > MAX_CODE_BITS
    assert sum(c * int(v) for c, v in zip(counts, lengths[:n], strict=True)) == limited_cost(counts, MAX_CODE_BITS)


def test_one_symbol_needs_no_bits() -> None:
    assert not code_lengths(as_counts({77: 5})).any()


def test_256_equal_symbols_get_8_bits() -> None:
    assert (code_lengths(np.full(256, 3, np.int64)) == 8).all()


def test_canonical_codes_of_rfc_1951() -> None:
    # The worked example of RFC 1951, section 3.2.2: ABCDEFGH.
    lengths = np.zeros(256, np.uint8)
    lengths[65:73] = [3, 3, 3, 3, 3, 2, 4, 4]
    codes = canonical_codes(lengths)[65:73]
    assert codes.tolist() == [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]


@given(counts_strategy)
@settings(max_examples=40, deadline=None)
def test_decode_table_inverts_the_codes(counts: dict[int, int]) -> None:
    lengths = code_lengths(as_counts(counts))
    codes, table = canonical_codes(lengths), decode_table(lengths, 0)
    for symbol in counts:
        length = int(lengths[symbol])
        low = int(codes[symbol]) << (MAX_CODE_BITS - length)
        assert (table[low : low + (1 << (MAX_CODE_BITS - length))] == symbol | length << 8).all()


@given(counts_strategy)
@settings(max_examples=100, deadline=None)
def test_tables_pack_and_unpack(counts: dict[int, int]) -> None:
    lengths = code_lengths(as_counts(counts))
    packed = pack_lengths(lengths, 0)
    again, _, end = unpack_lengths(b"xy" + packed + b"zz", 2, 8)
    assert end == 2 + len(packed)
    assert (again == lengths).all()
    assert len(packed) <= 2 + 128


def test_absent_runs_of_every_length() -> None:
    for gap in [*range(0, 40), 254]:
        lengths = np.zeros(256, np.uint8)
        lengths[[0, gap + 1]] = 1
        packed = pack_lengths(lengths, 0)
        assert (unpack_lengths(packed, 0, 8)[0] == lengths).all()
        assert len(packed) <= 5


BAD_TABLES = {
    "empty": "",
    "one byte": "00",
    "no nibbles": "0001",
    "last below first": "0500",
    "symbols above n bits": "0008" + "11",
    "incomplete": "0001" + "12",
    "more than complete": "0002" + "1110",
    "first absent": "0002" + "0110",
    "last absent": "0002" + "1100",
    "run passes last": "0003" + "1d51",
    "repeat passes last": "0003" + "2e90",
    "repeat of nothing": "0003" + "e011",
    "long run passes last": "0003" + "1f001",
    "padding": "0002" + "1221"[:3] + "f",
    "cut in a run": "0005" + "1d",
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused(name: str) -> None:
    text = BAD_TABLES[name]
    with pytest.raises(InputError, match="payload damaged"):
        unpack_lengths(bytes.fromhex(text + "0" * (len(text) % 2)), 0, 3)
