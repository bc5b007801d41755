"""The context coder: escapes, what each mode is for, and the rate: near the ideal of its own model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _context_head import channel_bits, check, header, modes, packed, parameters, smooth

from latentseg.bitstream import Scaling, StreamHeader, context_model
from latentseg.bitstream.context_payload import CENTRED, CONSTANT, PREDICTED, plan_tiles, unpack_context
from latentseg.kernels import dispatch, entropy, native_available

# --- the model's own ideal, computed another way ----------------------------------------------------------------------


def errors_of(tile: np.ndarray, mode: int, centre: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile's errors, and the activity about each, from docs/format.md; tile (rows, columns)."""

    def neighbours(a: np.ndarray, start: int) -> tuple[np.ndarray, ...]:
        rows, columns = a.shape
        # Two columns in front: of a row's first neighbour above, or of the start.
        wide = np.empty((rows, columns + 2), np.int64)
        wide[:, 2:] = a
        wide[1:, :2] = a[:-1, :1]
        wide[0, :2] = start
        w, ww = wide[:, 1:-1], wide[:, :-2]
        above = np.pad(a, ((1, 0), (1, 1)), mode="edge")[:-1]
        n, nw, ne = above[:, 1:-1].copy(), above[:, :-2].copy(), above[:, 2:].copy()
        n[0] = nw[0] = ne[0] = w[0]
        return w, ww, n, nw, ne

    tile = tile.astype(np.int64)
    w, _, n, nw, _ = neighbours(tile, centre)
    predicted = np.median(np.stack([w, n, w + n - nw]), axis=0).astype(np.int64)
    half = 1 << (bits - 1)
    e = (tile - (predicted if mode == PREDICTED else centre) + half) % (2 * half) - half
    w, ww, n, _, ne = neighbours(abs(e), 8 if mode == PREDICTED else 0)
    return e, 2 * w + ww + 2 * n + ne


def ideal_bits(q: np.ndarray, h: StreamHeader, payload: bytes) -> tuple[float, int]:
    """What the payload's channel parameters make of q at best: bits, and how many symbols were escapes."""
    counts = context_model.counts()
    rows, columns = h.tile
    total, escapes = 0.0, 0
    for plane, (mode, f, g, centre) in zip(q, parameters(payload, h), strict=True):
        if mode == CONSTANT:
            continue
        for top in range(0, q.shape[1], rows):
            for left in range(0, q.shape[2], columns):
                tile = plane[top : top + rows, left : left + columns]
                e, s = errors_of(tile, mode, centre, h.bits)
                level = np.minimum(np.floor(2 * np.log2(s + 1) + 1e-9), 15).astype(int)
                table = context_model.table_map()[f, g, level]
                states = counts[table, e + 128]
                escaped = states == 0
                cost = np.log2(2048 / np.where(escaped, counts[table, 256], states)) + 8 * escaped
                total, escapes = total + cost.sum(), escapes + int(escaped.sum())
    return total, escapes


@pytest.mark.skipif(not native_available(), reason="wants the compiled module")
def test_native_tables_are_those_of_the_format() -> None:
    assert dispatch._native is not None
    assert dispatch._native.context_tables_crc() == 0x28D07288


# --- lossless ---------------------------------------------------------------------------------------------------------


def test_constant_channels_are_their_value_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(0, 200, (4, 9, 17), np.uint8)
    h = header(q.shape)
    whole = len(check(q, h))
    q[1] = 7
    q[3] = 255
    payload = check(q, h)
    assert parameters(payload, h)[1::2] == [(CONSTANT, 0, 0, 7), (CONSTANT, 0, 0, 255)]
    alone = check(q[[0, 2]], header((2, 9, 17)))
    # Without them, two modes and two centres less, and two differences to other centres.
    assert len(alone) < len(payload) < len(alone) + 10 < whole
    lanes = unpack_context(payload, h, plan_tiles(h)).sizes.sum()
    assert payload[-lanes:] == alone[-lanes:]
    for value in (0, 1, 255):
        expected = packed(channel_bits([(CONSTANT, 0, 0, value)] * 3))
        assert check(np.full((3, 16, 17), value, np.uint8), header((3, 16, 17))) == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_length(bits: int) -> None:
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    q = np.stack([
        rng.integers(0, top + 1, (6, 11)), np.where(rng.random((6, 11)) < 0.1, top, 0), np.full((6, 11), top),
        smooth((1, 6, 11), 1)[0] >> (8 - bits),
    ]).astype(np.uint8)  # fmt: skip
    check(q, header(q.shape, bits))


