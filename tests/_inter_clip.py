"""Frames that are like the ones before them, and streams of them whose frames are cut, dropped or changed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentseg.bitstream import Frame, Reader, StreamHeader, Writer
from latentseg.engine.sources import FrameSource, SourceFrame
from latentseg.kernels.frames import is_key

SIZE = (45, 61)  # no multiple of the tiny bundle's stride
HEADER = 28  # bytes in front of a payload


def clip(frames: int = 11) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8: noise that brightens a little where a square moves."""
    base = np.random.default_rng(7).integers(0, 200, (*SIZE, 3), dtype=np.uint8)
    found = np.repeat(base[None], frames, axis=0)
    for i, frame in enumerate(found):
        frame[i % 20 : i % 20 + 16, i % 30 : i % 30 + 16] += np.uint8(40)
    return found


class Memory(FrameSource):
    """The clip, as a source; a frame's time tells which one it is."""

    def __init__(self, frames: int = 11) -> None:
        super().__init__("memory")
        self.frames = clip(frames)
        self.size, self.frame_rate, self.length = SIZE, (10, 1), frames

    def __iter__(self) -> Iterator[SourceFrame]:
        return (SourceFrame(i, i * 100_000, frame) for i, frame in enumerate(self.frames))


def read(path: Path) -> tuple[StreamHeader, list[Frame]]:
    with path.open("rb") as file:
        reader = Reader(file)
        return reader.header, list(reader)


def keys(path: Path) -> list[int]:
    """Which frames of a stream are key frames."""
    header, frames = read(path)
    return [frame.index for frame in frames if is_key(frame.payload, header)]


def spans(data: bytes, frames: list[Frame]) -> list[tuple[int, int]]:
    """Where each frame begins and ends, its header included."""
    start = len(data) - sum(HEADER + len(frame.payload) for frame in frames)
    ends = np.cumsum([HEADER + len(frame.payload) for frame in frames]) + start
    return list(zip([start, *ends[:-1].tolist()], ends.tolist(), strict=True))


def rewrite(path: Path, to: Path, payloads: Mapping[int, bytes]) -> Path:
    """A stream with some payloads replaced, all CRCs in order: what a broken writer would write."""
    header, frames = read(path)
    with to.open("wb") as file:
        writer = Writer(file, header)
        for frame in frames:
            writer.write(payloads.get(frame.index, frame.payload), frame.timestamp_us)
    return to


def flip_kind(data: bytes, span: tuple[int, int]) -> bytes:
    """A frame's first payload byte, 0 or 1, turned into the other, and both CRCs made to fit."""
    begin, end = span
    payload = bytes([data[begin + HEADER] ^ 1]) + data[begin + HEADER + 1 : end]
    fields = data[begin : begin + 20] + struct.pack("<I", zlib.crc32(payload))
    return data[:begin] + fields + struct.pack("<I", zlib.crc32(fields)) + payload + data[end:]
