"""Engines one after another on one stream, behind the decoder or behind frames that lie on the device already.

The product's own way from bytes to labels is `FusedSegmenter`, with one engine. Here are the ways that it is measured
against: the same decoder, then the decompressor, then the RGB segmenter, in one graph; and a JPEG decoder's frames into
the RGB segmenter. A batch can also be run operation by operation with events between, for the stages' shares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import StreamHeader
from ..engine.tensorrt.execution import Execution, LoadedEngine
from ..engine.tensorrt.plan import plan_buffers
from ..kernels.gpu import shapes
from ..kernels.gpu.batch import check_damage, plan_batch
from ..kernels.gpu.device import Device, Graph
from ..kernels.gpu.launch import DecodeKernel

Labels = NDArray[np.uint8]
Step = tuple[str, Callable[[], None]]  # a stage's name, and what starts it
_HOLD_BYTES = 64 << 20


class EngineChain:
    """Engines at one shape on one stream, each one's output the next one's input. Everything inside `device.active()`.

    They share one piece of activation memory, which the stream's order makes safe.

    Attributes
    ----------
    shape: (N, H, W) of the labels.
    """

    def __init__(
        self, device: Device, stream: int, loaded: Sequence[LoadedEngine], shape: Sequence[int]
    ) -> None:  # fmt: skip
        self._executions = [Execution(engine, stream) for engine in loaded]
        self._between: list[int] = []
        most = 1
        for execution in self._executions:
            engine = execution.loaded
            engine.check_shape(shape)
            size, shape = execution.prepare(shape)
            most = max(most, size)
            if execution is not self._executions[-1]:
                self._between.append(device.allocate(math.prod(shape) * engine.file.output.dtype.itemsize))
        self.shape = tuple(shape)
        self._memory = device.allocate(most), most

    def bind(self, source: int, result: int) -> None:
        """Addresses of the first engine's input and of the labels."""
        ends = [source, *self._between, result]
        for execution, first, last in zip(self._executions, ends[:-1], ends[1:], strict=True):
            execution.bind(*self._memory, first, last)

    def steps(self) -> list[Step]:
        """What runs the engines, in order, under their roles' names."""
        return [(execution.loaded.file.role, execution.enqueue) for execution in self._executions]

    def check_capturable(self) -> None:
        """Raise ArtifactError where TensorRT says that one of them cannot be captured."""
        for execution in self._executions:
            execution.check_capturable()

    def forget(self) -> None:
        """Let go of the contexts, before their engines go."""
        self._executions.clear()


