"""A CUDA device in host memory, for what looks like its drivers in `_fake_drivers.py`.

Nothing runs when it is started: an operation waits in its stream until somebody waits for it, so that a buffer which is
touched too early shows in the results. A capture records operations with their arguments, and a graph repeats them with
those. Every address is checked against what is allocated. `context_decode` decodes for real, out of what lies in device
memory (tables, lanes, words), `minmax` and `quantize` compute by NumPy what their programs would.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
from _kernel_images import SCALING_ARGUMENTS

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.bitstream.context_payload import Channels, pack_head, plan_tiles
from latentseg.errors import InputError
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.quantize import quantize

Status = IntEnum(
    "Status", {f"CU_STREAM_CAPTURE_STATUS_{n}": i for i, n in enumerate(("NONE", "ACTIVE", "INVALIDATED"))}
)
Code = IntEnum("Code", {"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_INVALID_CONTEXT": 201,
                        "CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901})  # fmt: skip
Operation = Callable[[], None]


class CudaError(Exception):
    """A driver function that failed."""

    def __init__(self, name: str, code: Code) -> None:
        super().__init__(f"{name} failed: {code.name.lower()}")
        self.code = code


class FakeCuda:
    """The device. `calls` counts what was called, `run` lists operations as they ran: (name, details)."""

    def __init__(self, capability: int = 90, arguments: tuple[tuple[str, str], ...] = ()) -> None:
        """arguments: (name, kind) of the decoder's arguments, in order."""
        self.capability = capability
        known = {"context_decode": arguments, **SCALING_ARGUMENTS}
        self.names = {kernel: [name for name, _ in found] for kernel, found in known.items()}
        self.calls: Counter[str] = Counter()
        self.run: list[tuple[str, Any]] = []
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.pending: dict[int, list[Operation]] = {0: []}
        self.captures: dict[int, tuple[Status, list[Operation]]] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.fail: dict[str, Code] = {}  # the next call of a name fails
        self.sticky = False  # the context is broken: every call fails
        self.tile, self.bits, self.half = (4, 5), 8, True  # what the kernel was compiled for; float16 or float32
        self.codebook = False
        self.retained = 0
        self._current = threading.local()
        self._number = 100

    def number(self) -> int:
        self._number += 1
        return self._number

    @property
    def depth(self) -> int:
        """Contexts that this thread has made current."""
        return getattr(self._current, "depth", 0)

    @depth.setter
    def depth(self, value: int) -> None:
        self._current.depth = value

    def called(self, name: str, needs_context: bool = True) -> None:
        self.calls[name] += 1
        if self.sticky:
            raise CudaError(name, Code.CUDA_ERROR_ILLEGAL_ADDRESS)
        if name in self.fail:
            raise CudaError(name, self.fail.pop(name))
        if needs_context and not self.depth:
            raise CudaError(name, Code.CUDA_ERROR_INVALID_CONTEXT)

    # --- memory and streams -------------------------------------------------------------------------------------------

    def allocate(self, size: int, where: dict[int, np.ndarray]) -> int:
        raw = np.full(size + 256, 0xA5, np.uint8)
        start = -raw.ctypes.data % 256
        block = raw[start : start + size]
        where[block.ctypes.data] = block
        return block.ctypes.data

    def view(self, address: int, size: int, dtype: Any = np.uint8) -> np.ndarray:
        """Device memory as an array; an address outside what is allocated is an error of the test."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size].view(dtype)
        raise AssertionError(f"{size} bytes at {address:#x} are not device memory")

    def start(self, stream: int, name: str, details: Any, work: Operation) -> None:
        """An operation goes into a stream, or into what the stream captures."""

        def operation() -> None:
            self.run.append((name, details))
            work()

        if stream in self.captures:
            self.captures[stream][1].append(operation)
        else:
            self.pending[stream].append(operation)

    def wait(self, stream: int) -> None:
        assert stream not in self.captures, "waiting for a stream that captures"
        for one in [stream] if stream else list(self.pending):
            while self.pending[one]:
                self.pending[one].pop(0)()

    def copy(self, stream: int, name: str, target: int, source: int, size: int) -> None:
        self.view(target if name == "upload" else source, size)
        self.start(stream, name, size, lambda: ctypes.memmove(target, source, size))

    def fill(self, stream: int, address: int, value: int, count: int) -> None:
        words = self.view(address, 4 * count, np.uint32)
        self.start(stream, "fill", count, lambda: words.fill(value))

    def launch(self, stream: int, kernel: str, values: tuple[int, ...], grid: tuple[int, ...]) -> None:
        named: dict[str, Any] = dict(zip(self.names[kernel], values, strict=True))
        assert named.get("scratch", 0) == 0
        for name, value in named.items():
            assert name not in ("x", "partial", "q", "ranges", "bad") or value % 16 == 0, f"{name} is not aligned"
        named["grid"] = grid
        self.start(stream, kernel, named, lambda: self.kernel(kernel, named))

    def kernel(self, kernel: str, named: dict[str, Any]) -> None:
        {"context_decode": decode, "minmax": find_ranges, "quantize": make_symbols}[kernel](self, named)

    def begin(self, stream: int) -> None:
        assert stream, "the default stream cannot be captured"
        self.captures[stream] = (Status.CU_STREAM_CAPTURE_STATUS_ACTIVE, [])

    def invalidate(self, stream: int) -> None:
        self.captures[stream] = (Status.CU_STREAM_CAPTURE_STATUS_INVALIDATED, self.captures[stream][1])

    def end(self, stream: int) -> int:
        status, operations = self.captures.pop(stream)
        if status != Status.CU_STREAM_CAPTURE_STATUS_ACTIVE:
            raise CudaError("cuStreamEndCapture", Code.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        handle = self.number()
        self.graphs[handle] = operations
        return handle


def decode(cuda: FakeCuda, named: dict[str, Any]) -> None:
    """`context_decode` as the kernel's docstring says it, by way of a payload put together from device memory."""
    frames, channels, height, width = (named[n] for n in ("frames", "channel_count", "height", "width"))
    shape = (channels, height, width)
    header = StreamHeader(bytes(32), shape, cuda.bits, Scaling("fixed", 0, 1), coder="context", tile=cuda.tile)
    tiles = len(plan_tiles(header).top)
    words = cuda.view(named["words"], 4 * named["word_count"])
    lanes = cuda.view(named["lanes"], 8 * frames * tiles * channels, np.int32).reshape(frames, tiles, channels, 2)
    what = cuda.view(named["channels"], 4 * frames * channels, np.int32).reshape(frames, channels).astype(np.int64)
    per = named["ranges_a_frame"]
    ranges = cuda.view(named["ranges"], 8 * frames * per, np.float32).reshape(frames, per, 2)
    damaged = cuda.view(named["damaged"], 4 * frames, np.int32)
    assert (damaged == 2**31 - 1).all(), "the damage flags were not set"
    programs = -(-frames * tiles * channels // 32)
    cuda.view(named["history"], 4 * programs * 2 * (1 << (cuda.tile[1] - 1).bit_length()) * 32)
    dtype = np.dtype(np.float16 if cuda.half else np.float32)
    out = cuda.view(named["out"], frames * header.symbols * dtype.itemsize, dtype).reshape(frames, channels, -1)
    for frame in range(frames):
        parts = Channels(what[frame] & 3, what[frame] >> 2 & 63, what[frame] >> 8 & 255, what[frame] >> 16)
        rows = lanes[frame].transpose(1, 0, 2).reshape(-1, 2)
        coded = [words[at : at + size].tobytes() for at, size in rows.tolist()]
        assert [len(lane) for lane in coded] == rows[:, 1].tolist(), "a lane outside the words"
        head = pack_head(parts, rows[:, 1].reshape(channels, tiles).astype(np.int64), cuda.bits)
        payload = head + b"".join(coded)
        try:
            q = entropy.decode_symbols(payload, header).reshape(channels, -1)
        except InputError:
            try:
                entropy.decode_symbols(payload, header, "numpy")
            except InputError as error:
                tile, channel = map(int, re.findall(r"\d+", str(error))[:2])
                damaged[frame] = channel * tiles + tile
            continue
        if cuda.codebook:
            out[frame] = ranges[frame].reshape(1 << cuda.bits)[q].astype(dtype)
            continue
        lo, step = ranges[frame, :, 0, None], ranges[frame, :, 1, None]
        out[frame] = (q.astype(np.float32) * step + lo).astype(dtype)


def find_ranges(cuda: FakeCuda, named: dict[str, Any]) -> None:
    """`minmax` as the kernel's docstring says it; a NaN is passed over."""
    (rows, programs), size, parts = named["grid"], named["size"], named["parts"]
    step = shapes.BLOCK * shapes.TURNS
    assert programs == parts >= size / step
    x = cuda.view(named["x"], 4 * rows * size, np.float32).reshape(rows, size)
    partial = cuda.view(named["partial"], 8 * rows * parts, np.float32).reshape(rows, parts, 2)
    for part in range(parts):
        values = x[:, part * step : (part + 1) * step]
        partial[:, part, 0] = np.fmin.reduce(values, axis=1, initial=np.inf)
        partial[:, part, 1] = np.fmax.reduce(values, axis=1, initial=-np.inf)


def make_symbols(cuda: FakeCuda, named: dict[str, Any]) -> None:
    """`quantize` as the kernel's docstring says it: what no program of the grid covers stays as it is."""
    (rows, blocks), size, parts, own = named["grid"], named["size"], named["parts"], named["range_rows"]
    assert parts <= shapes.PARTS
    x = cuda.view(named["x"], 4 * rows * size, np.float32).reshape(rows, size)[:, : blocks * shapes.BLOCK]
    q = cuda.view(named["q"], rows * size).reshape(rows, size)[:, : blocks * shapes.BLOCK]
    bad = cuda.view(named["bad"], 4 * rows, np.int32)
    assert not bad.any(), "the flags were not set"
    if cuda.codebook:
        limits = cuda.view(named["partial"], 4 << cuda.bits, np.float32)
        q[:] = np.searchsorted(limits, x, side="left")  # a NaN becomes anything
        bad[:] = ~np.isfinite(x).all(axis=1)
        return
    partial = cuda.view(named["partial"], 8 * own * parts, np.float32).reshape(own, parts, 2)
    ranges = cuda.view(named["ranges"], 8 * rows, np.float32).reshape(rows, 2)
    for row in range(rows):
        lo, hi = partial[row % own, :, 0].min() + np.float32(0), partial[row % own, :, 1].max() + np.float32(0)
        ranges[row] = lo, hi
        try:
            q[row] = quantize(x[row], cuda.bits, lo, hi, "numpy")
        except InputError:
            bad[row] = 1
