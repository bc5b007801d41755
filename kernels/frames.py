"""Entropy coding of a stream's frames in order, under any coder.

Coder "inter" codes a frame against the one before it where that is smaller; the others, and its key frames, stand
alone. What a frame leaves to the next one are its symbols and their absolute errors (docs/format.md, "Payload of coder
3"). Bits: context_reference.py and kernels/native/; both give the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..bitstream.context_payload import is_key
from ..bitstream.header import StreamHeader
from ..errors import ArtifactError, InputError, UsageError
from . import context_reference, entropy
from .context_neighbours import History
from .dequantize import float_buffer
from .dispatch import Implementation, choose, native_scaling
from .quantize import Range

__all__ = ["FrameDecoder", "FrameEncoder", "is_key"]


class FrameEncoder:
    """Codes the frames of one stream, one after the other. Not for several threads at once.

    header: of the stream.
    key_interval: a key frame at least every so many frames; None or 0: the first frame alone. A frame that comes out no
        smaller by the frame before is a key frame, too, and the count begins anew. Only coder "inter" takes another
        than 1 (UsageError).

    Every payload that it gives must get into the stream, in order: call `restart` where one does not.
    """

    def __init__(
        self, header: StreamHeader, key_interval: int | None = 1, implementation: Implementation = "auto"
    ) -> None:
        if key_interval is not None and key_interval < 0:
            raise UsageError(
                f"a key frame every {key_interval} frames, expected 1 or more, or 0 for the first one alone"
            )
        if header.coder != "inter" and key_interval != 1:
            raise UsageError(
                f"key frames every {key_interval or 'stream'} with coder {header.coder!r}, whose frames stand alone",
                hint="a key interval belongs to coder 'inter'",
            )
        self._header, self._interval, self._implementation = header, key_interval or 0, implementation
        self._before: History | None = None
        self._since_key = 0

    def restart(self) -> None:
        """Makes the next frame a key frame."""
        self._before = None

    def encode_latent(self, z: NDArray[np.float32]) -> bytes:
        """The payload of a latent; as `entropy.encode_latent`."""
        q, _, lo, hi = entropy.to_symbols(z, self._header, self._implementation)
        return self.encode_symbols(q, lo, hi)

    def encode_symbols(self, q: NDArray[np.uint8], lo: Range | None = None, hi: Range | None = None) -> bytes:
        """The payload of symbols; as `entropy.encode_symbols`. After an error the state is as before."""
        header = self._header
        if header.coder != "inter":
            return entropy.encode_symbols(q, header, lo, hi, self._implementation)
        q, scales = entropy.checked(q, header, lo, hi)
        due = self._interval and self._since_key >= self._interval
        before = None if due else self._before
        payload, self._before = _encode(q.copy(), header, scales, before, self._implementation)
        self._since_key = 1 if is_key(payload, header) else self._since_key + 1
        return payload


class FrameDecoder:
    """Decodes frames of one stream. Not for several threads at once.

    header: of the stream.
    threads: how many share a frame's lanes (native; the NumPy reference uses one).

    Frames of coder "inter" that refer to another one decode where that was the last one decoded; key frames, and all of
    the other coders', at any time.
    """

    def __init__(self, header: StreamHeader, threads: int = 1, implementation: Implementation = "auto") -> None:
        entropy.check_threads(threads)
        choose(implementation)
        self._header, self._threads, self._implementation = header, threads, implementation
        self._before: History | None = None
        self._index = 0  # of the frame that _before is of

    def decode_symbols(self, payload: bytes, index: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The symbols of a payload: uint8 (C, h, w).

        index: the frame's, in the stream.  out: uint8 (C, h, w) to write into; None makes a new one.

        Raises InputError for a damaged payload, which leaves nothing to refer to, and for a frame that refers to one
        that was not decoded just before; ArtifactError for an `out` that does not fit.
        """
        header = self._header
        if out is not None and (out.dtype != np.uint8 or out.shape != header.latent_shape or not out.flags.writeable):
            raise ArtifactError(f"out is {out.dtype} {out.shape}, expected writable uint8 {header.latent_shape}")
        if header.coder == "inter":
            found = self._decode(payload, index, None).symbols
        else:
            found = entropy.decode_symbols(payload, header, self._implementation, self._threads)
            if out is None:
                return found
        if out is None:
            return found.copy()
        out[...] = found
        return out

    def decode_latent(self, payload: bytes, index: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The latent of a payload, dequantised: float32 (C, h, w); out as of `entropy.decode_latent`.

        Raises what `decode_symbols` raises.
        """
        if self._header.coder != "inter":
            return entropy.decode_latent(payload, self._header, out, self._threads, self._implementation)
        out = float_buffer(out, self._header.latent_shape)
        self._decode(payload, index, out)
        return out

    def _decode(self, payload: bytes, index: int, out: NDArray[np.float32] | None) -> History:
        before, last = self._before, self._index
        self._before = None  # an error leaves nothing
        key = is_key(payload, self._header)
        if not key and (before is None or index != last + 1):
            self._before = before
            raise InputError(
                f"frame {index} refers to frame {index - 1}, which was not decoded",
                hint="what follows is lost up to the next key frame",
            )
        found = _decode(payload, self._header, before, out, self._threads, self._implementation)
        self._before, self._index = found, index
        return found


def _encode(
    q: NDArray[np.uint8], header: StreamHeader, scales: bytes, before: History | None, implementation: Implementation
) -> tuple[bytes, History]:
    native = choose(implementation)
    if native is None:
        return context_reference.encode_frame(q, header, scales, before)
    left = History(q, np.empty_like(q))
    symbols, errors = (plane.reshape(-1) for plane in before or left)
    payload: bytes = native.inter_encode(
        q, header.bits, *header.tile, scales, before is not None, symbols, errors, left.errors.reshape(-1)
    )
    return payload, left


def _decode(
    payload: bytes,
    header: StreamHeader,
    before: History | None,
    out: NDArray[np.float32] | None,
    threads: int,
    implementation: Implementation,
) -> History:
    native = choose(implementation)
    if native is None:
        return context_reference.decode_frame(payload, header, before, out)
    shape = header.latent_shape
    found = History(np.empty(shape, np.uint8), np.empty(shape, np.uint8))
    planes = [plane.reshape(-1) for plane in (*(before or found), *found)]
    stream = *shape, header.bits, *native_scaling(header), *header.tile
    try:
        if out is None:
            native.inter_decode_symbols(bytes(payload), *stream, *planes, threads)
        else:
            native.inter_decode_floats(bytes(payload), *stream, *planes, out.reshape(-1), threads)
    except ValueError as error:
        raise InputError(str(error)) from None
    return found
