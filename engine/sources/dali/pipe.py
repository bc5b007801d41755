"""A DALI pipeline with an end.

DALI's readers go round for ever and its batches are of one size. Here every pipeline is fed from Python, batch by batch
(a reader gets tickets), and ends when its feed does: no frame is counted twice, and none is decoded for nothing.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ....errors import BackendMissingError, InputError, UsageError, missing_extra
from .batches import padded, where

T = TypeVar("T")
Fed = tuple[T, Sequence[npt.NDArray[Any]]]
Define = Callable[[Any], Sequence[Any]]


class DaliError(Exception):
    """DALI failed on a batch.

    items: that one's, and the ones that were fed behind it and not given yet. ending: why there were no more, where
    that was an error.
    """

    def __init__(self, error: RuntimeError, items: list[Any], ending: Exception | None) -> None:
        super().__init__(reason(error))
        self.items, self.ending = items, ending


class Pipe(Generic[T]):
    """A pipeline that is fed batches of one-dimensional arrays.

    define: makes the graph of what is fed; gives its outputs. dtype: of what is fed, "uint8" or "int64".
    batch: arrays that are fed at a time, at most. device, threads, depth: see `BatchSource`.

    Raises BackendMissingError without DALI, or without a GPU where one is asked for. InputError where DALI refuses to
    build the graph, with its reason.
    """

    def __init__(
        self, define: Define, batch: int, device: int | None, threads: int, depth: int, dtype: str = "uint8"
    ) -> None:
        self._define, self._dtype, self.device = define, dtype, device
        self._settings = {"batch_size": batch, "num_threads": threads, "device_id": device}
        self._depth = depth
        self._feed: Callable[[], Sequence[npt.NDArray[Any]]] = list
        self._turn = 0
        self._fresh = True
        self._pipeline: Any = None
        self._build()

    def run(self, items: Iterable[Fed[T]], stream: int | None = None) -> Iterator[tuple[T, Sequence[Any]]]:
        """Each item with the pipeline's outputs (DALI TensorLists) for its arrays, in order, `depth` ahead.

        An error of `items` comes behind the good results that came before it. stream: see `BatchSource.batches`.
        Raises DaliError where DALI fails; another run may then be begun.
        """
        if stream is not None and self.device is None:
            raise UsageError("a CUDA stream with batches on the CPU", hint="give a device, or no stream")
        self._turn += 1
        return self._run(iter(items), stream, self._turn)

    def _run(self, items: Iterator[Fed[T]], stream: int | None, turn: int) -> Iterator[tuple[T, Sequence[Any]]]:
        pending: deque[T] = deque()
        failures: list[Exception] = []

        def feed() -> Sequence[npt.NDArray[Any]]:
            try:
                item, arrays = next(items)
            except StopIteration:
                raise
            except Exception as error:  # DALI would lose what is under way; the end is kept until that has come out
                failures.append(error)
                raise StopIteration from None
            pending.append(item)
            return arrays

        self._check(turn)
        if not self._fresh:
            self._build()
        self._fresh, self._feed = False, feed
        while True:
            self._check(turn)
            try:
                outputs = self._pipeline.run(stream)
            except StopIteration:
                break
            except RuntimeError as error:
                raise DaliError(error, list(pending), failures[0] if failures else None) from error
            yield pending.popleft(), outputs
        self._pipeline.reset()
        self._fresh = True
        if failures:
            raise failures[0]

    def reader_size(self, name: str) -> int:
        """Samples that the reader of that name has, in all shards."""
        return int(self._pipeline.reader_meta(name)["epoch_size"])

    def close(self) -> None:
        """Free the pipeline; may be called twice. An iteration that was begun ends in a UsageError."""
        self._turn += 1
        self._pipeline, self._fresh = None, False

    def _check(self, turn: int) -> None:
        if turn != self._turn:
            raise UsageError("this iteration was stopped: the source was closed, or another iteration begun")

    def _build(self) -> None:
        dali = load_dali()
        types = dali.types
        try:
            pipeline = dali.Pipeline(**self._settings, prefetch_queue_depth=self._depth)
            with pipeline:
                fed = dali.fn.external_source(
                    source=lambda: self._feed(),
                    batch=True,
                    ndim=1,
                    dtype={"uint8": types.UINT8, "int64": types.INT64}[self._dtype],
                )
                pipeline.set_outputs(*self._define(fed))
            pipeline.build()
        except RuntimeError as error:
            if self.device is not None and "CUDA is not available" in str(error):
                raise BackendMissingError(
                    f"DALI finds no CUDA driver for {where(self.device)}: {reason(error)}",
                    hint="run on a machine with an NVIDIA GPU and its driver, or give no device",
                ) from error
            raise InputError(f"DALI refuses on {where(self.device)}: {reason(error)}") from error
        self._pipeline = pipeline


def load_dali() -> Any:
    """The package, with `fn` and `types`. Raises BackendMissingError where it is not installed."""
    try:
        from nvidia import dali
        from nvidia.dali import fn, types  # noqa: F401 (submodules, reached through `dali`)
    except ImportError as error:
        raise missing_extra("nvidia-dali-cuda130", "dali") from error
    return dali


def pad(frames: Any, size: tuple[int, int], stride: int, axis: int) -> Any:
    """`geometry.pad_to_stride` in a graph: frames of `size` = (H, W), whose rows run along `axis`."""
    fn = load_dali().fn
    for i, (now, wanted) in enumerate(zip(size, padded(size, stride), strict=True)):
        if wanted > now:
            last = fn.slice(frames, start=now - 1, shape=1, axes=[axis + i])
            frames = fn.cat(frames, *[last] * (wanted - now), axis=axis + i)
    return frames


def reason(error: Exception) -> str:
    """What went wrong, out of DALI's message: without its traceback and its places in C++."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "encountered:" in lines:
        lines = lines[lines.index("encountered:") + 1 :]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("C++ context", "Current pipeline object", "Critical error"))
    ]
    return re.sub(r'^Assert on ".*" failed: ', "", kept[0]) if kept else type(error).__name__


def ticket(number: int) -> Fed[int]:
    """What asks a reader in a graph for one more batch."""
    return number, [np.array([number], np.int64)]
