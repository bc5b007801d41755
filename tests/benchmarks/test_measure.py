"""Percentiles, shares and ratios against numbers worked out by hand, and the order in which arms take turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentseg.benchmarks import measure as m


class Recorder:
    """An arm that takes no time and notes what it was asked for."""

    def __init__(self, name: str, log: list[tuple[Any, ...]]) -> None:
        self.name, self.log = name, log

    def start(self, batch: int) -> None:
        self.log.append((self.name, "start", batch))

    def run(self, first: int, last: int, clock: m.StageClock) -> None:
        self.log.append((self.name, first, last))
        with clock.stage("segment"):
            pass


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_against_numpy_and_sorted_order(count: int) -> None:
    values = list(np.random.default_rng(count).exponential(size=count))
    found = m.percentiles(values)
    ordered = sorted(values)
    for key, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        # Linear between ranks, by hand: rank = fraction * (n - 1).
        rank = fraction * (count - 1)
        low = int(rank)
        high = min(low + 1, count - 1)
        assert found[key] == pytest.approx(ordered[low] + (rank - low) * (ordered[high] - ordered[low]))
    assert found["max"] == ordered[-1]
    assert found["mean"] == pytest.approx(np.mean(values))


def timing(batch: int, items: int, rounds: list[float], **stages: float) -> m.Timing:
    filled = {**dict.fromkeys(m.STAGES, 0.0), **stages}
    return m.Timing(batch, items, latencies=[r / 2 for r in rounds for _ in range(2)], stages=filled, rounds=rounds)


def test_ratio_is_taken_inside_each_round() -> None:
    slow = timing(1, 4, [2.0, 8.0, 3.0])
    fast = timing(1, 4, [1.0, 2.0, 2.0])
    assert m.paired_ratio(slow, fast) == {"median": 2.0, "min": 1.5, "max": 4.0, "per_round": [2.0, 4.0, 1.5]}
    assert m.paired_ratio(fast, fast)["per_round"] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="paired rounds"):
        m.paired_ratio(slow, timing(1, 4, [1.0]))


def test_summary_by_hand() -> None:
    summary = timing(4, 8, [0.5, 1.5], entropy_decode=0.2, decode=0.3, segment=1.4).summary()
    assert summary["frames_per_second"] == pytest.approx(16 / 2.0)
    assert summary["frames_per_second_rounds"] == pytest.approx({"median": (16 + 16 / 3) / 2, "min": 16 / 3, "max": 16})
    assert summary["n"] == 4
    assert summary["latency_ms"]["max"] == pytest.approx(750.0)
    expected = {"entropy_decode": 0.1, "decode": 0.15, "segment": 0.7, "rest": 0.05}
    assert summary["stage_share"] == pytest.approx(expected)
    assert summary["stage_ms_per_frame"] == pytest.approx({key: 125.0 * value for key, value in expected.items()})
    assert sum(summary["stage_share"].values()) == pytest.approx(1.0)


def test_every_arm_stands_at_every_place() -> None:
    names = ["a", "b", "c", "d", "e"]
    orders = m.round_orders(names, 10, seed=3)
    assert orders == m.round_orders(names, 10, seed=3)
    assert orders != m.round_orders(names, 10, seed=4)
    for place in range(5):
        assert {order[place] for order in orders[:5]} == set(names)
    assert all(sorted(order) == names for order in orders)


def test_rounds_interleave_and_every_arm_sees_the_same_items() -> None:
    log: list[tuple[Any, ...]] = []
    arms = {name: Recorder(name, log) for name in "abc"}
    timings = m.measure(arms, 7, batch=2, rounds=4, warmup=4, seed=0)
    whole = [(0, 2), (2, 4), (4, 6)]  # the seventh item fills no batch and is not timed
    warm, rounds = log[:18], log[18:]
    for i, name in enumerate("abc"):
        # Four warm-up batches on three: the fourth starts a new pass, as an arm that decodes in order needs.
        assert warm[6 * i : 6 * i + 6] == [
            (name, "start", 2), (name, 0, 2), (name, 2, 4), (name, 4, 6), (name, "start", 2), (name, 0, 2)
        ]  # fmt: skip
    passes = [rounds[i : i + 4] for i in range(0, len(rounds), 4)]
    assert [entries[0][0] for entries in passes] == [
        name for order in m.round_orders(list("abc"), 4, seed=0) for name in order
    ]
    for entries in passes:
        assert entries[0][1:] == ("start", 2)
        assert [entry[1:] for entry in entries[1:]] == whole
    for found in timings.values():
        assert found.items_per_round == 6
        assert len(found.latencies) == 12
        assert len(found.rounds) == 4
        assert sum(found.latencies) == pytest.approx(sum(found.rounds))
        assert sum(found.shares().values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("items", "batch", "rounds"), [(0, 1, 1), (3, 4, 1), (4, 4, 0)])
def test_nothing_to_measure(items: int, batch: int, rounds: int) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        m.measure({"a": Recorder("a", [])}, items, batch=batch, rounds=rounds, warmup=0, seed=0)


def test_stage_that_fails_still_counts_its_time() -> None:
    clock = m.StageClock()
    with pytest.raises(RuntimeError), clock.stage("decode"):
        raise RuntimeError
    assert clock.seconds["decode"] > 0
