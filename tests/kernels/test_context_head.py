"""The head of the context coder's payload: what the page says, to the bit, and heads and lanes that lie."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from _context_head import channel_bits, check, header, length_bits, outcome, packed, parameters, smooth
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import StreamHeader
from latentseg.bitstream.context_payload import CENTRED, CONSTANT, PREDICTED, plan_tiles, unpack_context
from latentseg.kernels import entropy


def test_head_is_what_the_page_says() -> None:
    """Of channels whose parameters jump, with and without lanes, and of one tile and many."""
    rng = np.random.default_rng(2)
    for tile in ((4, 4), (5, 9), (16, 32)):
        noise = np.where(rng.random((9, 13, 21)) < 0.7, 0, rng.integers(0, 256, (9, 13, 21)))
        q = (smooth((9, 13, 21), 1) * np.arange(9)[:, None, None] % 3 + noise).astype(np.uint8)
        q[[0, 3, 4, 8]] = np.array([9, 250, 1, 128])[:, None, None]
        h = header(q.shape, tile=tile)
        payload = check(q, h)
        parts = unpack_context(payload, h, plan_tiles(h))
        rows = [tuple(row) for row in parts.sizes.tolist() if any(row)]
        assert len(rows) == 5
        heads = [channel_bits(parameters(payload, h)) + length_bits(rows, order) for order in range(16)]  # type: ignore[arg-type]
        best = min(heads, key=len)
        assert payload[: parts.head] == packed(best)
        assert (parts.channel_bits.sum() + 4 + parts.length_bits.sum()) == len(best)
        # A reader takes the other orders as well.
        for text in heads:
            assert outcome(packed(text) + payload[parts.head :], h) == q.tobytes()


# --- forged payloads --------------------------------------------------------------------------------------------------

SHAPE = (3, 5, 9)
TILES = 6


def forged() -> tuple[StreamHeader, bytes, list[tuple[int, ...]], list[tuple[int, ...]], bytes]:
    """A good payload of a predicted, a constant and a centred channel; its parameters, lengths and lanes."""
    q = np.stack([smooth((1, 5, 9), 0.5)[0], np.full((5, 9), 9), smooth((1, 5, 9), 40, 1)[0]]).astype(np.uint8)
    h = header(SHAPE)
    payload = entropy.encode_symbols(q, h, implementation="numpy")
    assert outcome(payload, h) == q.tobytes()
    parts = unpack_context(payload, h, plan_tiles(h))
    channels, sizes = parameters(payload, h), [tuple(row) for row in parts.sizes.tolist()]
    assert [mode for mode, *_ in channels] == [PREDICTED, CONSTANT, CENTRED]
    assert forge(channels, sizes[::2], payload[parts.head :]) == payload
    return h, payload, channels, sizes[::2], payload[parts.head :]


def forge(channels: Any, sizes: list[tuple[int, ...]], lanes: bytes, bits: int = 8) -> bytes:
    return packed(channel_bits(channels, bits) + min((length_bits(sizes, k) for k in range(16)), key=len)) + lanes


@pytest.mark.parametrize("bad", [(0, 3), (0, -1), (1, 48), (1, -1), (2, 48), (2, -1), (3, 256), (3, -1)])
@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("far", [0, 1000, 1 << 25])
def test_channel_parameters_that_lie(channel: int, bad: tuple[int, int], far: int) -> None:
    h, _, channels, sizes, lanes = forged()
    which, value = bad
    changed = list(channels[channel])
    changed[which] = value + (far if value > 0 else -far)
    changes = [tuple(changed) if i == channel else before for i, before in enumerate(channels)]
    if channel == 1 and which in (1, 2):  # a constant channel has none
        assert outcome(forge(changes, sizes, lanes), h) is not None
    else:
        assert outcome(forge(changes, sizes, lanes), h) is None


@pytest.mark.parametrize("channel", range(3))
def test_centre_out_of_range(channel: int) -> None:
    h, _, channels, sizes, lanes = forged()
    for bits in range(1, 8):
        centres = [(1 << bits) - 1 + (i == channel) for i in range(3)]
        changes = [(*row[:3], centre) for row, centre in zip(channels, centres, strict=True)]
        assert outcome(forge(changes, sizes, lanes, bits=bits), dataclasses.replace(h, bits=bits)) is None


def test_constant_channel_of_any_centre() -> None:
    h, _, channels, sizes, lanes = forged()
    for centre in (0, 9, 255):
        found = outcome(forge([channels[0], (CONSTANT, 0, 0, centre), channels[2]], sizes, lanes), h)
        assert found is not None
        assert found[45:90] == bytes([centre]) * 45


def test_every_f_g_and_centre_is_taken_as_it_is() -> None:
    h, _, channels, sizes, lanes = forged()
    decoded = 0
    for mode, f in ((CENTRED, 0), (PREDICTED, 0), (CENTRED, 47), (PREDICTED, 47), (PREDICTED, 20)):
        for g in (0, 20, 47):
            for centre in (0, 255):
                changes = [(mode, f, g, centre), *channels[1:]]
                assert parameters(forge(changes, sizes, lanes), h) == changes
                decoded += outcome(forge(changes, sizes, lanes), h) is not None
    assert decoded == 0
    # Lanes of zeros: state 0 leads elsewhere.
    assert outcome(forge(channels, sizes, bytes(len(lanes))), h) is None


@pytest.mark.parametrize("tile", range(2 * TILES))
@pytest.mark.parametrize("change", [-1, 1, 2, 63, -200, 1 << 20, (1 << 26) - 100])
def test_lengths_that_lie(tile: int, change: int) -> None:
    h, _, channels, sizes, lanes = forged()
    bad = [list(row) for row in sizes]
    bad[tile // TILES][tile % TILES] += change
    for order in (0, 2, 15):
        text = channel_bits(channels) + length_bits([tuple(row) for row in bad], order)  # type: ignore[arg-type]
        assert outcome(packed(text) + lanes, h) is None


def test_a_byte_goes_from_one_lane_to_the_next() -> None:
    """The lengths still add up: the lanes themselves find out."""
    h, _, channels, sizes, lanes = forged()
    bad = [(sizes[0][0] + 1, sizes[0][1] - 1, *sizes[0][2:]), sizes[1]]
    assert outcome(forge(channels, bad, lanes), h) is None


@pytest.mark.parametrize("zeros", [0, 26, 27, 28, 31, 32, 56, 57, 64, 200])
def test_numbers_that_lie(zeros: int) -> None:
    """Many zeros in front, then ones: among the channels, and among the lengths."""
    h, payload, channels, sizes, lanes = forged()
    head = channel_bits(channels) + length_bits(sizes, 2)  # type: ignore[arg-type]
    behind = len(channel_bits(channels)) + 4  # type: ignore[arg-type]
    for at in (0, behind, len(head) - 3):
        bad = packed(head[:at] + "0" * zeros + "1" * 60)
        for end in (bad, bad + lanes, packed(head[:at] + "0" * zeros)):
            assert end != payload
            assert outcome(end, h) is None


def test_payload_that_ends_in_its_head() -> None:
    h, payload, _, _, lanes = forged()
    for size in range(len(payload) - len(lanes)):
        assert outcome(payload[:size], h) is None
        assert outcome(bytes(size), h) is None
        assert outcome(b"\xff" * size, h) is None


def test_filling_of_the_head() -> None:
    h, _, channels, sizes, lanes = forged()
    # At least one of these leaves bits to fill.
    texts = [channel_bits(channels) + length_bits(sizes, order) for order in (2, 3)]  # type: ignore[arg-type]
    assert any(len(text) % 8 for text in texts)
    for text in texts:
        assert outcome(packed(text) + lanes, h) is not None
        if len(text) % 8:
            assert outcome(packed(text, "1") + lanes, h) is None
        assert outcome(packed(text) + b"\0" + lanes, h) is None


def test_most_flipped_bits_of_lanes_are_found() -> None:
    h, payload, _, _, lanes = forged()
    refused = 0
    bits = range(8 * (len(payload) - len(lanes)), 8 * len(payload), 3)
    for bit in bits:
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        refused += outcome(bytes(bad), h) is None
    assert refused > 0.9 * len(bits)


@given(st.binary(min_size=68, max_size=68), st.lists(st.integers(0, 255), min_size=5, max_size=5))
@settings(max_examples=100, deadline=None)
def test_random_lanes_behind_good_lengths(noise: bytes, values: list[int]) -> None:
    """Lanes that run on, in any table: held at their end, and the same said everywhere."""
    mode, f, g, centre, other = values
    channels = [(1 + mode % 2, f % 48, g % 48, centre), (CENTRED, 0, 0, other)]
    # Three tiles a channel, of 4 x 4 twice and 4 x 1: 14, 14 and 6 bytes.
    outcome(forge(channels, [(14, 14, 6)] * 2, noise), header((2, 4, 9)))
