"""Backends run one model file each. `open_backend` finds one by name; nothing falls back to another in silence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...errors import UsageError
from .base import Backend, TensorSpec

__all__ = ["BACKENDS", "Backend", "TensorSpec", "open_backend"]


def _onnxruntime(path: Path, threads: int | None) -> Backend:
    from .onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads)


def _onnxruntime_cuda(path: Path, threads: int | None) -> Backend:
    from .onnxruntime import OnnxRuntimeCudaBackend

    return OnnxRuntimeCudaBackend(path, threads)


MAX_THREADS = 1024  # more than any machine has cores; a typo would start them all

BACKENDS: dict[str, Callable[[Path, int | None], Backend]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime_cuda,
}


def open_backend(path: str | os.PathLike[str], name: str = "onnxruntime", threads: int | None = None) -> Backend:
    """Load the model file `path` on the backend `name`, ready to run.

    `threads`: CPU threads that one run may use; None: as many as this process may use.

    Raises
    ------
    UsageError: unknown backend, or threads outside 1 to MAX_THREADS. BackendMissingError: it is not installed, or not
    active as asked.
    ArtifactError: the file is no model that the backend can load.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend '{name}'", hint=f"known: {', '.join(BACKENDS)}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}")
    return BACKENDS[name](Path(path), threads).load()
