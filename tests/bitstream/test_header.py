"""The stream header: layout, both copies, lies, and what is not an .lseg at all."""

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

from latentseg.bitstream import Reader, Scaling, StreamHeader
from latentseg.bitstream.header import HEADER_BYTES, pack_header
from latentseg.errors import ArtifactError, InputError, LatentsegError, UsageError

BASE: dict[str, Any] = {
    "codec_id": bytes(range(32)),
    "latent_shape": (32, 45, 60),
    "bits": 8,
    "scaling": Scaling("fixed", -128, 127),
    "source_size": (360, 480),
    "frame_rate": (25, 1),
}


def read(data: bytes) -> Reader:
    return Reader(io.BytesIO(data))


def forge(offset: int, field: bytes) -> bytes:
    """A header whose both copies carry `field` at `offset`, with CRCs that fit."""
    body = bytearray(pack_header(StreamHeader(**BASE))[:96])
    body[offset : offset + len(field)] = field
    return 2 * (bytes(body) + struct.pack("<I", zlib.crc32(body)))


headers = st.builds(
    StreamHeader,
    codec_id=st.binary(min_size=32, max_size=32),
    latent_shape=st.tuples(st.integers(1, 4096), st.integers(1, 128), st.integers(1, 128)),
    bits=st.integers(1, 8),
    scaling=st.one_of(
        st.sampled_from([Scaling("tensor"), Scaling("channel")]),
        st.tuples(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(0, 2.0**100, width=32)).map(
            lambda pair: Scaling("fixed", pair[0], float(np.float32(pair[0]) + np.float32(pair[1])))
        ),
    ),
    source_size=st.one_of(st.just((0, 0)), st.tuples(st.integers(1, 16384), st.integers(1, 16384))),
    frame_rate=st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1)),
    dictionary=st.sampled_from(["frame", "channel"]),
    lane_symbols=st.integers(16, 2**24),
)


@given(headers)
@settings(max_examples=60, deadline=None)
def test_round_trip(header: StreamHeader) -> None:
    reader = read(pack_header(header))
    assert reader.header == header
    assert list(reader) == []
    assert reader.damages == []


def test_fixed_range_is_kept_as_float32() -> None:
    assert Scaling("fixed", 0.1, 0.7).lo == float(np.float32(0.1)) != 0.1


def test_every_flipped_bit_loses_nothing() -> None:
    good = pack_header(StreamHeader(**BASE))
    for bit in range(8 * HEADER_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        reader = read(bytes(bad))
        assert reader.header == StreamHeader(**BASE)
        assert [(d.frame_index, d.lost) for d in reader.damages] == [(None, 0)]
        assert f"copy {bit // 800 + 1} of 2" in reader.damages[0].reason


def test_both_copies_damaged() -> None:
    bad = bytearray(pack_header(StreamHeader(**BASE)))
    bad[20] ^= 1
    bad[180] ^= 1
    with pytest.raises(InputError, match="both copies"):
        read(bytes(bad))


def test_cut_header() -> None:
    good = pack_header(StreamHeader(**BASE))
    with pytest.raises(InputError, match="empty"):
        read(b"")
    for size in range(1, HEADER_BYTES):
        with pytest.raises(InputError, match=f"truncated: {size} bytes"):
            read(good[:size])


LIES = {
    "no channels": (16, struct.pack("<I", 0), InputError),
    "too many channels": (16, struct.pack("<I", 4097), InputError),
    "latent side": (20, struct.pack("<I", 65537), InputError),
    "no rows": (20, struct.pack("<I", 0), InputError),
    "all of memory": (16, struct.pack("<3I", 4096, 65536, 65536), InputError),
    "32-bit overflow": (16, struct.pack("<3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), InputError),
    "no bits": (12, b"\x00", InputError),
    "nine bits": (12, b"\x09", InputError),
    "huge source": (28, struct.pack("<2I", 65536, 65536), InputError),
    "half a source": (28, struct.pack("<2I", 0, 480), InputError),
    "no frame rate": (40, struct.pack("<I", 0), InputError),
    "NaN range": (44, struct.pack("<f", float("nan")), InputError),
    "infinite range": (48, struct.pack("<f", float("inf")), InputError),
    "range upside down": (44, struct.pack("<2f", 1.0, 0.0), InputError),
    "range overflows": (44, struct.pack("<2f", -3e38, 3e38), InputError),
    "range without fixed": (13, b"\x00", InputError),
    "no lane": (52, struct.pack("<I", 0), InputError),
    "endless lane": (52, struct.pack("<I", 2**24 + 1), InputError),
    "version": (8, struct.pack("<H", 2), ArtifactError),
    "coder": (10, b"\x02", ArtifactError),
    "dictionary": (11, b"\x02", ArtifactError),
    "scaling": (13, b"\x03", ArtifactError),
    "reserved": (14, b"\x01", ArtifactError),
    "coder parameters": (60, b"\x01", ArtifactError),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_before_anything_is_allocated(name: str) -> None:
    offset, field, error = LIES[name]
    tracemalloc.start()
    with pytest.raises(error) as caught:
        read(forge(offset, field))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert caught.value.exit_code == (3 if error is InputError else 4)
    assert "expected" in str(caught.value) or caught.value.hint


def test_newer_version_with_a_longer_header() -> None:
    start = b"\x89LSEG\r\n\x1a\x02\x00" + bytes(300)
    with pytest.raises(ArtifactError, match="version 2"):
        read(start)


OTHERS = {
    b"\xff\xd8\xff\xe0": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\x00\x00\x00\x20ftypisom": "MP4",
    b"\x93NUMPY\x01\x00": ".npy",
    b"\x1f\x8b\x08\x00": "gzip",
    "ein Text mit Ümlaut, mehr nicht\n".encode() * 20: "text",
    b"\x00\x01\x02\x03": "unknown",
}


@pytest.mark.parametrize("start", OTHERS)
@pytest.mark.parametrize("size", [12, 400])
def test_other_files_are_named(start: bytes, size: int) -> None:
    padding = b"" if OTHERS[start] == "text" else bytes(size)
    with pytest.raises(InputError, match=OTHERS[start]) as caught:
        read((start + padding)[:size] if size == 400 else start)
    assert "latentseg encode" in caught.value.hint


BAD_VALUES: dict[str, tuple[type[LatentsegError], dict[str, Any]]] = {
    "codec id": (InputError, {"codec_id": b"short"}),
    "shape": (InputError, {"latent_shape": (1, 2)}),
    "bits": (InputError, {"bits": 9}),
    "coder": (ArtifactError, {"coder": "morse"}),
    "dictionary": (UsageError, {"dictionary": "row"}),
    "lane": (InputError, {"lane_symbols": 15}),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_header_is_checked_when_it_is_made(name: str) -> None:
    error, change = BAD_VALUES[name]
    with pytest.raises(error, match="expected"):
        StreamHeader(**{**BASE, **change})


@pytest.mark.parametrize("mode", ["tensor", "channel"])
def test_only_fixed_scaling_has_a_range(mode: Any) -> None:
    with pytest.raises(UsageError, match=mode):
        Scaling(mode, 0, 1)
    with pytest.raises(UsageError, match="expected one of"):
        Scaling("row")  # type: ignore[arg-type]
