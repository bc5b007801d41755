"""The entropy coder on recorded symbols: bytes, and symbols a second to bytes and from bytes to a float32 latent.

The engine of `latentseg bench entropy`, whose help lists the arms. Every arm is first checked to give back the symbols,
then all are timed in turn, round by round, in one process. Decoding ends for every arm in the same float32 buffer,
int2float included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .entropy_arms import Arm, Missing, Setup, make_arms
from .machine import describe_machine, describe_versions


def measure(
    q: NDArray[np.uint8], setup: Setup, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """One row an arm, for symbols q (uint8 (C, h, w), C-contiguous).

    progress: called with (done, total) rounds. Raises VerificationError when an arm does not give the symbols back.
    """
    out = np.empty(q.shape, np.float32)
    arms = [(arm, b"" if isinstance(arm, Missing) else arm.check(q, out)) for arm in make_arms(q, out, setup)]
    # zlib -9 encodes a thousand times slower than the rest: an arm leaves the rounds once its share of time is spent.
    for done in range(setup.repeats):
        for arm, payload in arms:
            if isinstance(arm, Missing):
                continue
            for way, call, arguments in (("encode", arm.encode, ()), ("decode", arm.decode, (payload,))):
                taken = arm.times[way]
                wanted = way == "decode" or arm.times_encode
                if wanted and (sum(taken) < setup.seconds or len(taken) < 3):
                    taken.append(_time(call, *arguments))
        progress(done + 1, setup.repeats)
    return [_row(arm, payload, q.size) for arm, payload in arms]


def about() -> dict[str, Any]:
    """What every row of a run says about it: date, machine, versions."""
    return {
        "benchmark": "entropy",
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _row(arm: Arm | Missing, payload: bytes, symbols: int) -> dict[str, Any]:
    if isinstance(arm, Missing):
        return {"coder": arm.name, "not_installed": arm.error.hint}
    return {
        "coder": arm.name,
        **arm.detail,
        "symbols": symbols,
        "bytes": len(payload),
        "bits_per_symbol": round(8 * len(payload) / symbols, 4),
        **{f"{way}_msymbols_s": _rates(symbols, seconds) for way, seconds in arm.times.items()},
    }


def _time(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _rates(symbols: int, seconds: Sequence[float]) -> dict[str, float] | None:
    """Millions of symbols a second: slowest, median and fastest repeat, and how many; None where nothing was timed."""
    if not seconds:
        return None
    rates = {"min": max(seconds), "median": statistics.median(seconds), "max": min(seconds)}
    return {**{name: float(f"{symbols / value / 1e6:.4g}") for name, value in rates.items()}, "repeats": len(seconds)}


# --- for people -------------------------------------------------------------------------------------------------------


def label(row: dict[str, Any]) -> str:
    """A row's coder, and its threads where it has several."""
    threads = row.get("threads", 1)
    return str(row["coder"]) if threads == 1 else f"{row['coder']}, {threads} threads"


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one file as a table. `x`: by how much a coder decodes faster than with its first number of threads."""
    first = rows[0]
    threads = len({row.get("threads", 1) for row in rows}) > 1
    shape = "x".join(map(str, first["shape"]))
    columns = f"  {'coder':<27}{'bytes':>9}{'bits/symbol':>13}   {'encode':<27}{'decode + int2float':<27}"
    lines = [
        f"{first['file']}: {shape} symbols of {first['bits']} bits; tiles of {'x'.join(map(str, first['tile']))}",
        "million symbols/s, median (slowest to fastest repeat); one thread unless said",
        columns + ("x" if threads else ""),
    ]
    alone: dict[str, float] = {}
    for row in rows:
        if "not_installed" in row:
            lines.append(f"  {row['coder']:<27}not installed: {row['not_installed']}")
            continue
        encode, decode = row["encode_msymbols_s"], row["decode_msymbols_s"]
        factor = decode["median"] / alone.setdefault(row["coder"], decode["median"])
        lines.append(
            f"  {label(row):<27}{row['bytes']:>9}{row['bits_per_symbol']:>13.4f}   {_speed(encode):<27}"
            f"{_speed(decode):<27}{f'{factor:.2f}' if threads and 'threads' in row else ''}"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _speed(rates: dict[str, float] | None) -> str:
    return "-" if rates is None else f"{rates['median']:7.1f} ({rates['min']:.1f} to {rates['max']:.1f})"
