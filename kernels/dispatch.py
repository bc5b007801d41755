"""Picks the implementation of a kernel."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Literal

import numpy as np

from ..bitstream.header import SCALING_MODES, StreamHeader
from ..errors import BackendMissingError, UsageError

Implementation = Literal["auto", "native", "numpy"]

_native: ModuleType | None = None
try:
    from . import _native as _compiled

    _native = _compiled
except ImportError:
    # A checkout without a compiler: the NumPy reference does everything, slower.
    pass


def native_available() -> bool:
    """Whether the compiled module is there."""
    return _native is not None


def choose(implementation: Implementation) -> ModuleType | None:
    """The compiled module, or None for the NumPy reference.

    Raises BackendMissingError when "native" is asked for and not built, UsageError for an unknown name.
    """
    if implementation not in ("auto", "native", "numpy"):
        raise UsageError(f"implementation {implementation!r}: expected auto, native or numpy")
    if implementation == "native" and _native is None:
        raise BackendMissingError(
            "the compiled module latentseg.kernels._native is not there",
            hint="install with a C++ compiler at hand, or ask for implementation 'numpy'",
        )
    return None if implementation == "numpy" else _native


def native_scaling(header: StreamHeader) -> tuple[int, float, float, bytes]:
    """A stream's scaling as the native decoders take it.

    The mode's number, lo and hi of a fixed range, and the centres of a codebook as the bytes of float32.
    """
    scaling = header.scaling
    return SCALING_MODES.index(scaling.mode), scaling.lo, scaling.hi, _centre_bytes(scaling.centres)


@lru_cache(maxsize=16)
def _centre_bytes(centres: tuple[float, ...]) -> bytes:
    return np.array(centres, np.float32).tobytes()
