"""Codebooks in the stream header: layout, both copies, damage, and lies."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Reader, Scaling, StreamHeader, Writer
from latentseg.bitstream.header import HEADER_BYTES, as_centres, pack_header
from latentseg.errors import InputError, LatentsegError, UsageError

CENTRES = (-2.5, -1.0, 0.1, 0.5, 3.0)
SIZE = 4 * len(CENTRES) + 4  # of one copy


def header(centres: tuple[float, ...] = CENTRES, bits: int = 3, **changes: Any) -> StreamHeader:
    return StreamHeader(bytes(range(32)), (2, 3, 4), bits, Scaling("codebook", centres=centres), **changes)


GOOD = pack_header(header())


def read(data: bytes) -> Reader:
    return Reader(io.BytesIO(data))


def copy_of(*centres: float) -> bytes:
    body = np.array(centres, "<f4").tobytes()
    return body + struct.pack("<I", zlib.crc32(body))


def forge(field: bytes, codebook: bytes, offset: int = 14) -> bytes:
    """A header that carries `field` at `offset`, with CRCs that fit, and `codebook` behind it."""
    body = bytearray(GOOD[:96])
    body[offset : offset + len(field)] = field
    return 2 * (bytes(body) + struct.pack("<I", zlib.crc32(body))) + codebook


def test_layout() -> None:
    assert len(GOOD) == header().size == 200 + 2 * SIZE
    assert GOOD[13:16] == b"\x03\x05\x00"
    assert GOOD[44:52] == bytes(8)  # no range
    assert GOOD[200:] == 2 * copy_of(*CENTRES)
    assert header().scaling.centres[2] == float(np.float32(0.1)) != 0.1
    assert header(coder="huffman-channel").levels == 5
    plain = StreamHeader(bytes(32), (1, 1, 1), 3, Scaling("tensor"))
    assert (plain.size, plain.levels, plain.scaling.centres) == (200, 8, ())


finite = st.floats(-(2.0**126), 2.0**126, width=32)


@given(st.lists(finite, min_size=2, max_size=256, unique=True), st.sampled_from(["context", "huffman-frame"]))
@settings(max_examples=60, deadline=None)
def test_round_trip(values: list[float], coder: Any) -> None:
    centres = tuple(sorted(values))
    bits = next(n for n in range(1, 9) if len(centres) <= 2**n)
    made = header(centres, bits, coder=coder)
    file = io.BytesIO()
    Writer(file, made).write(b"payload", 5)
    reader = read(file.getvalue())
    assert reader.header == made
    assert reader.header.scaling.centres == centres
    assert [(f.index, f.payload) for f in reader] == [(0, b"payload")]
    assert reader.damages == []


def test_every_flipped_bit_loses_nothing() -> None:
    for bit in range(8 * len(GOOD)):
        bad = bytearray(GOOD)
        bad[bit // 8] ^= 1 << bit % 8
        reader = read(bytes(bad))
        assert reader.header == header()
        ((offset, reason),) = [(d.offset, d.reason) for d in reader.damages]
        what, at = ("header", bit // 800) if bit < 1600 else ("codebook", (bit - 1600) // (8 * SIZE))
        assert reason == f"{what} copy {at + 1} of 2 is damaged; the other is used"
        assert offset == (100 * at if what == "header" else 200 + SIZE * at)


@pytest.mark.parametrize("copies", [(0, 1), (1, 0)])
def test_a_copy_of_each_damaged(copies: tuple[int, int]) -> None:
    bad = bytearray(GOOD)
    bad[100 * copies[0] + 20] ^= 1
    bad[200 + SIZE * copies[1] + 3] ^= 1
    reader = read(bytes(bad))
    assert reader.header == header()
    assert [d.reason.split(" is ")[0] for d in reader.damages] == [
        f"header copy {copies[0] + 1} of 2",
        f"codebook copy {copies[1] + 1} of 2",
    ]


def test_both_copies_damaged() -> None:
    bad = bytearray(GOOD)
    bad[200] ^= 1
    bad[-1] ^= 1
    with pytest.raises(InputError, match="both copies of the stream's codebook are damaged"):
        read(bytes(bad))


def test_copies_that_differ() -> None:
    reader = read(GOOD[:200] + copy_of(*CENTRES) + copy_of(-2, -1, 0, 1, 2))
    assert reader.header == header()
    assert [(d.offset, d.reason) for d in reader.damages] == [
        (200 + SIZE, "codebook copy 2 of 2 differs from the first; the first is used")
    ]


def test_cut_codebook() -> None:
    for size in range(HEADER_BYTES, len(GOOD)):
        with pytest.raises(InputError, match=f"truncated: {size} bytes, .* with its codebook, has {len(GOOD)}"):
            read(GOOD[:size])


class Drip(io.RawIOBase):
    """A pipe that gives three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 3))


