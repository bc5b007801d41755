"""Entropy coding of one frame's latent: symbols to payload and back, with float2int and int2float at the float end.

decode_latent is the server's hot step: the native decoder writes int2float's result straight into the caller's float
buffer. The NumPy references are entropy_reference.py (Huffman) and context_reference.py, the C++ is kernels/native/;
all follow docs/format.md, and give the same bytes and the same floats.

Each call stands alone: of a stream of coder "inter" this writes and reads key frames. frames.py has the coders that
go through a whole stream.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ..bitstream.context_payload import KEY, is_key
from ..bitstream.header import TILED_CODERS, StreamHeader
from ..bitstream.payload import pack_scales, scale_count, unpack_scales
from ..errors import ArtifactError, InputError, UsageError
from . import context_reference, entropy_reference
from .dequantize import check_symbols, float_buffer
from .dispatch import Implementation, choose, native_scaling
from .quantize import Range, as_ranges, not_finite, quantize, quantize_codebook


def encode_latent(z: NDArray[np.float32], header: StreamHeader, implementation: Implementation = "auto") -> bytes:
    """Quantises a latent (float2int with the stream's scaling) and codes it.

    z: float32 (C, h, w), the header's latent shape. Returns the frame's payload.
    Raises InputError for NaN or infinity, ArtifactError for another shape.
    """
    return encode_symbols(*to_symbols(z, header, implementation), implementation)


def to_symbols(
    z: NDArray[np.float32], header: StreamHeader, implementation: Implementation = "auto"
) -> tuple[NDArray[np.uint8], StreamHeader, Range | None, Range | None]:
    """What `encode_symbols` takes for a latent: its symbols (float2int), the header, and lo and hi. Raises as above."""
    _check_shape(z, header)
    z = np.ascontiguousarray(z, np.float32)
    if header.scaling.mode == "codebook":
        return quantize_codebook(z, header.scaling.centres, implementation), header, None, None
    if header.scaling.mode == "fixed":
        return quantize(z, header.bits, header.scaling.lo, header.scaling.hi, implementation), header, None, None
    axes = None if header.scaling.mode == "tensor" else (1, 2)
    lo, hi = z.min(axis=axes), z.max(axis=axes)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise not_finite(z)
    return quantize(z, header.bits, lo, hi, implementation), header, lo, hi


def encode_symbols(
    q: NDArray[np.uint8],
    header: StreamHeader,
    lo: Range | None = None,
    hi: Range | None = None,
    implementation: Implementation = "auto",
) -> bytes:
    """Codes symbols as they are.

    q: uint8 (C, h, w), the header's latent shape, values in [0, 2^bits), or [0, L) with a codebook of L centres.
    lo, hi: the range that decode_latent shall use: a float for scaling "tensor", (C,) for "channel" (or a float for
    all channels), None for "fixed" and "codebook".

    Returns the frame's payload. Raises InputError for a symbol out of range, ArtifactError for another shape,
    UsageError for a range with fixed scaling or a codebook, or none without.
    """
    q, scales = checked(q, header, lo, hi)
    native = choose(implementation)
    payload: bytes
    if native is None:
        payload = _reference(header).encode(q, header, scales)
    elif header.coder in TILED_CODERS:
        payload = native.context_encode(q, header.bits, *header.tile, scales)
    else:
        segments = q.shape[0] if header.coder == "huffman-channel" else 1
        payload = native.encode(q.reshape(-1), segments, header.lane_symbols, scales)
    return bytes([KEY]) + payload if header.coder == "inter" else payload


def checked(
    q: NDArray[np.uint8], header: StreamHeader, lo: Range | None, hi: Range | None
) -> tuple[NDArray[np.uint8], bytes]:
    """Symbols in one piece, and the bytes of their range. Raises what `encode_symbols` says."""
    _check_shape(q, header)
    check_symbols(q, header.bits, header.levels)
    return np.ascontiguousarray(q), _scales(header, lo, hi)


def decode_symbols(
    payload: bytes, header: StreamHeader, implementation: Implementation = "auto", threads: int = 1
) -> NDArray[np.uint8]:
    """The symbols of a payload: uint8 (C, h, w).

    Raises InputError for a damaged payload, and for a frame that refers to another.
    """
    native = choose(implementation)
    check_threads(threads)
    payload = _alone(payload, header)
    q: NDArray[np.uint8]
    if native is None:
        q = _reference(header).decode(payload, header)
    else:
        q = np.empty(header.latent_shape, np.uint8)
        _run_native(native, "decode_symbols", payload, header, q.reshape(-1), threads)
    return q


def decode_latent(
    payload: bytes,
    header: StreamHeader,
    out: NDArray[np.float32] | None = None,
    threads: int = 1,
    implementation: Implementation = "auto",
) -> NDArray[np.float32]:
    """The latent of a payload, dequantised (int2float, paper eq. 4, or a codebook's centres): float32 (C, h, w).

    out: C-contiguous float32 (C, h, w) to write into, for example one frame of a batch; None makes a new one. It holds
    anything after an error.
    threads: how many share the lanes (native; the NumPy reference uses one); 1 starts none.

    Raises InputError for a damaged payload, and for a frame that refers to another; ArtifactError for an `out` that
    does not fit.
    """
    out = float_buffer(out, header.latent_shape)
    native = choose(implementation)
    check_threads(threads)
    payload = _alone(payload, header)
    if native is None:
        _reference(header).decode_floats(payload, header, out)
    else:
        _run_native(native, "decode_floats", payload, header, out.reshape(-1), threads)
    return out


def payload_range(payload: bytes, header: StreamHeader) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(lo, hi) that a payload is dequantised with: float32 of shape (1,), or (C,) with scaling "channel".

    Both are 0 with a codebook.
    """
    is_key(payload, header)  # raises for a first byte that is damaged
    return unpack_scales(payload[header.coder == "inter" :], header)


def _alone(payload: bytes, header: StreamHeader) -> bytes:
    """The payload of a frame that refers to no other, without coder 3's first byte."""
    if not is_key(payload, header):
        raise InputError(
            "this frame refers to the frame before it, and cannot be decoded alone",
            hint="decode the frames from a key frame on, in order, with latentseg.kernels.frames.FrameDecoder",
        )
    return payload[1:] if header.coder == "inter" else payload


def _reference(header: StreamHeader) -> ModuleType:
    return context_reference if header.coder in TILED_CODERS else entropy_reference


def _run_native(
    native: ModuleType,
    function: str,
    payload: bytes,
    header: StreamHeader,
    out: NDArray[np.uint8] | NDArray[np.float32],
    threads: int,
) -> None:
    scaling = native_scaling(header)
    try:
        if header.coder in TILED_CODERS:
            decode = getattr(native, f"context_{function}")
            decode(bytes(payload), *header.latent_shape, header.bits, *scaling, *header.tile, out, threads)
        else:
            decode, channels = getattr(native, function), header.latent_shape[0]
            by_channel = header.coder == "huffman-channel"
            decode(bytes(payload), channels, header.bits, *scaling, by_channel, header.lane_symbols, out, threads)
    except ValueError as error:
        raise InputError(str(error)) from None


def _scales(header: StreamHeader, lo: Range | None, hi: Range | None) -> bytes:
    count = scale_count(header)
    if count == 0:
        if lo is not None or hi is not None:
            mode = header.scaling.mode
            raise UsageError(f"lo and hi given, but the stream's scaling is {mode}: its header has all that it needs")
        return b""
    if lo is None or hi is None:
        raise UsageError(f"the stream's scaling is {header.scaling.mode!r}: lo and hi are needed for each frame")
    lo_, hi_ = as_ranges(lo, hi, header.bits, header.latent_shape)
    if len(lo_) > count:
        raise ArtifactError(f"{len(lo_)} ranges, expected one for scaling {header.scaling.mode!r}")
    return pack_scales(np.broadcast_to(lo_, count), np.broadcast_to(hi_, count))


def _check_shape(array: NDArray, header: StreamHeader) -> None:
    if array.shape != header.latent_shape:
        raise ArtifactError(
            f"latent of shape {array.shape}, expected {header.latent_shape}",
            hint="all frames of a stream have one shape: start a new stream for another size",
        )


def check_threads(threads: int) -> None:
    if threads < 1:
        raise UsageError(f"{threads} threads, expected 1 or more")
