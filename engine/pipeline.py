"""Stages in threads with bounded queues between them: reading, decoding, inference and writing overlap.

    items -> [queue] -> stage 1 -> [queue] -> stage 2 -> [queue] -> the caller, who takes results in order

One thread a stage keeps the order without sorting. An error travels down the queues behind the items that came before
it, so the caller gets every good result first and then the error. Memory is flat: at most `depth` items a queue, and
one in each stage's hands.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Streaming:
    """A stage that gets its items as an iterator and gives one: for work in batches, several of them under way."""

    transform: Callable[[Iterator[Any]], Iterator[Any]]


Stage = Callable[[Any], Any] | Streaming

# How long closing waits: for stages, which end at their next queue; and then for the reader, which may be waiting for
# the outside world (a silent pipe, a camera). One that takes longer is left behind as a daemon thread; it ends with its
# read or with the process.
_JOIN_STAGES_S = 5.0
_JOIN_READER_S = 0.5


class Finished(Exception):
    """The queue's producer has finished, and every item was taken."""


class Cancelled(Exception):
    """The queue was cancelled: nobody will take or give any more."""


class BoundedQueue(Generic[T]):
    """At most `depth` items between one producer and one consumer, with an end, an error, and a way to stop both.

    drop_oldest: put never waits; a full queue loses its oldest item (counted in `dropped`). For live sources, where a
    late frame is worth less than the latest one.
    """

    def __init__(self, depth: int, drop_oldest: bool = False) -> None:
        self.dropped = 0
        self._depth, self._drop_oldest = depth, drop_oldest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._cancelled = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Add an item, waiting for room. Raises Cancelled."""
        with self._changed:
            if self._drop_oldest and len(self._items) >= self._depth:
                self._items.popleft()
                self.dropped += 1
            while len(self._items) >= self._depth and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Take the next item, waiting for one. Raises Finished, the producer's error, or Cancelled."""
        with self._changed:
            while not (self._items or self._finished or self._cancelled):
                self._changed.wait()
            if self._cancelled:
                raise Cancelled
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise Finished

    def finish(self, error: BaseException | None = None) -> None:
        """No more items; the consumer gets `error` after the last one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop everything; both sides get Cancelled."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()


class Pipeline(Iterator[T]):
    """Iterator over `items` after every stage, in order. Close it, or use it in a `with`, unless it was exhausted.

    Parameters
    ----------
    items: iterated in a thread of its own; its iterator's `close()`, if any, is called in that thread at the end.
    stages: functions of one item, each in a thread of its own; a stage that returns None drops the item. Or Streaming.
    depth: items that each queue may hold, at least 1.
    drop_oldest: whether the first queue drops its oldest item instead of making `items` wait.
    """

    def __init__(
        self, items: Iterable[Any], stages: Sequence[Stage], depth: int = 2, drop_oldest: bool = False
    ) -> None:
        queues: list[BoundedQueue[Any]] = [BoundedQueue(depth, drop_oldest and i == 0) for i in range(len(stages) + 1)]
        self._queues = queues
        self._closed = False
        self._threads = [threading.Thread(target=_read, args=(items, queues[0]), name="latentseg-read", daemon=True)]
        for i, stage in enumerate(stages):
            name = f"latentseg-stage-{i + 1}"
            args = (stage, queues[i], queues[i + 1])
            self._threads.append(threading.Thread(target=_work, args=args, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def dropped(self) -> int:
        """Items that the first queue dropped so far."""
        return self._queues[0].dropped

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        try:
            item: T = self._queues[-1].get()
            return item
        except Finished:
            self.close()
            raise StopIteration from None
        except BaseException:  # a stage's error, or Ctrl-C while waiting
            self.close()
            raise

    def __del__(self) -> None:
        # Forgotten without close: let the threads go, but do not make the garbage collector wait for them.
        for queue in getattr(self, "_queues", ()):
            queue.cancel()

    def close(self) -> None:
        """Stop all stages and wait for them; may be called twice."""
        if self._closed:
            return
        self._closed = True
        for queue in self._queues:
            queue.cancel()
        reader, *stages = self._threads
        deadline = time.monotonic() + _JOIN_STAGES_S
        for thread in stages:
            thread.join(max(0.0, deadline - time.monotonic()))
        reader.join(_JOIN_READER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _read(items: Iterable[Any], outbox: BoundedQueue[Any]) -> None:
    iterator: Iterator[Any] | None = None
    error: BaseException | None = None
    try:
        iterator = iter(items)
        while True:
            # No name holds the item while the next one is awaited.
            outbox.put(next(iterator))
    except (StopIteration, Cancelled):
        pass
    except BaseException as raised:  # handed to the caller's thread, whatever it is
        error = raised
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            with suppress(Exception):
                close()
        outbox.finish(error)


def _streamed(stage: Streaming, inbox: BoundedQueue[Any]) -> Generator[Any, None, None]:
    """The stage's results. An error before it ends its input, and comes out behind what came before the error."""
    errors: list[BaseException] = []

    def taken() -> Iterator[Any]:
        while True:
            try:
                item = inbox.get()
            except Cancelled:
                raise
            except Finished:
                return
            except BaseException as error:
                errors.append(error)
                return
            yield item
            del item  # or it would live on while the next one is awaited

    yield from stage.transform(taken())
    if errors:
        raise errors[0]


def _each(stage: Callable[[Any], Any], inbox: BoundedQueue[Any]) -> Generator[Any, None, None]:
    while True:
        yield stage(inbox.get())  # no name holds the item while the next one is awaited


def _work(stage: Stage, inbox: BoundedQueue[Any], outbox: BoundedQueue[Any]) -> None:
    error: BaseException | None = None
    made = _streamed(stage, inbox) if isinstance(stage, Streaming) else _each(stage, inbox)
    try:
        for item in made:
            if item is not None:
                outbox.put(item)
            del item  # or it would live on while the next one is awaited
    except (Finished, Cancelled):
        pass
    except BaseException as raised:
        error = raised
    finally:
        inbox.cancel()
        with suppress(Exception):
            made.close()  # what batches in flight hold is freed in this thread
        outbox.finish(error)
