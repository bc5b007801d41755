"""Arms on a GPU, timed so that they can be compared: rounds by turns, several batches under way, and one at a time.

In a round every arm makes as many batches as every other, and the ratio of two arms is taken inside the round
(`measure.py`). Throughput is of a pass with batches under way; latency of batches with nothing else under way, from the
bytes on the host to the labels there.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .measure import Timing, paired_ratio, round_orders, spread, undisturbed

LEAST_BATCHES, MOST_BATCHES = 8, 4000
LEAST_SINGLES, MOST_SINGLES = 10, 200


class ArmError(Exception):
    """An arm failed while it was timed. name: the arm's.  error: what it raised."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{name}: {error}")
        self.name, self.error = name, error


class Passing(Protocol):
    """What can be timed."""

    def run(self, count: int) -> Iterator[Any]:
        """The labels of so many batches, in order, with others under way behind the one that is given."""
        ...

    def singles(self, count: int) -> Iterator[float]:
        """Seconds of so many batches, each from its bytes to its labels with nothing else under way."""
        ...


@dataclass
class GpuTiming(Timing):
    """`rounds` are whole passes; `latencies` of single batches. cpu: seconds of all the process's threads, a pass.
    joules: a pass, where the GPU tells."""

    cpu: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The numbers of a row: frames/s by median of the rounds, latency in milliseconds a batch."""
        frames = self.items_per_round
        found: dict[str, Any] = {
            "frames_per_second": spread([frames / seconds for seconds in self.rounds]),
            "rounds": len(self.rounds),
            "frames_per_round": frames,
            "latency_ms": latencies(self.latencies),
            "cpu_ms_per_frame": 1e3 * statistics.median(self.cpu) / frames,
        }
        if self.joules:
            found["joules_per_frame"] = sum(self.joules) / (frames * len(self.joules))
        return found


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 (linear between ranks) and maximum in milliseconds, and how many there are."""
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "max": 1e3 * max(seconds), "n": len(seconds)}


def how_many(seconds_each: float, wanted: float, least: int, most: int) -> int:
    """How many repeats of `seconds_each` fill `wanted` seconds, within limits."""
    return max(least, min(most, math.ceil(wanted / seconds_each))) if seconds_each > 0 else most


def time_arms(
    arms: Mapping[str, Passing],
    batch: int,
    *,
    rounds: int,
    seconds: float,
    seed: int = 0,
    joules: Callable[[], float] | None = None,
) -> dict[str, GpuTiming]:
    """Time every arm for `rounds` interleaved rounds, each arm warm before.

    seconds: what a pass of the fastest arm should take; the others make as many batches. joules: the GPU's counter.
    Raises ArmError where an arm fails.
    """
    first: dict[str, float] = {}
    single: dict[str, int] = {}
    for name, arm in arms.items():
        with _naming(name):
            first[name] = _pass(arm, LEAST_BATCHES) / LEAST_BATCHES
    batches = how_many(min(first.values()), seconds, LEAST_BATCHES, MOST_BATCHES)
    for name, arm in arms.items():
        with _naming(name):
            each = statistics.median(arm.singles(3))
        single[name] = how_many(each, seconds / 2, LEAST_SINGLES, MOST_SINGLES)
    timings = {name: GpuTiming(batch, batches * batch) for name in arms}
    for order in round_orders(list(arms), rounds, seed):
        for name in order:
            timing, arm = timings[name], arms[name]
            energy, cpu = joules and joules(), time.process_time()
            with _naming(name):
                timing.rounds.append(_pass(arm, batches))
            timing.cpu.append(time.process_time() - cpu)
            if joules is not None and energy is not None:
                timing.joules.append(joules() - energy)
            with _naming(name), undisturbed():
                timing.latencies.extend(arm.singles(single[name]))
    return timings


def ratios(timings: Mapping[str, GpuTiming], reference: str) -> dict[str, dict[str, Any] | None]:
    """Each arm's time over the reference's, round by round; None where the reference did not run."""
    known = timings.get(reference)
    return {name: None if known is None else paired_ratio(timing, known) for name, timing in timings.items()}


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ArmError(name, error) from error


def _pass(arm: Passing, count: int) -> float:
    with undisturbed():
        start = time.perf_counter()
        deque(arm.run(count), maxlen=0)
        return time.perf_counter() - start


def stage_row(samples: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians of the stages' seconds over several batches: milliseconds, and shares of their sum, which sum to 1."""
    middle = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    total = sum(middle.values())
    return {
        "stage_ms": {name: 1e3 * seconds for name, seconds in middle.items()},
        "stage_share": {name: seconds / total for name, seconds in middle.items()},
        "batches": len(samples),
    }


def host_row(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians of what the host does a batch, in milliseconds, and `total`, the median of their sums."""
    middle = {name: 1e3 * statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return {**middle, "total": 1e3 * statistics.median(sum(sample.values()) for sample in samples)}