class _Slot:
    """A stream with its events and graphs: one batch at a time."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self._end = device.event()
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, Graph] = {}
        self._events: list[Any] = []
        self._hold: tuple[int, float] | None = None

    @property
    def graph_count(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def forget(self) -> None:
        """Let go of the execution contexts, before their engines go; nothing may run, and nothing starts again."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until nothing of this slot runs."""
        self.device.wait(self.stream)

    def _play(self, key: Hashable, steps: Sequence[Step], chain: EngineChain, least: int) -> None:
        """Start the steps as a graph; the first time as they are, since TensorRT wants one run before a capture.

        least: operations that the graph must have, for an engine that starts nothing to be seen.
        """

        def body() -> None:
            for _, start in steps:
                start()

        if key in self._warm and key not in self._graphs:
            chain.check_capturable()
            self._graphs[key] = self.device.capture(self.stream, body, least)
        if key in self._graphs:
            self.device.replay(self._graphs[key], self.stream)
        else:
            body()
        self._warm.add(key)
        self.device.record(self._end, self.stream)

    def _timed(self, steps: Sequence[Step]) -> dict[str, float]:
        """Seconds of each step on the device, started one by one with events between.

        The stream is first kept busy for longer than the host takes to start them all: an event would otherwise see
        how late the host was, and not how long the step took.
        """
        device, stream = self.device, self.stream
        while len(self._events) <= len(steps):
            self._events.append(device.event())
        events = self._events[: len(steps) + 1]
        begin = time.perf_counter()
        for _, start in steps:
            start()
        seconds = time.perf_counter() - begin
        self.wait()
        self._keep_busy(3 * seconds + 1e-3)
        device.record(events[0], stream)
        for (_, start), event in zip(steps, events[1:], strict=True):
            start()
            device.record(event, stream)
        self.wait()
        found: dict[str, float] = {}
        for (name, _), first, last in zip(steps, events[:-1], events[1:], strict=True):
            found[name] = found.get(name, 0.0) + device.elapsed(first, last)
        return found

    def _keep_busy(self, seconds: float) -> None:
        device, stream = self.device, self.stream
        if self._hold is None:
            scratch, first, last = device.allocate(_HOLD_BYTES), device.event(), device.event()
            for _ in range(2):  # the first one pays for what the driver loads
                device.record(first, stream)
                device.fill(scratch, 0, _HOLD_BYTES // 4, stream)
                device.record(last, stream)
                self.wait()
            self._hold = scratch, max(device.elapsed(first, last), 1e-6)
        scratch, one = self._hold
        for _ in range(math.ceil(seconds / one)):
            device.fill(scratch, 0, _HOLD_BYTES // 4, stream)


class ByteSlot(_Slot):
    """Payloads through the fused decoder and a chain of engines to labels: one copy in, one out, one graph a bucket."""

    def __init__(
        self, device: Device, header: StreamHeader, stride: int, kernel: DecodeKernel, loaded: Sequence[LoadedEngine],
        batch: int,
    ) -> None:  # fmt: skip
        """stride: of the codec.  kernel: of the floats that the first engine takes.  batch: frames, exactly."""
        super().__init__(device)
        self.batch, self._header, self._kernel = batch, header, kernel
        self._plan = plan = plan_buffers(header, stride, batch, kernel.dtype.itemsize)
        self._room, self._result = device.pinned(plan.room), device.pinned(plan.result)
        self._data, self._source = device.allocate(plan.room), device.allocate(plan.source)
        self._history, self._output = device.allocate(plan.history), device.allocate(plan.result)
        self._chain = EngineChain(device, self.stream, loaded, plan.input_shape(batch))
        self._chain.bind(self._source, self._output + plan.labels)
        self._bucket = 0

    def plan(self, payloads: Sequence[bytes]) -> None:
        """Lay a batch out for the next `start`. Raises InputError for a damaged payload."""
        planned = plan_batch(payloads, self._header, into=self._room)
        self._bucket = self._plan.key(planned).bucket

    def start(self) -> None:
        """Start the planned batch."""
        steps = self._steps()
        self._play(self._bucket, steps, self._chain, len(steps) + 1)  # the decoder's has a memset before its kernel

    def timed(self) -> dict[str, float]:
        """Seconds of the planned batch's stages: copy_in, entropy_decode (with int2float), the roles, copy_out."""
        return self._timed(self._steps())

    def finish(self) -> Labels:
        """Wait; labels (N, H, W) before they are cropped, which the next batch overwrites. InputError for damage."""
        self.device.wait_event(self._end)
        check_damage(self._result[: 4 * self.batch].view(np.int32))
        labels = self._result[self._plan.labels : self._plan.result_bytes(self.batch)]
        return labels.reshape(self._chain.shape)

    def forget(self) -> None:
        self._chain.forget()

    def _steps(self) -> list[Step]:
        device, stream, plan = self.device, self.stream, self._plan
        layout, bucket = plan.layout(self.batch), self._bucket

        def copy_in() -> None:
            device.upload(self._data, self._room[: layout.payloads + bucket], stream)

        def decode() -> None:
            device.fill(self._output, shapes.SOUND, self.batch, stream)
            self._kernel.start(
                layout, self._header, bucket // 4, stream,
                data=self._data, history=self._history, damaged=self._output, out=self._source,
            )  # fmt: skip

        def copy_out() -> None:
            device.fetch(self._result[: plan.result_bytes(self.batch)], self._output, stream)

        return [("copy_in", copy_in), ("entropy_decode", decode), *self._chain.steps(), ("copy_out", copy_out)]


class FrameSlot(_Slot):
    """Frames on the device, wherever a decoder has put them, through one engine to labels: one copy, then one graph.

    A graph has its addresses built in, and a decoder's pool gives what address it likes: a capture for each new one
    would fall into what is timed. So the frames are first copied to an input of the slot's own.
    """

    def __init__(self, device: Device, loaded: LoadedEngine, shape: Sequence[int]) -> None:
        """shape: (N, H, W, 3) of the frames."""
        super().__init__(device)
        self._chain = EngineChain(device, self.stream, [loaded], shape)
        self._size = math.prod(shape)
        self._source, self._output = device.allocate(self._size), device.allocate(math.prod(self._chain.shape))
        self._result = device.pinned(math.prod(self._chain.shape))
        self._chain.bind(self._source, self._output)

    def start(self, address: int) -> None:
        """Start a batch of frames, which must stay where they are until `finish`."""
        self._copy(address)
        steps = self._steps()
        self._play("frames", steps, self._chain, len(steps))

    def forget(self) -> None:
        self._chain.forget()

    def timed(self, address: int) -> dict[str, float]:
        """Seconds of a batch's stages behind its decoder: copy_frames, the role, copy_out."""
        return self._timed([("copy_frames", lambda: self._copy(address)), *self._steps()])

    def finish(self) -> Labels:
        """Wait; labels (N, H, W) before they are cropped, which the next batch overwrites."""
        self.device.wait_event(self._end)
        return self._result.reshape(self._chain.shape)

    def _copy(self, address: int) -> None:
        self.device.copy(self._source, address, self._size, self.stream)

    def _steps(self) -> list[Step]:
        fetch = partial(self.device.fetch, self._result, self._output, self.stream)
        return [*self._chain.steps(), ("copy_out", fetch)]
