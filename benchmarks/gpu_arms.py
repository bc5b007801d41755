"""The arms of the measurement on a GPU: each turns bytes on the host into uint8 labels there, batch by batch.

All of them end in one copy of labels, with argmax inside the engine; each has several batches under way, replays CUDA
graphs, and crops its labels into an array of the caller's own. Frames are taken round and round.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bitstream import StreamHeader
from ..engine.tensorrt.execution import LoadedEngine, open_device
from ..engine.tensorrt.fused import stream_kernels
from ..engine.tensorrt.runner import FusedSegmenter, Ticket
from ..kernels.gpu.device import Device
from ..kernels.gpu.launch import DecodeKernel
from .gpu_chain import ByteSlot
from .gpu_engines import Workshop

Labels = NDArray[np.uint8]
T = TypeVar("T")
SLOTS = 3  # batches under way in every arm
SAMPLES = 20  # batches that stages and host times are the medians of


class GpuArm(ABC):
    """One way from bytes to labels at one batch size and precision. A context manager.

    Attributes
    ----------
    name: as in `arms.py`.  detail: the setting, as plain values.  provider: what its engines run on.
    """

    name: str

    def __init__(self, items: Sequence[bytes], batch: int, size: tuple[int, int]) -> None:
        """items: bytes of each frame.  size: (H, W) of the labels."""
        self.items, self.batch, self.size = items, batch, size
        self.detail: dict[str, Any] = {"batches_under_way": SLOTS}
        self.provider = ""
        self._stack = ExitStack()

    def payloads(self, number: int) -> list[bytes]:
        """The bytes of batch `number`."""
        return [self.items[(number * self.batch + place) % len(self.items)] for place in range(self.batch)]

    def cropped(self, labels: Labels) -> Labels:
        """Labels of the frames' size, the caller's own."""
        height, width = self.size
        return labels[:, :height, :width].copy()

    @abstractmethod
    def run(self, count: int) -> Iterator[Labels]:
        """Labels (N, H, W) of batches 0 to `count`, several under way."""

    @abstractmethod
    def singles(self, count: int) -> Iterator[float]:
        """Seconds of single batches, from their bytes to their labels, with nothing else under way."""

    @abstractmethod
    def host(self) -> list[dict[str, float]]:
        """Seconds that the host works on a batch, waiting left out: {submit, collect} of several batches."""

    def close(self) -> None:
        """Free everything."""
        self._stack.close()

    def __enter__(self) -> GpuArm:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Submitting(GpuArm, Generic[T]):
    """An arm of submit and collect, on a device of its own."""

    _device: Device

    @abstractmethod
    def _submit(self, payloads: Sequence[bytes]) -> T: ...

    @abstractmethod
    def _collect(self, ticket: T) -> Labels: ...

    def run(self, count: int) -> Iterator[Labels]:
        flying: deque[T] = deque()
        for number in range(count):
            flying.append(self._submit(self.payloads(number)))
            if len(flying) == SLOTS:
                yield self._collect(flying.popleft())
        while flying:
            yield self._collect(flying.popleft())

    def singles(self, count: int) -> Iterator[float]:
        for number in range(count):
            payloads = self.payloads(number)
            start = time.perf_counter()
            self._collect(self._submit(payloads))
            yield time.perf_counter() - start

    def host(self) -> list[dict[str, float]]:
        found = []
        for number in range(SAMPLES):
            payloads = self.payloads(number)
            start = time.perf_counter()
            ticket = self._submit(payloads)
            submitted = time.perf_counter() - start
            with self._device.active():
                self._device.wait()
            start = time.perf_counter()
            self._collect(ticket)
            found.append({"submit": submitted, "collect": time.perf_counter() - start})
        return found


class CompressedArm(_Submitting[Ticket]):
    """The product: bytes, fused entropy decode and int2float, segmenter (`FusedSegmenter`)."""

    name = "compressed"

    def __init__(
        self, shop: Workshop, header: StreamHeader, items: Sequence[bytes], batch: int, size: tuple[int, int],
        precision: str,
    ) -> None:  # fmt: skip
        super().__init__(items, batch, size)
        shop.engine("segmenter", precision)
        opened: list[Device] = []

        def device() -> Device:
            opened.append(open_device())
            return opened[0]

        fused = FusedSegmenter(shop.bundle, header, size, precision, batch, SLOTS, device=device)
        self._fused = self._stack.enter_context(fused)
        self._device, self.provider = opened[0], fused.provider

    def _submit(self, payloads: Sequence[bytes]) -> Ticket:
        return self._fused.submit(payloads)

    def _collect(self, ticket: Ticket) -> Labels:
        found = self._fused.collect(ticket)
        for error in found.damaged.values():
            raise error
        return found.labels


class LearnedDecodeArm(_Submitting[ByteSlot]):
    """The same bytes and the same decoder, then decompressor and RGB segmenter; frames never leave the device."""

    name = "learned-decode"

    def __init__(
        self, shop: Workshop, header: StreamHeader, items: Sequence[bytes], batch: int, size: tuple[int, int],
        precision: str,
    ) -> None:  # fmt: skip
        super().__init__(items, batch, size)
        paths = [shop.engine("decompressor", "fp32"), shop.engine("rgb_segmenter", precision)]
        try:
            self._device, slots, self.provider = _byte_slots(self._stack, shop, header, paths, batch, SLOTS)
        except BaseException:
            self.close()
            raise
        self._free = deque(slots)

    def _submit(self, payloads: Sequence[bytes]) -> ByteSlot:
        slot = self._free.popleft()
        slot.plan(payloads)
        with self._device.active():
            slot.start()
        return slot

    def _collect(self, slot: ByteSlot) -> Labels:
        with self._device.active():
            labels = slot.finish()
        self._free.append(slot)
        return self.cropped(labels)


def byte_stages(
    shop: Workshop, header: StreamHeader, items: Sequence[bytes], batch: int, needed: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """Seconds by stage of several batches of payloads through these (role, precision)'s engines, without a graph."""
    paths = [shop.engine(role, precision) for role, precision in needed]
    with ExitStack() as stack:
        device, (slot,), _ = _byte_slots(stack, shop, header, paths, batch, 1)
        found = []
        for number in range(SAMPLES):
            slot.plan([items[(number * batch + place) % len(items)] for place in range(batch)])
            with device.active():
                found.append(slot.timed())
        return found


def open_engines(stack: ExitStack, paths: Sequence[Path]) -> tuple[Device, list[LoadedEngine]]:
    """A device with engines on it; both are closed with the stack, from within the device's context."""
    device = stack.enter_context(open_device())
    loaded = []
    for path in paths:
        with device.active():
            engine = LoadedEngine(path, device)
        loaded.append(engine)

        def close(engine: LoadedEngine = engine) -> None:
            with device.active():
                engine.close()

        stack.callback(close)
    return device, loaded


def _byte_slots(
    stack: ExitStack, shop: Workshop, header: StreamHeader, paths: Sequence[Path], batch: int, count: int
) -> tuple[Device, list[ByteSlot], str]:
    device, loaded = open_engines(stack, paths)
    kernels = stream_kernels(shop.bundle, header)
    slots: list[ByteSlot] = []

    def forget() -> None:
        with device.active():
            for slot in slots:
                slot.wait()
                slot.forget()

    stack.callback(forget)
    with device.active():
        kernel = DecodeKernel(device, kernels, header, str(loaded[0].file.input.dtype))
        for _ in range(count):
            slots.append(ByteSlot(device, header, shop.bundle.codec.stride, kernel, loaded, batch))
    return device, slots, loaded[0].provider
