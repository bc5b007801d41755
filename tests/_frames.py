"""Streams of coder "inter" for its tests: frames that are alike, coded and decoded by every implementation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.context_payload import plan_tiles, unpack_context
from latentseg.kernels import entropy, native_available
from latentseg.kernels.frames import FrameDecoder, FrameEncoder, is_key

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]
FIXED = Scaling("fixed", -1.5, 2.0)


def header(
    shape: tuple[int, ...],
    bits: int = 8,
    tile: tuple[int, int] = (4, 6),
    scaling: Scaling = FIXED,
    coder: Any = "inter",
) -> StreamHeader:
    c, h, w = shape
    return StreamHeader(bytes(32), (c, h, w), bits, scaling, coder=coder, tile=tile)


def video(shape: tuple[int, int, int], frames: int, bits: int = 8, seed: int = 0) -> list[np.ndarray]:
    """By turns: channels that stay but for a little noise, wild in one half; that move by a column; that are one value;
    slopes that fade; and noise that has nothing to do with the frame before.
    """
    rng = np.random.default_rng(seed)
    c, h, w = shape
    top = (1 << bits) - 1
    wild = np.where(np.arange(w) < w / 2, 0.02, 0.5)
    base = rng.integers(0, top + 1, shape)
    walk = rng.normal(0, 2, (c, h, w + frames)).cumsum(axis=1).cumsum(axis=2) / 3 + top / 2
    found = []
    for i in range(frames):
        base = np.where(rng.random(shape) < wild, np.clip(base + rng.integers(-3, 4, shape), 0, top), base)
        noise = rng.integers(0, top + 1, shape)
        moved = np.clip(walk[:, :, i : i + w].round(), 0, top).astype(np.int64)
        slopes = 3 * np.arange(w) + 2 * np.arange(h)[:, None] + 9 * i + 0 * base + rng.integers(0, 2, shape)
        kinds = [base, moved, 0 * base + top // 3, slopes, noise]
        found.append(np.stack([kinds[k % 5][k] for k in range(c)]).astype(np.uint8) & top)
    return found


def encode(frames: Iterable[np.ndarray], h: StreamHeader, interval: int | None, *ranges: float) -> list[bytes]:
    """The payloads, which are the same from every implementation."""
    encoders = [FrameEncoder(h, interval, name) for name in IMPLEMENTATIONS]
    payloads = []
    for q in frames:
        found = {encoder.encode_symbols(q, *ranges) for encoder in encoders}
        assert len(found) == 1
        payloads.append(found.pop())
    return payloads


def check(frames: list[np.ndarray], h: StreamHeader, interval: int | None = None, *ranges: float) -> list[bytes]:
    """Both ways, all implementations, symbols and floats by turns; the payloads."""
    payloads = encode(frames, h, interval, *ranges)
    decoders = [FrameDecoder(h, implementation=name) for name in IMPLEMENTATIONS]
    for i, (payload, q) in enumerate(zip(payloads, frames, strict=True)):
        alone = entropy.encode_symbols(q, h, *ranges)
        assert len(payload) <= len(alone) <= h.payload_cap
        expected = entropy.decode_latent(alone, h).tobytes()
        for decoder in decoders:
            if i % 2:
                assert decoder.decode_latent(payload, i).tobytes() == expected
            else:
                assert (decoder.decode_symbols(payload, i) == q).all()
    return payloads


def keys(payloads: list[bytes], h: StreamHeader) -> list[int]:
    """Which frames are key frames."""
    return [i for i, payload in enumerate(payloads) if is_key(payload, h)]


def modes(payload: bytes, h: StreamHeader) -> list[int]:
    """The mode of each channel, of any frame whose scaling is fixed."""
    found: list[int] = unpack_context(payload[1:], h, plan_tiles(h), not is_key(payload, h)).channels.mode.tolist()
    return found
