"""What is made of a GPU arm's times, against numbers worked out by hand; and the order in which arms take turns."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from latentseg.benchmarks import gpu_meters, gpu_timing, measure
from latentseg.benchmarks.gpu_timing import (
    ArmError,
    GpuTiming,
    host_row,
    how_many,
    latencies,
    ratios,
    stage_row,
    time_arms,
)
from latentseg.errors import InputError


class Clock:
    """A clock that stands still until somebody works."""

    now = 0.0

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: 3 * self.now)


class Pacer:
    """An arm that takes a set time a batch, and notes what it was asked for."""

    def __init__(self, name: str, log: list[tuple[str, str, int]], clock: Clock, seconds: float) -> None:
        self.name, self.log, self.clock, self.seconds = name, log, clock, seconds

    def run(self, count: int) -> Iterator[None]:
        self.log.append((self.name, "run", count))
        for _ in range(count):
            self.clock.now += self.seconds
            yield None

    def singles(self, count: int) -> Iterator[float]:
        self.log.append((self.name, "singles", count))
        return iter([2 * self.seconds] * count)


def test_every_arm_makes_the_same_batches_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "LEAST_BATCHES", 2)
    log: list[tuple[str, str, int]] = []
    clock = Clock()
    monkeypatch.setattr(gpu_timing, "time", clock.module())
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # with torch loaded it takes long
    arms = {name: Pacer(name, log, clock, seconds) for name, seconds in (("a", 0.002), ("b", 0.006), ("c", 0.004))}
    joules = iter(range(0, 1000, 5))
    found = time_arms(arms, 4, rounds=3, seconds=0.02, joules=lambda: float(next(joules)))
    runs = [(name, count) for name, what, count in log if what == "run"][3:]  # behind the warm-up
    (count,) = {count for _, count in runs}
    assert count == 10  # of the fastest arm
    rounds = [[name for name, _ in runs[turn : turn + 3]] for turn in (0, 3, 6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert all({names[place] for names in rounds} == {"a", "b", "c"} for place in range(3))  # each at each place
    row = found["b"].row()
    assert row["frames_per_round"] == 4 * count
    assert row["joules_per_frame"] == pytest.approx(5 / (4 * count))
    assert row["latency_ms"]["p50"] == pytest.approx(12)
    assert row["frames_per_second"] == {key: pytest.approx(4 / 0.006) for key in ("median", "min", "max")}
    assert row["cpu_ms_per_frame"] == pytest.approx(3 * 6 / 4)
    assert ratios(found, "a")["b"]["median"] == pytest.approx(3.0)  # type: ignore[index]
    assert ratios(found, "gone") == {"a": None, "b": None, "c": None}


@pytest.mark.parametrize("what", ["run", "singles"])
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_an_arm_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, what: str, turn: int) -> None:
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)
    log: list[tuple[str, str, int]] = []
    arms = {name: Pacer(name, log, Clock(), 0.002) for name in ("a", "b")}
    good = getattr(arms["b"], what)

    def bad(count: int) -> Iterator[float]:
        if sum(name == "b" and kind == what for name, kind, _ in log) == turn - 1:
            raise InputError("torn")
        return good(count)  # type: ignore[no-any-return]

    monkeypatch.setattr(arms["b"], what, bad)
    with pytest.raises(ArmError, match="b: torn") as caught:
        time_arms(arms, 1, rounds=3, seconds=0.001)
    assert caught.value.name == "b"
    assert isinstance(caught.value.error, InputError)


def test_numbers_of_a_row_by_hand() -> None:
    timing = GpuTiming(8, 80, latencies=[0.001, 0.002, 0.004], rounds=[0.1, 0.2, 0.05], cpu=[0.08, 0.4, 0.16])
    row = timing.row()
    assert row["frames_per_second"] == {"median": 800.0, "min": 400.0, "max": 1600.0}
    assert row["cpu_ms_per_frame"] == pytest.approx(2.0)
    assert "joules_per_frame" not in row
    other = GpuTiming(8, 80, rounds=[0.2, 0.3, 0.1])
    assert ratios({"x": timing, "y": other}, "x")["y"] == {
        "median": 2.0, "min": pytest.approx(1.5), "max": 2.0, "per_round": [2.0, pytest.approx(1.5), 2.0],
    }  # fmt: skip


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(1).exponential(size=101))
    found = latencies(values)
    ordered = sorted(values)
    assert [found["p50"], found["p95"], found["p99"]] == pytest.approx([1e3 * ordered[i] for i in (50, 95, 99)])
    assert (found["max"], found["n"]) == (1e3 * ordered[-1], 101)


@pytest.mark.parametrize(
    ("each", "wanted", "expected"), [(0.1, 1.0, 10), (0.3, 1.0, 4), (9.0, 1.0, 3), (1e-9, 1.0, 50), (0.0, 1.0, 50)]
)
def test_how_many_repeats(each: float, wanted: float, expected: int) -> None:
    assert how_many(each, wanted, 3, 50) == expected


def test_stages_are_medians_and_shares_of_their_sum() -> None:
    times = ((1.0, 8.0), (2.0, 6.0), (90.0, 5.0))
    samples = [{"copy_in": first, "segmenter": second} for first, second in times]
    found = stage_row(samples)
    assert found["stage_ms"] == {"copy_in": 2000.0, "segmenter": 6000.0}
    assert found["stage_share"] == {"copy_in": 0.25, "segmenter": 0.75}
    assert found["batches"] == 3


def test_the_host_total_is_the_median_of_sums() -> None:
    samples = [{"submit": 1e-3, "collect": 9e-3}, {"submit": 2e-3, "collect": 1e-3}, {"submit": 3e-3, "collect": 2e-3}]
    assert host_row(samples) == {"submit": 2.0, "collect": 2.0, "total": pytest.approx(5.0)}


def test_energy_that_cannot_be_read_has_a_reason() -> None:
    assert "no-such-library" in gpu_meters.Energy("no-such-library.so").reason


def test_energy_is_read_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        calls: list[str] = []  # noqa: RUF012
        supported = True

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByPciBusId_v2(self, bus: bytes, handle: object) -> int:
            return 0 if bus == b"0000:1b:00.0" else 2

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, found: object) -> int:
            found._obj.value = 1234500  # type: ignore[attr-defined]
            return 0 if self.supported else 3

    class Driver:
        def cuInit(self, flags: int) -> tuple[int]:
            return (0,)

        def cuDeviceGetPCIBusId(self, size: int, device: int) -> tuple[int, bytes]:
            return 0, b"0000:1b:00.0".ljust(size, b"\0")

    nvml = Nvml()
    monkeypatch.setattr(gpu_meters.ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(gpu_meters.devices, "cuda_bindings", Driver)
    energy = gpu_meters.Energy()
    assert (energy.reason, energy.joules()) == ("", 1234.5)
    nvml.supported = False
    assert gpu_meters.Energy().reason == "nvmlDeviceGetTotalEnergyConsumption gave 3"
