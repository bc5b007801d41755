"""One run of a pipeline: frames as they pass through its stages, and the iterator that a caller gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..bitstream import Damage, Frame, StreamHeader
from ..errors import InputError, UsageError
from .pipeline import Pipeline, Stage
from .result import ClassifiedResult, Result
from .sources import Source, SourceFrame

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One frame on its way through the stages; each stage fills in what it makes and drops what nobody needs more."""

    index: int
    timestamp_us: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    rgb: npt.NDArray[np.uint8] | None = None
    payload: bytes = b""
    latents: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.uint8] | None = None
    probabilities: npt.NDArray[np.float32] | None = None


FrameStage = Callable[[Work], Work | None]  # None: the frame is lost


class Run(Iterator[T], Generic[T]):
    """The results of one run, in order, as they are made. Close it (or use `with`) unless it was exhausted.

    Attributes
    ----------
    size: (H, W) of every frame. frame_rate: (num, den), (0, 1) unknown. length: expected frames, or None.
    frames: results given so far. damages: what was passed over so far. lost, dropped: frames lost to damage, and
    live frames that came too fast.
    """

    def __init__(
        self,
        source: Source[Any],
        size: tuple[int, int],
        stages: Sequence[Stage],
        damages: list[Damage],
        finish: Callable[[Work], T],
        depth: int,
        drop_late: bool | None,
        limit: int | None,
    ) -> None:
        self.size, self.frame_rate = size, source.frame_rate
        self.length = source.length if limit is None else min(limit, source.length or limit)
        self.frames = 0
        self._limit, self._ended, self._stopped = limit, False, False
        self._source, self._own_damages, self._finish = source, damages, finish
        drop = source.live if drop_late is None else drop_late
        # Frames that may be dropped on the way are no reason to stop reading.
        self._pipeline: Pipeline[Work] = Pipeline(reading(source, None if drop else limit), stages, depth, drop)
        self._start = time.perf_counter()

    def __next__(self) -> T:
        if self._stopped:
            raise UsageError(
                f"{self._source.name}: this run was stopped after {self.frames} frames", hint="begin another one"
            )
        try:
            if self.frames == self._limit:
                self._pipeline.close()
            result = self._finish(next(self._pipeline))
        except StopIteration:
            self._ended = True
            if self.frames == 0 and self.damages:
                raise InputError(
                    f"{self._source.name}: none of {self.lost} frames could be read; {self.damages[0].reason}"
                ) from None
            raise
        self.frames += 1
        return result

    @property
    def damages(self) -> list[Damage]:
        return [*self._source.damages, *self._own_damages]

    @property
    def lost(self) -> int:
        return sum(damage.lost for damage in self.damages)

    @property
    def dropped(self) -> int:
        return self._pipeline.dropped

    def summary(self) -> dict[str, Any]:
        """What the run gave so far, JSON-ready."""
        seconds = time.perf_counter() - self._start
        return {
            "source": self._source.name,
            "size": list(self.size),
            "frames": self.frames,
            "lost": self.lost,
            "dropped": self.dropped,
            "damages": [
                {"offset": d.offset, "frame_index": d.frame_index, "lost": d.lost, "reason": d.reason}
                for d in self.damages
            ],
            "seconds": round(seconds, 6),
            "frames_per_s": round(self.frames / seconds, 3) if seconds > 0 else 0.0,
        }

    def stop(self) -> None:
        """Close for the sake of another run: whoever still waits for results here gets a UsageError, not an end."""
        self._stopped = not self._ended
        self._pipeline.close()

    def close(self) -> None:
        """Stop all work; may be called twice."""
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def reading(source: Source[Any], limit: int | None = None) -> Iterator[Work]:
    """The source's frames, at most `limit`, as work; the source closed at the end, in the thread that reads it.

    What lies behind the limit is not read, so damage there is nobody's business.
    """
    with source:
        start = time.perf_counter()
        for item in islice(source, limit):
            timings = {"read": (time.perf_counter() - start) * 1e3}
            if isinstance(item, Frame):
                yield Work(item.index, item.timestamp_us, timings, payload=item.payload)
            else:
                yield Work(item.index, item.timestamp_us, timings, rgb=item.rgb)
            del item
            start = time.perf_counter()


def no_symbols(work: Work, error: InputError) -> InputError:
    """The error of a frame whose latent cannot be quantised, naming the frame."""
    return InputError(f"frame {work.index}: {error}", hint=error.hint)


def check_limit(limit: int | None) -> None:
    """Raise UsageError for a limit below 1."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}, expected at least 1")


def check_drop(header: StreamHeader, drop_late: bool | None) -> None:
    """Raise UsageError where late frames of a stream shall be dropped that others refer to."""
    if drop_late and header.coder == "inter":
        raise UsageError(
            "late frames of a stream of coder inter cannot be dropped: those behind them refer to them",
            hint="leave drop_late out, or encode the source again: latentseg encode --key-interval 1",
        )


def check_own_step(name: str, step: float | None) -> None:
    """Raise UsageError for a quantisation step that is asked of an .lseg stream called `name`."""
    if step is not None:
        raise UsageError(
            f"a quantisation step of {step:g} for {name}, an .lseg stream, which has its own",
            hint="leave it out, or encode the source again with it: latentseg encode --step",
        )


def timed(name: str, stage: FrameStage) -> FrameStage:
    """`stage`, its wall time noted in each frame's `timings_ms`."""

    def measured(work: Work) -> Work | None:
        start = time.perf_counter()
        done = stage(work)
        work.timings_ms[name] = (time.perf_counter() - start) * 1e3
        return done

    return measured


def to_result(work: Work) -> Result:
    """A segmented frame, as its caller gets it."""
    assert work.labels is not None
    return Result(work.index, work.timestamp_us, work.labels, len(work.payload), work.timings_ms, work.rgb)


def to_classified(size: tuple[int, int], work: Work) -> ClassifiedResult:
    """A classified frame of `size` = (H, W), as its caller gets it."""
    assert work.probabilities is not None
    facts = (work.index, work.timestamp_us, size, work.probabilities, len(work.payload), work.timings_ms, work.rgb)
    return ClassifiedResult(*facts)


def to_frame(work: Work) -> SourceFrame:
    """A decoded frame, as its caller gets it."""
    assert work.rgb is not None
    return SourceFrame(work.index, work.timestamp_us, work.rgb)
