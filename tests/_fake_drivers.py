"""What looks like `cuda.bindings.driver` and like `pycuda.driver`, both in front of a `_fake_cuda.FakeCuda`."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from _fake_cuda import Code, CudaError, FakeCuda, Status

Mode = IntEnum("Mode", {"CU_STREAM_CAPTURE_MODE_GLOBAL": 0, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})
# Calls that want no context.
OUTSIDE = {"cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName", "cuDevicePrimaryCtxRetain",
           "cuCtxSetCurrent", "cuDevicePrimaryCtxRelease"}  # fmt: skip


class FakeDriver:
    """Looks like `cuda.bindings.driver`: functions that return (error, results...)."""

    CUstreamCaptureMode, CUstreamCaptureStatus = Mode, Status
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        do = getattr(type(self), "_" + name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                self.cuda.called(name, name not in OUTSIDE)
                found = do(self, *arguments)
            except CudaError as error:
                return (error.code, None)
            return (Code.CUDA_SUCCESS, *(found if isinstance(found, tuple) else () if found is None else (found,)))

        return call

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGet(self, ordinal: int) -> int:
        return ordinal + 100

    def _cuDeviceGetAttribute(self, which: int, device: int) -> int:
        return self.cuda.capability // 10 if which == 75 else self.cuda.capability % 10

    def _cuDeviceGetName(self, size: int, device: int) -> bytes:
        return b"Fake\0\0"

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        self.cuda.retained += 1
        return 7

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.cuda.retained -= 1

    def _cuCtxSetCurrent(self, context: int) -> None:
        self.cuda.depth = 1

    def _cuModuleLoadData(self, address: int) -> int:
        return self.cuda.number()

    def _cuModuleUnload(self, module: int) -> None: ...

    def _cuModuleGetFunction(self, module: int, name: bytes) -> str:
        return name.decode()

    def _cuMemAlloc(self, size: int) -> int:
        return self.cuda.allocate(size, self.cuda.memory)

    def _cuMemFree(self, address: int) -> None:
        del self.cuda.memory[address]

    def _cuMemHostAlloc(self, size: int, flags: int) -> int:
        return self.cuda.allocate(size, self.cuda.pinned)

    def _cuMemFreeHost(self, address: int) -> None:
        del self.cuda.pinned[address]

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.cuda.copy(stream, "upload", target, source, size)

    def _cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.cuda.copy(stream, "fetch", target, source, size)

    def _cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.cuda.view(target, size)
        self.cuda.copy(stream, "copy", target, source, size)

    def _cuMemsetD32Async(self, address: int, value: int, count: int, stream: int) -> None:
        self.cuda.fill(stream, address, value, count)

    def _cuLaunchKernel(self, function: str, *arguments: Any) -> None:
        *shape, shared, stream, (values, types), _ = arguments
        self.cuda.calls[f"grid {tuple(shape)} shared {shared} {[t.__name__ for t in types[:2]]}"] += 1
        self.cuda.launch(stream, function, values, tuple(shape[:2]))

    def _cuStreamCreate(self, flags: int) -> int:
        assert flags == 1  # a stream that waits for the default stream cannot be captured beside it
        handle = self.cuda.number()
        self.cuda.pending[handle] = []
        return handle

    def _cuStreamDestroy(self, stream: int) -> None:
        del self.cuda.pending[stream]

    def _cuStreamSynchronize(self, stream: int) -> None:
        self.cuda.wait(stream)

    def _cuEventCreate(self, flags: int) -> Any:
        return SimpleNamespace(stream=None)

    def _cuEventDestroy(self, event: Any) -> None: ...

    def _cuEventRecord(self, event: Any, stream: int) -> None:
        event.stream = stream

    def _cuEventSynchronize(self, event: Any) -> None:
        self.cuda.wait(event.stream)

    def _cuEventElapsedTime(self, start: Any, end: Any) -> float:
        return 2.5

    def _cuStreamBeginCapture(self, stream: int, mode: Mode) -> None:
        assert mode == Mode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.cuda.begin(stream)

    def _cuStreamIsCapturing(self, stream: int) -> Status:
        return self.cuda.captures[stream][0]

    def _cuStreamEndCapture(self, stream: int) -> int:
        return self.cuda.end(stream)

    def _cuGraphGetNodes(self, graph: int, count: int) -> tuple[list[Any], int]:
        return [], len(self.cuda.graphs[graph])

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = self.cuda.number()
        self.cuda.graphs[handle] = self.cuda.graphs[graph]
        return handle

    def _cuGraphDestroy(self, graph: int) -> None:
        del self.cuda.graphs[graph]

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        self.cuda.pending[stream] += self.cuda.graphs[graph]


class FakePycuda:
    """Looks like `pycuda.driver`, with its stack of contexts a thread."""

    Error = CudaError

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.Context = SimpleNamespace(synchronize=lambda: (cuda.called("cuCtxSynchronize"), cuda.wait(0)))
        outer = self

        class Stream:
            def __init__(self, flags: int = 0) -> None:
                cuda.called("cuStreamCreate")
                assert flags == 1
                self.handle = cuda.number()
                cuda.pending[self.handle] = []

            def synchronize(self) -> None:
                cuda.called("cuStreamSynchronize")
                cuda.wait(self.handle)

            def __del__(self) -> None:  # in a context, or the driver's stream is lost
                if cuda.depth and not cuda.sticky:
                    del cuda.pending[self.handle]

        class Event:
            def __init__(self, flags: int = 0) -> None:
                self.stream = 0

            def record(self, stream: Any = None) -> Event:
                cuda.called("cuEventRecord")
                self.stream = outer.handle(stream)
                return self

            def synchronize(self) -> Event:
                cuda.called("cuEventSynchronize")
                cuda.wait(self.stream)
                return self

            def time_since(self, start: Event) -> float:
                return 2.5

        self.Stream, self.Event = Stream, Event

    def handle(self, stream: Any) -> int:
        assert stream is None or isinstance(stream, self.Stream), "PyCUDA takes its own streams alone"
        return 0 if stream is None else stream.handle

    def init(self) -> None:
        self.cuda.called("cuInit", False)

    def Device(self, ordinal: int) -> Any:
        cuda = self.cuda
        cuda.called("cuDeviceGet", False)

        def change(name: str, by: int) -> None:
            cuda.called(name, by < 0)
            cuda.depth += by

        def detach() -> None:
            change("cuDevicePrimaryCtxRelease", -1)  # takes an active context off the stack
            cuda.retained -= 1

        def retain() -> Any:
            cuda.retained += 1
            return SimpleNamespace(
                push=lambda: change("cuCtxPushCurrent", 1), pop=lambda: change("cuCtxPopCurrent", -1), detach=detach
            )

        capability = lambda: (cuda.capability // 10, cuda.capability % 10)  # noqa: E731
        return SimpleNamespace(compute_capability=capability, name=lambda: "Fake", retain_primary_context=retain)

    def module_from_buffer(self, buffer: bytes) -> Any:
        cuda = self.cuda
        cuda.called("cuModuleLoadDataEx")

        def get_function(name: str) -> Any:
            function = SimpleNamespace(format="")

            def prepare(types: str) -> None:
                function.format = types

            def call(grid: Any, block: Any, stream: Any, *values: int, shared_size: int = 0) -> None:
                cuda.called("cuLaunchKernel")
                assert len(function.format) == len(values)
                names = [{"P": "c_void_p", "i": "c_int"}[kind] for kind in function.format]
                cuda.calls[f"grid {(*grid, 1, *block)} shared {shared_size} {names[:2]}"] += 1
                cuda.launch(self.handle(stream), name, values, grid)

            function.prepare, function.prepared_async_call = prepare, call
            return function

        return SimpleNamespace(get_function=get_function)

    def mem_alloc(self, size: int) -> Any:
        self.cuda.called("cuMemAlloc")
        cuda = self.cuda
        address = cuda.allocate(size, cuda.memory)

        class Allocation:
            def __int__(self) -> int:
                return address

            def free(self) -> None:
                cuda.called("cuMemFree")
                del cuda.memory[address]

        return Allocation()

    def pagelocked_empty(self, size: int, dtype: Any) -> np.ndarray:
        self.cuda.called("cuMemHostAlloc")
        cuda = self.cuda
        address = cuda.allocate(size, cuda.pinned)

        class Allocation:
            def __init__(self) -> None:
                self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

            def free(self) -> None:
                cuda.called("cuMemFreeHost")
                del cuda.pinned[address]

        return np.asarray(Allocation())

    def memset_d32_async(self, address: int, value: int, count: int, stream: Any = None) -> None:
        self.cuda.called("cuMemsetD32Async")
        self.cuda.fill(self.handle(stream), address, value, count)

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any = None) -> None:
        self.cuda.called("cuMemcpyHtoDAsync")
        assert source.flags.c_contiguous
        self.cuda.copy(self.handle(stream), "upload", target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any = None) -> None:
        self.cuda.called("cuMemcpyDtoHAsync")
        assert target.flags.c_contiguous
        self.cuda.copy(self.handle(stream), "fetch", target.ctypes.data, source, target.nbytes)
