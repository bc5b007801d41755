"""TensorRT and TensorRT-RTX engines on a CUDA GPU, for any role: one array to the device, one back.

Labels from a stream's bytes have a shorter way, on which the latent never sees the host: `engine.tensorrt.runner`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import LatentsegError
from ..tensorrt.sidecar import ENGINE_FOLDER
from .base import Backend, TensorSpec


class TensorRtBackend(Backend):
    """An engine file, which lies beside its sidecar, on the first GPU that the process sees.

    `path` is what `engine.tensorrt.sidecar.find_engine` gives. `threads` is of no effect: the CPU has no part in a run.
    An engine whose input is float16 takes float32 here, and rounds it as the GPU's decoder does, to the nearest even.
    """

    name: ClassVar[str] = "tensorrt"
    providers: ClassVar[tuple[str, ...]] = ("cuda",)

    def _load(self) -> tuple[TensorSpec, TensorSpec, str]:
        from ..tensorrt.execution import Execution, LoadedEngine, open_device

        # What a hint of `latentseg build` names: the folder around the engines, where they lie in a bundle.
        bundle = str(self.path.parent.parent) if self.path.parent.name == ENGINE_FOLDER else ""
        self._device = open_device()
        self._engine: Any = None
        self._execution: Any = None
        try:
            with self._device.active():
                self._stream = self._device.stream()
                self._engine = LoadedEngine(self.path, self._device, bundle)
                self._execution = Execution(self._engine, self._stream)
        except BaseException:
            with suppress(LatentsegError):
                self._close()
            raise
        self._rooms: dict[str, tuple[int, int]] = {}
        file = self._engine.file
        source = TensorSpec(file.input.name, self._host(file.input.dtype), file.input.shape)
        return source, file.output, self._engine.provider

    def _run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        device, stream, file = self._device, self._stream, self._engine.file
        self._engine.check_shape(array.shape)
        given = array.astype(file.input.dtype, copy=False)
        with device.active():
            size, shape = self._execution.prepare(given.shape)
            result: npt.NDArray[Any] = np.empty(shape, file.output.dtype)
            source, target = self._room("source", given.nbytes), self._room("result", result.nbytes)
            self._execution.bind(self._room("memory", size), size, source, target)
            device.upload(source, given, stream)
            self._execution.enqueue()
            device.download(result, target, stream)
        return result

    def _close(self) -> None:
        with suppress(LatentsegError), self._device.active():
            self._execution = None
            if self._engine is not None:
                self._engine.close()
        self._device.close()

    def _room(self, name: str, wanted: int) -> int:
        """Device memory of at least `wanted` bytes under a name; nothing runs when it is exchanged for more."""
        address, size = self._rooms.get(name, (0, 0))
        if wanted > size or not address:
            if address:
                del self._rooms[name]
                self._device.free(address)
            address = self._device.allocate(wanted)
            self._rooms[name] = address, wanted
        return address

    @staticmethod
    def _host(dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32) if dtype == np.float16 else dtype
