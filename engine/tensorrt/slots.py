"""Slots: all that one batch in flight needs on the device, and the graphs captured for it.

One slot has one batch at a time. Its stream orders everything in it, so its execution contexts share one piece of
activation memory; slots share nothing but the kernels' constant tables and the engine's weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...kernels.gpu import shapes
from ...kernels.gpu.device import Device, Graph
from ...kernels.gpu.launch import DecodeKernel, QuantizeKernel
from .execution import Execution, LoadedEngine
from .plan import BufferPlan, GraphKey, SenderPlan


class EngineSlot(ABC):
    """Stream, events, execution contexts (one a number of frames) and graphs of one batch in flight.

    Attributes
    ----------
    room: pinned uint8, where a batch is made ready; not to be written between `start` and `finish`.
    """

    def __init__(
        self, device: Device, loaded: LoadedEngine, plan: BufferPlan | SenderPlan, source: int, target: int, *,
        graphs: bool,
    ) -> None:  # fmt: skip
        """source, target: addresses of the engine's input and output.

        graphs: whether batches run as captured graphs; each operation is started on its own otherwise.
        """
        self.device, self._loaded, self._use_graphs = device, loaded, graphs
        self._shapes = plan
        self._ends = (source, target)
        self.room, self._result = device.pinned(plan.room), device.pinned(plan.result)
        self._stream, self._begin, self._end = device.stream(), device.event(), device.event()
        self._memory, self._memory_size = 0, 0
        self._executions: dict[int, Execution] = {}
        self._warm: set[int] = set()
        self._graphs: dict[GraphKey, Graph] = {}
        try:
            self._execution(plan.frames)  # the largest batch: memory for all of them is taken here
        except BaseException:
            self.forget()  # the error's traceback holds this slot beyond the engine's end
            raise

    @abstractmethod
    def _run(self, execution: Execution, key: GraphKey) -> None:
        """One batch, start to end, on the slot's stream: run, or recorded."""

    def start(self, key: GraphKey) -> None:
        """Start the batch that is ready in `room`.

        TensorRT wants a first run of each shape before it can be captured: that batch runs operation by operation, and
        graphs are captured from the next one on. Raises ArtifactError.
        """
        device, stream = self.device, self._stream
        execution = self._executions.get(key.frames) or self._execution(key.frames)
        run = partial(self._run, execution, key)
        if self._use_graphs and key.frames in self._warm and key not in self._graphs:
            execution.check_capturable()
            self._graphs[key] = device.capture(stream, run, self._shapes.operations(key.frames) + 1)
        graph = self._graphs.get(key)
        device.record(self._begin, stream)
        if graph is None:
            run()
        else:
            device.replay(graph, stream)
        device.record(self._end, stream)
        self._warm.add(key.frames)

    def wait(self) -> None:
        """Until nothing of this slot runs."""
        self.device.wait(self._stream)

    def forget(self) -> None:
        """Let go of the execution contexts, before their engine goes."""
        self._executions.clear()

    @property
    def graph_count(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def _wait_result(self) -> float:
        """Wait for the started batch; seconds on the device. Raises ArtifactError."""
        self.device.wait_event(self._end)
        return self.device.elapsed(self._begin, self._end)

    def _execution(self, frames: int) -> Execution:
        """A context for batches of so many frames, bound to the slot's buffers."""
        execution = Execution(self._loaded, self._stream)
        shape, expected = self._shapes.input_shape(frames), self._shapes.output_shape(frames)
        size, found = execution.prepare(shape)
        if found != expected:
            raise ArtifactError(
                f"{self._loaded.path.name} gives {list(found)} for an input of {list(shape)}, expected {list(expected)}"
            )
        if size > self._memory_size or not self._memory:
            # Graphs keep the addresses that they were captured with: nothing is freed.
            self._memory, self._memory_size = self.device.allocate(size), size
        execution.bind(self._memory, self._memory_size, *self._ends)
        self._executions[frames] = execution
        return execution


class Slot(EngineSlot):
    """A slot of the receiver: payloads in, labels out."""

    def __init__(
        self, device: Device, loaded: LoadedEngine, kernel: DecodeKernel, plan: BufferPlan, *, graphs: bool
    ) -> None:
        self.plan, self._kernel = plan, kernel
        self._data, self._source = device.allocate(plan.room), device.allocate(plan.source)
        self._history, self._output = device.allocate(plan.history), device.allocate(plan.result)
        super().__init__(device, loaded, plan, self._source, self._output + plan.labels, graphs=graphs)

    def finish(self, frames: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], float]:
        """Wait for the started batch: damage flags (frames,), labels (frames, H, W), seconds on the device.

        The arrays are views of the slot's memory, which the next batch overwrites. Raises ArtifactError.
        """
        seconds = self._wait_result()
        labels = self._result[self.plan.labels : self.plan.result_bytes(frames)]
        flags = self._result[: 4 * frames].view(np.int32)
        return flags, labels.reshape(self.plan.output_shape(frames)), seconds

    def _run(self, execution: Execution, key: GraphKey) -> None:
        device, stream, layout = self.device, self._stream, self.plan.layout(key.frames)
        device.upload(self._data, self.room[: layout.payloads + key.bucket], stream)
        device.fill(self._output, shapes.SOUND, layout.frames, stream)
        self._kernel.start(
            layout, self.plan.header, key.bucket // 4, stream,
            data=self._data, history=self._history, damaged=self._output, out=self._source,
        )  # fmt: skip
        execution.enqueue()
        device.fetch(self._result[: self.plan.result_bytes(layout.frames)], self._output, stream)


