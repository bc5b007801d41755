"""The entropy decoder on a GPU: first whether it gives what the CPU gives, then how fast, all arms in turn.

    python -m latentseg.benchmarks.gpu_entropy FILE.npy ... [--batch 1,8,32,128] [--record FILE.jsonl]

FILE.npy: uint8 symbols (C, h, w). A batch is frames of other symbols each: the file's, moved by some columns; from the
ninth on they repeat, each with bytes of its own in memory.
Arms: `fused` (entropy decode + int2float in one kernel, float16), `apart` (to symbols, then int2float), `compiled` (the
fused kernel, compiled ahead of time and launched without Triton), `nvcomp-ans` (nvCOMP's ANS on the same symbols, then
int2float). What cannot run here is a row that says why. Kernel times come from CUDA events around a captured graph of
`--launches` runs, so that the host's launches are not in them; the host's own work and the copy are rows of their own.

Without a GPU, `TRITON_INTERPRET=1 ... --check-only` runs the correctness part in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling, StreamHeader
from ..bitstream.header import DEFAULT_TILE
from ..errors import BackendMissingError, InputError, LatentsegError, UsageError, VerificationError, missing_extra
from ..kernels import entropy, native_available
from ..kernels.gpu.batch import check_damage, plan_batch
from ..kernels.triton import interpreted

Timer = Callable[[], float]


def load_symbols(path: Path) -> NDArray[np.uint8]:
    """uint8 (C, h, w) of a .npy file (InputError otherwise)."""
    try:
        q = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        raise InputError(f"{path}: not a .npy array of numbers") from None
    if not isinstance(q, np.ndarray):
        raise InputError(f"{path}: an archive of arrays, expected one .npy")
    if q.dtype != np.uint8 or q.ndim != 3 or q.size == 0:
        raise InputError(f"{path}: {q.dtype} of shape {q.shape}, expected uint8 (C, h, w), not empty")
    return np.ascontiguousarray(q)


DISTINCT = 8


def frames_of(q: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """At most `DISTINCT` frames with the statistics of q (C, h, w)."""
    return [np.ascontiguousarray(np.roll(q, 5 * i, axis=2)) for i in range(min(count, DISTINCT))]


class Bench:
    """One file's symbols at one batch size: its arms on a device.

    Every arm leaves float16 (frames, C, h, w) in `out`, `check` compares them with the CPU's.
    """

    def __init__(self, q: NDArray[np.uint8], count: int, tile: tuple[int, int], device: str) -> None:
        import torch

        from ..kernels.triton.torch_ops import Decoder, dequantize

        self.torch, self.device = torch, device
        distinct = frames_of(q, count)
        self.header = StreamHeader(bytes(32), q.shape, 8, Scaling("fixed", -3.0, 5.5), coder="context", tile=tile)
        turns = [i % len(distinct) for i in range(count)]
        coded = [entropy.encode_symbols(frame, self.header) for frame in distinct]
        self.symbols, self.payloads = [distinct[i] for i in turns], [coded[i] for i in turns]
        self.decoder = Decoder(self.header, device)
        self.batch, self.data = self.decoder.upload(self.payloads)
        shape = (count, *q.shape)
        self.out = torch.empty(shape, dtype=torch.float16, device=device)
        self.levels = torch.empty(shape, dtype=torch.uint8, device=device)
        self.ranges = torch.tensor([[-3.0, 5.5]], device=device)
        self._dequantize = dequantize
        self.wanted = np.stack([entropy.decode_latent(p, self.header) for p in coded])[turns].astype(np.float16)

    def fused(self) -> Any:
        return self.decoder.launch(self.batch, self.data, self.out)

    def apart(self) -> Any:
        damaged = self.decoder.launch(self.batch, self.data, self.levels)
        flat = self.levels.reshape(len(self.levels), -1)
        self._dequantize(flat, 8, self.ranges, self.torch.float16, self.out.reshape(flat.shape))
        return damaged

    def check(self, name: str, run: Callable[[], Any]) -> None:
        """Raise VerificationError unless an arm gives the CPU's floats, bit for bit."""
        self.out.fill_(-7)
        damaged = run()
        found = self.out.cpu().numpy()
        if damaged is not None:
            check_damage(damaged.cpu().numpy())
        if not np.array_equal(found, self.wanted):
            where = tuple(int(i) for i in np.argwhere(found != self.wanted)[0])
            raise VerificationError(f"{name}: {found[where]} at {where}, expected {self.wanted[where]}")

    def compiled(self) -> Callable[[], Any]:
        """The fused kernel out of a set that was compiled ahead of time, on the same buffers."""
        from ..kernels.gpu.launch import Gpu, GpuDecoder
        from ..kernels.triton.compile import compile_kernels

        gpu = Gpu(self.torch.cuda.current_device())
        kernels = compile_kernels(8, self.header.tile, [gpu.capability], ["float16"])
        decoder = GpuDecoder(gpu, kernels, self.header, len(self.payloads))
        if not np.array_equal(decoder.decode(self.payloads), self.wanted):
            raise VerificationError("compiled: other floats than the CPU's")
        return lambda: decoder.launch(self.batch, self.torch.cuda.current_stream().cuda_stream)

    def nvcomp(self) -> tuple[Callable[[], Any], int]:
        """nvCOMP's ANS on the same symbols, then int2float; and the bytes that it takes."""
        from nvidia import nvcomp  # type: ignore[attr-defined]  # the namespace package may be there without it

        codec = nvcomp.Codec(algorithm="ANS")
        rows = [self.torch.from_numpy(frame.reshape(-1)).to(self.device) for frame in self.symbols]
        coded = codec.encode([nvcomp.as_array(row) for row in rows])

        def run() -> None:
            decoded = [self.torch.as_tensor(array, device=self.device) for array in codec.decode(coded)]
            flat = self.torch.stack([array.view(self.torch.uint8) for array in decoded])
            self._dequantize(flat, 8, self.ranges, self.torch.float16, self.out.reshape(flat.shape))

        return run, sum(int(array.buffer_size) for array in coded)


