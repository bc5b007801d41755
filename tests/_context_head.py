"""Payloads of the context coder for its tests: encoded and decoded everywhere, and heads written another way."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.context_payload import CONSTANT, plan_tiles, unpack_context
from latentseg.errors import InputError
from latentseg.kernels import entropy, native_available

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]


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


def parameters(payload: bytes, h: StreamHeader) -> list[tuple[int, ...]]:
    """(mode, f, g, centre) of each channel."""
    found = unpack_context(payload, h, plan_tiles(h)).channels
    return list(zip(*(row.tolist() for row in (found.mode, found.f, found.g, found.centre)), strict=True))


def modes(payload: bytes, h: StreamHeader) -> list[int]:
    return [mode for mode, *_ in parameters(payload, h)]


# --- a head, written another way --------------------------------------------------------------------------------------


def number(step: int, order: int) -> str:
    """A number of docs/format.md, "Numbers of the head", as the bits that a reader meets."""
    v = -2 * step - 1 if step < 0 else 2 * step
    z = (v // 2**order + 1).bit_length() - 1
    rest = v - (2**z - 1) * 2**order
    return "0" * z + "1" + (f"{rest:0{z + order}b}"[::-1] if z + order else "")


def steps(rows: list[tuple[int, ...]], first: tuple[int, ...]) -> list[list[int]]:
    """Differences to the row before, `first` standing before all."""
    pairs = zip([first, *rows[:-1]], rows, strict=True)
    return [[b - a for a, b in zip(before, row, strict=True)] for before, row in pairs]


def channel_bits(channels: list[tuple[int, int, int, int]], bits: int = 8) -> str:
    """Parameters (mode, f, g, centre), of any size; f and g of a constant channel are not looked at."""
    text, (mode, f, g, centre) = "", (1, 16, 16, 1 << (bits - 1))
    for new in channels:
        text += number(new[0] - mode, 0)
        if new[0] != CONSTANT:
            text += number(new[1] - f, 0) + number(new[2] - g, 0)
            _, f, g, _ = new
        text += number(new[3] - centre, 0)
        mode, centre = new[0], new[3]
    return text


def length_bits(rows: list[tuple[int, ...]], order: int) -> str:
    """Bytes of the lanes of each channel that is not constant."""
    listed = steps(rows, (0,) * len(rows[0]))
    return f"{order:04b}"[::-1] + "".join(number(step, order) for row in listed for step in row)


def packed(text: str, filling: str = "0") -> bytes:
    text += filling * (-len(text) % 8)
    return bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))


def smooth(shape: tuple[int, int, int], noise: float, seed: int = 0) -> np.ndarray:
    """Walks along both axes, folded into 0..255, with noise on top."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 2, shape).cumsum(axis=1).cumsum(axis=2) / 3 + rng.normal(0, noise, shape)
    return (np.abs((walk + 128) % 510 - 255)).astype(np.uint8)
