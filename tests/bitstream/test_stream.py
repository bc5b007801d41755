"""Writer and Reader: files, pipes, appending, and every kind of damage."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Damage, Frame, Reader, Scaling, StreamHeader, Writer
from latentseg.bitstream.frames import FRAME_HEADER_BYTES, MARKER, FrameHeader, pack_frame_header
from latentseg.bitstream.header import HEADER_BYTES
from latentseg.errors import InputError

HEADER = StreamHeader(bytes(32), (1, 2, 2), 8, Scaling("tensor"))
PAYLOADS = [b"first", b"", MARKER + b"inside", bytes(9)]
FRAMES = [Frame(i, 40_000 * i, payload) for i, payload in enumerate(PAYLOADS)]


def stream(payloads: list[bytes] = PAYLOADS) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, HEADER)
    for i, payload in enumerate(payloads):
        size = writer.write(payload, 40_000 * i)
        assert size == len(payload) + 28
    assert writer.frames == len(payloads)
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


GOOD = stream()
# Where each frame begins, and where the last one ends.
STARTS = [HEADER_BYTES + sum(28 + len(p) for p in PAYLOADS[:i]) for i in range(len(PAYLOADS) + 1)]


def read(data: bytes) -> tuple[list[Frame], list[Damage], int]:
    told: list[Damage] = []
    reader = Reader(io.BytesIO(data), on_damage=told.append)
    frames = list(reader)
    assert told == reader.damages
    return frames, reader.damages, reader.lost


def test_round_trip() -> None:
    assert read(GOOD) == (FRAMES, [], 0)
    assert FRAME_HEADER_BYTES <= 32


def test_every_flipped_bit_loses_one_frame_at_most() -> None:
    for bit in range(8 * len(GOOD)):
        bad = bytearray(GOOD)
        bad[bit // 8] ^= 1 << bit % 8
        frames, damages, lost = read(bytes(bad))
        hit = sum(start <= bit // 8 for start in STARTS) - 1
        if hit < 0:
            assert (frames, len(damages), lost) == (FRAMES, 1, 0)
            continue
        assert frames == FRAMES[:hit] + FRAMES[hit + 1 :]
        assert [(d.offset, d.frame_index, d.lost) for d in damages] == [(STARTS[hit], hit, 1)]
        assert lost == 1


def test_truncation_at_every_byte() -> None:
    for size in range(len(GOOD)):
        if size < HEADER_BYTES:
            with pytest.raises(InputError):
                read(GOOD[:size])
            continue
        complete = sum(start <= size for start in STARTS) - 1
        frames, damages, lost = read(GOOD[:size])
        assert frames == FRAMES[:complete]
        if size == STARTS[complete]:
            assert (damages, lost) == ([], 0)
        else:
            assert [(d.offset, d.frame_index, d.lost) for d in damages] == [(STARTS[complete], complete, 1)]


@pytest.mark.parametrize("size", [1, 3, 27, 28, 29, 100, 70_000, 200_000])
def test_trailing_garbage_is_reported(size: int) -> None:
    frames, damages, lost = read(GOOD + b"\x55" * size)
    assert frames == FRAMES
    assert lost == 0
    assert [(d.offset, d.frame_index) for d in damages] == [(len(GOOD), None)]
    assert f"{size} bytes" in damages[0].reason


@pytest.mark.parametrize("size", [1, 27, 28, 29, 70_000])
def test_garbage_between_frames_loses_nothing(size: int) -> None:
    # Bytes of the marker too: candidates that turn out not to be one.
    garbage = (MARKER + b"?")[:5] * size
    frames, damages, lost = read(GOOD[: STARTS[2]] + garbage[:size] + GOOD[STARTS[2] :])
    assert frames == FRAMES
    assert lost == 0
    assert len(damages) == 1


def test_missing_bytes_lose_only_their_frame() -> None:
    payloads = [bytes([i]) * 300 for i in range(5)]
    data = stream(payloads)
    start = HEADER_BYTES + 2 * 328
    for cut in range(1, 328):
        frames, damages, lost = read(data[: start + 100 - min(cut, 100)] + data[start + 100 - min(cut, 100) + cut :])
        assert [f.index for f in frames] == [0, 1, 3, 4]
        assert lost == 1
        assert {d.frame_index for d in damages} == {2}


def test_a_frame_that_is_gone_is_reported() -> None:
    frames, damages, lost = read(GOOD[: STARTS[1]] + GOOD[STARTS[3] :])
    assert frames == [FRAMES[0], FRAMES[3]]
    assert lost == 2
    assert damages == [Damage(STARTS[1], "frames 1 to 2 are missing", 1, 2)]


def test_a_frame_that_comes_twice_is_dropped() -> None:
    frames, damages, lost = read(GOOD + GOOD[STARTS[1] : STARTS[2]])
    assert frames == FRAMES
    assert lost == 0
    assert [(d.offset, d.frame_index) for d in damages] == [(len(GOOD), 1)]
    assert "out of order" in damages[0].reason


@pytest.mark.parametrize("claim", [HEADER.payload_cap, HEADER.payload_cap + 1, 2**32 - 1])
def test_a_length_that_lies_costs_no_memory(claim: int) -> None:
    lie = pack_frame_header(FrameHeader(1, 0, claim, 0))
    data = GOOD[: STARTS[1]] + lie + GOOD[STARTS[2] :]
    tracemalloc.start()
    frames, damages, _ = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert frames == [FRAMES[0], *FRAMES[2:]]
    assert [(d.frame_index, d.lost) for d in damages] == [(1, 1)]


def test_a_big_cap_does_not_allocate_before_the_bytes_come() -> None:
    big = StreamHeader(bytes(32), (16, 2048, 2048), 8, Scaling("tensor"))
    file = io.BytesIO()
    Writer(file, big)
    file.write(pack_frame_header(FrameHeader(0, 0, 190_000_000, 0)) + b"abc")
    tracemalloc.start()
    reader = Reader(io.BytesIO(file.getvalue()))
    assert list(reader) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert "3 of 190000000" in reader.damages[0].reason


@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_any_splice_keeps_the_frames_that_it_spares(junk: bytes, at: int, gone: int) -> None:
    at = max(at, HEADER_BYTES)
    frames, damages, _ = read(GOOD[:at] + junk + GOOD[at + gone :])
    for i, frame in enumerate(FRAMES):
        if STARTS[i + 1] <= at or STARTS[i] >= at + gone:
            assert frame in frames
    assert all(frame in FRAMES for frame in frames)
    if (junk or gone) and junk != GOOD[at : at + gone] and at < len(GOOD):
        assert damages or len(frames) < len(FRAMES)


def test_frames_come_out_of_a_pipe_as_they_arrive() -> None:
    source, sink = os.pipe()
    with open(sink, "wb") as out, open(source, "rb") as file:
        writer = Writer(out, HEADER)
        reader = Reader(file)
        frames = iter(reader)
        for frame in FRAMES:
            # Would hang here if the reader wanted a byte more than the frame's.
            writer.write(frame.payload, frame.timestamp_us)
            assert next(frames) == frame
        out.close()
        assert list(frames) == []


def test_pipe_and_unbuffered_file_in_small_bites() -> None:
    source, sink = os.pipe()

    def feed() -> None:
        with open(sink, "wb", buffering=0) as out:
            for i in range(0, len(GOOD), 7):
                out.write(GOOD[i : i + 7])

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(source, "rb", buffering=0) as file:
        assert list(Reader(file)) == FRAMES
    feeder.join()


def test_append(tmp_path: Path) -> None:
    path = tmp_path / "a.lseg"
    path.write_bytes(GOOD)
    with path.open("r+b") as file:
        writer = Writer.append(file)
        assert writer.header == HEADER
        writer.write(b"more", 7)
    frames, damages, _ = read(path.read_bytes())
    assert frames == [*FRAMES, Frame(4, 7, b"more")]
    assert damages == []


@pytest.mark.parametrize("cut", [1, 9, 20, 36])
def test_append_behind_a_cut_frame(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.lseg"
    path.write_bytes(GOOD[:-cut])
    with path.open("r+b") as file:
        Writer.append(file).write(b"more", 7)
    frames, damages, lost = read(path.read_bytes())
    assert frames == [*FRAMES[:3], Frame(4, 7, b"more")]
    assert lost == 1
    assert damages[0].frame_index == 3


def test_full_disk_leaves_a_readable_stream() -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: object) -> int:
            room = STARTS[2] + 10 - self.tell()
            taken = super().write(bytes(data)[:room])  # type: ignore[call-overload]
            if taken == 0:
                raise OSError(28, "No space left on device")
            return taken

    file = FullDisk()
    writer = Writer(file, HEADER)
    writer.write(PAYLOADS[0])
    writer.write(PAYLOADS[1], 40_000)
    with pytest.raises(OSError, match="No space"):
        writer.write(PAYLOADS[2])
    frames, damages, _ = read(file.getvalue())
    assert frames == FRAMES[:2]
    assert damages[0].frame_index == 2


def test_writer_refuses_what_no_reader_would_take() -> None:
    writer = Writer(io.BytesIO(), HEADER)
    with pytest.raises(InputError, match="expected at most"):
        writer.write(bytes(HEADER.payload_cap + 1))
    with pytest.raises(InputError, match="64 bits"):
        writer.write(b"", 1 << 63)
    assert writer.frames == 0


def test_frame_header_layout() -> None:
    data = GOOD[STARTS[2] : STARTS[3]]
    marker, index, time, size, crc, header_crc = struct.unpack("<4sIqIII", data[:28])
    assert (marker, index, time, size) == (MARKER, 2, 80_000, len(PAYLOADS[2]))
    assert crc == zlib.crc32(PAYLOADS[2])
    assert header_crc == zlib.crc32(data[:24])


def test_a_flood_of_markers_does_not_pile_up() -> None:
    class Flood(io.RawIOBase):
        """A header, then 1 MiB of bytes that each time look as if a frame were about to begin."""

        left = 1 << 20

        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            if self.left == 1 << 20:
                self.left -= 200
                return stream([])
            size = min(self.left, 1 << 16)
            self.left -= size
            return (MARKER * (size // 4 + 1))[:size]

    flood = Flood()
    tracemalloc.start()
    try:
        reader = Reader(flood)  # type: ignore[arg-type]
        assert list(reader) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
    assert len(reader.damages) == 1
