"""Timing of several ways to do one job so that they can be compared: interleaved rounds, percentiles, paired ratios.

A *round* is one pass of every arm over the same items. Within a round the arms follow one another, and the order
rotates from round to round, so that a machine that slows down (heat, a neighbour) slows all of them: the ratio of two
arms is taken inside a round, never between their averages.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

STAGES = ("entropy_decode", "decode", "segment")
CLASSIFYING_STAGES = ("entropy_decode", "decode", "classify")


class StageClock:
    """Adds up the seconds spent in named stages; a stage may be entered any number of times."""

    def __init__(self, stages: Sequence[str] = STAGES) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class Runnable(Protocol):
    """What can be timed: `start` makes ready for a pass from item 0, `run` does items `first` to `last` (exclusive)."""

    def start(self, batch: int) -> None: ...

    def run(self, first: int, last: int, clock: StageClock) -> Any: ...


@dataclass
class Timing:
    """What was measured of one arm at one batch size. All times in seconds."""

    batch: int
    items_per_round: int
    latencies: list[float] = field(default_factory=list)  # one per batch, over all rounds
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # summed over all rounds
    rounds: list[float] = field(default_factory=list)  # sum of the batch latencies of each round

    @property
    def per_second(self) -> float:
        """Items per second over all rounds."""
        return self.items_per_round * len(self.rounds) / sum(self.rounds)

    def shares(self) -> dict[str, float]:
        """Fraction of the time spent in each stage; `rest` is what no stage accounts for. They sum to 1."""
        total = sum(self.rounds)
        shares = {name: seconds / total for name, seconds in self.stages.items()}
        return {**shares, "rest": 1.0 - sum(shares.values())}

    def summary(self) -> dict[str, Any]:
        """The numbers of a row: rates in items/s, latencies in milliseconds *per batch*, shares as fractions."""
        per_round = [self.items_per_round / seconds for seconds in self.rounds]
        return {
            "batch": self.batch,
            "n": len(self.latencies),
            "rounds": len(self.rounds),
            "frames_per_round": self.items_per_round,
            "frames_per_second": self.per_second,
            "frames_per_second_rounds": spread(per_round),
            "latency_ms": {name: 1e3 * value for name, value in percentiles(self.latencies).items()},
            "stage_share": self.shares(),
            "stage_ms_per_frame": {name: 1e3 * share / self.per_second for name, share in self.shares().items()},
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90, p99 (linear between ranks, NumPy's default) and maximum of at least one value."""
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "mean": statistics.fmean(values),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": max(values),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of at least one value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratio(timing: Timing, reference: Timing) -> dict[str, Any]:
    """Time of an arm over time of the reference, round by round: above 1 the arm is slower than the reference.

    Returns `median`, `min`, `max` over rounds, and the ratios themselves as `per_round`.
    """
    if len(timing.rounds) != len(reference.rounds):
        raise ValueError(f"paired rounds wanted, found {len(timing.rounds)} and {len(reference.rounds)}")
    ratios = [mine / theirs for mine, theirs in zip(timing.rounds, reference.rounds, strict=True)]
    return {**spread(ratios), "per_round": ratios}


def round_orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """The order of the arms in each round: one seeded shuffle, rotated by one place a round.

    Over any `len(names)` rounds in a row every arm stands at every place once, so that no arm always runs on the
    caches or the clock speed that a particular other arm left behind.
    """
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    return [shuffled[turn % len(shuffled) :] + shuffled[: turn % len(shuffled)] for turn in range(rounds)]


def measure(
    arms: Mapping[str, Runnable],
    items: int,
    *,
    batch: int,
    rounds: int,
    warmup: int,
    seed: int,
    stages: Sequence[str] = STAGES,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time every arm over the same `items`, in batches of `batch`, for `rounds` interleaved rounds.

    Only whole batches are timed: `items // batch * batch` items a round, the same ones for every arm; a rest smaller
    than a batch would mix another shape into the latencies. Before the first round each arm runs `warmup` batches
    untimed. The garbage collector is off while a round runs, and runs between rounds. `stages`: those that the arms
    name. `progress` is called after each arm's pass.
    """
    whole = items // batch
    if whole < 1 or rounds < 1 or not arms:
        raise ValueError(f"nothing to measure: {items} items in batches of {batch}, {rounds} rounds, {len(arms)} arms")
    timings = {name: Timing(batch, whole * batch, stages=dict.fromkeys(stages, 0.0)) for name in arms}
    for arm in arms.values():
        for index in range(warmup):
            place = index % whole
            if place == 0:
                arm.start(batch)
            arm.run(place * batch, (place + 1) * batch, StageClock(stages))
    for order in round_orders(list(arms), rounds, seed):
        for name in order:
            _pass_over(arms[name], whole, timings[name])
            progress()
    return timings


@contextmanager
def undisturbed() -> Iterator[None]:
    """The garbage collector runs before, and not within."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _pass_over(arm: Runnable, batches: int, timing: Timing) -> None:
    """One timed pass of one arm over the items, added to its timing."""
    clock = StageClock(tuple(timing.stages))
    latencies = []
    arm.start(timing.batch)
    with undisturbed():
        for index in range(batches):
            begin = time.perf_counter()
            arm.run(index * timing.batch, (index + 1) * timing.batch, clock)
            latencies.append(time.perf_counter() - begin)
    timing.latencies.extend(latencies)
    timing.rounds.append(sum(latencies))
    for name, seconds in clock.seconds.items():
        timing.stages[name] += seconds
