"""Golden bytes, and a decoder that was written from docs/format.md alone and imports nothing of ours."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest

from latentseg.bitstream import Reader, Scaling, StreamHeader, Writer
from latentseg.kernels import entropy

# --- the stranger's decoder -------------------------------------------------------------------------------------------


def stranger_tables(data: bytes, at: int, count: int) -> tuple[list[dict[str, int] | int], int]:
    tables: list[dict[str, int] | int] = []
    for _ in range(count):
        first, last = data[at : at + 2]
        at += 2
        if first == last:
            tables.append(first)
            continue
        nibbles = [half for byte in data[at:] for half in (byte >> 4, byte & 15)]
        lengths: list[int] = []
        i = 0
        while len(lengths) < last - first + 1:
            v = nibbles[i]
            if v <= 12:
                lengths.append(v)
            elif v == 13:
                lengths += [0] * (2 + nibbles[i + 1])
            elif v == 14:
                lengths += [lengths[-1]] * (3 + nibbles[i + 1])
            else:
                lengths += [0] * (18 + 16 * nibbles[i + 1] + nibbles[i + 2])
            i += 1 if v <= 12 else 3 if v == 15 else 2
        at += (i + 1) // 2
        assert sum(Fraction(1, 2**v) for v in lengths if v) == 1
        code = before = 0
        table: dict[str, int] = {}
        for length, symbol in sorted((v, s) for s, v in enumerate(lengths, first) if v):
            code <<= length - before
            table[f"{code:0{length}b}"] = symbol
            code, before = code + 1, length
        tables.append(table)
    return tables, at


def stranger_decode(stream: bytes) -> list[tuple[int, int, list[int], list[tuple[float, float]]]]:
    """(index, timestamp, symbols in raster order, ranges) of each frame of an undamaged stream."""
    assert stream[:10] == b"\x89LSEG\r\n\x1a\x01\x00"
    assert stream[:100] == stream[100:200]
    assert zlib.crc32(stream[:96]) == struct.unpack_from("<I", stream, 96)[0]
    coder, dictionary, _, scaling = stream[10:14]
    c, h, w = struct.unpack_from("<3I", stream, 16)
    lo, hi = struct.unpack_from("<2f", stream, 44)
    (lane,) = struct.unpack_from("<I", stream, 52)
    assert coder == 1
    frames = []
    at = 200
    while at < len(stream):
        marker, index, time, size, crc, header_crc = struct.unpack_from("<4sIqIII", stream, at)
        assert marker == b"\xabLSF"
        assert header_crc == zlib.crc32(stream[at : at + 24])
        payload = stream[at + 28 : at + 28 + size]
        assert crc == zlib.crc32(payload)
        at += 28 + size
        pairs = (1, c, 0)[scaling]
        both = struct.unpack_from(f"<{2 * pairs}f", payload)
        ranges = list(zip(both[:pairs], both[pairs:], strict=True)) if pairs else [(lo, hi)]
        runs, length = (c, h * w) if dictionary else (1, c * h * w)
        tables, p = stranger_tables(payload, 8 * pairs, runs)
        cuts = [(run, min(lane, length - i)) for run in range(runs) for i in range(0, length, lane)]
        sizes = []
        for run, _ in cuts:
            size = shift = 0
            while not isinstance(tables[run], int):
                byte = payload[p]
                size |= (byte & 127) << shift
                shift, p = shift + 7, p + 1
                if byte < 128:
                    break
            sizes.append(size)
        symbols: list[int] = []
        for (run, count), size in zip(cuts, sizes, strict=True):
            table = tables[run]
            bits = "".join(f"{byte:08b}" for byte in payload[p : p + size])
            p += size
            for _ in range(count):
                if isinstance(table, int):
                    symbols.append(table)
                    continue
                n = next(n for n in range(1, 13) if bits[:n] in table)
                symbols.append(table[bits[:n]])
                bits = bits[n:]
            assert len(bits) < 8
            assert "1" not in bits
        assert p == len(payload)
        frames.append((index, time, symbols, ranges))
    return frames


# --- golden bytes: a change here is a new version of the format ------------------------------------------------------

CODEC = bytes(range(32))
Q = np.array([[[0, 1, 2], [1, 1, 7]], [[5, 5, 5], [5, 5, 5]]], np.uint8)

# The first row by hand: -1.0 and 2.0; symbols 0..7 with lengths 4 2 4 0 0 1 0 3 (counts 1 3 1 0 0 6 0 1); a lane of 3
# bytes: 1110 10 1111 10 10 110 0 0 0 0 0 0, and one bit of filling.
GOLDEN_PAYLOADS = {
    ("frame", "tensor"): "000080bf000000400007424d010303ebeb00",
    ("frame", "channel"): "000080bf0000003f000000400000003f0007424d010303ebeb00",
    ("frame", "fixed"): "0007424d010303ebeb00",
    ("channel", "tensor"): "000080bf000000400007313d22050502ce40",
    ("channel", "channel"): "000080bf0000003f000000400000003f0007313d22050502ce40",
    ("channel", "fixed"): "0007313d22050502ce40",
}
GOLDEN_STREAM = (
    "894c5345470d0a1a01000101030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc140d4ef"
    "894c5345470d0a1a01000101030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc140d4ef"
    "ab4c53460000000000000000000000000a0000008f2643928b4de01a"
    "0007313d22050502ce40"
    "ab4c534601000000a97dffffffffffff0a0000008f2643925d1b2095"
    "0007313d22050502ce40"
)


def golden_header(dictionary: str, mode: str) -> StreamHeader:
    scaling = Scaling("fixed", -128.0, 127.0) if mode == "fixed" else Scaling(mode)  # type: ignore[arg-type]
    return StreamHeader(
        codec_id=CODEC,
        latent_shape=(2, 2, 3),
        bits=3,
        scaling=scaling,
        source_size=(13, 17),
        frame_rate=(30000, 1001),
        dictionary=dictionary,  # type: ignore[arg-type]
        lane_symbols=16,
    )


def golden_payload(header: StreamHeader, implementation: str) -> bytes:
    ranges = {
        "tensor": (-1.0, 2.0),
        "channel": (np.array([-1, 0.5], np.float32), np.array([2, 0.5], np.float32)),
        "fixed": (None, None),
    }[header.scaling.mode]
    return entropy.encode_symbols(Q, header, *ranges, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", ["auto", "numpy"])
@pytest.mark.parametrize(("dictionary", "mode"), GOLDEN_PAYLOADS)
def test_golden_payload(dictionary: str, mode: str, implementation: str) -> None:
    header = golden_header(dictionary, mode)
    assert golden_payload(header, implementation).hex() == GOLDEN_PAYLOADS[dictionary, mode]


def golden_stream() -> bytes:
    file = io.BytesIO()
    writer = Writer(file, golden_header("channel", "fixed"))
    for time in (0, -33367):
        writer.write(golden_payload(writer.header, "numpy"), time)
    return file.getvalue()


def test_golden_stream() -> None:
    assert golden_stream().hex() == GOLDEN_STREAM


def test_stranger_reads_golden_stream() -> None:
    frames = stranger_decode(bytes.fromhex(GOLDEN_STREAM))
    assert [(index, time) for index, time, _, _ in frames] == [(0, 0), (1, -33367)]
    for _, _, symbols, ranges in frames:
        assert symbols == Q.reshape(-1).tolist()
        assert ranges == [(-128.0, 127.0)]


@pytest.mark.parametrize("dictionary", ["frame", "channel"])
@pytest.mark.parametrize("mode", ["tensor", "channel", "fixed"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 11, 13), (5, 4, 8)])
def test_stranger_agrees_on_latents(dictionary: str, mode: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(shape)
    scaling = Scaling("fixed", -2.5, 3.0) if mode == "fixed" else Scaling(mode)  # type: ignore[arg-type]
    header = StreamHeader(bytes(32), shape, 6, scaling, dictionary=dictionary, lane_symbols=16)  # type: ignore[arg-type]
    file = io.BytesIO()
    writer = Writer(file, header)
    for i in range(3):
        z = (rng.laplace(size=shape) * np.array([1.0, 0.0, 3.0, 0.2, 1.0])[: shape[0], None, None]).astype(np.float32)
        writer.write(entropy.encode_latent(z, header), 1000 * i)
    stream = file.getvalue()
    ours = list(Reader(io.BytesIO(stream)))
    theirs = stranger_decode(stream)
    assert len(ours) == len(theirs) == 3
    for frame, (index, time, symbols, ranges) in zip(ours, theirs, strict=True):
        assert (frame.index, frame.timestamp_us) == (index, time)
        assert entropy.decode_symbols(frame.payload, header).reshape(-1).tolist() == symbols
        lo, hi = entropy.payload_range(frame.payload, header)
        assert list(zip(lo.tolist(), hi.tolist(), strict=True)) == ranges
