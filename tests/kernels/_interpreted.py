"""Runs the Triton kernels in Triton's interpreter, each buffer between guard zones; run as a program by test_gpu.py.

The interpreter must be chosen before triton decorates a kernel, and reads and writes raw memory: a step outside a
buffer is seen here by what stands in the guard zones, not by it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from torch import Tensor

from latentseg.benchmarks import gpu_entropy
from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import InputError, VerificationError
from latentseg.kernels import entropy
from latentseg.kernels.dequantize import dequantize
from latentseg.kernels.quantize import midpoints, quantize, quantize_codebook
from latentseg.kernels.triton import context_decode, scaling, torch_ops

ZONE = 64  # bytes of each guard zone: aligned, as the buffer between them has to be
GUARD = 0xA5


class Guarded:
    """A kernel whose tensor arguments are put between guard zones for each launch, and copied back behind it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            zones, passed = [], []
            for arg in args:
                if not isinstance(arg, Tensor):
                    passed.append(arg)
                    continue
                raw = arg.detach().contiguous().reshape(-1).view(torch.uint8)
                zone = torch.full((len(raw) + 2 * ZONE,), GUARD, dtype=torch.uint8)
                zone[ZONE : ZONE + len(raw)] = raw
                inner = zone[ZONE : ZONE + len(raw)].view(arg.dtype).reshape(arg.shape)
                zones.append((arg, zone, inner))
                passed.append(inner)
            self.kernel[grid](*passed, **options)
            for arg, zone, inner in zones:
                assert (zone[:ZONE] == GUARD).all(), "a kernel wrote before a buffer"
                assert (zone[-ZONE:] == GUARD).all(), "a kernel wrote behind a buffer"
                arg.copy_(inner)
            self.launches += 1

        return launch


def install() -> list[Guarded]:
    guarded = []
    for module, name in ((scaling, "minmax"), (scaling, "quantize"), (scaling, "dequantize")):
        guarded.append(Guarded(getattr(module, name)))
        setattr(module, name, guarded[-1])
    torch_ops.context_decode = Guarded(context_decode.context_decode)
    return [*guarded, torch_ops.context_decode]


def message(function: Callable[[], object]) -> str:
    """The InputError that a call ends in; "" for none."""
    try:
        function()
    except InputError as error:
        return str(error)
    return ""


