"""A CUDA device through PyCUDA: context, memory, streams, events and kernel modules; graphs as in `device.Device`.

Written against PyCUDA 2026.1 (https://documen.tician.de/pycuda/driver.html and its C++ sources): its contexts form a
stack a thread, and a thread that ends with one on it ends the process, so that every push has its pop (`active`). Its
streams, events and modules have no call that frees them, and go with the last reference to them, which is held here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, BackendMissingError, UsageError, missing_extra
from .device import Device, Release, cuda_bindings, no_device
from .images import KernelImage

_FORMATS = {"pointer": "P", "scratch": "P", "int32": "i"}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PycudaDevice(Device):
    """The primary context of one CUDA device, retained by PyCUDA.

    Its streams are the only ones that it takes, besides the default one.
    """

    def __init__(self, ordinal: int = 0, pycuda: ModuleType | Any = None, driver: ModuleType | Any = None) -> None:
        """ordinal: of the device.  pycuda, driver: `pycuda.driver` and `cuda.bindings.driver`, or what behaves so.

        Raises BackendMissingError without one of the packages, a driver, or the device.
        """
        super().__init__(driver if driver is not None else cuda_bindings())
        self._pycuda = cuda = pycuda if pycuda is not None else _pycuda()
        try:
            cuda.init()
            device = cuda.Device(ordinal)
        except cuda.Error as error:
            raise no_device(ordinal, error) from None
        major, minor = self._do(device.compute_capability)
        self.capability, self.name = 10 * major + minor, str(self._do(device.name))
        self._context = self._do(device.retain_primary_context)
        self._streams: dict[int, Any] = {0: None}

    @contextmanager
    def active(self) -> Iterator[None]:
        self._do(self._context.push)
        try:
            yield
        except BaseException:
            with suppress(ArtifactError):  # behind the error that ends the context, this fails as well
                self._do(self._context.pop)
            raise
        self._do(self._context.pop)

    def wait(self, stream: int = 0) -> None:
        found = self._known(stream)
        self._do(self._pycuda.Context.synchronize if found is None else found.synchronize)

    def record(self, event: Any, stream: int) -> None:
        self._do(event.record, self._known(stream))

    def wait_event(self, event: Any) -> None:
        self._do(event.synchronize)

    def elapsed(self, start: Any, end: Any) -> float:
        return 1e-3 * float(self._do(end.time_since, start))

    def fill(self, address: int, value: int, count: int, stream: int = 0) -> None:
        self._do(self._pycuda.memset_d32_async, address, value, count, self._known(stream))

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        self._do(self._pycuda.memcpy_htod_async, address, array, self._known(stream))

    def fetch(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        self._do(self._pycuda.memcpy_dtoh_async, array, address, self._known(stream))

    def _load(self, image: KernelImage) -> tuple[Any, Any, Release]:
        module = self._do(self._pycuda.module_from_buffer, image.cubin)
        function = self._do(module.get_function, image.kernel)
        function.prepare("".join(_FORMATS[kind] for _, kind in image.arguments))
        held = [module]
        return function, module, held.clear

    def _allocate(self, size: int) -> tuple[int, Release]:
        memory = self._do(self._pycuda.mem_alloc, size)
        return int(memory), lambda: self._do(memory.free)

    def _pinned(self, size: int) -> tuple[NDArray[np.uint8], Release]:
        array: NDArray[np.uint8] = self._do(self._pycuda.pagelocked_empty, size, np.uint8)
        allocation: Any = array.base
        return array, lambda: self._do(allocation.free)

    def _stream(self) -> tuple[int, Release]:
        stream = self._do(self._pycuda.Stream, _NON_BLOCKING)
        handle = int(stream.handle)
        self._streams[handle] = stream
        return handle, lambda: self._streams.pop(handle)

    def _event(self) -> tuple[Any, Release]:
        event = self._do(self._pycuda.Event)
        held = [event]
        return event, held.clear

    def _launch(
        self, function: Any, image: KernelImage, grid: tuple[int, int], values: Sequence[int], stream: int
    ) -> None:
        self._do(
            lambda: function.prepared_async_call(
                grid, (32 * image.warps, 1, 1), self._known(stream), *values, shared_size=image.shared
            )
        )

    def _leave(self) -> None:
        # Active, or another thread than the one that made it would not let go of it; detaching takes it off the stack.
        try:
            self._do(self._context.push)
        finally:
            self._do(self._context.detach)

    def _known(self, stream: int) -> Any:
        if stream not in self._streams:
            raise UsageError(f"stream {stream:#x} is not one of this device's, which PyCUDA cannot use")
        return self._streams[stream]

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A PyCUDA call's result; its error as an ArtifactError in PyCUDA's words, which name the driver's function."""
        try:
            return function(*arguments)
        except self._pycuda.Error as error:
            what, _, reason = str(error).partition(" failed: ")
            raise self.failed(what, reason or "for a reason that PyCUDA does not give") from None


def _pycuda() -> ModuleType:
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name).partition(".")[0], "pycuda") from None
    except ImportError as error:
        raise BackendMissingError(
            f"PyCUDA is installed but does not import: {error}",
            hint="it needs an NVIDIA driver (libcuda.so.1) and libcurand.so.10; latentseg doctor shows the driver",
        ) from None
    found: ModuleType = cuda
    return found
