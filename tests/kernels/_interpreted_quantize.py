"""Runs `QuantizeKernel` with the real kernels in Triton's interpreter; run as a program by test_gpu_quantize.py.

Device memory is host memory between guard zones, and a launch calls the interpreted kernel with views of it: grids,
arguments and the passes that find the ranges are the launcher's own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from _kernel_images import kernels

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import InputError
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.launch import QuantizeKernel
from latentseg.kernels.gpu.rows import quantize_rows
from latentseg.kernels.quantize import midpoints, quantize, quantize_codebook
from latentseg.kernels.triton import scaling

ZONE, GUARD = 256, 0xA5
DTYPES = {"x": torch.float32, "partial": torch.float32, "q": torch.uint8, "ranges": torch.float32, "bad": torch.int32}


class Interpreted:
    """As much of a `Device` as `QuantizeKernel` asks for."""

    capability = 90

    def __init__(self, header: StreamHeader) -> None:
        codebook = header.scaling.mode == "codebook"
        self.blocks: dict[int, torch.Tensor] = {}
        self.launched: list[str] = []
        self.constants = {
            "minmax": {"BLOCK": shapes.BLOCK, "TURNS": shapes.TURNS},
            "quantize": {"BITS": header.bits, "BLOCK": shapes.BLOCK, "PARTS": shapes.PARTS, "CODEBOOK": codebook},
        }

    def load(self, image: Any) -> Any:
        return getattr(scaling, image.kernel)

    def allocate(self, size: int) -> int:
        block = torch.full((size + 2 * ZONE + 64,), GUARD, dtype=torch.uint8)
        address = -(-block.data_ptr() // 64) * 64 + ZONE
        self.blocks[address] = block[address - block.data_ptr() - ZONE :][: size + 2 * ZONE]
        return address

    def upload(self, address: int, array: np.ndarray, stream: int = 0) -> None:
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def wait(self, stream: int = 0) -> None: ...

    def tensor(self, address: int, dtype: torch.dtype) -> torch.Tensor:
        """All memory from an address on, to the end of its block."""
        for start, block in self.blocks.items():
            if start <= address < start + len(block) - 2 * ZONE:
                assert address % 16 == 0
                inner = block[ZONE + address - start : len(block) - ZONE]
                return inner[: len(inner) // dtype.itemsize * dtype.itemsize].view(dtype)
        raise AssertionError(f"{address:#x} is not device memory")

    def launch(self, function: Any, image: Any, grid: tuple[int, int], values: dict[str, int], stream: int) -> None:
        names = [name for name, kind in image.arguments if kind != "scratch"]
        assert sorted(names) == sorted(values)
        given = [self.tensor(values[n], DTYPES[n]) if n in DTYPES else values[n] for n in names]
        function[grid](*given, **self.constants[image.kernel], **shapes.EXACT)
        self.launched.append(image.kernel)
        for block in self.blocks.values():
            assert (block[:ZONE] == GUARD).all(), f"{image.kernel} wrote before a buffer"
            assert (block[-ZONE:] == GUARD).all(), f"{image.kernel} wrote behind a buffer"


def run(header: StreamHeader, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Flags (frames, R), ranges (frames, R, 2), symbols like z, and the kernels that ran."""
    rows = quantize_rows(header, len(z))
    device: Any = Interpreted(header)
    images = replace(kernels(bits=header.bits, tile=header.tile), codebook=header.scaling.mode == "codebook")
    kernel = QuantizeKernel(device, images, header)
    x, partial = device.allocate(z.nbytes), device.allocate(max(1, rows.partial_bytes))
    q, ranges, bad = (device.allocate(size) for size in (z.size, 8 * rows.rows, 4 * rows.rows))
    device.upload(x, z)
    device.upload(bad, np.zeros(rows.rows, np.int32))
    kernel.start(rows, 0, x=x, partial=partial, q=q, ranges=ranges, bad=bad)
    found = [device.tensor(a, DTYPES[name]).numpy() for name, a in (("bad", bad), ("ranges", ranges), ("q", q))]
    return (
        found[0].reshape(len(z), -1), found[1].reshape(len(z), -1, 2), found[2].reshape(z.shape), device.launched
    )  # fmt: skip


