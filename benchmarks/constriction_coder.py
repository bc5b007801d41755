"""Symbols under the entropy coders of the package `constriction`: what its users would build for latents in NumPy.

    channel  one byte each: which differences were coded (index into DIFFERENCES)
    tables   their bytes (u32), then zlib -9 of C x 256 levels: 0: absent, else 1 + round(3 log2(count))
    words    the ANS coder's, u32, all channels under one state

One call a channel, with one histogram as a Categorical model, from the first to the last value that occurs (a shorter
alphabet decodes faster). Histograms in thirds of an octave lose 0.003 bits a symbol or less, and need 300 to 1,200
bytes where raw counts need kilobytes. ANS, not the range coder, since it decodes faster at the same rate.

Differences are taken modulo 256, so that a running sum gives the symbols back. Contexts, which the context coder has,
would need a call for each row and context.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Along which axes of (C, h, w) neighbours are subtracted: W is 2, N is 1, W + N - NW both.
DIFFERENCES: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))
_MIDDLE = 128  # a difference of 0: so that small ones of both signs are neighbours
_STEPS = 3  # levels an octave


def encode(q: NDArray[np.uint8], differences: bool) -> bytes:
    """The payload of symbols q, uint8 (C, h, w); differences: which of DIFFERENCES is best, for each channel."""
    import constriction

    kinds = [_subtract(q, axes) for axes in (DIFFERENCES if differences else DIFFERENCES[:1])]
    counts = np.stack([_count(kind) for kind in kinds])  # (kinds, C, 256)
    kind_of = _entropy(counts).argmin(axis=0)
    chosen = counts[kind_of, np.arange(len(q))]
    levels = np.zeros(chosen.shape, np.uint8)
    levels[chosen > 0] = 1 + np.round(_STEPS * np.log2(chosen[chosen > 0]))
    coder = constriction.stream.stack.AnsCoder()
    # A stack: what goes in last comes out first.
    for channel in range(len(q) - 1, -1, -1):
        first, model = _model(levels[channel])
        if model is not None:
            symbols = kinds[kind_of[channel]][channel].reshape(-1).astype(np.int32)
            coder.encode_reverse(symbols - np.int32(first), model)
    tables = zlib.compress(levels.tobytes(), 9)
    words = coder.get_compressed().astype("<u4").tobytes()
    return bytes(kind_of.astype(np.uint8)) + len(tables).to_bytes(4, "little") + tables + bytes(words)


def decode(payload: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The symbols of a payload that `encode` made, uint8 of `shape` (C, h, w)."""
    import constriction

    count, height, width = shape
    kind_of = np.frombuffer(payload, np.uint8, count)
    start = count + 4
    end = start + int.from_bytes(payload[count:start], "little")
    levels = np.frombuffer(zlib.decompress(payload[start:end]), np.uint8).reshape(count, 256)
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(payload, "<u4", offset=end).astype(np.uint32))
    q = np.empty(shape, np.uint8)
    for channel in range(count):
        first, model = _model(levels[channel])
        if model is None:
            q[channel] = first
        else:
            q[channel] = coder.decode(model, height * width).reshape(height, width) + first
    for number, axes in enumerate(DIFFERENCES[1:], 1):
        which = np.flatnonzero(kind_of == number)
        if len(which):
            q[which] = _add_up(q[which], axes)
    return q


def _subtract(q: NDArray[np.uint8], axes: tuple[int, ...]) -> NDArray[np.uint8]:
    for axis in axes:
        q = np.diff(q, axis=axis, prepend=np.uint8(0))
    return q + np.uint8(_MIDDLE) if axes else q


def _add_up(values: NDArray[np.uint8], axes: tuple[int, ...]) -> NDArray[np.uint8]:
    values = values - np.uint8(_MIDDLE)
    for axis in axes:
        values = np.cumsum(values, axis=axis, dtype=np.uint8)
    return values


def _count(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Histograms of the channels: int64 (C, 256)."""
    return np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in values])


def _entropy(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of all symbols under their own histogram, along the last axis."""
    logs = np.log2(np.maximum(counts, 1))
    total = counts.sum(axis=-1)
    bits: NDArray[np.float64] = total * np.log2(total) - (counts * logs).sum(axis=-1)
    return bits


def _model(levels: NDArray[np.uint8]) -> tuple[int, Any]:
    """The first value that occurs, and the model of what lies above it; None where it is the only one."""
    import constriction

    present = np.flatnonzero(levels)
    first, last = int(present[0]), int(present[-1])
    if first == last:
        return first, None
    shares = np.where(levels > 0, np.exp2(levels / _STEPS), 0.0)[first : last + 1]
    shares = (shares / shares.sum()).astype(np.float32)
    return first, constriction.stream.model.Categorical(shares, perfect=False)
