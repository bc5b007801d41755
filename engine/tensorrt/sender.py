"""The fused sender: frames to payloads, the network and float2int on a GPU, the entropy coder on the CPU's cores.

    frames ─ pad (host, pinned memory) ─> one copy ─> engine ─> float2int ─> one copy ─> entropy encode ─> payloads

A batch is coded by a pool of threads out of its slot's pinned memory, while the device has the batches after it. What
is received goes the other way in `runner.py`; docs/gpu.md draws both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from ...bitstream import StreamHeader
from ...bitstream.payload import scale_count
from ...errors import ArtifactError, InputError, LatentsegError, UsageError
from ...kernels import entropy
from ...kernels.gpu.batch import check_gpu_stream
from ...kernels.gpu.device import Device
from ...kernels.gpu.launch import QuantizeKernel
from ..bundle import Bundle
from ..geometry import pad_into
from ..run import Work, no_symbols
from .execution import open_device
from .fused import FusedRunner, check_sizes, naming_the_build, stream_kernels
from .plan import plan_sender
from .sidecar import find_engine
from .slots import SenderSlot

Frames = Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]
Coded = Future[tuple[bytes, float]]  # a payload, and the seconds that coding it took


@dataclass(frozen=True)
class SentTicket:
    """A batch in flight. frames: in it.  pad_s: seconds of copying them to pinned memory."""

    number: int
    frames: int
    pad_s: float


@dataclass(frozen=True)
class Compressed:
    """A batch's payloads.

    payloads: one a frame; empty of a frame that has an error.
    errors: of frames whose latent has no symbols (NaN, infinity, a range that overflows), by their place.
    pad_s, device_s: seconds of the batch's copy to pinned memory, and on the device.  encode_s: each frame's coding.
    """

    payloads: list[bytes]
    errors: dict[int, InputError]
    pad_s: float
    device_s: float
    encode_s: list[float]


@dataclass
class _Coding:
    """A batch that has left the device: what codes it, by place, and what cannot be coded."""

    device_s: float
    futures: dict[int, Coded] = field(default_factory=dict)
    errors: dict[int, InputError] = field(default_factory=dict)


class FusedCompressor(FusedRunner[SenderSlot]):
    """Turns frames of one size into a stream's payloads with a bundle's TensorRT engine and compiled float2int.

    A context manager. From any thread, one call at a time. `run` for an iterable of frames; `submit` and `collect` are
    its two halves. Memory is taken when it is made. The engine is the fp32 one: another precision would give other
    symbols than the ones that the segmenter was trained on.

    Parameters
    ----------
    header: of the stream, of the bundle's codec.  size: (H, W) of the frames, any that gives the stream's latent.
    batch: frames a batch at most.  slots: batches in flight at most: one that the host makes ready, one on the device,
    one that is coded; with 1 `run` gives each batch before it takes the next one, which is for live sources.
    threads: that code, one a frame.
    graphs: False starts each operation of a batch on its own, to find out what a graph is worth, or what of it fails.
    device: opens the device, which is closed with this; PyCUDA's first one unless given.

    Attributes
    ----------
    provider: what it runs on.  host_bytes: pinned memory.

    Raises
    ------
    ArtifactError: no engine or no kernels for this machine and stream, a batch outside the engine's profile, or a
    stream whose coder there are no kernels for; the message names the command that builds what is missing.
    BackendMissingError: no PyCUDA, TensorRT, driver or GPU. UsageError: batch, slots or threads below 1, or a size that
    is not the stream's.
    """

    def __init__(
        self,
        bundle: Bundle,
        header: StreamHeader,
        size: tuple[int, int],
        batch: int = 8,
        slots: int = 3,
        threads: int = 1,
        *,
        graphs: bool = True,
        device: Callable[[], Device] = open_device,
    ) -> None:
        if threads < 1:
            raise UsageError(f"{threads} threads, expected 1 or more")
        check_sizes(bundle, header, size, batch, slots)
        check_gpu_stream(header)
        plan = plan_sender(header, bundle.codec.stride, batch)
        path = find_engine(bundle, "compressor", "fp32")
        kernels = stream_kernels(bundle, header)
        super().__init__(batch, device)
        self.header, self.size = header, size
        self._coding: dict[int, _Coding] = {}
        self._pool = ThreadPoolExecutor(min(threads, batch * slots), "latentseg-encode")
        with self._opening():
            loaded = self._load(path, bundle)
            ends = (str(loaded.file.input.dtype), str(loaded.file.output.dtype))
            if ends != ("uint8", "float32"):
                raise ArtifactError(
                    f"{path.name} takes {ends[0]} and gives {ends[1]}, expected uint8 frames and float32 latents",
                    hint="export the bundle again: latentseg export",
                )
            with naming_the_build(bundle):
                kernel = QuantizeKernel(self._device, kernels, header)
            self._fill(slots, plan, lambda: SenderSlot(self._device, loaded, kernel, plan, graphs=graphs))

    def submit(self, frames: Frames) -> SentTicket:
        """Copy a batch to pinned memory and start it; returns before it is done.

        frames: uint8 (H, W, 3) each. They may be changed afterwards.
        Raises UsageError for a batch of the wrong length or where all slots are in flight, ArtifactError for a frame of
        another size, and where the device or TensorRT fails.
        """
        slot = self._free_slot(len(frames))
        for frame in frames:
            if frame.dtype != np.uint8 or frame.shape != (*self.size, 3):
                raise ArtifactError(
                    f"a frame of {frame.dtype} {list(frame.shape)}, expected uint8 {[*self.size, 3]}",
                    hint="all frames of a stream have one shape: start a new stream for another size",
                )
        start = time.perf_counter()
        room = slot.room[: slot.plan.room_bytes(len(frames))].reshape(slot.plan.input_shape(len(frames)))
        for frame, target in zip(frames, room, strict=True):
            pad_into(frame, target)
        seconds = time.perf_counter() - start
        return SentTicket(self._start(slot, slot.plan.key(len(frames))), len(frames), seconds)

    def collect(self, ticket: SentTicket) -> Compressed:
        """Wait for a batch's payloads; tickets in any order, each once.

        Raises UsageError for another ticket, ArtifactError where the device or TensorRT fails.
        """
        try:
            coding = self._code(ticket)
            done = {place: future.result() for place, future in coding.futures.items()}
        finally:
            self._forget(ticket.number)
        nothing = (b"", 0.0)
        payloads, seconds = zip(*(done.get(place, nothing) for place in range(ticket.frames)), strict=True)
        return Compressed(list(payloads), coding.errors, ticket.pad_s, coding.device_s, list(seconds))

    def latents(self, ticket: SentTicket) -> npt.NDArray[np.float32]:
        """A batch in flight before float2int: float32 (N, C, h, w). For checks. Raises as `collect`."""
        self._code(ticket)
        with self._device.active():
            return self._flying[ticket.number].latents(ticket.frames)

    def run(self, works: Iterable[Work], *, keep_rgb: bool = False) -> Iterator[Work]:
        """Frames to frames with their payloads, in order.

        Batches are filled before they start, so that the last one alone may be smaller. keep_rgb: whether the frames
        stay in the results. `timings_ms` gets "pad" and "compress", the batch's times by its frames, and
        "entropy_encode", the frame's own.
        Raises InputError for a latent that has no symbols, naming the frame, behind those before it; else as `submit`.
        """
        flying: deque[tuple[SentTicket, list[Work]]] = deque()
        source = iter(works)
        try:
            while chunk := list(islice(source, self.batch)):
                ticket = self.submit([_rgb(work) for work in chunk])
                flying.append((ticket, chunk if keep_rgb else [replace(work, rgb=None) for work in chunk]))
                del chunk
                if len(flying) > 1:  # the device has this batch: the one before it goes to the coder
                    self._code(flying[-2][0])
                if len(flying) == len(self._slots):
                    yield from self._compressed(*flying.popleft())
            while flying:
                yield from self._compressed(*flying.popleft())
        finally:
            for ticket, _ in flying:
                with suppress(LatentsegError):
                    self.collect(ticket)

    def close(self) -> None:
        """Wait for what is in flight and free everything; may be called twice."""
        self._pool.shutdown(cancel_futures=True)  # coders read the slots' memory
        self._coding.clear()
        super().close()

    def _code(self, ticket: SentTicket) -> _Coding:
        """Wait until a batch has left the device, and have it coded; what is coded already stays as it is."""
        self._check_open()
        slot = self._flying.get(ticket.number)
        if slot is None:
            raise UsageError(f"ticket {ticket.number} is not in flight", hint="collect each ticket once")
        if ticket.number in self._coding:
            return self._coding[ticket.number]
        with self._device.active():
            bad, ranges, symbols, seconds = slot.finish(ticket.frames)
            coding = _Coding(seconds)
            wrong = bad.any(axis=1)
            if wrong.any():
                latents = slot.latents(ticket.frames)
                coding.errors = {int(place): self._refused(latents[place]) for place in np.flatnonzero(wrong)}
        sends_ranges = scale_count(self.header) > 0
        for place in np.flatnonzero(~wrong).tolist():
            lo, hi = (ranges[place, :, 0], ranges[place, :, 1]) if sends_ranges else (None, None)
            coding.futures[place] = self._pool.submit(_encode, symbols[place], self.header, lo, hi)
        self._coding[ticket.number] = coding
        return coding

    def _refused(self, latent: npt.NDArray[np.float32]) -> InputError:
        """The CPU's words for a latent that float2int refuses."""
        try:
            entropy.encode_latent(latent, self.header)
        except InputError as error:
            return error
        raise ArtifactError(
            f"float2int found values that are not finite on {self._device.name}, and the CPU finds none",
            hint="python -m latentseg.benchmarks.gpu_suite --check",
        )

    def _forget(self, number: int) -> None:
        """Give a batch's slot back, once nothing reads it."""
        coding = self._coding.pop(number, None)
        for future in coding.futures.values() if coding else ():
            with suppress(Exception):
                future.result()
        self._flying.pop(number, None)

    def _compressed(self, ticket: SentTicket, chunk: list[Work]) -> Iterator[Work]:
        found = self.collect(ticket)
        for place, work in enumerate(chunk):
            if place in found.errors:
                raise no_symbols(work, found.errors[place])
            work.timings_ms["pad"] = found.pad_s * 1e3 / ticket.frames
            work.timings_ms["compress"] = found.device_s * 1e3 / ticket.frames
            work.timings_ms["entropy_encode"] = found.encode_s[place] * 1e3
            yield replace(work, payload=found.payloads[place])


def _rgb(work: Work) -> npt.NDArray[np.uint8]:
    assert work.rgb is not None
    return work.rgb


def _encode(
    symbols: npt.NDArray[np.uint8],
    header: StreamHeader,
    lo: npt.NDArray[np.float32] | None,
    hi: npt.NDArray[np.float32] | None,
) -> tuple[bytes, float]:
    start = time.perf_counter()
    payload = entropy.encode_symbols(symbols, header, lo, hi)
    return payload, time.perf_counter() - start