def scaling_of(mode: Any) -> Scaling:
    return Scaling("fixed", -3.0, 5.5) if mode == "fixed" else Scaling(mode)


def check(shape: tuple[int, int, int], mode: Any, bits: int, frames: int, passes: int) -> None:
    """Symbols, ranges and payloads against NumPy's."""
    rng = np.random.default_rng([*shape, bits])
    header = StreamHeader(bytes(32), shape, bits, scaling_of(mode), coder="context", tile=(4, 5))
    z = rng.laplace(0, 2, (frames, *shape)).astype(np.float32)
    z[1:, 0] = 4.0  # an empty range, with a range a channel
    z[2:] = -0.0
    bad, ranges, q, launched = run(header, z)
    assert launched == ["minmax"] * passes + ["quantize"], launched
    assert not bad.any()
    for latent, found, symbols in zip(z, ranges, q, strict=True):
        axes = (1, 2) if mode == "channel" else None
        lo, hi = (-3.0, 5.5) if mode == "fixed" else (latent.min(axis=axes), latent.max(axis=axes))
        np.testing.assert_array_equal(symbols, quantize(latent, bits, lo, hi, "numpy"))
        np.testing.assert_array_equal(found[:, 0], lo)
        np.testing.assert_array_equal(found[:, 1], hi)
        given = [] if mode == "fixed" else [found[:, 0], found[:, 1]]
        assert entropy.encode_symbols(symbols, header, *given) == entropy.encode_latent(latent, header, "numpy")


def check_not_finite(shape: tuple[int, int, int], mode: Any) -> None:
    """One frame of three is flagged where the reference refuses it: for either end, all of it, or its range."""
    header = StreamHeader(bytes(32), shape, 8, scaling_of(mode), coder="context", tile=(4, 5))
    first, last, every = (1, 0, 0, 0), (1, *(side - 1 for side in shape)), (1,)
    troubles = [({first: np.nan}, True), ({last: np.nan}, True), ({every: np.nan}, True), ({last: np.inf}, True),
                ({first: -2e38, (1, 0, 0, 1): 2e38}, mode != "fixed")]  # fmt: skip
    for values, expected in troubles:
        z = np.random.default_rng(1).laplace(0, 2, (3, *shape)).astype(np.float32)
        for place, value in values.items():
            z[place] = value
        try:
            entropy.encode_latent(z[1], header, "numpy")
        except InputError:
            assert expected
        else:
            assert not expected
        assert run(header, z)[0].any(axis=1).tolist() == [False, expected, False], (mode, values)


def check_codebook(shape: tuple[int, int, int], count: int, bits: int) -> None:
    """Symbols and flags against NumPy's: three frames, the last one with a value that is not finite."""
    rng = np.random.default_rng(count)
    centres = np.sort(rng.laplace(0, 2, count)).astype(np.float32)
    chosen = Scaling("codebook", centres=tuple(centres.tolist()))
    header = StreamHeader(bytes(32), shape, bits, chosen, coder="context", tile=(4, 5))
    z = rng.laplace(0, 2, (3, *shape)).astype(np.float32)
    z[1] = rng.choice(midpoints(centres), shape)
    z[2].flat[-1] = -np.inf
    bad, _, q, launched = run(header, z)
    assert launched == ["quantize"]
    assert bad.reshape(-1).tolist() == [0, 0, 1]
    np.testing.assert_array_equal(q[:2], quantize_codebook(z[:2], centres, "numpy"))


def main() -> None:
    np.seterr(all="ignore")
    shapes.BLOCK, shapes.TURNS, shapes.PARTS = 16, 2, 4
    for shape, passes in (((3, 1, 1), (0, 1, 1)), ((5, 3, 7), (0, 1, 1)), ((3, 11, 13), (0, 2, 2))):
        for mode, expected in zip(("fixed", "tensor", "channel"), passes, strict=True):
            check(shape, mode, 8 if mode == "fixed" else 5, 3, expected)
    for mode in ("fixed", "tensor", "channel"):
        check_not_finite((2, 5, 9), mode)
    for shape, count, bits in (((3, 1, 1), 2, 1), ((5, 3, 7), 6, 3), ((2, 5, 9), 200, 8)):
        check_codebook(shape, count, bits)
    print("interpreted: all equal")


if __name__ == "__main__":
    main()
