"""Sinks: overlay video, label PNGs, JSON Lines; and .lseg streams."""

from __future__ import annotations

from .base import Sink
from .jsonl import JsonLinesSink
from .labels import LabelPngSink
from .lseg import StreamSink
from .overlay import OverlaySink, blend, palette

__all__ = ["JsonLinesSink", "LabelPngSink", "OverlaySink", "Sink", "StreamSink", "blend", "palette"]
