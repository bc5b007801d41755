"""What every source of frames offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ...bitstream import Damage

# Sources without a clock (image folders) say that their rate is unknown, and space their timestamps as at 25 frames/s.
NOMINAL_FRAME_US = 40_000


@dataclass(frozen=True)
class SourceFrame:
    """One frame: its place in the source, its time in microseconds from the first frame, and (H, W, 3) uint8 RGB."""

    index: int
    timestamp_us: int
    rgb: npt.NDArray[np.uint8]


class HasIndex(Protocol):
    @property
    def index(self) -> int: ...


T = TypeVar("T", bound=HasIndex)


class Source(ABC, Generic[T]):
    """Frames or payloads of one size, in order; iterated once; a context manager.

    Attributes
    ----------
    name: for messages. size: (H, W) of every frame. frame_rate: (num, den), (0, 1) where unknown.
    length: how many frames to expect, an estimate; None where unknown.
    live: it goes on whether frames are taken or not (a camera, a live URL).
    damages: what could not be read so far and was passed over; `lost`: the frames that it cost.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = (0, 0)
        self.frame_rate = (0, 1)
        self.length: int | None = None
        self.live = False
        self.damages: list[Damage] = []

    @abstractmethod
    def __iter__(self) -> Iterator[T]: ...

    def close(self) -> None:
        """Free what the source holds; may be called twice."""
        return None

    @property
    def lost(self) -> int:
        return sum(damage.lost for damage in self.damages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class FrameSource(Source[SourceFrame]):
    """A source of RGB frames."""
