"""float2int: q = round((2^n - 1) * (x - lo) / (hi - lo)), clipped to [0, 2^n - 1] (paper eq. 2, and rounding).

All in float32, in the order written: difference, product, quotient, then round half to even. IEEE arithmetic fixes
each step, so NumPy and C++ agree bit for bit. hi == lo gives zeros.

With a codebook c_0 < c_1 < ..: q = how many midpoints 0.5 * (c_j + c_(j+1)) lie below x (sum and product each rounded
to float32), which is the nearest centre, and the lower one on a midpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bitstream.header import as_centres, codebook_bits
from ..errors import ArtifactError, InputError
from .dispatch import Implementation, choose

Range = float | NDArray[np.float32]


def quantize(
    x: NDArray[np.float32], bits: int, lo: Range, hi: Range, implementation: Implementation = "auto"
) -> NDArray[np.uint8]:
    """Quantises float32 to n-bit symbols.

    x: float32, any shape; (C, ...) when lo and hi are arrays.
    bits: n, 1..8.
    lo, hi: the range, a float for all or (C,) for x[c]; values outside are clipped.

    Returns uint8 of x's shape, values in [0, 2^bits). Raises InputError for NaN or infinity in x or a range that is not
    finite with lo <= hi, ArtifactError for lo and hi that do not fit x.
    """
    lo_, hi_ = as_ranges(lo, hi, bits, x.shape)
    x = np.ascontiguousarray(x, np.float32)
    native = choose(implementation)
    if native is not None:
        q = np.empty(x.shape, np.uint8)
        if not native.quantize(x.reshape(len(lo_), -1), (1 << bits) - 1, lo_, hi_, q.reshape(len(lo_), -1)):
            raise not_finite(x)
        return q
    if not np.isfinite(x).all():
        raise not_finite(x)
    levels = np.float32((1 << bits) - 1)
    rows = x.reshape(len(lo_), -1)
    span = (hi_ - lo_)[:, None]
    with np.errstate(all="ignore"):
        scaled = levels * (rows - lo_[:, None]) / span
    clipped = np.clip(np.where(span > 0, scaled, np.float32(0)), np.float32(0), levels)
    symbols: NDArray[np.uint8] = np.rint(clipped).astype(np.uint8).reshape(x.shape)
    return symbols


def quantize_codebook(
    x: NDArray[np.float32],
    centres: Sequence[float] | NDArray[np.float32],
    implementation: Implementation = "auto",
) -> NDArray[np.uint8]:
    """The index of each value's nearest centre, the lower one's on a midpoint.

    x: float32, any shape.  centres: (L,), as `Scaling` takes them.

    Returns uint8 of x's shape, values in [0, L). Raises InputError for NaN or infinity in x, or no codebook.
    """
    limits = midpoints(centres)
    x = np.ascontiguousarray(x, np.float32)
    native = choose(implementation)
    if native is not None:
        q = np.empty(x.shape, np.uint8)
        if not native.quantize_codebook(x.reshape(-1), limits, q.reshape(-1)):
            raise not_finite(x)
        return q
    if not np.isfinite(x).all():
        raise not_finite(x)
    return np.searchsorted(limits, x, side="left").astype(np.uint8)


def midpoint_table(centres: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """The midpoints as the GPU's binary search takes them: float32 (2^n,), infinity behind the last."""
    limits = midpoints(centres)
    table = np.full(1 << codebook_bits(len(limits) + 1), np.inf, np.float32)
    table[: len(limits)] = limits
    return table


def midpoints(centres: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """What lies half-way between neighbouring centres (L,): float32 (L - 1,). Raises InputError for no codebook."""
    found = as_centres(centres)
    return np.float32(0.5) * (found[:-1] + found[1:])


def as_ranges(
    lo: Range, hi: Range, bits: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(lo, hi) as contiguous float32 of shape (1,) or (C,), checked against an array of `shape`."""
    if not 1 <= bits <= 8:
        raise InputError(f"{bits} bits a symbol, expected 1..8")
    # + 0.0 turns -0.0 into 0.0: one range, one byte sequence.
    lo_ = np.atleast_1d(np.asarray(lo, np.float32)) + np.float32(0)
    hi_ = np.atleast_1d(np.asarray(hi, np.float32)) + np.float32(0)
    rows = shape[0] if shape else 1
    if lo_.shape != hi_.shape or lo_.ndim != 1 or len(lo_) not in (1, rows) or len(lo_) == 0:
        raise ArtifactError(f"ranges of shape {lo_.shape} and {hi_.shape}, expected one pair, or ({rows},) each")
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(np.float32(255) * (hi_ - lo_)) & (lo_ <= hi_)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InputError(f"quantisation range [{lo_[i]}, {hi_[i]}], expected finite lo <= hi")
    return lo_, hi_


def not_finite(x: NDArray[np.float32]) -> InputError:
    """The error for NaN and infinity in a latent: how many, and where the first one is."""
    bad = np.argwhere(~np.isfinite(x))
    where = tuple(int(i) for i in bad[0])
    return InputError(
        f"latent holds {len(bad)} values that are not finite, the first ({x[where]}) at {where}; expected none",
        hint="a model that gives NaN is broken or was fed the wrong input: latentseg verify BUNDLE",
    )