class SenderSlot(EngineSlot):
    """A slot of the sender: frames in, symbols out."""

    def __init__(
        self, device: Device, loaded: LoadedEngine, kernel: QuantizeKernel, plan: SenderPlan, *, graphs: bool
    ) -> None:
        self.plan, self._kernel = plan, kernel
        self._source, self._latent = device.allocate(plan.room), device.allocate(plan.latent)
        self._partial, self._output = device.allocate(plan.partial), device.allocate(plan.result)
        super().__init__(device, loaded, plan, self._source, self._latent, graphs=graphs)

    def finish(self, frames: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8], float]:
        """Wait for the started batch: flags of bad rows (frames, R), ranges (frames, R, 2), symbols (frames, C, h, w),
        seconds on the device; R is C with a range a channel, else 1.

        The arrays are views of the slot's memory, which the next batch overwrites. Raises ArtifactError.
        """
        seconds = self._wait_result()
        plan, rows = self.plan, self.plan.rows(frames).rows
        flags = self._result[: 4 * rows].view(np.int32).reshape(frames, -1)
        ranges = self._result[plan.ranges : plan.ranges + 8 * rows].view(np.float32).reshape(frames, -1, 2)
        symbols = self._result[plan.symbols : plan.result_bytes(frames)].reshape(plan.output_shape(frames))
        return flags, ranges, symbols, seconds

    def latents(self, frames: int) -> NDArray[np.float32]:
        """The finished batch before float2int: float32 (frames, C, h, w), a copy of the caller's own."""
        result = np.empty(self.plan.output_shape(frames), np.float32)
        self.device.download(result, self._latent, self._stream)
        return result

    def _run(self, execution: Execution, key: GraphKey) -> None:
        device, stream, plan, rows = self.device, self._stream, self.plan, self.plan.rows(key.frames)
        device.upload(self._source, self.room[: plan.room_bytes(key.frames)], stream)
        device.fill(self._output, 0, rows.rows, stream)
        execution.enqueue()
        self._kernel.start(
            rows, stream, x=self._latent, partial=self._partial, q=self._output + plan.symbols,
            ranges=self._output + plan.ranges, bad=self._output,
        )  # fmt: skip
        device.fetch(self._result[: plan.result_bytes(key.frames)], self._output, stream)
