"""Latents in .npy files, read and written one at a time, so that a stack of any length needs the memory of one latent.

`numpy.load` would read all of it, and a memory map does not work on a pipe.
"""

from __future__ import annotations

import math
import tokenize
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError

_MAGIC = b"\x93NUMPY"
# Read in steps of 16 MiB: a header that lies about its shape then costs no more memory than the bytes that are there.
_CHUNK = 1 << 24


def read_latents(file: BinaryIO, name: str) -> Iterator[np.ndarray]:
    """Every latent (C, h, w) of an .npy file or pipe, which holds one (C, h, w) or a stack (N, C, h, w).

    Several arrays written one after the other (repeated `numpy.save`) are read in turn, so a pipe can be packed live.
    Raises InputError for anything that is not such an array of integers or floats, or that ends early.
    """
    magic = file.read(6)
    if not magic:
        raise InputError(f"{name} is empty, expected an .npy array")
    while magic:
        shape, fortran, dtype = _header(magic, file, name)
        count, latent_shape = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
        if fortran and len(shape) == 4:
            # The stack's axis varies fastest, so no latent is complete before all of them are.
            whole = np.frombuffer(_read(file, math.prod(shape) * dtype.itemsize, name), dtype)
            yield from whole.reshape(shape, order="F")
        else:
            size = math.prod(latent_shape) * dtype.itemsize
            for index in range(count):
                data = _read(file, size, f"{name} (latent {index} of {count})")
                yield np.frombuffer(data, dtype).reshape(latent_shape, order="F" if fortran else "C")
        magic = file.read(6)


def _header(magic: bytes, file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if magic != _MAGIC:
        hint = "it looks like an .npz archive; save its array with numpy.save" if magic[:2] == b"PK" else ""
        raise InputError(
            f"{name} is not an .npy array: expected it to begin with {_MAGIC!r}, found {magic!r}", hint=hint
        )
    version = file.read(2)
    try:
        if version == b"\x01\x00":
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == b"\x02\x00":
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise InputError(f"{name} has .npy version {tuple(version)}, expected (1, 0) or (2, 0)")
    except (ValueError, SyntaxError, TypeError, RecursionError, tokenize.TokenError) as error:
        # NumPy reads the header as a Python literal, and lets most of what can go wrong there through.
        raise InputError(f"{name} has a damaged .npy header: {error}") from error
    if dtype.hasobject:
        raise InputError(
            f"{name} holds Python objects (pickle), which are never loaded; expected integers",
            hint="save it with numpy.save(..., allow_pickle=False)",
        )
    if dtype.kind not in "iuf" or dtype.shape:
        raise InputError(f"{name} holds {dtype}, expected an integer type (or floats, with --quantize)")
    if len(shape) not in (3, 4) or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(
            f"{name} has shape {shape}, expected (C, h, w) or (N, C, h, w) with nothing empty",
            hint="reshape it, for example latent[None] for one channel",
        )
    return shape, fortran, dtype


def _read(file: BinaryIO, size: int, name: str) -> bytearray:
    data = bytearray()
    while len(data) < size:
        chunk = file.read(min(_CHUNK, size - len(data)))
        if not chunk:
            raise InputError(f"{name} is truncated: expected {size} bytes, found {len(data)}")
        data += chunk
    return data


class StackWriter:
    """Writes a stack (N, C, h, w) into a seekable file latent by latent; N is put into the header by `finish`."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self.count = 0
        self._file, self._shape, self._dtype = file, shape, np.dtype(dtype)
        self._write_header()
        self._data_offset = file.tell()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.count, *self._shape),
            },
        )

    def append(self, latent: np.ndarray) -> None:
        """Add one latent (C, h, w) of the stack's type."""
        if latent.shape != self._shape or latent.dtype != self._dtype:
            raise ValueError(f"expected {self._shape} {self._dtype}, found {latent.shape} {latent.dtype}")
        self._file.write(np.ascontiguousarray(latent).data)
        self.count += 1

    def finish(self) -> None:
        """Put the final N into the header; NumPy pads headers for exactly this, so its length cannot change."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._data_offset:
            raise AssertionError("the .npy header changed its length")
        self._file.seek(end)
