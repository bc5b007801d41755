"""What a run gives for each frame, and what it says at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Result:
    """One segmented frame.

    index, timestamp_us: the frame's place in its source (lost frames leave gaps), and its time in microseconds.
    labels: (H, W) uint8, indices into the bundle's classes.
    payload_bytes: compressed size of the frame.
    timings_ms: wall time of each step on this frame.
    rgb: (H, W, 3) uint8, where frames were asked for; else None.
    """

    index: int
    timestamp_us: int
    labels: npt.NDArray[np.uint8]
    payload_bytes: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    rgb: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class ClassifiedResult:
    """One classified frame.

    index, timestamp_us, payload_bytes, timings_ms, rgb: as of `Result`. size: (H, W) of the frame.
    probabilities: (classes,) float32, in the order of the bundle's classes; they sum to 1.
    """

    index: int
    timestamp_us: int
    size: tuple[int, int]
    probabilities: npt.NDArray[np.float32]
    payload_bytes: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    rgb: npt.NDArray[np.uint8] | None = None

    def top(self, count: int = 5) -> list[tuple[int, float]]:
        """The likeliest classes as (index, probability), likeliest first, the lower index first where they tie.

        As many as there are classes, where these are fewer than `count`.
        """
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(index), float(self.probabilities[index])) for index in order]


@dataclass(frozen=True)
class EncodeSummary:
    """What `Engine.encode` wrote.

    bytes: the whole .lseg stream; payload_bytes: without header and framing. lost: source frames that could not be
    read; dropped: live frames that came too fast. size: (H, W). seconds: wall time.
    """

    frames: int
    lost: int
    dropped: int
    bytes: int
    payload_bytes: int
    size: tuple[int, int]
    seconds: float

    @property
    def bpp(self) -> float:
        """Bits of the whole stream per source pixel."""
        return self.bytes * 8 / max(1, self.frames * self.size[0] * self.size[1])

    @property
    def factor(self) -> float:
        """True compression factor, against 24-bit RGB."""
        return 24 / self.bpp

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "frames": self.frames,
            "lost": self.lost,
            "dropped": self.dropped,
            "bytes": self.bytes,
            "payload_bytes": self.payload_bytes,
            "size": list(self.size),
            "seconds": round(self.seconds, 6),
            "bpp": self.bpp,
            "compression_factor": self.factor,
        }