def test_frames_behind_a_codebook_through_a_pipe_and_past_damage() -> None:
    file = io.BytesIO()
    writer = Writer(file, header())
    assert writer.bytes_written == header().size
    for payload in (b"one", b"two", b"three"):
        writer.write(payload)
    data = bytearray(file.getvalue())
    data[header().size + 28] ^= 1
    reader = Reader(Drip(bytes(data)))  # type: ignore[arg-type]
    assert [frame.payload for frame in reader] == [b"two", b"three"]
    assert [(d.offset, d.frame_index, d.lost) for d in reader.damages] == [(header().size, 0, 1)]


def test_append_keeps_the_codebook() -> None:
    file = io.BytesIO()
    Writer(file, header()).write(b"one")
    file.seek(0)
    writer = Writer.append(file)
    assert writer.header == header()
    writer.write(b"two")
    assert [frame.payload for frame in read(file.getvalue())] == [b"one", b"two"]


BOOK = 2 * copy_of(*CENTRES)
NINE = 2 * copy_of(*range(9))
LIES: dict[str, tuple[bytes, str]] = {
    "9 centres with 3 bits": (forge(b"\x09\x00", NINE), "codebook of 9 centres with 3 bits a symbol, expected 5 to 8"),
    "4 centres with 3 bits": (forge(b"\x04\x00", 2 * copy_of(*range(4))), "codebook of 4 centres with 3 bits"),
    "no centres": (forge(b"\x00\x00", b""), "codebook of 0 centres"),
    "no centres, 1 bit": (forge(b"\x01\x03\x00\x00", b"", 12), "codebook of 0 centres with 1 bits"),
    "one centre": (forge(b"\x01\x03\x01\x00", 2 * copy_of(1), 12), "codebook of 1 centres with 1 bits"),
    "all of memory": (forge(b"\xff\xff", BOOK), "codebook of 65535 centres"),
    "257 centres": (forge(b"\x09\x03\x01\x01", 2 * copy_of(*range(257)), 12), "codebook of 257 centres with 9 bits"),
    "no bits": (forge(b"\x00", BOOK, 12), "codebook of 5 centres with 0 bits"),
    "a range": (forge(struct.pack("<2f", 0, 1), BOOK, 44), r"range \[0.0, 1.0\] with scaling 'codebook'"),
    "NaN": (forge(b"", 2 * copy_of(0, 1, float("nan"), 3, 4)), "centre 2 is nan, expected"),
    "infinity": (forge(b"", 2 * copy_of(0, 1, 2, 3, float("inf"))), "centre 4 is inf, expected"),
    "a midpoint overflows": (
        forge(b"", 2 * copy_of(0, 1, 2, 3, 1.8e38)),
        "centre 4 is 1.*e.38, expected numbers below",
    ),
    "not ascending": (
        forge(b"", 2 * copy_of(0, 1, 3, 2, 4)),
        "centre 3 is 2.0 and centre 2 is 3.0, expected ascending",
    ),
    "equal": (forge(b"", 2 * copy_of(0, 1, 1, 2, 4)), "centre 2 is 1.0 and centre 1 is 1.0, expected ascending"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_before_anything_is_allocated(name: str) -> None:
    data, message = LIES[name]
    error: LatentsegError | None = None
    tracemalloc.start()
    try:
        read(data + bytes(1 << 16))
    except LatentsegError as found:
        error = found
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, InputError)
    with pytest.raises(InputError, match=message):
        raise error
    assert peak < 500_000


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        ((), "codebook of 0 centres, expected 2 to 256"),
        ((1.0,), "codebook of 1 centres"),
        (range(257), "codebook of 257 centres"),
        (((1.0, 2.0),), r"codebook of shape \(1, 2\)"),
        ((0.0, float("nan")), "centre 1 is nan"),
        ((1.0, 0.5), "expected ascending"),
        ((0.0, -0.0), "expected ascending"),
        ((1.0, 1.00000001), "expected ascending"),  # one number in float32
        ((0.0, 1e300), "centre 1 is inf"),
    ],
)
def test_what_is_no_codebook(centres: Any, message: str) -> None:
    for make in (as_centres, lambda found: Scaling("codebook", centres=found)):
        with pytest.raises(InputError, match=message):
            make(centres)


def test_centres_are_of_a_codebook_alone() -> None:
    with pytest.raises(UsageError, match="'tensor' takes no centres, found 2"):
        Scaling("tensor", centres=(0.0, 1.0))
    with pytest.raises(UsageError, match="'codebook' takes no lo and hi: the centres carry them"):
        Scaling("codebook", 0.0, 1.0, (0.0, 1.0))
    for count, bits in ((2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8), (256, 8)):
        assert header(tuple(range(count)), bits).levels == count
        for wrong in {bits - 1, bits + 1} & set(range(1, 9)):
            with pytest.raises(InputError, match=f"codebook of {count} centres with {wrong} bits a symbol, expected"):
                header(tuple(range(count)), wrong)
