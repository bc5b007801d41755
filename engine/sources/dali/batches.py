"""What the DALI pipelines give, and what they share: the contract of a source of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ....bitstream import Frame
from ....errors import UsageError
from ....kernels.gpu.batch import Batch
from ...backends.base import usable_cores


@dataclass(frozen=True)
class FrameBatch:
    """Decoded frames, beside one another in memory that lives as long as this object.

    tensor: DALI's own, uint8 (N or more, H, W, 3), contiguous; on a GPU it has `__cuda_array_interface__` and DLPack.
        What lies behind the first N frames is padding, so that a batch always has the same room.
    indices, timestamps_us: int64 (N,): the frames' places in the source and times from its first frame.
    size: (H, W) of the frames in `tensor`, padding to the stride included.
    """

    tensor: Any
    indices: npt.NDArray[np.int64]
    timestamps_us: npt.NDArray[np.int64]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def address(self) -> int:
        """Of the first byte, on the source's device."""
        return int(self.tensor.data_ptr())

    def host(self) -> npt.NDArray[np.uint8]:
        """(N, H, W, 3) uint8 on the host: a view where the batch is there already, else a copy."""
        frames: npt.NDArray[np.uint8] = np.asarray(self.tensor.as_cpu())[: len(self)]
        return frames


@dataclass(frozen=True)
class PayloadBatch:
    """Coded frames as one run of bytes that `context_decode` takes, planned by `kernels.gpu.batch.plan_batch`.

    tensor: DALI's own, uint8 (bytes,), on the source's device; it lives as long as this object.
    plan: where in it the parts start; `plan.data` is the same bytes on the host.
    frames: index, timestamp and payload of each. files: int64 (N,): which of the source's files each is from.
    """

    tensor: Any
    plan: Batch
    frames: tuple[Frame, ...]
    files: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def address(self) -> int:
        """Of the first byte, on the source's device."""
        return int(self.tensor.data_ptr())

    def host(self) -> npt.NDArray[np.uint8]:
        """The tensor's bytes on the host: a view where they are there already, else a copy."""
        data: npt.NDArray[np.uint8] = np.asarray(self.tensor.as_cpu())
        return data


B = TypeVar("B", FrameBatch, PayloadBatch)
T = TypeVar("T")


class BatchSource(ABC, Generic[B]):
    """Batches of at most `batch` items, in order, each item once; the last one holds what is left.

    Parameters
    ----------
    batch: items a batch, at least 1. device: a GPU's number; None: the CPU, with no GPU touched.
    threads: DALI's CPU threads; None: as many as this process may use.
    shard, shards: this source takes part `shard` of `shards`; together they take each item once.
    depth: batches that are made ahead, at least 1.

    Raises UsageError for numbers outside these.
    """

    def __init__(
        self, batch: int, device: int | None, threads: int | None, shard: int, shards: int, depth: int
    ) -> None:
        if threads is None:
            threads = usable_cores()
        for name, value in (("batch", batch), ("threads", threads), ("shards", shards), ("depth", depth)):
            if value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1")
        if not 0 <= shard < shards:
            raise UsageError(f"shard is {shard}, expected 0 to {shards - 1}")
        if device is not None and device < 0:
            raise UsageError(f"device is {device}, expected a GPU's number from 0, or None for the CPU")
        self.batch, self.device, self.threads, self.depth = batch, device, threads, depth
        self.shard, self.shards = shard, shards

    @abstractmethod
    def batches(self, stream: int | None = None) -> Iterator[B]:
        """A new iteration, from the first batch; one that was begun before ends in a UsageError.

        stream: handle of the CUDA stream that will use the batches: they are then in its order, and the host does not
            wait for them. None: they are ready when they are given.
        """


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one of what is left. What came before an error of `items` is given before it."""
    stream = iter(items)
    while True:
        chunk: list[T] = []
        failure: Exception | None = None
        try:
            for item in islice(stream, size):
                chunk.append(item)
        except Exception as error:  # handed on, behind what was good
            failure = error
        if chunk:
            yield chunk
        if failure is not None:
            raise failure
        if len(chunk) < size:
            return


def where(device: int | None) -> str:
    """A device for people."""
    return "the CPU" if device is None else f"GPU {device}"


def check_stride(stride: int) -> None:
    """Raise UsageError for a stride below 1."""
    if stride < 1:
        raise UsageError(f"stride is {stride}, expected at least 1")


def padded(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(H, W) up to multiples of `stride`."""
    return -(-size[0] // stride) * stride, -(-size[1] // stride) * stride