def captured(torch: Any, run: Callable[[], object], launches: int) -> Timer:
    """Seconds of one run on the device, from events around the replay of a graph of `launches` runs."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            run()

    def timer() -> float:
        return event_seconds(torch, graph.replay) / launches

    return timer


def event_seconds(torch: Any, run: Callable[[], object]) -> float:
    """Seconds on the device between two events around a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def wall_seconds(torch: Any, run: Callable[[], object]) -> float:
    """Seconds on the host's clock until the device is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def bandwidth(torch: Any) -> float:
    """Bytes a second that this device's memory moves: a copy within it, read and written bytes both counted."""
    a, b = (torch.empty(2**28, dtype=torch.uint8, device="cuda") for _ in range(2))
    seconds = min(event_seconds(torch, lambda: b.copy_(a)) for _ in range(20))
    return 2 * 2**28 / seconds


def measure(bench: Bench, rounds: int, launches: int, peak: float) -> list[dict[str, Any]]:
    """One row an arm: seconds a batch over the rounds, and what follows from them. Checks every arm first."""
    torch = bench.torch
    timers: dict[str, Timer] = {}
    absent: dict[str, str] = {}
    sizes = {"nvcomp-ans": 0}
    for name in ("fused", "apart", "compiled", "nvcomp-ans"):
        try:
            if name == "nvcomp-ans":
                run, sizes[name] = bench.nvcomp()
            else:
                run = bench.compiled() if name == "compiled" else getattr(bench, name)
            if name != "compiled":  # it has its own buffers, and has been checked
                bench.check(name, run)
            # nvCOMP allocates and synchronises inside: it cannot be captured.
            alone = partial(event_seconds, torch, run)
            timers[name] = alone if name == "nvcomp-ans" else captured(torch, run, launches)
        except (ImportError, BackendMissingError) as error:
            absent[name] = str(error).splitlines()[0]
        except Exception as error:  # nvCOMP's own errors must not cost the rows of the others
            if name != "nvcomp-ans":
                raise
            absent[name] = f"{type(error).__name__}: {error}"
    pinned = torch.from_numpy(bench.batch.data).pin_memory()

    def copy() -> None:
        bench.data.copy_(pinned, non_blocking=True)

    def copy_and_decode() -> None:
        copy()
        bench.fused()

    timers["copy"] = partial(event_seconds, torch, copy)
    timers["copy+fused"] = partial(wall_seconds, torch, copy_and_decode)
    times: dict[str, list[float]] = {name: [] for name in timers}
    plans: list[float] = []
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
        start = time.perf_counter()
        plan_batch(bench.payloads, bench.header)
        plans.append(time.perf_counter() - start)
    times["host-plan"] = plans
    symbols = bench.wanted.size
    moved = {"fused": bench.batch.data.nbytes + bench.out.nbytes}
    moved["compiled"] = moved["fused"]
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        row = {
            "arm": name,
            "us_batch": _spread([1e6 * s for s in seconds]),
            "us_frame": round(1e6 * median / len(bench.payloads), 3),
        }
        if name not in ("copy", "host-plan"):
            row["gsymbols_s"] = round(symbols / median / 1e9, 2)
        if name in moved:
            row["bandwidth_share"] = round(moved[name] / median / peak, 4)
        if name in ("apart", "compiled", "nvcomp-ans"):
            row["ratio_to_fused"] = _spread([s / f for s, f in zip(seconds, times["fused"], strict=True)])
        row["bytes"] = sizes.get(name, sum(map(len, bench.payloads)))
        rows.append(row)
    return rows + [{"arm": name, "not_available": why} for name, why in absent.items()]


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in ordered.items()}