def symbols(rng: np.random.Generator, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """Smooth along rows, with jumps (escapes), and one constant channel."""
    top = (1 << bits) - 1
    steps = rng.laplace(0, 0.3 + 3 * rng.random((shape[0], 1, 1)), shape)
    steps[rng.random(shape) < 0.02] += 90
    q = np.clip(np.rint(np.cumsum(steps, axis=2)) + top // 2, 0, top).astype(np.uint8)
    q[shape[0] // 2] = min(1, top)
    return q


def scaling_of(mode: Any, bits: int) -> Scaling:
    """A codebook leaves the last symbols without centres, where the bits allow it."""
    if mode != "codebook":
        return Scaling("fixed", -3.0, 5.5) if mode == "fixed" else Scaling(mode)
    count = 2 if bits == 1 else 3 * 2**bits // 4
    centres = np.cumsum(np.random.default_rng(bits).uniform(0.01, 1, count))
    return Scaling("codebook", centres=tuple((centres - centres.mean()).tolist()))


def check_decode(
    shape: tuple[int, int, int], tile: tuple[int, int], bits: int, mode: str, frames: int, lanes: int
) -> None:
    rng = np.random.default_rng([*shape, *tile, bits])
    header = StreamHeader(bytes(32), shape, bits, scaling_of(mode, bits), coder="context", tile=tile)
    payloads, wanted = [], []
    for _ in range(frames):
        count = {"tensor": 1, "channel": shape[0]}.get(mode, 0)
        lo = rng.normal(size=count).astype(np.float32)
        ranges = [lo, lo + np.float32(2.3)] if count else []
        q = np.minimum(symbols(rng, shape, bits), np.uint8(header.levels - 1))
        payloads.append(entropy.encode_symbols(q, header, *ranges))
        wanted.append((q, entropy.decode_latent(payloads[-1], header, implementation="numpy")))
    decoder = torch_ops.Decoder(header, "cpu", lanes)
    for dtype in (torch.uint8, torch.float32, torch.float16):
        found = decoder.decode(payloads, dtype).numpy()
        truth = np.stack([q if dtype == torch.uint8 else x.astype(found.dtype) for q, x in wanted])
        np.testing.assert_array_equal(found, truth)


def check_damage() -> None:
    """Flipped bits in lanes are found where the reference finds them, and hurt no other frame or tile."""
    header = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("fixed", 0.0, 255.0), coder="context", tile=(4, 5))
    rng = np.random.default_rng(1)
    q = [symbols(rng, (3, 10, 9), 8) for _ in range(3)]
    good = [entropy.encode_symbols(x, header) for x in q]
    decoder = torch_ops.Decoder(header, "cpu", 64)
    refused = seen = 0
    for _ in range(25):
        bad = bytearray(good[1])
        bad[int(rng.integers(30, len(bad)))] ^= 1 << int(rng.integers(8))
        expected = message(lambda bad=bytes(bad): entropy.decode_symbols(bad, header, "numpy"))
        found = message(lambda bad=bytes(bad): decoder.decode([good[0], bad, good[2]], torch.uint8))
        assert bool(found) == bool(expected), (found, expected)
        assert not found or found.startswith("frame 1 of the batch: payload damaged: "), found
        refused += bool(found)
        if "does not end" in found:  # found by the kernel: the frames beside are there
            batch, data = decoder.upload([good[0], bytes(bad), good[2]])
            out = torch.empty((3, 3, 10, 9), dtype=torch.uint8)
            decoder.launch(batch, data, out)
            np.testing.assert_array_equal(out[0].numpy(), q[0])
            np.testing.assert_array_equal(out[2].numpy(), q[2])
            seen += 1
    assert refused >= 10, refused
    assert seen >= 5, seen


def check_scaling() -> None:
    rng = np.random.default_rng(2)
    for rows, size, bits in ((1, 1, 8), (3, 1025, 3), (2, 8193, 8), (5, 77, 1)):
        x = (100 * rng.normal(size=(rows, size))).astype(np.float32)
        x[-1] = 4.0  # a row of one value: its range is empty
        lo, hi = x.min(1), x.max(1)
        for bounds in ((lo, hi), (np.float32([-3]), np.float32([7]))):
            own = bounds[0] is lo
            tensors = [] if own else [torch.from_numpy(b) for b in bounds]
            q, ranges = torch_ops.quantize(torch.from_numpy(x), bits, *tensors)
            truth = quantize(x, bits, *bounds, implementation="numpy")
            np.testing.assert_array_equal(q.numpy(), truth)
            np.testing.assert_array_equal(ranges.numpy(), np.broadcast_to(np.stack(bounds, 1), (rows, 2)))
            for dtype in (torch.float32, torch.float16):
                found = torch_ops.dequantize(q, bits, ranges, dtype).numpy()
                back = dequantize(truth, bits, *bounds, implementation="numpy")
                np.testing.assert_array_equal(found, back.astype(found.dtype))
    # Halves go to the even integer, as NumPy's rint does.
    halves = np.arange(16, dtype=np.float32)[None] / 2
    q, _ = torch_ops.quantize(torch.from_numpy(halves), 3, torch.tensor([0.0]), torch.tensor([7.0]))
    assert q[0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 7]
    for value in (np.nan, np.inf, -np.inf):
        x = rng.normal(size=(3, 2000)).astype(np.float32)
        x[1, 1999] = value
        for tensors in ([], [torch.tensor([-1.0]), torch.tensor([1.0])]):
            found = message(lambda x=x, tensors=tensors: torch_ops.quantize(torch.from_numpy(x), 8, *tensors))
            assert "row 1 of" in found, (value, found)


def check_codebook() -> None:
    rng = np.random.default_rng(4)
    for rows, size, bits in ((1, 1, 1), (3, 1025, 3), (2, 77, 4), (2, 2049, 8)):
        centres = scaling_of("codebook", bits).centres
        limits = midpoints(centres)
        x = np.concatenate([rng.normal(scale=2 * centres[-1], size=rows * size).astype(np.float32), limits])
        x = rng.permutation(x)[: rows * size].reshape(rows, size)
        q = torch_ops.quantize_codebook(torch.from_numpy(x), centres)
        truth = quantize_codebook(x, centres, "numpy")
        np.testing.assert_array_equal(q.numpy(), truth)
        for dtype in (torch.float32, torch.float16):
            found = torch_ops.dequantize_codebook(q, centres, dtype).numpy()
            np.testing.assert_array_equal(found, np.array(centres, np.float32)[truth].astype(found.dtype))
        # Symbols that no encoder writes.
        every = torch.arange(256, dtype=torch.uint8)[None]
        found = torch_ops.dequantize_codebook(every, centres).numpy()[0]
        np.testing.assert_array_equal(found, np.array([*centres, *[centres[-1]] * (256 - len(centres))], np.float32))
    for value in (np.nan, np.inf, -np.inf):
        x = rng.normal(size=(3, 2000)).astype(np.float32)
        x[1, 1999] = value
        found = message(lambda x=x: torch_ops.quantize_codebook(torch.from_numpy(x), (-1.0, 0.0, 2.0)))
        assert "row 1 of" in found, (value, found)


def check_benchmark() -> None:
    """The correctness part of the GPU benchmark, from the file on; and that it would find a wrong float."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.npy"
        np.save(path, symbols(rng, (3, 9, 11), 8))
        argv = [str(path), "--batch", "1,2", "--tile", "5", "7", "--check-only", "--record", f"{folder}/rows.jsonl"]
        assert gpu_entropy.main(argv) == 0
        rows = [json.loads(line) for line in (Path(folder) / "rows.jsonl").read_text().splitlines()]
        assert [(row["batch"], row["arm"], row["equal"]) for row in rows] == [(1, "check", True), (2, "check", True)]
        assert gpu_entropy.main(argv[:1]) == 2  # the interpreter is not timed
        assert gpu_entropy.main([argv[0], "--batch", "0", "--check-only"]) == 2
        assert gpu_entropy.main([folder, "--check-only"]) == 3
        bench = gpu_entropy.Bench(np.load(path), 1, (5, 7), "cpu")
    bench.wanted[0, 1, 2, 3] += 1
    try:
        gpu_entropy.check(bench)
    except VerificationError as error:
        assert str(error).startswith("fused: "), str(error)  # noqa: PT017
    else:
        raise AssertionError("a wrong float was not found")


def main() -> None:
    np.seterr(all="ignore")
    kernels = install()
    check_scaling()
    check_codebook()
    check_decode((5, 9, 13), (4, 5), 8, "fixed", 2, 64)
    check_decode((3, 7, 7), (9, 2), 5, "tensor", 3, 64)
    check_decode((3, 1, 1), (1, 16), 8, "channel", 3, 32)
    check_decode((2, 3, 65), (2, 33), 8, "channel", 1, 32)
    check_decode((1, 17, 1), (16, 1), 1, "tensor", 2, 128)
    check_decode((7, 16, 40), (7, 11), 8, "channel", 2, 256)
    check_decode((3, 9, 13), (4, 5), 3, "codebook", 2, 64)
    check_decode((1, 3, 17), (2, 33), 8, "codebook", 2, 32)
    check_decode((2, 2, 9), (1, 16), 1, "codebook", 1, 32)
    check_damage()
    check_benchmark()
    assert all(kernel.launches for kernel in kernels)
    print("interpreted: all equal")


if __name__ == "__main__":
    sys.exit(main())
