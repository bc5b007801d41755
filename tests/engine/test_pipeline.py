"""The pipeline: order, overlap, errors, stopping, and memory that stays flat."""

from __future__ import annotations

import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from latentseg.engine.pipeline import BoundedQueue, Cancelled, Finished, Pipeline, Streaming


def threads() -> int:
    return sum(t.name.startswith("latentseg-") for t in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threads()
    yield
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_order_is_kept(count: int, depth: int) -> None:
    stages = [lambda x: x + 1, lambda x: x * 2, lambda x: -x]
    assert list(Pipeline(range(count), stages, depth)) == [-(i + 1) * 2 for i in range(count)]


def test_no_stage_at_all() -> None:
    assert list(Pipeline("abc", [])) == ["a", "b", "c"]


def test_none_drops_the_item() -> None:
    assert list(Pipeline(range(10), [lambda x: x if x % 3 else None, lambda x: x])) == [1, 2, 4, 5, 7, 8]


def test_stages_overlap() -> None:
    # Each of three stages waits until all three are busy at once; without overlap this never happens.
    together = threading.Barrier(3, timeout=10)

    def stage(which: int) -> Any:
        def run(item: int) -> int:
            if item == 2 - which:  # the items that are in the three stages at the same time
                together.wait()
            return item

        return run

    assert list(Pipeline(range(6), [stage(0), stage(1), stage(2)], depth=1)) == list(range(6))


class Boom(Exception):
    pass


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_error_comes_after_the_good_results(failing: int) -> None:
    def stage(which: int) -> Any:
        def run(item: int) -> int:
            if which == failing and item == 5:
                raise Boom(which)
            return item

        return run

    got: list[int] = []
    with pytest.raises(Boom) as caught:
        got.extend(Pipeline(range(1000), [stage(0), stage(1), stage(2)]))
    assert got == [0, 1, 2, 3, 4]
    assert caught.value.args == (failing,)


def test_first_error_in_the_order_of_the_items_wins() -> None:
    def early(item: int) -> int:
        if item == 4:
            raise ValueError("item 4")
        return item

    def late(item: int) -> int:
        if item == 2:
            time.sleep(0.05)  # the error on item 4 has happened by now
            raise Boom("item 2")
        return item

    with pytest.raises(Boom):
        list(Pipeline(range(10), [early, late], depth=4))


def test_error_while_reading() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise Boom

    got: list[int] = []
    with pytest.raises(Boom):
        got.extend(Pipeline(items(), [lambda x: x]))
    assert got == [1, 2]


class Pairs:
    """A stage that works on two items at once, holds them meanwhile, and says when it was closed."""

    def __init__(self, broken: int = -1) -> None:
        self.broken, self.batches, self.closed = broken, [], threading.Event()

    def __call__(self, items: Iterator[int]) -> Iterator[int]:
        try:
            while batch := list(islice(items, 2)):
                self.batches.append(batch)
                if self.broken in batch:
                    raise Boom(self.broken)
                yield from (-item for item in batch)
        finally:
            self.closed.set()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 101])
