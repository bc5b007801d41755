"""Sinks: overlay video, PNGs of labels or frames, JSON Lines; and .lseg streams."""

from __future__ import annotations

from .base import Sink, refuse_source
from .jsonl import JsonLinesSink
from .lseg import StreamSink
from .overlay import OverlaySink, blend, palette
from .pngs import FramePngSink, LabelPngSink

__all__ = [
    "FramePngSink",
    "JsonLinesSink",
    "LabelPngSink",
    "OverlaySink",
    "Sink",
    "StreamSink",
    "blend",
    "palette",
    "refuse_source",
]