@pytest.mark.parametrize("where", [(0, 0), (0, 1), (0, 10), (1, 0), (3, 5), (5, 0), (5, 10)])
@pytest.mark.parametrize("jump", [(0, 255), (255, 0), (0, 128), (127, 255), (100, 101)])
def test_one_jump_in_a_flat_channel(where: tuple[int, int], jump: tuple[int, int]) -> None:
    q = np.full((2, 6, 11), jump[0], np.uint8)
    q[0, where[0], where[1]] = jump[1]
    q[1] = np.arange(6)[:, None] * 7
    q[1, where[0], where[1]] = jump[1]
    check(q, header(q.shape, tile=(3, 8)))


def test_escapes() -> None:
    """Rare jumps from 0 to everywhere: the law is narrow, and most of them have no states in it."""
    rng = np.random.default_rng(5)
    q = np.zeros((2, 24, 40), np.uint8)
    q[0].flat[rng.choice(960, 30, replace=False)] = rng.permutation(np.arange(20, 140))[:30]
    q[1] = np.arange(24, dtype=np.uint8)[:, None] * 3
    q[1].flat[rng.choice(960, 30, replace=False)] = 255
    h = header(q.shape, tile=(12, 10))
    payload = check(q, h)
    assert modes(payload, h) == [CENTRED, PREDICTED]
    bits, escapes = ideal_bits(q, h, payload)
    assert escapes > 30
    # An escape is its eight bits and what its own states cost.
    assert 8 * len(payload) > bits > 8 * escapes


def test_errors_wrap_around() -> None:
    # From 255 to 0 is a step of one: a slope that wraps costs no more than one that does not.
    y, x = np.mgrid[:12, :16]
    slope = (4 * y + 3 * x)[None].astype(np.uint8)
    sizes = [len(check(slope + np.uint8(start), header(slope.shape, tile=(12, 16)))) for start in (0, 200)]
    h = header(slope.shape, tile=(12, 16))
    assert modes(check(slope + np.uint8(200), h), h) == [PREDICTED]
    assert sizes[1] <= sizes[0] + 8


def test_lanes_of_one_symbol_stay_below_the_cap() -> None:
    """The costliest there is: a tile as high as it must be, on latents of one row."""
    q = np.random.default_rng(0).integers(0, 256, (1, 1, 6000), np.uint8)
    h = header(q.shape, tile=(16, 1))
    payload = check(q, h)
    assert 3 * q.size <= len(payload) <= h.payload_cap


# --- rate -------------------------------------------------------------------------------------------------------------


def huffman_bytes(q: np.ndarray) -> int:
    h = StreamHeader(bytes(32), q.shape, 8, Scaling("fixed", 0, 1), coder="huffman-channel", lane_symbols=4096)  # type: ignore[arg-type]
    return len(entropy.encode_symbols(q, h))


@pytest.mark.parametrize(("noise", "most"), [(0.5, 0.56), (2, 0.72), (4, 0.85)])
def test_smooth_latents_take_less_than_huffman_codes(noise: float, most: float) -> None:
    q = smooth((4, 42, 64), noise)
    h = header(q.shape, tile=(14, 32))
    payload = check(q, h)
    assert modes(payload, h) == [PREDICTED] * 4
    assert len(payload) < most * huffman_bytes(q)


def test_noise_that_comes_and_goes_takes_less_than_its_mean_law() -> None:
    """No symbol tells the next one, but how wild it is does: the tables follow, in centred channels too."""
    scale = np.where(np.arange(64) < 32, 0.3, 30.0)
    q = np.clip(np.rint(128 + scale * np.random.default_rng(1).normal(size=(2, 28, 64))), 0, 255).astype(np.uint8)
    h = header(q.shape, tile=(14, 32))
    payload = check(q, h)
    assert modes(payload, h) == [CENTRED, CENTRED]
    assert len(payload) < 0.84 * huffman_bytes(q)


@pytest.mark.parametrize("tile", [(14, 32), (24, 64), (5, 7)])
def test_bytes_are_near_the_ideal_of_the_model(tile: tuple[int, int]) -> None:
    q = smooth((3, 48, 64), 2)
    h = header(q.shape, tile=tile)
    payload = entropy.encode_symbols(q, h)
    ideal = ideal_bits(q, h, payload)[0]
    lanes = 3 * -(-48 // tile[0]) * -(-64 // tile[1])
    # A lane's state, length and filling; what the coder itself loses is far less than 1 %.
    assert ideal < 8 * len(payload) < 1.01 * ideal + lanes * (11 + 8 + 4) + 3 * 24


@pytest.mark.shared
def test_real_latents(shared_data: Path) -> None:
    paths = sorted((shared_data / "latents").glob("*.npy"))
    assert paths
    for path in paths:
        q = np.load(path)
        h = header(q.shape, tile=(14, 32))
        c, height, width = q.shape
        assert c * -(-height // 14) * -(-width // 32) > 1024  # lanes: as many as a GPU wants
        payload = check(q, h)
        assert 8 * len(payload) / q.size <= 3.40
        ideal = ideal_bits(q, h, payload)[0]
        assert ideal < 8 * len(payload) < 1.035 * ideal