def test_streaming_stage_sees_the_items_in_order_and_the_end(count: int) -> None:
    pairs = Pairs()
    found = list(Pipeline(range(count), [lambda x: x + 1, Streaming(pairs), lambda x: x * 2]))
    assert found == [-2 * (i + 1) for i in range(count)]
    assert [len(batch) for batch in pairs.batches] == [2] * (count // 2) + [1] * (count % 2)
    assert pairs.closed.is_set()


def test_errors_before_and_inside_a_streaming_stage() -> None:
    def failing(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    got: list[int] = []
    pairs = Pairs()
    with pytest.raises(ValueError, match="five"):
        got.extend(Pipeline(range(100), [failing, Streaming(pairs)]))
    assert got == [0, -1, -2, -3, -4]  # 5 was to be in a batch with 4
    got.clear()
    with pytest.raises(Boom):
        got.extend(Pipeline(range(100), [Streaming(Pairs(broken=7))]))
    assert got == [0, -1, -2, -3, -4, -5]


def test_closing_early_closes_a_streaming_stage() -> None:
    pairs = Pairs()
    pipeline = Pipeline(iter(range(10**9)), [Streaming(pairs)])
    assert next(pipeline) == 0
    pipeline.close()
    assert pairs.closed.wait(5)


def test_stop_iteration_in_a_stage_is_an_error_and_no_end() -> None:
    def stage(item: int) -> int:
        raise StopIteration

    with pytest.raises((StopIteration, RuntimeError)):
        next(Pipeline(range(3), [stage]))


def test_closing_early_stops_an_endless_source_and_closes_it() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    with Pipeline(endless(), [lambda x: x, lambda x: x]) as pipeline:
        assert [next(pipeline) for _ in range(10)] == list(range(10))
        start = time.monotonic()
    assert time.monotonic() - start < 2
    assert closed.is_set()
    assert list(pipeline) == []
    pipeline.close()


def test_closing_does_not_wait_for_ever_for_a_silent_source() -> None:
    release = threading.Event()

    def silent() -> Iterator[int]:
        yield 1
        release.wait(30)

    with Pipeline(silent(), [lambda x: x]) as pipeline:
        assert next(pipeline) == 1
        start = time.monotonic()
    assert time.monotonic() - start < 2
    release.set()


def test_forgotten_pipeline_lets_its_threads_go() -> None:
    pipeline = Pipeline(iter(int, 1), [lambda x: x])
    assert next(pipeline) == 0
    del pipeline  # the fixture waits for the threads


def test_ctrl_c_in_the_caller() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from iter(int, 1)
        finally:
            closed.set()

    def work() -> None:
        with Pipeline(endless(), [lambda x: x]) as pipeline:
            for _ in pipeline:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert closed.is_set()


class Counted:
    """An item that knows how many of its kind are alive."""

    alive = peak = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        self.payload = bytes(1000)
        with Counted.lock:
            Counted.alive += 1
            Counted.peak = max(Counted.peak, Counted.alive)
        weakref.finalize(self, Counted.gone)

    @classmethod
    def gone(cls) -> None:
        with cls.lock:
            cls.alive -= 1


@pytest.mark.parametrize("depth", [1, 3])
def test_memory_is_flat_over_10000_items(depth: int) -> None:
    Counted.alive = Counted.peak = 0
    stages = [lambda item: item, lambda item: item, lambda item: item]
    tracemalloc.start()
    try:
        count = early = 0
        for count, item in enumerate(Pipeline((Counted() for _ in range(10_000)), stages, depth), 1):
            del item
            if count == 500:
                early = tracemalloc.get_traced_memory()[0]
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    # Four queues of `depth`, one item in each of three stages, one being read, one with the caller.
    assert Counted.peak <= 4 * depth + 3 + 2
    assert Counted.alive <= 1
    assert late - early < 50_000


def test_drop_oldest_never_makes_the_source_wait() -> None:
    gate = threading.Event()

    def first_waits(item: int) -> int:
        gate.wait(10)
        return item

    def source() -> Iterator[int]:
        yield from range(100)
        gate.set()  # reached although nothing was taken yet

    pipeline = Pipeline(source(), [first_waits], depth=3, drop_oldest=True)
    got = list(pipeline)
    assert got == sorted(got)
    assert got[-3:] == [97, 98, 99]
    assert len(got) + pipeline.dropped == 100
    assert pipeline.dropped >= 90


def test_queue_by_itself() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    queue.put(1)
    queue.put(2)
    queue.finish(Boom())
    assert (queue.get(), queue.get()) == (1, 2)
    with pytest.raises(Boom):
        queue.get()
    done: BoundedQueue[int] = BoundedQueue(1)
    done.finish()
    with pytest.raises(Finished):
        done.get()
    done.cancel()
    for call in (done.get, lambda: done.put(1)):
        with pytest.raises(Cancelled):
            call()
