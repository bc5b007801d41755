"""The fused runner: compressed bytes to labels on a GPU, several batches in flight, one CUDA graph a batch.

    payloads ─ plan (host, pinned memory) ──> one copy ──> entropy decode + int2float ──> engine ──> one copy ──> labels

Planning the next batch overlaps with the batches in flight, each of which has a slot of its own (`slots.Slot`). What
the host decides is in `plan.py`; docs/gpu.md draws a batch's way with its buffers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from ...bitstream import StreamHeader
from ...errors import InputError, LatentsegError, UsageError
from ...kernels.gpu.batch import check_gpu_stream, damage_found, plan_batch
from ...kernels.gpu.device import Device
from ...kernels.gpu.launch import DecodeKernel
from ..bundle import Bundle
from ..run import Work
from .execution import open_device
from .fused import FusedRunner, check_sizes, naming_the_build, stream_kernels
from .plan import plan_buffers
from .sidecar import find_engine
from .slots import Slot

OnDamage = Callable[[Work, InputError], None]


@dataclass(frozen=True)
class Ticket:
    """A batch in flight.

    frames: in it.  refused: errors of frames that the host's plan refused, by their place.  plan_s: seconds that it
    took.
    """

    number: int
    frames: int
    refused: Mapping[int, InputError]
    plan_s: float


@dataclass(frozen=True)
class Labelled:
    """A batch's labels.

    labels: uint8 (N, H, W), cropped to the source's size; of a damaged frame anything.
    damaged: the error of each damaged frame, by its place.  plan_s, device_s: seconds of planning, and on the device
    from the copy of the bytes to the copy of the labels.
    """

    labels: npt.NDArray[np.uint8]
    damaged: dict[int, InputError]
    plan_s: float
    device_s: float


class FusedSegmenter(FusedRunner[Slot]):
    """Segments one stream's payloads with a bundle's TensorRT engine and compiled decoder. A context manager.

    From any thread, one call at a time. `run` for an iterable of frames; `submit` and `collect` are its two halves.
    Memory is taken when it is made: a slot's buffers hold the largest batch that there can be.

    Parameters
    ----------
    header: of the stream, of coder "context" and the bundle's codec.  size: (H, W) that labels are cropped to.
    precision: of the engine, built before: fp32, fp16 or int8.
    batch: frames a batch at most.  slots: batches in flight at most; with 1 `run` gives each batch before it takes the
    next one, which is for live sources.
    graphs: False starts each operation of a batch on its own, to find out what a graph is worth, or what of it fails.
    device: opens the device, which is closed with this; PyCUDA's first one unless given.

    Attributes
    ----------
    provider: what it runs on.  host_bytes: pinned memory.

    Raises
    ------
    ArtifactError: no engine or no kernels for this machine and stream, or a batch outside the engine's profile; the
    message names the command that builds what is missing. BackendMissingError: no PyCUDA, TensorRT, driver or GPU.
    UsageError: batch or slots below 1, or a size that is not the stream's.
    """

    def __init__(
        self,
        bundle: Bundle,
        header: StreamHeader,
        size: tuple[int, int],
        precision: str = "fp32",
        batch: int = 8,
        slots: int = 3,
        *,
        graphs: bool = True,
        device: Callable[[], Device] = open_device,
    ) -> None:
        check_sizes(bundle, header, size, batch, slots)
        check_gpu_stream(header)
        path = find_engine(bundle, "segmenter", precision)
        kernels = stream_kernels(bundle, header)
        super().__init__(batch, device)
        self.header, self.size = header, size
        with self._opening():
            loaded = self._load(path, bundle)
            source = loaded.file.input.dtype
            plan = plan_buffers(header, bundle.codec.stride, batch, source.itemsize)
            with naming_the_build(bundle):
                kernels.find("context_decode", str(source), self._device.capability)
            kernel = DecodeKernel(self._device, kernels, header, str(source))
            self._fill(slots, plan, lambda: Slot(self._device, loaded, kernel, plan, graphs=graphs))

    def submit(self, payloads: Sequence[bytes]) -> Ticket:
        """Plan a batch and start it; returns before it is done.

        Damaged payloads take part as blank frames. Raises UsageError for a batch of the wrong length or where all slots
        are in flight, ArtifactError where the device or TensorRT fails.
        """
        slot = self._free_slot(len(payloads))
        start = time.perf_counter()
        refused: dict[int, InputError] = {}
        planned = plan_batch(payloads, self.header, into=slot.room, refused=refused)
        seconds = time.perf_counter() - start
        number = self._start(slot, slot.plan.key(planned))
        return Ticket(number, len(payloads), refused, seconds)

    def collect(self, ticket: Ticket) -> Labelled:
        """Wait for a batch; tickets in any order, each once. Raises UsageError for another ticket, ArtifactError."""
        self._check_open()
        slot = self._flying.pop(ticket.number, None)
        if slot is None:
            raise UsageError(f"ticket {ticket.number} is not in flight", hint="collect each ticket once")
        with self._device.active():
            flags, labels, seconds = slot.finish(ticket.frames)
        height, width = self.size
        damaged = {**damage_found(flags), **ticket.refused}
        cropped = labels[:, :height, :width].copy()  # the next batch overwrites the slot's
        return Labelled(cropped, dict(sorted(damaged.items())), ticket.plan_s, seconds)

    def run(self, works: Iterable[Work], on_damage: OnDamage) -> Iterator[Work]:
        """Frames with their payloads to frames with their labels, in order.

        Batches are filled before they start, so that the last one alone may be smaller. A damaged frame goes to
        `on_damage`, and the others come out. `timings_ms` gets "plan" and "gpu": the batch's time by its frames.
        Raises ArtifactError where the device or TensorRT fails.
        """
        flying: deque[tuple[Ticket, list[Work]]] = deque()
        source = iter(works)
        try:
            while chunk := list(islice(source, self.batch)):
                flying.append((self.submit([work.payload for work in chunk]), chunk))
                del chunk
                if len(flying) == len(self._slots):
                    yield from self._labelled(*flying.popleft(), on_damage)
            while flying:
                yield from self._labelled(*flying.popleft(), on_damage)
        finally:
            for ticket, _ in flying:
                with suppress(LatentsegError):
                    self.collect(ticket)

    def _labelled(self, ticket: Ticket, chunk: list[Work], on_damage: OnDamage) -> Iterator[Work]:
        found = self.collect(ticket)
        for place, work in enumerate(chunk):
            if place in found.damaged:
                on_damage(work, found.damaged[place])
                continue
            work.timings_ms["plan"] = found.plan_s * 1e3 / ticket.frames
            work.timings_ms["gpu"] = found.device_s * 1e3 / ticket.frames
            yield replace(work, labels=found.labels[place])
