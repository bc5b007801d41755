"""One small interface to a CUDA device: what the GPU path needs of one, and what its implementations share.

`launch.Gpu` implements it on `cuda.bindings`, `pycuda.PycudaDevice` on PyCUDA. Which of their calls does what is up to
them; here are the packing of a kernel's arguments, what is to be freed, the words of an error, and graph capture, which
goes through `cuda.bindings` in both (PyCUDA has none) on the same stream.

An address is an int. A stream is its handle, an int as well, 0 for the default stream; so is a foreign library's stream
where the implementation takes it. Sizes are in bytes. Everything lives until `close`, unless it is given back before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, BackendMissingError, LatentsegError, UsageError, missing_extra
from .images import KernelImage

Release = Callable[[], object]


@dataclass(frozen=True)
class Graph:
    """A captured and instantiated CUDA graph. handle: of the executable graph.  nodes: operations in it."""

    handle: Any
    nodes: int


class Device(ABC):
    """The primary context of one CUDA device.

    Everything but `close` is called inside `with device.active()`, from any thread, one at a time.

    Attributes
    ----------
    capability: compute capability, major * 10 + minor.  name: the device's.
    """

    capability: int
    name: str

    def __init__(self, driver: Any) -> None:
        """driver: `cuda.bindings.driver`, or something that behaves like it."""
        self._cuda = driver
        self._held: dict[tuple[str, Any], Release] = {}
        self._failed = self._closed = False

    # --- what an implementation fills in ------------------------------------------------------------------------------

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Makes the context this thread's, for as long as the `with` lasts; may be nested."""

    @abstractmethod
    def wait(self, stream: int = 0) -> None:
        """Until all that was started on the stream is done."""

    @abstractmethod
    def record(self, event: Any, stream: int) -> None:
        """The event happens when the stream gets here."""

    @abstractmethod
    def wait_event(self, event: Any) -> None:
        """Until the event has happened."""

    @abstractmethod
    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two events that have happened."""

    @abstractmethod
    def fill(self, address: int, value: int, count: int, stream: int = 0) -> None:
        """`count` 32-bit words of `value`."""

    @abstractmethod
    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        """Copy a C-contiguous array to the device, in stream order. It must stay as it is until the stream is there."""

    @abstractmethod
    def fetch(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        """Copy from the device into a C-contiguous array, in stream order."""

    @abstractmethod
    def _load(self, image: KernelImage) -> tuple[Any, Any, Release]:
        """(function, module, how to unload it)."""

    @abstractmethod
    def _allocate(self, size: int) -> tuple[int, Release]: ...

    @abstractmethod
    def _pinned(self, size: int) -> tuple[NDArray[np.uint8], Release]: ...

    @abstractmethod
    def _stream(self) -> tuple[int, Release]:
        """A stream that does not wait for the default stream."""

    @abstractmethod
    def _event(self) -> tuple[Any, Release]: ...

    @abstractmethod
    def _launch(
        self, function: Any, image: KernelImage, grid: tuple[int, int], values: Sequence[int], stream: int
    ) -> None:
        """values: one for each of the image's arguments, in order."""

    @abstractmethod
    def _leave(self) -> None:
        """Let go of the context."""

    # --- what they share ----------------------------------------------------------------------------------------------

    def load(self, image: KernelImage) -> Any:
        """The function of a compiled kernel."""
        function, module, release = self._load(image)
        self._hold("module", id(module), release)
        return function

    def allocate(self, size: int) -> int:
        """Device memory; its address, a multiple of 256."""
        address, release = self._allocate(max(1, size))
        self._hold("memory", address, release)
        return address

    def free(self, address: int) -> None:
        """Give memory back before `close`."""
        self._held.pop(("memory", address))()

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory as uint8 (size,), any content; not to be touched after `close`."""
        array, release = self._pinned(max(1, size))
        self._hold("pinned", array.ctypes.data, release)
        return array[:size]

    def stream(self) -> int:
        """A new stream, which does not wait for the default stream, so that it can be captured."""
        handle, release = self._stream()
        self._hold("stream", handle, release)
        return handle

    def event(self) -> Any:
        """A new event, which keeps the time."""
        event, release = self._event()
        self._hold("event", id(event), release)
        return event

    def download(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        """Copy from the device into a C-contiguous array, and wait for it."""
        self.fetch(array, address, stream)
        self.wait(stream)

    def copy(self, target: int, source: int, size: int, stream: int = 0) -> None:
        """Copy bytes within the device, in stream order."""
        self._call("cuMemcpyDtoDAsync", target, source, size, stream)

    def launch(
        self, function: Any, image: KernelImage, grid: tuple[int, int], values: Mapping[str, int], stream: int = 0
    ) -> None:
        """Start a kernel. values: an address or a number for each of the image's arguments but its scratch ones."""
        wanted = {name for name, kind in image.arguments if kind != "scratch"}
        if wanted != values.keys():
            raise UsageError(f"{image.kernel} takes {sorted(wanted)}, found {sorted(values)}")
        packed = [0 if kind == "scratch" else int(values[name]) for name, kind in image.arguments]
        self._launch(function, image, grid, packed, stream)

    def capture(self, stream: int, body: Callable[[], None], least: int = 1) -> Graph:
        """What `body` starts on the stream, recorded instead of run.

        least: operations that it must have recorded. A library that starts its work elsewhere, or not at all, leaves a
        graph that replays without an error and does nothing.
        Raises ArtifactError where the capture was invalidated, or has recorded less; what `body` raises.
        """
        # Thread-local: what another thread does meanwhile (allocating, the default stream) is not our capture's end.
        self._call("cuStreamBeginCapture", stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            body()
            status = self._call("cuStreamIsCapturing", stream)
        except BaseException:
            with suppress(Exception):  # ends the capture, without which the stream is of no more use
                self._drop(self._cuda.cuStreamEndCapture(stream)[-1])
            raise
        if status != self._cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE:
            with suppress(Exception):
                self._drop(self._cuda.cuStreamEndCapture(stream)[-1])
            raise self.failed("graph capture", f"it was {getattr(status, 'name', status)} before its end")
        graph = self._call("cuStreamEndCapture", stream)
        try:
            nodes = int(self._call("cuGraphGetNodes", graph, 0))
            if nodes < least:
                raise self.failed("graph capture", f"it recorded {nodes} operations, expected at least {least}")
            handle = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._drop(graph)
        made = Graph(handle, nodes)
        self._hold("graph", int(handle), lambda: self._call("cuGraphExecDestroy", handle))
        return made

    def replay(self, graph: Graph, stream: int) -> None:
        """Start a captured graph."""
        self._call("cuGraphLaunch", graph.handle, stream)

    def failed(self, what: str, reason: object) -> ArtifactError:
        """The error for a call that failed, which `close` will not hide behind errors of its own."""
        self._failed = True
        memory = "out of memory" in str(reason).lower().replace("_", " ")
        hint = "a smaller batch or fewer slots take less memory; see: nvidia-smi" if memory else "see: nvidia-smi"
        return ArtifactError(f"{what} failed: {reason}", hint=hint)

    def close(self) -> None:
        """Free everything and let go of the context; may be called twice.

        Frees what can be freed: behind an error that ended the context (a kernel that read outside its memory), every
        further call fails. Raises the first error of a call here only where no call before has raised one.
        """
        if self._closed:
            return
        self._closed, known = True, self._failed
        first: LatentsegError | None = None
        stack = ExitStack()
        steps: deque[Release] = deque([lambda: stack.enter_context(self.active()), *reversed(self._held.values())])
        steps += [stack.close, self._leave]
        self._held.clear()
        while steps:
            try:
                steps.popleft()()  # nothing else holds what the step frees: some of it goes with its last reference
            except LatentsegError as error:
                first = first or error
        if first is not None and not known:
            raise first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except LatentsegError:
            if error is None:
                raise

    def _hold(self, kind: str, key: Any, release: Release) -> None:
        self._held[kind, key] = release

    def _drop(self, graph: Any) -> None:
        if int(graph):
            self._call("cuGraphDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The last result of a function of `cuda.bindings.driver`; its error as an ArtifactError that names it."""
        error, *results = getattr(self._cuda, name)(*arguments)
        if int(error) != 0:
            raise self.failed(name, getattr(error, "name", error))
        return results[-1] if results else None


def cuda_bindings() -> ModuleType:
    """`cuda.bindings.driver`. Raises BackendMissingError where it is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise missing_extra("cuda-bindings", "gpu") from None
    found: ModuleType = driver
    return found


def no_device(ordinal: int, error: Exception) -> BackendMissingError:
    """The error for a device that is not there: no driver, no GPU, or not as many."""
    return BackendMissingError(
        f"no CUDA device {ordinal} on this machine: {(str(error) or repr(error)).splitlines()[0]}",
        hint="run on a machine with an NVIDIA GPU and its driver, or decode on the CPU",
    )
