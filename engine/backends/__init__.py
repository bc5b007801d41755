"""Backends run one model file each. `open_backend` finds one by name; nothing falls back to another in silence."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UsageError
from .base import Backend, TensorSpec

__all__ = ["BACKENDS", "Backend", "TensorSpec", "check_threads", "open_backend"]


def _onnxruntime() -> type[Backend]:
    from .onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def _torch() -> type[Backend]:
    from .torch import TorchBackend

    return TorchBackend


def _tensorrt() -> type[Backend]:
    from .tensorrt import TensorRtBackend

    return TensorRtBackend


MAX_THREADS = 1024  # more than any machine has cores; a typo would start them all

# Name -> what brings its class in; a backend that is not asked for is not imported.
BACKENDS = {"onnxruntime": _onnxruntime, "torch": _torch, "tensorrt": _tensorrt}


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a number of threads outside 1 to MAX_THREADS."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}")


def open_backend(
    path: str | os.PathLike[str], name: str = "onnxruntime", threads: int | None = None, provider: str | None = None
) -> Backend:
    """Load the model file `path` on the backend `name`, ready to run.

    `threads`: CPU threads that one run may use; None: as many as this process may use. `provider`: what it is to run
    on, "cpu" or "cuda"; None: the backend's first choice.

    Raises
    ------
    UsageError: unknown backend or provider, or threads outside 1 to MAX_THREADS. BackendMissingError: it is not
    installed, or not active as asked. ArtifactError: the file is no model that the backend can load.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend '{name}'", hint=f"known: {', '.join(BACKENDS)}")
    check_threads(threads)
    return BACKENDS[name]()(Path(path), threads, provider).load()
