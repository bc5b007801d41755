"""Damaged payloads: refused, or decoded to something in range; never a crash, and the same from both implementations.

The container's CRC keeps such payloads away; these tests are for when it does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.header import TILED_CODERS
from latentseg.errors import InputError
from latentseg.kernels import entropy, native_available

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]
CASES = [
    (c, s)
    for c in ("huffman-frame", "huffman-channel", "context", "inter")
    for s in ("tensor", "channel", "fixed", "codebook")
]  # fmt: skip
CENTRES = tuple(float(i**2) for i in range(11))  # of 4 bits: five symbols have none


def header(coder: Any, scaling: Any) -> StreamHeader:
    kinds = {"fixed": Scaling("fixed", -2, 2), "codebook": Scaling("codebook", centres=CENTRES)}
    kind = kinds[scaling] if scaling in kinds else Scaling(scaling)
    if coder in TILED_CODERS:  # fewer symbols: NumPy steps through a tile one by one
        return StreamHeader(bytes(32), (3, 2, 9), 4, kind, coder=coder, tile=(2, 8))
    return StreamHeader(bytes(32), (3, 4, 9), 4, kind, coder=coder, lane_symbols=16)


def payload_of(h: StreamHeader) -> bytes:
    rng = np.random.default_rng(4)
    z = rng.normal(size=h.latent_shape).astype(np.float32) * np.array([1, 0, 2], np.float32)[:, None, None]
    return entropy.encode_latent(z, h)


def outcome(payload: bytes, h: StreamHeader, implementation: Any) -> bytes | None:
    """The decoded floats' bytes, None when refused."""
    try:
        symbols = entropy.decode_symbols(payload, h, implementation)
    except InputError:
        # Of coder 3, a flipped bit may also say that the frame is no key frame.
        with pytest.raises(InputError, match=r"payload damaged|refers to the frame before"):
            entropy.decode_latent(payload, h, implementation=implementation)
        return None
    assert symbols.max() < 1 << h.bits
    values = entropy.decode_latent(payload, h, implementation=implementation)
    assert np.isfinite(values).all()
    return values.tobytes()


def agree(payload: bytes, h: StreamHeader) -> bytes | None:
    outcomes = {outcome(payload, h, implementation) for implementation in IMPLEMENTATIONS}
    assert len(outcomes) == 1
    return outcomes.pop()


@pytest.mark.parametrize(("coder", "scaling"), CASES)
def test_every_flipped_bit(coder: str, scaling: str) -> None:
    h = header(coder, scaling)
    payload = payload_of(h)
    refused = 0
    for bit in range(8 * len(payload)):
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        refused += agree(bytes(bad), h) is None
    assert refused > 0


@pytest.mark.parametrize(("coder", "scaling"), CASES)
def test_truncation_at_every_byte_and_trailing_bytes(coder: str, scaling: str) -> None:
    h = header(coder, scaling)
    payload = payload_of(h)
    for size in range(len(payload)):
        assert agree(payload[:size], h) is None
    assert agree(payload + b"\0", h) is None
    assert agree(payload, h) is not None


@given(st.binary(max_size=120), st.sampled_from(CASES))
@settings(max_examples=200, deadline=None)
def test_random_bytes(data: bytes, case: tuple[str, str]) -> None:
    agree(data, header(*case))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=6), st.sampled_from(CASES))
@settings(max_examples=200, deadline=None)
def test_several_bytes_changed(changes: list[tuple[int, int]], case: tuple[str, str]) -> None:
    h = header(*case)
    bad = bytearray(payload_of(h))
    for at, xor in changes:
        bad[at % len(bad)] ^= xor
    agree(bytes(bad), h)


@pytest.mark.parametrize("coder", ["huffman-channel", "context", "inter"])
def test_payload_of_another_stream(coder: Any) -> None:
    h = header(coder, "fixed")
    other = StreamHeader(bytes(32), (3, 40, 90), 8, Scaling("fixed", 0, 1), coder=coder)
    q = np.random.default_rng(0).integers(0, 256, other.latent_shape, np.uint8)
    assert agree(entropy.encode_symbols(q, other), h) is None
    assert agree(payload_of(h), other) is None


@pytest.mark.parametrize("coder", ["huffman-channel", "context", "inter"])
@pytest.mark.parametrize("scaling", ["tensor", "channel"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_ranges_that_lie(scaling: str, bad: float, coder: str) -> None:
    h = header(coder, scaling)
    payload = payload_of(h)
    first = payload[: h.coder == "inter"]
    assert agree(first + np.float32(bad).tobytes() + payload[4 + len(first) :], h) is None
