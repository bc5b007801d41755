"""The fixed tables of coder 2 and the rule that picks one: checked against their definitions, computed another way."""

from __future__ import annotations

import zlib
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from latentseg.bitstream import context_model as model

ERRORS = np.arange(-128, 128)


def test_every_state_belongs_to_a_token() -> None:
    counts = model.counts()
    assert counts.shape == (model.TABLES, 257)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == 2048).all()
    # What has no states has an escape to go by.
    assert ((counts[:, :256] > 0).all(axis=1) | (counts[:, 256] > 0)).all()


def test_tables_are_symmetric_and_fall_off() -> None:
    for row in model.counts():
        # Rounding the running sum moves a state from one side to the other here and there.
        assert abs(row[1:128] - row[255:128:-1]).max() <= 1
        assert (np.diff(row[128:256]) <= 1).all()
        assert row[128] == row[:256].max()


@pytest.mark.parametrize("table", range(model.TABLES))
def test_decoding_table(table: int) -> None:
    row = model.counts()[table]
    seen = np.zeros(257, np.int64)
    stands_for: dict[int, list[int]] = {}
    for entry in model.decoding_tables()[table].tolist():
        base, fresh, more, error = entry & 2047, entry >> 11 & 15, entry >> 15 & 15, entry >> 19
        assert more in (0, 8)
        assert error == 0 or not more
        token = model.ESCAPE if more else (error + 128) % 256
        seen[token] += 1
        # Every one of the next states lies in the table.
        assert base + (1 << fresh) <= 2048
        stands_for.setdefault(token, []).append((base + 2048) >> fresh)
        assert (base + 2048) % (1 << fresh) == 0
    assert (seen == row).all()
    for token, values in stands_for.items():
        assert values == list(range(row[token], 2 * row[token]))


def test_tables_are_those_of_the_format() -> None:
    # docs/format.md, section "Payload of coder 2".
    assert zlib.crc32(model.decoding_tables().astype("<u4").tobytes()) == 0x28D07288


def law(table: int) -> np.ndarray:
    """(1 + e^2/s^2)^-2 over the errors, with the table's s = 2^((j - 14) / 4), and floats that are not the tables'."""
    s = 2.0 ** ((table - 14) / 4)
    weight = (1 + (ERRORS / s) ** 2) ** -2.0
    return weight / weight.sum()


@pytest.mark.parametrize("table", range(model.TABLES))
def test_tables_are_close_to_their_law(table: int) -> None:
    wanted, row = law(table), model.counts()[table]
    # The escape takes whatever has no states, evenly: 8 bits each.
    have = np.where(row[:256] > 0, row[:256], row[256] / 256) / 2048
    lost = float((wanted * np.log2(wanted / have)).sum())
    assert 0 <= lost < (0.02 if table < 28 else 0.05)
    # The neighbours' laws are further off than a table's own: none is out of place. (Below table 8 nearly all weight
    # lies at 0, and a narrower law always fits better.)
    for other in (table - 1, table + 1) if 8 <= table < model.TABLES - 1 else ():
        theirs = law(other)
        assert lost < float((theirs * np.log2(theirs / have)).sum())


def test_level_is_the_rounded_down_logarithm() -> None:
    s = np.arange(801)
    # floor(2 log2(n)) = the bits of n * n, less one: in integers alone.
    expected = [min(((v + 1) * (v + 1)).bit_length() - 1, 15) for v in range(801)]
    assert model.level(s).tolist() == expected
    # The steps lie at the least n with n * n >= 2^level.
    first = [expected.index(level) for level in sorted(set(expected))]
    assert first == [isqrt(2**level - 1) for level in sorted(set(expected))]
    assert int(model.level(np.array([6 * 128 + 2])).item()) == 15


def test_map_rises_with_f_g_and_level() -> None:
    table = model.table_map().astype(int)
    assert table.shape == (48, 48, 16)
    for axis in range(3):
        assert (np.diff(table, axis=axis) >= 0).all()
    assert (table[0, 0, 0], table.max()) == (table.min(), model.TABLES - 1)
    # Both numbers and the level matter.
    assert np.ptp(table[:, 0, 0]) > 40
    assert np.ptp(table[0, :, 8]) > 20
    assert np.ptp(table[0, 24, :]) > 20


def test_map_takes_the_nearest_scale() -> None:
    """The table j whose 2^(j/4) is nearest to 2^(f/4) + 2^(g/4) T / 32 on a log axis, in exact arithmetic."""
    table = model.table_map()
    twice = (0, 1, 2, 4, 7, 11, 17, 25, 36, 52, 75, 107, 152, 216, 307, 500)
    quarter, between = (65536, 77936, 92682, 110218), (60097, 71468, 84990, 101070)
    for root, exact in (*zip(quarter, (0, 1, 2, 3), strict=True), *zip(between, (-0.5, 0.5, 1.5, 2.5), strict=True)):
        assert root == round(2 ** (16 + exact / 4))
    for f in range(0, 48, 5):
        for g in range(0, 48, 5):
            for level, t in enumerate(twice):
                scale = quarter[f % 4] * 2 ** (f // 4) + Fraction(quarter[g % 4] * 2 ** (g // 4) * t, 32)
                found = sum(scale >= between[j % 4] * 2 ** (j // 4) for j in range(1, model.TABLES))
                assert table[f, g, level] == found


def test_costs_are_the_bits_of_the_states() -> None:
    counts, costs = model.counts(), model.costs()
    assert costs.shape == (model.TABLES, 256)
    for j in range(model.TABLES):
        for e in range(256):
            bits = np.log2(2048 / counts[j, e]) if counts[j, e] else np.log2(2048 / counts[j, 256]) + 8
            assert abs(costs[j, e] / 256 - bits) <= 0.5 / 256 + 1e-9
