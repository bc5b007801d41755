"""A payload's parts: by hand on golden bytes, and against payloads of single channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.anatomy import Anatomy, dissect
from latentseg.bitstream.header import tile_for
from latentseg.errors import InputError
from latentseg.kernels import entropy

CODERS = ["context", "inter", "huffman-channel", "huffman-frame"]


def make_header(
    coder: Any, mode: Any, shape: tuple[int, int, int], bits: int = 8, lane: int = 16, tile: tuple[int, int] = (4, 4)
) -> StreamHeader:
    scaling = Scaling("fixed", 0.0, 1.0) if mode == "fixed" else Scaling(mode)
    own = tile_for(coder, tile)
    return StreamHeader(bytes(32), shape, bits, scaling, coder=coder, lane_symbols=lane, tile=own)


def encode(q: np.ndarray, header: StreamHeader) -> bytes:
    ranges = () if header.scaling.mode == "fixed" else (-1.0, 2.0)
    return entropy.encode_symbols(q, header, *ranges)


def peaked(shape: tuple[int, int, int], bits: int, seed: int) -> np.ndarray:
    """Symbols about the middle; the second channel is of one value."""
    top = (1 << bits) - 1
    q = np.random.default_rng(seed).laplace(top / 2, top / 20 + 0.4, shape).round().clip(0, top).astype(np.uint8)
    q[1:2] = top
    return q


def whole(a: Anatomy) -> int:
    return a.scales + a.tables + a.lengths + a.lanes


# Of test_format.py: two channels of 2 x 3, the second of one value; a lane of the first, none of the second.
@pytest.mark.parametrize(
    ("coder", "payload", "tables", "lengths", "lanes", "channels", "state_bits"),
    [
        # 18 and 10 bits of parameters, 4 of the order, 4 of the length, 4 of filling; f25a05
        ("context", "83800a330df25a05", 36 / 8, 0.5, 3, [26 / 8 + 3, 14 / 8], 11),
        # the same behind a byte, of which each channel has half
        ("inter", "0083800a330df25a05", 44 / 8, 0.5, 3, [30 / 8 + 3, 18 / 8], 11),
        # 0007313d22 0505, 02, ce40
        ("huffman-channel", "0007313d22050502ce40", 7, 1, 2, [8, 2], 0),
        # 0007424d0103, 03, ebeb00: one code for both
        ("huffman-frame", "0007424d010303ebeb00", 6, 1, 3, None, 0),
    ],
)
def test_by_hand(
    coder: str,
    payload: str,
    tables: float,
    lengths: float,
    lanes: int,
    channels: list[float] | None,
    state_bits: int,
) -> None:
    found = dissect(bytes.fromhex(payload), make_header(coder, "fixed", (2, 2, 3), bits=3))
    assert (found.scales, found.tables, found.lengths, found.lanes, found.count) == (0, tables, lengths, lanes, 1)
    assert found.state_bits == state_bits
    assert (None if found.channels is None else found.channels.tolist()) == channels
    assert found.lane_overhead == lengths + (state_bits + 3.5) / 8


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("mode", ["tensor", "channel", "fixed"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 17), (3, 5, 7), (2, 16, 16), (5, 33, 19), (65, 3, 2)])
def test_parts_add_up(coder: str, mode: str, shape: tuple[int, int, int]) -> None:
    for bits in (1, 4, 8):
        header = make_header(coder, mode, shape, bits)
        payload = encode(peaked(shape, bits, sum(shape) + bits), header)
        found = dissect(payload, header)
        assert whole(found) == len(payload)
        assert found.scales == {"tensor": 8, "channel": 8 * shape[0], "fixed": 0}[mode]
        if found.channels is not None:
            assert found.channels.shape == shape[:1]
            assert found.channels.sum() == pytest.approx(len(payload) - (8 if mode == "tensor" else 0), rel=1e-12)


@pytest.mark.parametrize("coder", ["context", "huffman-channel"])
@pytest.mark.parametrize("mode", ["channel", "fixed"])
@pytest.mark.parametrize(("lane", "tile"), [(16, (4, 4)), (300, (14, 32)), (1 << 15, (128, 300))])
def test_a_channel_takes_what_it_takes_alone(coder: str, mode: str, lane: int, tile: tuple[int, int]) -> None:
    # Channels know nothing of one another but what their parameters and lengths are differences to, so each one's
    # payload is about as long as its part. Lanes of 16 to 2^15 symbols have lengths of one to three digits under coder
    # 1, and the noise in the last channel needs all of its 8 bits.
    rng = np.random.default_rng(0)
    q = np.concatenate([peaked((3, 129, 301), 8, 1), rng.integers(0, 256, (1, 129, 301), np.uint8)])
    found = dissect(encode(q, h := make_header(coder, mode, q.shape, lane=lane, tile=tile)), h)  # type: ignore[arg-type]
    header = make_header(coder, mode, (1, 129, 301), lane=lane, tile=tile)
    alone = [dissect(encode(q[c : c + 1], header), header) for c in range(4)]
    lanes = -(-129 // tile[0]) * -(-301 // tile[1]) if coder == "context" else -(-129 * 301 // lane)
    assert found.channels is not None
    # Under coder 2 each of four numbers takes at most 17 bits more or less, a length a few, and the rest is shared.
    slack = 0 if coder == "huffman-channel" else (4 * 17 + 11) / 8 + lanes
    for c, single in enumerate(alone):
        assert found.channels[c] == pytest.approx(whole(single), abs=slack)
    assert found.lanes == sum(single.lanes for single in alone)
    assert found.count == 3 * lanes  # the second channel has none
    assert found.state_bits == (11 * found.count if coder == "context" else 0)


def test_nothing_but_constants() -> None:
    q = np.full((2, 5, 5), 9, np.uint8)
    for coder, tables in (("context", 3), ("huffman-channel", 4), ("huffman-frame", 2)):
        found = dissect(encode(q, h := make_header(coder, "fixed", (2, 5, 5))), h)
        assert (found.tables, found.lengths, found.lanes, found.count, found.lane_overhead) == (tables, 0, 0, 0, 0)


@pytest.mark.parametrize("coder", CODERS)
def test_damaged(coder: str) -> None:
    header = make_header(coder, "channel", (3, 9, 9))
    payload = encode(peaked((3, 9, 9), 8, 0), header)
    for bad in (*(payload[:size] for size in range(len(payload))), payload + b"\0", b"\xff" * len(payload)):
        with pytest.raises(InputError, match="payload damaged"):
            dissect(bad, header)
