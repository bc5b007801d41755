"""The stream header: layout, both copies, lies, and what is not an .lseg at all."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.bitstream import Reader, Scaling, StreamHeader
from latentseg.bitstream.header import CODERS, HEADER_BYTES, Coder, pack_header
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


def forge(offset: int, field: bytes, coder: Coder = "huffman-channel") -> bytes:
    """A header whose both copies carry `field` at `offset`, with CRCs that fit."""
    body = bytearray(pack_header(StreamHeader(**BASE, coder=coder))[:96])
    body[offset : offset + len(field)] = field
    return 2 * (bytes(body) + struct.pack("<I", zlib.crc32(body)))


def with_coder(tile: tuple[int, int], **fields: Any) -> StreamHeader:
    """Any coder; `tile` where it has tiles."""
    return StreamHeader(**fields, tile=tile if fields["coder"] == "context" else (0, 0))


headers = st.builds(
    with_coder,
    tile=st.one_of(
        st.tuples(st.integers(16, 4096), st.integers(1, 4096)), st.tuples(st.integers(1, 256), st.integers(16, 65535))
    ),
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
    coder=st.sampled_from(get_args(Coder)),
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
    "coder": (10, b"\x04", ArtifactError),
    "no coder": (10, b"\x00", ArtifactError),
    "the other coder": (10, b"\x02", ArtifactError),
    "dictionary": (11, b"\x02", ArtifactError),
    "scaling": (13, b"\x04", ArtifactError),
    "centres without a codebook": (14, b"\x01", ArtifactError),
    "a range with a codebook": (13, b"\x03\x80\x00", InputError),
    "coder parameters": (60, b"\x01", ArtifactError),
    "rows of a tile": (56, b"\x01", ArtifactError),
    "columns of a tile": (58, b"\x01", ArtifactError),
    "a whole tile": (56, struct.pack("<2H", 64, 64), ArtifactError),
}


# The same of a stream in tiles, 14 x 32 unless it says something else.
TILE_LIES = {
    "no rows in a tile": (56, struct.pack("<2H", 0, 32), InputError),
    "no columns in a tile": (56, struct.pack("<2H", 14, 0), InputError),
    "no tile": (52, bytes(8), InputError),
    "lane is not the tile": (52, struct.pack("<I", 449), InputError),
    "tile is not the lane": (56, struct.pack("<2H", 32, 15), InputError),
    "small tile": (52, struct.pack("<I2H", 15, 3, 5), InputError),
    "large tile": (52, struct.pack("<I2H", 65535 * 257, 65535, 257), InputError),
    "32-bit overflow of a tile": (52, struct.pack("<I2H", 65535 * 65535, 65535, 65535), InputError),
    "a tile's other parameters": (60, b"\x01", ArtifactError),
    "a tile's last parameter": (63, b"\x80", ArtifactError),
    "dictionary of tiles": (11, b"\x01", ArtifactError),
    "unknown dictionary of tiles": (11, b"\x02", ArtifactError),
    "runs with a tile": (10, b"\x01", ArtifactError),
    "centres without a codebook, in tiles": (14, b"\x01", ArtifactError),
    "next coder": (10, b"\x04", ArtifactError),
    "scaling of tiles": (13, b"\x04", ArtifactError),
}
CASES = [(name, "huffman-channel", *lie) for name, lie in LIES.items()]
CASES += [(name, "context", *lie) for name, lie in TILE_LIES.items()]


@pytest.mark.parametrize(("coder", "offset", "field", "error"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_lies_are_refused_before_anything_is_allocated(
    coder: Any, offset: int, field: bytes, error: type[LatentsegError]
) -> None:
    tracemalloc.start()
    with pytest.raises(error) as caught:
        read(forge(offset, field, coder))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert type(caught.value) is error
    assert peak < 500_000
    assert caught.value.exit_code == (3 if error is InputError else 4)
    assert "expected" in str(caught.value) or caught.value.hint


def test_coders_as_they_lie_in_the_header() -> None:
    assert set(CODERS) == set(get_args(Coder))
    for coder, lane, number, tile in (
        ("huffman-frame", 4096, b"\x01\x00", (0, 0)),
        ("huffman-channel", 4096, b"\x01\x01", (0, 0)),
        ("context", 24 * 61, b"\x02\x00", (24, 61)),
        ("inter", 24 * 61, b"\x03\x00", (24, 61)),
    ):
        packed = pack_header(StreamHeader(**BASE, coder=coder, tile=tile))  # type: ignore[arg-type]
        assert packed[10:12] == number
        assert packed[52:64] == struct.pack("<I2HI", lane, *tile, 0)


def test_tile_gives_the_lane() -> None:
    header = StreamHeader(**BASE)
    assert (header.coder, header.tile, header.lane_symbols) == ("context", (14, 32), 448)
    assert StreamHeader(**BASE, tile=(2, 9), lane_symbols=4096).lane_symbols == 18
    largest = StreamHeader(**BASE, tile=(256, 65535))
    assert read(pack_header(largest)).header == largest


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
    "lane": (InputError, {"coder": "huffman-frame", "lane_symbols": 15}),
    "small tile": (InputError, {"tile": (3, 5)}),
    "large tile": (InputError, {"tile": (65535, 257)}),
    "tall tile": (InputError, {"tile": (65536, 1)}),
    "half a tile": (InputError, {"tile": (0, 16)}),
    "negative tile": (InputError, {"tile": (-4, -4)}),
    "long tile": (InputError, {"tile": (4, 4, 1)}),
    "short tile": (InputError, {"tile": (16,)}),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_header_is_checked_when_it_is_made(name: str) -> None:
    error, change = BAD_VALUES[name]
    with pytest.raises(error, match="expected"):
        StreamHeader(**{**BASE, **change})


@pytest.mark.parametrize("coder", ["huffman-channel", "huffman-frame"])
def test_only_the_context_coder_has_tiles(coder: Any) -> None:
    with pytest.raises(UsageError, match=f"tiles of 4 x 4 with coder '{coder}'"):
        StreamHeader(**BASE, coder=coder, tile=(4, 4))


@pytest.mark.parametrize("mode", ["tensor", "channel"])
def test_only_fixed_scaling_has_a_range(mode: Any) -> None:
    with pytest.raises(UsageError, match=mode):
        Scaling(mode, 0, 1)
    with pytest.raises(UsageError, match="expected one of"):
        Scaling("row")  # type: ignore[arg-type]
