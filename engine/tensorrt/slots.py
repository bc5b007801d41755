"""A slot: all that one batch in flight needs on the device, and the graphs captured for it.

One slot has one batch at a time. Its stream orders everything in it, so its execution contexts share one piece of
activation memory; slots share nothing but the decoder's constant tables and the engine's weights.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...kernels.gpu import shapes
from ...kernels.gpu.batch import Layout
from ...kernels.gpu.device import Device, Graph
from ...kernels.gpu.launch import DecodeKernel
from .execution import Execution, LoadedEngine
from .plan import OWN_OPERATIONS, BufferPlan, GraphKey


class Slot:
    """Buffers, stream, events, execution contexts (one a number of frames) and graphs of one batch in flight.

    Attributes
    ----------
    room: pinned uint8, where a batch is planned; not to be written between `start` and `finish`.
    """

    def __init__(
        self, device: Device, loaded: LoadedEngine, kernel: DecodeKernel, plan: BufferPlan, *, graphs: bool
    ) -> None:
        """graphs: whether batches run as captured graphs; each operation is started on its own otherwise."""
        self.device, self.plan = device, plan
        self._loaded, self._kernel, self._use_graphs = loaded, kernel, graphs
        self.room, self._result = device.pinned(plan.room), device.pinned(plan.result)
        self._data, self._source = device.allocate(plan.room), device.allocate(plan.source)
        self._history, self._output = device.allocate(plan.history), device.allocate(plan.result)
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

    def start(self, key: GraphKey) -> None:
        """Start the batch that was planned in `room`.

        TensorRT wants a first run of each shape before it can be captured: that batch runs operation by operation, and
        graphs are captured from the next one on. Raises ArtifactError.
        """
        device, stream = self.device, self._stream
        execution = self._executions.get(key.frames) or self._execution(key.frames)
        run = partial(self._run, execution, self.plan.layout(key.frames), key.bucket)
        if self._use_graphs and key.frames in self._warm and key not in self._graphs:
            execution.check_capturable()
            self._graphs[key] = device.capture(stream, run, OWN_OPERATIONS + 1)
        graph = self._graphs.get(key)
        device.record(self._begin, stream)
        if graph is None:
            run()
        else:
            device.replay(graph, stream)
        device.record(self._end, stream)
        self._warm.add(key.frames)

    def finish(self, frames: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], float]:
        """Wait for the started batch: damage flags (frames,), labels (frames, H, W), seconds on the device.

        The arrays are views of the slot's memory, which the next batch overwrites. Raises ArtifactError.
        """
        self.device.wait_event(self._end)
        labels = self._result[self.plan.labels : self.plan.result_bytes(frames)]
        flags = self._result[: 4 * frames].view(np.int32)
        seconds = self.device.elapsed(self._begin, self._end)
        return flags, labels.reshape(self.plan.output_shape(frames)), seconds

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

    def _execution(self, frames: int) -> Execution:
        """A context for batches of so many frames, bound to the slot's buffers."""
        execution = Execution(self._loaded, self._stream)
        shape, expected = self.plan.input_shape(frames), self.plan.output_shape(frames)
        size, found = execution.prepare(shape)
        if found != expected:
            raise ArtifactError(
                f"{self._loaded.path.name} gives {list(found)} for an input of {list(shape)}, expected {list(expected)}"
            )
        if size > self._memory_size or not self._memory:
            # Graphs keep the addresses that they were captured with: nothing is freed.
            self._memory, self._memory_size = self.device.allocate(size), size
        execution.bind(self._memory, self._memory_size, self._source, self._output + self.plan.labels)
        self._executions[frames] = execution
        return execution

    def _run(self, execution: Execution, layout: Layout, bucket: int) -> None:
        """One batch, start to end, on the slot's stream: run, or recorded."""
        device, stream, frames = self.device, self._stream, layout.frames
        device.upload(self._data, self.room[: layout.payloads + bucket], stream)
        device.fill(self._output, shapes.SOUND, frames, stream)
        self._kernel.start(
            layout, self.plan.header, bucket // 4, stream,
            data=self._data, history=self._history, damaged=self._output, out=self._source,
        )  # fmt: skip
        execution.enqueue()
        device.fetch(self._result[: self.plan.result_bytes(frames)], self._output, stream)
