"""The compiled kernels on a device, with the CUDA driver alone: no torch, no Triton, no compiler.

`Gpu` is the device through `cuda.bindings.driver`; `DecodeKernel`, `GpuDecoder` (the fused decoder) and
`QuantizeKernel` (float2int) run on any `Device`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bitstream import context_model as model
from ...bitstream.header import StreamHeader
from ...errors import UsageError
from ..quantize import midpoint_table
from . import shapes
from .batch import Batch, Layout, check_damage, check_gpu_stream, plan_batch, table_map_words
from .device import Device, Release, cuda_bindings, no_device
from .images import KernelImage, KernelSet
from .rows import QuantizeRows, quantize_rows

_TYPES = {"pointer": ctypes.c_void_p, "scratch": ctypes.c_void_p, "int32": ctypes.c_int32}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
FLOATS: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


class Gpu(Device):
    """The primary context of one CUDA device, through `cuda.bindings.driver`. It takes any library's streams."""

    def __init__(self, ordinal: int = 0, driver: ModuleType | Any = None) -> None:
        """ordinal: of the device.  driver: `cuda.bindings.driver`, or something that behaves like it.

        Raises BackendMissingError without the package, a driver, or the device.
        """
        driver = driver if driver is not None else cuda_bindings()
        super().__init__(driver)
        try:
            self._call("cuInit", 0)
            self._device = self._call("cuDeviceGet", ordinal)
        except Exception as error:  # the package's own errors where there is no driver are of several classes
            raise no_device(ordinal, error) from None
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                       self._device)
            for part in ("MAJOR", "MINOR")
        )  # fmt: skip
        self.capability = 10 * int(major) + int(minor)
        self.name = self._call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cuCtxSetCurrent", self._context)
        yield

    def wait(self, stream: int = 0) -> None:
        self._call("cuStreamSynchronize", stream)

    def record(self, event: Any, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait_event(self, event: Any) -> None:
        self._call("cuEventSynchronize", event)

    def elapsed(self, start: Any, end: Any) -> float:
        return 1e-3 * float(self._call("cuEventElapsedTime", start, end))

    def fill(self, address: int, value: int, count: int, stream: int = 0) -> None:
        self._call("cuMemsetD32Async", address, value, count, stream)

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def fetch(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def _load(self, image: KernelImage) -> tuple[Any, Any, Release]:
        module = self._call("cuModuleLoadData", np.frombuffer(image.cubin, np.uint8).ctypes.data)
        function = self._call("cuModuleGetFunction", module, image.kernel.encode())
        return function, module, lambda: self._call("cuModuleUnload", module)

    def _allocate(self, size: int) -> tuple[int, Release]:
        memory = self._call("cuMemAlloc", size)
        return int(memory), lambda: self._call("cuMemFree", memory)

    def _pinned(self, size: int) -> tuple[NDArray[np.uint8], Release]:
        address = int(self._call("cuMemHostAlloc", size, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return array, lambda: self._call("cuMemFreeHost", address)

    def _stream(self) -> tuple[int, Release]:
        stream = self._call("cuStreamCreate", _NON_BLOCKING)
        return int(stream), lambda: self._call("cuStreamDestroy", stream)

    def _event(self) -> tuple[Any, Release]:
        event = self._call("cuEventCreate", 0)
        return event, lambda: self._call("cuEventDestroy", event)

    def _launch(
        self, function: Any, image: KernelImage, grid: tuple[int, int], values: Sequence[int], stream: int
    ) -> None:
        types = tuple(_TYPES[kind] for _, kind in image.arguments)
        self._call(
            "cuLaunchKernel", function, *grid, 1, 32 * image.warps, 1, 1, image.shared, stream,
            (tuple(values), types), 0,
        )  # fmt: skip

    def _leave(self) -> None:
        self._call("cuDevicePrimaryCtxRelease", self._device)


def _constant(device: Device, table: NDArray[Any]) -> int:
    """The address of a table that stays on the device."""
    address = device.allocate(table.nbytes)
    held = np.ascontiguousarray(table)
    device.upload(address, held)
    device.wait()  # batches may come on other streams, and `held` goes
    return address


class DecodeKernel:
    """The fused entropy decode + int2float of one codec's streams, loaded, with its tables on the device.

    Parameters
    ----------
    kernels: compiled for the streams' bits and tile, and for the device's capability (ArtifactError otherwise).
    header: of a stream; others may differ in their size.  floats: "float16" or "float32", what is written.
    """

    def __init__(self, device: Device, kernels: KernelSet, header: StreamHeader, floats: str) -> None:
        check_gpu_stream(header)
        if floats not in FLOATS:
            raise UsageError(f"floats {floats!r}, expected {' or '.join(FLOATS)}")
        kernels.check_stream(header.bits, header.tile, header.scaling.mode == "codebook")
        self.device, self.dtype = device, FLOATS[floats]
        self._image = kernels.find("context_decode", floats, device.capability)
        self._function = device.load(self._image)
        self._tables = _constant(device, model.decoding_tables())
        self._numbers = _constant(device, table_map_words())

    def start(
        self, layout: Layout, header: StreamHeader, word_count: int, stream: int,
        *, data: int, history: int, damaged: int, out: int,
    ) -> None:  # fmt: skip
        """Start the kernel on a planned batch.

        word_count: 32-bit words from the payloads' start that may be read; what lies behind the payloads is not used.
        data: address of the batch's bytes.  history: of `shapes.history_words` int32, any content.
        damaged: of int32 (frames,), filled with `shapes.SOUND` before.  out: of the result, (frames, C, h, w).
        """
        channels, height, width = header.latent_shape
        values = {
            "words": data + layout.payloads, "word_count": word_count, "lanes": data + layout.lanes,
            "channels": data + layout.channels, "ranges": data + layout.ranges, "tables": self._tables,
            "table_map": self._numbers, "history": history, "damaged": damaged, "out": out,
            "frames": layout.frames, "channel_count": channels, "height": height, "width": width,
            "ranges_a_frame": layout.ranges_a_frame,
        }  # fmt: skip
        self.device.launch(self._function, self._image, (shapes.programs(layout.lane_count), 1), values, stream)


class GpuDecoder:
    """Decodes batches of one stream's payloads into device memory: the fused entropy decode + int2float.

    One batch at a time: its buffers are the next one's too.

    Parameters
    ----------
    kernels: compiled for the stream's bits and tile, and for the GPU's capability (ArtifactError otherwise).
    header: of the stream.  most: frames a batch at most.  floats: "float16" or "float32", what is written.

    Attributes
    ----------
    out: address of the result, (frames, C, h, w) of those floats; the same for every batch.
    """

    def __init__(
        self, gpu: Device, kernels: KernelSet, header: StreamHeader, most: int, floats: str = "float16"
    ) -> None:
        if most < 1:
            raise UsageError(f"batches of {most} frames, expected at least 1")
        self.gpu, self.header, self.most = gpu, header, most
        with gpu.active():
            self._kernel = DecodeKernel(gpu, kernels, header, floats)
            self.dtype = self._kernel.dtype
            self._damaged = gpu.allocate(4 * most)
            self.out = gpu.allocate(most * header.symbols * self.dtype.itemsize)
        self._rooms: dict[str, tuple[int, int]] = {}

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
        with self.gpu.active():
            self.gpu.upload(self._room("data", batch.data.nbytes), batch.data, stream)
        self.launch(batch, stream)
        return batch

    def launch(self, batch: Batch, stream: int = 0) -> None:
        """Start the kernel on a batch whose bytes `start` has brought to the device: all of `start` but the copy."""
        with self.gpu.active():
            history = self._room("history", 4 * shapes.history_words(batch.lane_count, self.header.tile))
            data = self._room("data", batch.data.nbytes)
            self.gpu.fill(self._damaged, shapes.SOUND, batch.frames, stream)
            self._kernel.start(
                batch, self.header, batch.word_count, stream,
                data=data, history=history, damaged=self._damaged, out=self.out,
            )  # fmt: skip

    def finish(self, batch: Batch, stream: int = 0) -> None:
        """Wait for a started batch. Raises InputError if one of its lanes was damaged."""
        damaged = np.empty(batch.frames, np.int32)
        with self.gpu.active():
            self.gpu.download(damaged, self._damaged, stream)
        check_damage(damaged)

    def decode(self, payloads: Sequence[bytes]) -> NDArray[Any]:
        """A batch's latents on the host: (frames, C, h, w) of the decoder's floats. For tests and checks."""
        batch = self.start(payloads)
        self.finish(batch)
        result: NDArray[Any] = np.empty((batch.frames, *self.header.latent_shape), self.dtype)
        with self.gpu.active():
            self.gpu.download(result, self.out)
        return result


class QuantizeKernel:
    """float2int of one codec's streams, loaded, with its fixed range or codebook on the device.

    Parameters
    ----------
    kernels: compiled for the streams' bits and tile, and for the device's capability (ArtifactError otherwise).
    header: of a stream; others may differ in their size.
    """

    def __init__(self, device: Device, kernels: KernelSet, header: StreamHeader) -> None:
        fixed = not quantize_rows(header, 1).parts
        kernels.check_stream(header.bits, header.tile, header.scaling.mode == "codebook")
        self.device = device
        names = ("quantize",) if fixed else ("quantize", "minmax")
        self._images = {name: kernels.find(name, "float32", device.capability) for name in names}
        self._functions = {name: device.load(image) for name, image in self._images.items()}
        scaling = header.scaling
        ends = np.array([scaling.lo, scaling.hi], np.float32)
        limits = midpoint_table(scaling.centres) if scaling.mode == "codebook" else ends
        self._fixed = _constant(device, limits) if fixed else 0

    def start(self, rows: QuantizeRows, stream: int, *, x: int, partial: int, q: int, ranges: int, bad: int) -> None:
        """Start float2int on a batch of latents: `rows.launches` kernels.

        x: address of float32 (frames, C, h, w).  partial: of `rows.partial_bytes` of scratch, any content.
        q: of the symbols, uint8 like x.  ranges: of float32 (rows, 2), what each row was quantised with; not written
        with a codebook.
        bad: of int32 (rows,), filled with 0 before; 1 afterwards where a value of a row, or its range, is not finite:
        its symbols mean nothing then.
        """
        found, size, parts = x, rows.size, 1
        for parts, start in zip(rows.parts, rows.starts, strict=True):
            values = {"x": found, "partial": partial + start, "size": size, "parts": parts}
            self._launch("minmax", (rows.rows, parts), values, stream)
            found, size = partial + start, 2 * parts
        values = {
            "x": x, "partial": found if rows.parts else self._fixed, "q": q, "ranges": ranges, "bad": bad,
            "size": rows.size, "parts": parts, "range_rows": rows.rows if rows.parts else 1,
        }  # fmt: skip
        self._launch("quantize", (rows.rows, -(-rows.size // shapes.BLOCK)), values, stream)

    def _launch(self, name: str, grid: tuple[int, int], values: dict[str, int], stream: int) -> None:
        self.device.launch(self._functions[name], self._images[name], grid, values, stream)
