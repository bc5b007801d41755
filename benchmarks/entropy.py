"""The entropy coder on recorded symbols: bytes, and symbols a second to bytes and from bytes to a float32 latent.

    python -m latentseg.benchmarks.entropy FILE.npy ... [--json] [--record FILE.jsonl]

FILE.npy: uint8 symbols (C, h, w). Arms: the coders of this package (context; Huffman with one code a channel, and one a
frame as in the paper), and zlib -1 and -9 on the same symbols. Every arm is first checked to give back the symbols,
then all are timed in turn, round by round. Decoding ends for every arm in the same float32 buffer, int2float included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling, StreamHeader
from ..bitstream.header import DEFAULT_TILE, Coder, tile_for
from ..errors import InputError, LatentsegError, VerificationError
from ..kernels import entropy, native_available
from ..kernels.dequantize import dequantize
from ..kernels.dispatch import Implementation

# Any range will do: the time does not depend on it, and this one makes the floats equal the symbols.
RANGE = Scaling("fixed", 0.0, 255.0)


@dataclass
class Arm:
    """One coder: `encode` makes bytes of the symbols, `decode` fills `out` from them."""

    name: str
    detail: dict[str, Any]
    encode: Callable[[], bytes]
    decode: Callable[[bytes], object]


def make_arms(
    q: NDArray[np.uint8],
    out: NDArray[np.float32],
    implementation: Implementation,
    lane_symbols: int,
    threads: int,
    tile: tuple[int, int] = DEFAULT_TILE,
) -> list[Arm]:
    """The arms for symbols q (C, h, w), all decoding into out (float32, same shape)."""

    def ours(coder: Coder) -> Arm:
        own = tile_for(coder, tile)
        header = StreamHeader(bytes(32), q.shape, 8, RANGE, coder=coder, lane_symbols=lane_symbols, tile=own)
        lane = {"tile": list(tile)} if coder == "context" else {"lane_symbols": lane_symbols}
        detail = {"implementation": implementation, **lane, "threads": threads}
        return Arm(
            coder,
            detail,
            lambda: entropy.encode_symbols(q, header, implementation=implementation),
            lambda payload: entropy.decode_latent(payload, header, out, threads, implementation),
        )

    raw = q.tobytes()

    def theirs(level: int) -> Arm:
        def decode(payload: bytes) -> None:
            symbols = np.frombuffer(zlib.decompress(payload), np.uint8).reshape(q.shape)
            dequantize(symbols, 8, RANGE.lo, RANGE.hi, out=out, implementation=implementation)

        return Arm(f"zlib -{level}", {"zlib": zlib.ZLIB_RUNTIME_VERSION}, lambda: zlib.compress(raw, level), decode)

    return [*(ours(coder) for coder in get_args(Coder)), theirs(1), theirs(9)]


def measure(
    q: NDArray[np.uint8],
    implementation: Implementation,
    lane_symbols: int,
    threads: int,
    repeats: int,
    seconds: float,
    tile: tuple[int, int] = DEFAULT_TILE,
) -> list[dict[str, Any]]:
    """One row an arm. Raises VerificationError when an arm does not give the symbols back."""
    out = np.empty(q.shape, np.float32)
    arms = make_arms(q, out, implementation, lane_symbols, threads, tile)
    payloads = []
    for arm in arms:
        out.fill(-1)
        payloads.append(arm.encode())
        arm.decode(payloads[-1])
        if not np.array_equal(out, q.astype(np.float32)):
            raise VerificationError(f"{arm.name}: the symbols did not come back")
    times: list[dict[str, list[float]]] = [{"encode": [], "decode": []} for _ in arms]
    # zlib -9 encodes a thousand times slower than the rest: an arm leaves a round once its share of time is spent.
    for _ in range(repeats):
        for arm, payload, taken in zip(arms, payloads, times, strict=True):
            if sum(taken["encode"]) < seconds or len(taken["encode"]) < 3:
                taken["encode"].append(_time(arm.encode))
            if sum(taken["decode"]) < seconds or len(taken["decode"]) < 3:
                taken["decode"].append(_time(arm.decode, payload))
    return [
        {
            "coder": arm.name,
            **arm.detail,
            "symbols": q.size,
            "bytes": len(payload),
            "bits_per_symbol": round(8 * len(payload) / q.size, 4),
            **{f"{way}_msymbols_s": _rates(q.size, seconds_) for way, seconds_ in taken.items()},
        }
        for arm, payload, taken in zip(arms, payloads, times, strict=True)
    ]


def _time(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _rates(symbols: int, seconds: Sequence[float]) -> dict[str, float]:
    """Millions of symbols a second: slowest, median and fastest repeat, and how many there were."""
    rates = {"min": max(seconds), "median": statistics.median(seconds), "max": min(seconds)}
    return {**{name: float(f"{symbols / value / 1e6:.4g}") for name, value in rates.items()}, "repeats": len(seconds)}


def load_symbols(path: Path) -> NDArray[np.uint8]:
    """uint8 (C, h, w) of a .npy file (InputError otherwise)."""
    try:
        q = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path}: not a .npy array of numbers") from None
    if q.dtype != np.uint8 or q.ndim != 3 or q.size == 0:
        raise InputError(f"{path}: {q.dtype} of shape {q.shape}, expected uint8 (C, h, w)")
    return np.ascontiguousarray(q)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table for people, a heading a file."""
    file = None
    for row in rows:
        if row["file"] != file:
            file = row["file"]
            print(f"\n{file}: {row['symbols']} symbols; million symbols/s, median (slowest to fastest repeat)")
            print(f"  {'coder':<16}{'bytes':>9}{'bits/symbol':>13}   {'encode':<26}decode + int2float")
        speed = [
            f"{s['median']:8.1f} ({s['min']:.1f} to {s['max']:.1f})"
            for s in (row["encode_msymbols_s"], row["decode_msymbols_s"])
        ]
        print(f"  {row['coder']:<16}{row['bytes']:>9}{row['bits_per_symbol']:>13.4f}   {speed[0]:<26}{speed[1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.entropy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npy")
    parser.add_argument("--json", action="store_true", help="rows as JSON Lines on stdout instead of the table")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    parser.add_argument("--implementation", choices=["auto", "native", "numpy"], default="auto")
    parser.add_argument("--lane-symbols", type=int, default=4096, help="symbols a lane (default %(default)s)")
    parser.add_argument(
        "--tile", type=int, nargs=2, default=DEFAULT_TILE, metavar=("ROWS", "COLS"), help="a lane of the context coder"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads that decode (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=100, help="rounds at most (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time an arm and way at most (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.implementation == "auto":
        options.implementation = "native" if native_available() else "numpy"
    from .machine import describe_machine, describe_versions
    from .report import append_row

    about = {
        "benchmark": "entropy",
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    rows = []
    try:
        for path in options.files:
            q = load_symbols(path)
            for row in measure(
                q,
                options.implementation,
                options.lane_symbols,
                options.threads,
                options.repeats,
                options.seconds,
                tuple(options.tile),
            ):
                rows.append({"file": path.name, "shape": list(q.shape), **row, **about})
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        print_table(rows)
    if options.record is not None:
        for row in rows:
            append_row(options.record, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
