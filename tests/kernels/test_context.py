"""The context coder: escapes, what each mode is for, forged payloads, and the rate: near the ideal of its own model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Scaling, StreamHeader, context_model
from latentseg.errors import InputError
from latentseg.kernels import dispatch, entropy, native_available

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]
CONSTANT, CENTRED, PREDICTED = 0, 1, 2


def header(shape: tuple[int, ...], bits: int = 8, tile: tuple[int, int] = (4, 4)) -> StreamHeader:
    c, h, w = shape
    return StreamHeader(bytes(32), (c, h, w), bits, Scaling("fixed", 0, 1), tile=tile)


def check(q: np.ndarray, h: StreamHeader) -> bytes:
    """Every implementation writes the same bytes, and each reads them; the payload."""
    payloads = {entropy.encode_symbols(q, h, implementation=name) for name in IMPLEMENTATIONS}
    assert len(payloads) == 1
    payload = payloads.pop()
    assert len(payload) <= h.payload_cap
    for name in IMPLEMENTATIONS:
        assert (entropy.decode_symbols(payload, h, name) == q).all()
    return payload


def outcome(payload: bytes, h: StreamHeader) -> bytes | None:
    """The symbols' bytes, None when refused; the same from every implementation."""
    found = set()
    for name in IMPLEMENTATIONS:
        try:
            q = entropy.decode_symbols(payload, h, name)
        except InputError as error:
            found.add(None if "payload damaged" in str(error) else b"another error")
        else:
            assert q.max() < 1 << h.bits
            found.add(q.tobytes())
    assert len(found) == 1
    return found.pop()


def modes(payload: bytes, channels: int) -> list[int]:
    return [first & 3 for first in payload[: 3 * channels : 3]]


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
    for c, plane in enumerate(q):
        first, g, centre = payload[3 * c : 3 * c + 3]
        if first & 3 == CONSTANT:
            continue
        for top in range(0, q.shape[1], rows):
            for left in range(0, q.shape[2], columns):
                tile = plane[top : top + rows, left : left + columns]
                e, s = errors_of(tile, first & 3, centre, h.bits)
                level = np.minimum(np.floor(2 * np.log2(s + 1) + 1e-9), 15).astype(int)
                table = context_model.table_map()[first >> 2, g, level]
                states = counts[table, e + 128]
                escaped = states == 0
                cost = np.log2(2048 / np.where(escaped, counts[table, 256], states)) + 8 * escaped
                total, escapes = total + cost.sum(), escapes + int(escaped.sum())
    return total, escapes