def check(bench: Bench) -> None:
    """The correctness part alone: both ways of decoding against the CPU, and a damaged lane."""
    bench.check("fused", bench.fused)
    bench.check("apart", bench.apart)
    check_refusal(bench)


def check_refusal(bench: Bench) -> None:
    """Raise VerificationError unless a damaged lane is found."""
    bad = bytearray(bench.payloads[-1])
    bad[-1] ^= 0x80  # the last lane's last bit: filling, or a bit of its last state, which has to be 0
    try:
        bench.decoder.decode([*bench.payloads[:-1], bytes(bad)])
    except InputError:
        return
    raise VerificationError("a damaged payload was decoded without a word")


def describe_gpu(torch: Any) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gpu_entropy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npy")
    parser.add_argument("--batch", default="1,8,32,128", metavar="N,M", help="frames a batch (default: %(default)s)")
    parser.add_argument("--tile", type=int, nargs=2, default=DEFAULT_TILE, metavar=("ROWS", "COLS"), help="of a lane")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds of all arms (default: %(default)s)")
    parser.add_argument("--launches", type=int, default=20, help="runs in a captured graph (default: %(default)s)")
    parser.add_argument("--check-only", action="store_true", help="compare with the CPU, time nothing")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    options = parser.parse_args(arguments)
    from .report import append_row

    try:
        for row in _rows(options):  # one by one: what has been measured is kept, whatever comes after it
            print(json.dumps(row), flush=True)
            if options.record is not None:
                append_row(options.record, row)
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from .machine import describe_machine, describe_versions

    try:
        import torch
        import triton
    except ImportError as error:
        raise missing_extra(str(error.name), "train,triton") from None
    on_cpu = interpreted()
    if on_cpu and not options.check_only:
        raise UsageError("TRITON_INTERPRET is set: interpreted kernels are not timed", hint="unset it, or --check-only")
    if not torch.cuda.is_available() and not on_cpu:
        raise BackendMissingError(
            "torch sees no CUDA device on this machine",
            hint="without one: TRITON_INTERPRET=1 python -m latentseg.benchmarks.gpu_entropy FILE.npy --check-only",
        )
    try:
        counts = [int(part) for part in options.batch.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--batch {options.batch}, expected numbers above 0, such as 1,8,32")
    if min(options.rounds, options.launches) < 1:
        raise UsageError("--rounds and --launches want at least 1")
    device = "cpu" if on_cpu else "cuda"
    about = {
        "benchmark": "gpu_entropy", "schema": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(), "versions": {**describe_versions(), "triton": triton.__version__},
        "gpu": None if on_cpu else describe_gpu(torch), "host": "native" if native_available() else "numpy",
    }  # fmt: skip
    peak = 0.0 if options.check_only else bandwidth(torch)
    for path in options.files:
        q = load_symbols(path)
        for count in counts:
            bench = Bench(q, count, tuple(options.tile), device)
            found = [{"arm": "check", "equal": True}]
            if options.check_only:
                check(bench)
            else:
                check_refusal(bench)  # that the arms are right, `measure` checks itself
                found = measure(bench, options.rounds, options.launches, peak)
            common = {"file": path.name, "shape": list(q.shape), "tile": list(options.tile), "batch": count}
            yield from ({**common, **row, "memory_gb_s": round(peak / 1e9, 1), **about} for row in found)


if __name__ == "__main__":
    sys.exit(main())
