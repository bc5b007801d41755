"""int2float: x = q * ((hi - lo) / (2^n - 1)) + lo (paper eq. 4).

All in float32, in the order written, never fused into one multiply-add, so NumPy and C++ agree bit for bit.

With a codebook: x = centre number min(q, L - 1). No encoder writes a symbol behind the last centre, but any decoder
may meet one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bitstream.header import StreamHeader, as_centres, codebook_bits
from ..errors import ArtifactError, InputError
from .dispatch import Implementation, choose
from .quantize import Range, as_ranges


def dequantize(
    q: NDArray[np.uint8],
    bits: int,
    lo: Range,
    hi: Range,
    out: NDArray[np.float32] | None = None,
    implementation: Implementation = "auto",
) -> NDArray[np.float32]:
    """Turns n-bit symbols back into float32.

    q: uint8, any shape; (C, ...) when lo and hi are arrays; values in [0, 2^bits).
    bits, lo, hi: as for quantize.
    out: C-contiguous float32 of q's shape to write into; None makes a new one.

    Returns out. Raises InputError for a symbol of 2^bits or more, ArtifactError for an `out` or range that
    does not fit.
    """
    lo_, hi_ = as_ranges(lo, hi, bits, q.shape)
    out = float_buffer(out, q.shape)
    check_symbols(q, bits)
    native = choose(implementation)
    rows = np.ascontiguousarray(q).reshape(len(lo_), -1)
    if native is not None:
        native.dequantize(rows, (1 << bits) - 1, lo_, hi_, out.reshape(len(lo_), -1))
    else:
        table = value_table(bits, lo_, hi_)
        out.reshape(len(lo_), -1)[:] = np.take_along_axis(table, rows.astype(np.intp), axis=1)
    return out


def dequantize_codebook(
    q: NDArray[np.uint8],
    centres: Sequence[float] | NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
    implementation: Implementation = "auto",
) -> NDArray[np.float32]:
    """The centres that symbols stand for.

    q: uint8, any shape; values in [0, 2^n) for the fewest bits n that hold the centres' indices.
    centres: (L,), as `Scaling` takes them.  out: as of `dequantize`.

    Returns out, float32 of q's shape. Raises InputError for a symbol of 2^n or more, or no codebook, ArtifactError for
    an `out` that does not fit.
    """
    table = codebook_table(centres)
    out = float_buffer(out, q.shape)
    check_symbols(q, codebook_bits(len(centres)))
    native = choose(implementation)
    if native is not None:
        native.dequantize_codebook(np.ascontiguousarray(q).reshape(-1), table, out.reshape(-1))
    else:
        out[...] = table[q]
    return out


def codebook_table(centres: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Every symbol's value under a codebook: (2^n,) float32, the last centre repeated to the end."""
    found = as_centres(centres)
    return np.pad(found, (0, (1 << codebook_bits(len(found))) - len(found)), mode="edge")


def symbol_values(header: StreamHeader, lo: NDArray[np.float32], hi: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every symbol's value in a frame of a stream: float32 (R, 2^bits), a row for each of the frame's ranges lo, hi.

    A codebook has one row, whatever lo and hi are.
    """
    if header.scaling.mode == "codebook":
        return codebook_table(header.scaling.centres)[None]
    return value_table(header.bits, lo, hi)


def value_table(bits: int, lo: NDArray[np.float32], hi: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every symbol's value: (len(lo), 2^bits) float32."""
    symbols = np.arange(1 << bits, dtype=np.float32)
    return symbols * steps(bits, lo, hi)[:, None] + lo[:, None]


def steps(bits: int, lo: NDArray[np.float32], hi: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one level is worth in each range: float32 of lo's shape."""
    return (hi - lo) / np.float32((1 << bits) - 1)


def check_symbols(q: NDArray[np.uint8], bits: int, levels: int | None = None) -> None:
    """Raises InputError when a symbol does not fit in `bits` bits, or when q is not uint8.

    levels: the centres of a codebook, where a symbol must have one; None: 2^bits.
    """
    if q.dtype != np.uint8:
        raise InputError(f"symbols of type {q.dtype}, expected uint8")
    most = (1 << bits if levels is None else levels) - 1
    if most < 255 and q.size and int(q.max()) > most:
        where = tuple(int(i) for i in np.argwhere(q > most)[0])
        what = f"{bits} bits" if levels in (None, 1 << bits) else f"{levels} centres"
        raise InputError(
            f"symbol {q[where]} at {where}, expected 0 to {most} ({what})",
            hint="give the number of bits, or the centres, that the codec used",
        )


def float_buffer(out: NDArray[np.float32] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`out` when it is a C-contiguous, writable float32 of `shape` (ArtifactError otherwise), a new one for None."""
    if out is None:
        return np.empty(shape, np.float32)
    if out.dtype != np.float32 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        kind = "contiguous" if out.flags.c_contiguous else "strided"
        raise ArtifactError(f"out is {kind} {out.dtype} {out.shape}, expected writable contiguous float32 {shape}")
    return out
