"""Where a training runs and in which precision, and its batches, made ahead in threads while a step is under way."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..engine.backends.base import usable_cores
from ..errors import UsageError

Batch = TypeVar("Batch")

# Each keeps a batch in memory, some 40 MB of CamVid's views. How many a GPU wants has not been measured.
_MOST_WORKERS = 8


def check_device(name: str) -> str:
    """The name of a device that is there: "cpu", "cuda" or "cuda:N". Raises UsageError for any other."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device '{name}', expected cpu, cuda or cuda:N")
    if name == "cpu":
        return name
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise UsageError(
            f"device '{name}': torch {torch.__version__} finds no GPU",
            hint="see what nvidia-smi says, and install a CUDA build of torch; or leave --device out",
        )
    if int(name.partition(":")[2] or 0) >= found:
        raise UsageError(f"device '{name}': GPUs are counted from 0, and there are {found}")
    return name


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 by instructions of its own: of CPUs those with AVX-512's, AMX's or Arm's.

    Without them torch falls back on kernels that are slower than float32 by far: 37 times for a dilated 3x3 convolution
    of 128 channels on a CPU with AVX2 (torch 2.13).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(x: Tensor, bf16: bool) -> torch.autocast:
    """bfloat16 autocast on the device of x; without `bf16` a context that does nothing."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, torch.bfloat16, enabled=bf16)


def worker_count(asked: int | None, device: torch.device) -> int:
    """Threads that make batches ahead. None: none on the CPU, whose cores have the steps to take, else a few."""
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, usable_cores())


def ahead(make: Callable[[int], Batch], start: int, stop: int, workers: int) -> Generator[Batch, None, None]:
    """make(start), ..., make(stop - 1) in that order, each made in one of some threads before it is asked for.

    workers: 0 makes each when it is asked for. A batch must be a function of its step alone: threads make several at a
    time. What `make` raises is raised here, at its step.
    """
    if not workers:
        yield from map(make, range(start, stop))
        return
    with ThreadPoolExecutor(workers, "batch") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, min(start + workers, stop)):
                waiting.append(pool.submit(make, step))
            for step in range(start, stop):
                batch = waiting.popleft().result()
                if step + workers < stop:
                    waiting.append(pool.submit(make, step + workers))
                yield batch
        finally:
            for future in waiting:
                future.cancel()
