"""Damaged payloads of coder "inter": refused, or symbols in range; alike everywhere; and nothing refers to them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from _frames import IMPLEMENTATIONS, encode, header, video
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.payload import scale_count
from latentseg.errors import InputError
from latentseg.kernels.context_neighbours import History
from latentseg.kernels.frames import FrameDecoder, is_key

SHAPE = (5, 3, 9)
FRAMES = video(SHAPE, 3, 4)
SCALINGS = {
    "tensor": Scaling("tensor"), "channel": Scaling("channel"), "fixed": Scaling("fixed", -2, 2),
    "codebook": Scaling("codebook", centres=tuple(float(i) for i in range(16))),
}  # fmt: skip


def stream(scaling: str) -> tuple[StreamHeader, list[bytes]]:
    h = header(SHAPE, 4, (3, 6), SCALINGS[scaling])
    payloads = encode(FRAMES, h, None, *((-1.0, 2.0) if scaling in ("tensor", "channel") else ()))
    assert [is_key(payload, h) for payload in payloads] == [True, False, False]
    return h, payloads


@cache
def behind(first: bytes, h: StreamHeader) -> History | None:
    """What frame 0 leaves to the next one."""
    decoder = FrameDecoder(h)
    decoder.decode_symbols(first, 0)
    return decoder._before


def outcome(first: bytes, bad: bytes, last: bytes, h: StreamHeader) -> bytes | None:
    """The floats of a frame of any content between two good ones; None when it is refused, with what refers to it."""
    found = set()
    for name in IMPLEMENTATIONS:
        decoder, symbols_of = (FrameDecoder(h, implementation=name) for _ in range(2))
        for each in (decoder, symbols_of):
            each._before = behind(first, h)
        try:
            floats = decoder.decode_latent(bad, 1)
        except InputError:
            with pytest.raises(InputError, match="payload damaged"):
                symbols_of.decode_symbols(bad, 1)
            for each in (decoder, symbols_of):
                with pytest.raises(InputError, match="frame 2 refers to frame 1, which was not decoded"):
                    each.decode_symbols(last, 2)
            found.add(None)
            continue
        symbols = symbols_of.decode_symbols(bad, 1)
        assert symbols.max() < 1 << h.bits
        assert np.isfinite(floats).all()
        found.add(floats.tobytes() + symbols.tobytes())
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("scaling", ["fixed", "channel"])
def test_every_flipped_bit(scaling: str) -> None:
    h, payloads = stream(scaling)
    assert (good := outcome(*payloads, h)) is not None
    found = []
    for bit in range(8 * len(payloads[1])):
        bad = bytearray(payloads[1])
        bad[bit // 8] ^= 1 << bit % 8
        found.append(outcome(payloads[0], bytes(bad), payloads[2], h))
    # A number of the head that makes no difference may pass; a lane's end is not met by chance.
    assert found.count(good) <= 3
    coded = found[8 * (1 + 8 * scale_count(h)) :]  # before it lie the scales, where most may be
    assert coded.count(None) > 0.8 * len(coded)
    first = bytearray(payloads[1])
    for value in range(2, 256):
        first[0] = value
        assert outcome(payloads[0], bytes(first), payloads[2], h) is None


@pytest.mark.parametrize("scaling", SCALINGS)
def test_truncation_at_every_byte_and_trailing_bytes(scaling: str) -> None:
    h, (first, payload, last) = stream(scaling)
    for size in range(len(payload)):
        assert outcome(first, payload[:size], last, h) is None
    assert outcome(first, payload + b"\0", last, h) is None


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=6)


@given(CHANGES, st.sampled_from(sorted(SCALINGS)))
@settings(max_examples=60, deadline=None)
def test_several_bytes_changed(changes: list[tuple[int, int]], scaling: str) -> None:
    h, (first, payload, last) = stream(scaling)
    bad = bytearray(payload)
    for at, xor in changes:
        bad[at % len(bad)] ^= xor
    outcome(first, bytes(bad), last, h)


@given(st.sampled_from([0, 1]), st.binary(max_size=120))
@settings(max_examples=60, deadline=None)
def test_random_bytes(kind: int, data: bytes) -> None:
    h, (first, _, last) = stream("fixed")
    outcome(first, bytes([kind]) + data, last, h)


@pytest.mark.parametrize("mode", [3, 4, 5, 6])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_key_frames_have_no_modes_that_refer(mode: int, implementation: Any) -> None:
    """A frame of those modes, once its first byte says that it is a key frame."""
    h, payloads = stream("fixed")
    decoder = FrameDecoder(h, implementation=implementation)
    decoder.decode_symbols(payloads[0], 0)
    # Mode as a difference to 1 (docs/format.md, "Numbers of the head"), in front of what follows.
    z = (2 * (mode - 1) + 1).bit_length() - 1
    rest = 2 * (mode - 1) - (2**z - 1)
    bits = "0" * z + "1" + f"{rest:0{z}b}"[::-1]
    data = b"\0" + int(bits[::-1], 2).to_bytes(2, "little") + payloads[1][3:]
    with pytest.raises(InputError, match=rf"channel 0 has parameters \[{mode}, "):
        decoder.decode_symbols(data, 1)
