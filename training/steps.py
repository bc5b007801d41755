"""Which quantisation steps trained weights know, read from what their training noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..engine.codec import ONE_STEP

# Where a training's settings may have a range: of a joint run (both parts), a codec's, a segmenter's.
_SECTIONS = ("crops", "codec", "segmenter")


def trained_steps(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest step that a run's weights learned, by its settings; (1, 1) where they note none."""
    sections = (settings, *(settings.get(name) for name in _SECTIONS))
    for section in sections:
        if isinstance(section, Mapping) and "step_range" in section:
            lowest, highest = section["step_range"]
            return float(lowest), float(highest)
    return ONE_STEP


def common_steps(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """What lies in all of the ranges (at least one): lowest above highest where nothing does."""
    listed = list(ranges)
    return max(lowest for lowest, _ in listed), min(highest for _, highest in listed)
