"""The `.lseg` container, version 1: header, frames, coding tables, reader, writer. NumPy only (docs/format.md)."""

from __future__ import annotations

from .frames import Damage, Frame
from .header import Scaling, StreamHeader
from .reader import Reader
from .writer import Writer

__all__ = ["Damage", "Frame", "Reader", "Scaling", "StreamHeader", "Writer"]
