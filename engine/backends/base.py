"""The contract of a backend: this class guards state, shapes, types and timing; a subclass loads, runs and closes.

Every model of a bundle has one input and one output, so a run takes one array and gives one array.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, UsageError


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a model's input or output; None in the shape is a free dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    def fits(self, array: npt.NDArray[Any]) -> bool:
        """Whether an array has this dtype and a shape that these dimensions allow."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(want is None or want == have for want, have in zip(self.shape, array.shape, strict=True))
        )


class Backend(ABC):
    """One model file, loaded and run.

    A subclass sets `name` and `providers` (what it can be asked to run on, the first where nothing is asked for) and
    implements `_load` (open the file; return the input's and the output's TensorSpec, and what it truly runs on),
    `_run` and `_close`. It may be run from any thread, one run at a time.

    Raises UsageError for a provider that the class does not name.

    Attributes
    ----------
    asked: the provider that it must run on. provider: what it runs on, as read back after loading. input, output:
    TensorSpec of the model's ends. runs, total_run_s, last_run_s: runs so far and their seconds of wall time.
    """

    name: ClassVar[str]
    providers: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, threads: int | None = None, provider: str | None = None) -> None:
        self.path = path
        self.threads = threads
        self.asked = self.pick(provider)
        self.provider = ""
        self.runs = 0
        self.total_run_s = 0.0
        self.last_run_s = 0.0
        self._state = "new"
        self._ends: tuple[TensorSpec, TensorSpec] | None = None

    @classmethod
    def pick(cls, provider: str | None) -> str:
        """The provider that was asked for, the first where none was. Raises UsageError for one that is not named."""
        asked = cls.providers[0] if provider is None else provider
        if asked not in cls.providers:
            raise UsageError(
                f"backend {cls.name} has no provider '{provider}'", hint=f"its providers: {', '.join(cls.providers)}"
            )
        return asked

    @abstractmethod
    def _load(self) -> tuple[TensorSpec, TensorSpec, str]: ...

    @abstractmethod
    def _run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]: ...

    @abstractmethod
    def _close(self) -> None: ...

    def load(self) -> Self:
        """Load the model; once only. Raises BackendMissingError or ArtifactError (see `open_backend`)."""
        if self._state != "new":
            raise UsageError(f"{self}: load() on a backend that is {self._state}, expected a new one")
        if not self.path.is_file():
            raise ArtifactError(f"no model file at {self.path}")
        *ends, self.provider = self._load()
        self._ends = (ends[0], ends[1])
        self._state = "loaded"
        return self

    @property
    def input(self) -> TensorSpec:
        return self._loaded()[0]

    @property
    def output(self) -> TensorSpec:
        return self._loaded()[1]

    def run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Run the model on one array that fits `input`; returns an array that fits `output`.

        Raises
        ------
        ArtifactError: the array does not fit the model, or the model gave what it did not announce.
        UsageError: the backend is not loaded, or closed.
        """
        source, result = self._loaded()
        if not source.fits(array):
            raise ArtifactError(
                f"{self.path.name}: input is {array.dtype}[{', '.join(map(str, array.shape))}], expected {source}"
            )
        start = time.perf_counter()
        output = self._run(np.ascontiguousarray(array))
        self.last_run_s = time.perf_counter() - start
        self.total_run_s += self.last_run_s
        self.runs += 1
        if not result.fits(output):
            raise ArtifactError(
                f"{self.path.name}: output is {output.dtype}[{', '.join(map(str, output.shape))}], expected {result}"
            )
        return output

    def close(self) -> None:
        """Free the model; may be called twice."""
        if self._state == "loaded":
            self._close()
        self._state = "closed"

    def _loaded(self) -> tuple[TensorSpec, TensorSpec]:
        if self._state != "loaded" or self._ends is None:
            raise UsageError(f"{self} is {self._state}, expected it loaded")
        return self._ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path.name!r})"


def first_line(error: Exception) -> str:
    """What an exception says first, or its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def usable_cores() -> int:
    """CPU cores that this process may use."""
    # The affinity mask, where the system has one, knows of the container's limit; the count of cores does not.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
