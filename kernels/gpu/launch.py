"""Runs the compiled kernels of a `KernelSet` with the CUDA driver alone: no torch, no Triton, no compiler.

`Gpu` is the thin layer over `cuda.bindings.driver` (one context, memory, launches); what needs thought is above it, in
plain Python that is tested without a GPU on a driver that records its calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...bitstream import context_model as model
from ...bitstream.header import StreamHeader
from ...errors import ArtifactError, BackendMissingError, UsageError, missing_extra
from . import shapes
from .batch import Batch, check_damage, check_gpu_stream, plan_batch, table_map_words
from .images import KernelImage, KernelSet

_TYPES = {"pointer": ctypes.c_void_p, "scratch": ctypes.c_void_p, "int32": ctypes.c_int32}
FLOATS: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


class Gpu:
    """The primary context of one CUDA device.

    Attributes
    ----------
    capability: compute capability, major * 10 + minor.  name: the device's.
    """

    def __init__(self, ordinal: int = 0, driver: ModuleType | Any = None) -> None:
        """ordinal: of the device.  driver: `cuda.bindings.driver`, or something that behaves like it.

        Raises BackendMissingError without the package, a driver, or the device.
        """
        if driver is None:
            try:
                from cuda.bindings import driver as cuda
            except ImportError:
                raise missing_extra("cuda-bindings", "gpu") from None
            driver = cuda
        self._cuda = driver
        try:
            self._call("cuInit", 0)
            self._device = self._call("cuDeviceGet", ordinal)
        except Exception as error:  # the package's own errors where there is no driver are of several classes
            raise BackendMissingError(
                f"no CUDA device {ordinal} on this machine: {(str(error) or repr(error)).splitlines()[0]}",
                hint="run on a machine with an NVIDIA GPU and its driver, or decode on the CPU",
            ) from None
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                       self._device)
            for part in ("MAJOR", "MINOR")
        )  # fmt: skip
        self.capability = 10 * int(major) + int(minor)
        self.name = self._call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._modules: list[Any] = []
        self._memory: list[Any] = []

    def _call(self, name: str, *arguments: Any) -> Any:
        """A driver function's result; its error as an ArtifactError that names it."""
        error, *results = getattr(self._cuda, name)(*arguments)
        if int(error) != 0:
            raise ArtifactError(f"{name} failed: {getattr(error, 'name', error)}", hint="see: nvidia-smi")
        return results[0] if results else None

    def load(self, image: KernelImage) -> Any:
        """The function of a compiled kernel."""
        module = self._call("cuModuleLoadData", np.frombuffer(image.cubin, np.uint8).ctypes.data)
        self._modules.append(module)
        return self._call("cuModuleGetFunction", module, image.kernel.encode())

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes, freed by `close`; its address."""
        memory = self._call("cuMemAlloc", max(1, size))
        self._memory.append(memory)
        return int(memory)

    def free(self, address: int) -> None:
        """Give memory back before `close`."""
        self._memory = [memory for memory in self._memory if int(memory) != address]
        self._call("cuMemFree", address)

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        """Copy a C-contiguous array to the device, in stream order. It must stay as it is until the stream is there."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        """Copy from the device into a C-contiguous array, and wait for it."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)
        self.wait(stream)

    def wait(self, stream: int = 0) -> None:
        """Until all that was started on the stream is done."""
        self._call("cuStreamSynchronize", stream)

    def fill(self, address: int, value: int, count: int, stream: int = 0) -> None:
        """`count` 32-bit words of `value`."""
        self._call("cuMemsetD32Async", address, value, count, stream)

    def launch(
        self, function: Any, image: KernelImage, grid: tuple[int, int], values: Mapping[str, int], stream: int = 0
    ) -> None:
        """Start a kernel. values: an address or a number for each of the image's arguments but its scratch ones."""
        wanted = {name for name, kind in image.arguments if kind != "scratch"}
        if wanted != values.keys():
            raise UsageError(f"{image.kernel} takes {sorted(wanted)}, found {sorted(values)}")
        packed = tuple(0 if kind == "scratch" else int(values[name]) for name, kind in image.arguments)
        types = tuple(_TYPES[kind] for _, kind in image.arguments)
        self._call(
            "cuLaunchKernel", function, *grid, 1, 32 * image.warps, 1, 1, image.shared, stream, (packed, types), 0
        )

    def close(self) -> None:
        """Free all memory and modules, and let go of the context; may be called twice."""
        for memory in self._memory:
            self._call("cuMemFree", memory)
        for module in self._modules:
            self._call("cuModuleUnload", module)
        if self._device is not None:
            self._call("cuDevicePrimaryCtxRelease", self._device)
        self._memory, self._modules, self._device = [], [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class GpuDecoder:
    """Decodes batches of one stream's payloads into device memory: the fused entropy decode + int2float.

    One batch at a time: its buffers are the next one's too. From the thread that made the `Gpu`, whose context is its.

    Parameters
    ----------
    kernels: compiled for the stream's bits and tile, and for the GPU's capability (ArtifactError otherwise).
    header: of the stream.  most: frames a batch at most.  floats: "float16" or "float32", what is written.

    Attributes
    ----------
    out: address of the result, (frames, C, h, w) of those floats; the same for every batch.
    """

    def __init__(self, gpu: Gpu, kernels: KernelSet, header: StreamHeader, most: int, floats: str = "float16") -> None:
        check_gpu_stream(header)
        if floats not in FLOATS:
            raise UsageError(f"floats {floats!r}, expected {' or '.join(FLOATS)}")
        if most < 1:
            raise UsageError(f"batches of {most} frames, expected at least 1")
        kernels.check_stream(header.bits, header.tile)
        self.gpu, self.header, self.most, self.dtype = gpu, header, most, FLOATS[floats]
        self._image = kernels.find("context_decode", floats, gpu.capability)
        self._function = gpu.load(self._image)
        self._tables = self._constant(model.decoding_tables())
        self._numbers = self._constant(table_map_words())
        self._damaged = gpu.allocate(4 * most)
        self.out = gpu.allocate(most * int(np.prod(header.latent_shape)) * self.dtype.itemsize)
        self._rooms: dict[str, tuple[int, int]] = {}

    def _constant(self, table: NDArray[Any]) -> int:
        address = self.gpu.allocate(table.nbytes)
        held = np.ascontiguousarray(table)
        self.gpu.upload(address, held)
        self.gpu.wait()  # batches may come on other streams, and `held` goes
        return address

    def _room(self, name: str, wanted: int) -> int:
        """Memory of at least `wanted` bytes under a name: what there is, or more of it in its place."""
        address, size = self._rooms.get(name, (0, 0))
        if wanted > size:
            if address:
                del self._rooms[name]  # should there be no more memory, what is freed is not used again
                self.gpu.free(address)
            size = wanted + wanted // 2  # payloads differ: do not allocate anew for each that is a little longer
            address = self.gpu.allocate(size)
            self._rooms[name] = address, size
        return address

    def start(self, payloads: Sequence[bytes], stream: int = 0) -> Batch:
        """Plan a batch, copy it to the device, start the kernel. The plan's `data` must live until the stream is there.

        Raises InputError for a payload that is seen to be damaged by then, UsageError for more than `most` frames.
        """
        if len(payloads) > self.most:
            raise UsageError(f"a batch of {len(payloads)} frames, expected at most {self.most}")
        batch = plan_batch(payloads, self.header)
        self.gpu.upload(self._room("data", batch.data.nbytes), batch.data, stream)
        self.launch(batch, stream)
        return batch

    def launch(self, batch: Batch, stream: int = 0) -> None:
        """Start the kernel on a batch whose bytes `start` has brought to the device: all of `start` but the copy."""
        history = self._room("history", 4 * shapes.history_words(batch.lane_count, self.header.tile))
        data = self._room("data", batch.data.nbytes)
        self.gpu.fill(self._damaged, shapes.SOUND, batch.frames, stream)
        channels, height, width = self.header.latent_shape
        values = {
            "words": data + batch.payloads, "word_count": batch.word_count, "lanes": data + batch.lanes,
            "channels": data + batch.channels, "ranges": data + batch.ranges, "tables": self._tables,
            "table_map": self._numbers, "history": history, "damaged": self._damaged, "out": self.out,
            "frames": batch.frames, "channel_count": channels, "height": height, "width": width,
            "ranges_a_frame": batch.ranges_a_frame,
        }  # fmt: skip
        self.gpu.launch(self._function, self._image, (shapes.programs(batch.lane_count), 1), values, stream)

    def finish(self, batch: Batch, stream: int = 0) -> None:
        """Wait for a started batch. Raises InputError if one of its lanes was damaged."""
        damaged = np.empty(batch.frames, np.int32)
        self.gpu.download(damaged, self._damaged, stream)
        check_damage(damaged)

    def decode(self, payloads: Sequence[bytes]) -> NDArray[Any]:
        """A batch's latents on the host: (frames, C, h, w) of the decoder's floats. For tests and checks."""
        batch = self.start(payloads)
        self.finish(batch)
        result: NDArray[Any] = np.empty((batch.frames, *self.header.latent_shape), self.dtype)
        self.gpu.download(result, self.out)
        return result