def smooth(shape: tuple[int, int, int], noise: float, seed: int = 0) -> np.ndarray:
    """Walks along both axes, folded into 0..255, with noise on top."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 2, shape).cumsum(axis=1).cumsum(axis=2) / 3 + rng.normal(0, noise, shape)
    return (np.abs((walk + 128) % 510 - 255)).astype(np.uint8)


@pytest.mark.skipif(not native_available(), reason="wants the compiled module")
def test_native_tables_are_those_of_the_format() -> None:
    assert dispatch._native is not None
    assert dispatch._native.context_tables_crc() == 0x28D07288


# --- lossless ---------------------------------------------------------------------------------------------------------


def test_constant_channels_are_three_bytes_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(0, 200, (4, 9, 17), np.uint8)
    whole = len(check(q, header(q.shape)))
    q[1] = 7
    q[3] = 255
    payload = check(q, header(q.shape))
    assert modes(payload, 4)[1::2] == [CONSTANT, CONSTANT]
    assert (payload[3:6], payload[9:12]) == (b"\0\0\x07", b"\0\0\xff")
    alone = check(q[[0, 2]], header((2, 9, 17)))
    assert len(payload) == len(alone) + 6 < whole
    assert payload[12:] == alone[6:]
    for value in (0, 1, 255):
        assert check(np.full((3, 16, 17), value, np.uint8), header((3, 16, 17))) == 3 * bytes([0, 0, value])


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
    assert modes(payload, 2) == [CENTRED, PREDICTED]
    bits, escapes = ideal_bits(q, h, payload)
    assert escapes > 30
    # An escape is its eight bits and what its own states cost.
    assert 8 * len(payload) > bits > 8 * escapes


def test_errors_wrap_around() -> None:
    # From 255 to 0 is a step of one: a slope that wraps costs no more than one that does not.
    y, x = np.mgrid[:12, :16]
    slope = (4 * y + 3 * x)[None].astype(np.uint8)
    sizes = [len(check(slope + np.uint8(start), header(slope.shape, tile=(12, 16)))) for start in (0, 200)]
    assert modes(check(slope + np.uint8(200), header(slope.shape, tile=(12, 16))), 1) == [PREDICTED]
    assert sizes[1] <= sizes[0] + 8


def test_lanes_of_one_symbol_stay_below_the_cap() -> None:
    """The costliest there is: a tile as high as it must be, on latents of one row."""
    q = np.random.default_rng(0).integers(0, 256, (1, 1, 6000), np.uint8)
    h = header(q.shape, tile=(16, 1))
    payload = check(q, h)
    assert 4 * q.size <= len(payload) <= h.payload_cap


# --- rate -------------------------------------------------------------------------------------------------------------


def huffman_bytes(q: np.ndarray) -> int:
    h = StreamHeader(bytes(32), q.shape, 8, Scaling("fixed", 0, 1), coder="huffman-channel", lane_symbols=4096)  # type: ignore[arg-type]
    return len(entropy.encode_symbols(q, h))


@pytest.mark.parametrize(("noise", "most"), [(0.5, 0.56), (2, 0.72), (4, 0.85)])
def test_smooth_latents_take_less_than_huffman_codes(noise: float, most: float) -> None:
    q = smooth((4, 42, 64), noise)
    h = header(q.shape, tile=(14, 32))
    payload = check(q, h)
    assert modes(payload, 4) == [PREDICTED] * 4
    assert len(payload) < most * huffman_bytes(q)


def test_noise_that_comes_and_goes_takes_less_than_its_mean_law() -> None:
    """No symbol tells the next one, but how wild it is does: the tables follow, in centred channels too."""
    scale = np.where(np.arange(64) < 32, 0.3, 30.0)
    q = np.clip(np.rint(128 + scale * np.random.default_rng(1).normal(size=(2, 28, 64))), 0, 255).astype(np.uint8)
    payload = check(q, header(q.shape, tile=(14, 32)))
    assert modes(payload, 2) == [CENTRED, CENTRED]
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


# --- forged payloads --------------------------------------------------------------------------------------------------

SHAPE = (3, 5, 9)


def forged() -> tuple[StreamHeader, bytes, int]:
    """A good payload of a predicted, a constant and a centred channel, and where its lanes begin."""
    q = np.stack([smooth((1, 5, 9), 0.5)[0], np.full((5, 9), 9), smooth((1, 5, 9), 40, 1)[0]]).astype(np.uint8)
    h = header(SHAPE)
    payload = entropy.encode_symbols(q, h, implementation="numpy")
    assert outcome(payload, h) == q.tobytes()
    assert modes(payload, 3)[1] == CONSTANT
    return h, payload, 9 + 2 * 6  # two channels of six tiles, one byte each


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 3), (0, 48 * 4 + 1), (0, 255), (1, 48), (1, 255), (3, 3), (3, 4), (4, 1), (6, 0), (6, 4), (7, 48)],
)
def test_channel_parameters_that_lie(at: int, value: int) -> None:
    h, payload, _ = forged()
    assert outcome(payload[:at] + bytes([value]) + payload[at + 1 :], h) is None


@pytest.mark.parametrize("channel", range(3))
def test_centre_out_of_range(channel: int) -> None:
    h, payload, _ = forged()
    for bits in range(1, 8):
        bad = bytearray(payload)
        bad[2:9:3] = [(1 << bits) - 1] * 3
        bad[3 * channel + 2] += 1
        assert outcome(bytes(bad), dataclasses.replace(h, bits=bits)) is None


def test_constant_channel_of_any_centre() -> None:
    h, payload, _ = forged()
    for centre in (0, 9, 255):
        found = outcome(payload[:5] + bytes([centre]) + payload[6:], h)
        assert found is not None
        assert found[45:90] == bytes([centre]) * 45


def test_every_f_g_and_centre_is_taken_as_it_is() -> None:
    h, payload, lanes = forged()
    decoded = 0
    for first in (1, 2, 4 * 47 + 1, 4 * 47 + 2, 4 * 20 + 2):
        for g in (0, 20, 47):
            for centre in (0, 255):
                decoded += outcome(bytes([first, g, centre]) + payload[3:], h) is not None
    assert decoded == 0
    # Lanes of zeros: state 0 leads elsewhere.
    assert outcome(payload[:lanes] + bytes(len(payload) - lanes), h) is None


def number(value: int) -> bytes:
    return bytes([value & 127 | 128]) + number(value >> 7) if value >= 128 else bytes([value])


@pytest.mark.parametrize("tile", range(12))
@pytest.mark.parametrize("change", [-1, 1, 2, 63, -200, 1 << 20, 1 << 26])
def test_lengths_that_lie(tile: int, change: int) -> None:
    h, payload, lanes = forged()
    steps = list(payload[9:lanes])
    assert max(steps) < 128
    step = (-(steps[tile] + 1) // 2 if steps[tile] & 1 else steps[tile] // 2) + change
    zigzag = -2 * step - 1 if step < 0 else 2 * step
    bad = b"".join(number(zigzag if i == tile else s) for i, s in enumerate(steps))
    assert outcome(payload[:9] + bad + payload[lanes:], h) is None


def test_a_byte_goes_from_one_lane_to_the_next() -> None:
    """The lengths still add up: the lanes themselves find out."""
    h, payload, _ = forged()
    bad = bytearray(payload)
    assert bad[10] < 126
    bad[10] += 2 if bad[10] % 2 == 0 else -2
    bad[11] = (bad[11] + 4 if bad[11] % 2 == 0 else bad[11] - 4) & 127
    assert bytes(bad) != payload
    assert outcome(bytes(bad), h) is None


@pytest.mark.parametrize("bad", ["8000", "80808000", "8080808001", "ffffffff7f", "ffffff7f", "01", "00"])
def test_numbers_that_lie(bad: str) -> None:
    h, payload, _ = forged()
    assert outcome(payload[:9] + bytes.fromhex(bad) + payload[10:], h) is None
    assert outcome(payload[:9] + bytes.fromhex(bad), h) is None


def test_most_flipped_bits_of_lanes_are_found() -> None:
    h, payload, lanes = forged()
    refused = 0
    bits = range(8 * lanes, 8 * len(payload), 3)
    for bit in bits:
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        refused += outcome(bytes(bad), h) is None
    assert refused > 0.9 * len(bits)


@given(st.binary(min_size=68, max_size=68), st.lists(st.integers(0, 255), min_size=5, max_size=5))
@settings(max_examples=100, deadline=None)
def test_random_lanes_behind_good_lengths(noise: bytes, parameters: list[int]) -> None:
    """Lanes that run on, in any table: held at their end, and the same said everywhere."""
    mode, f, g, centre, other = parameters
    channels = bytes([1 + mode % 2 + 4 * (f % 48), g % 48, centre, 1, 0, other])
    # Three tiles a channel, of 4 x 4 twice and 4 x 1: 14, 14 and 6 bytes.
    outcome(channels + bytes([28, 0, 15]) * 2 + noise, header((2, 4, 9)))
