"""Golden bytes, and the agreement with a decoder that was written from docs/format.md alone (tests/_stranger.py)."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, get_args

import _stranger
import numpy as np
import pytest

from latentseg.bitstream import Reader, Scaling, StreamHeader, Writer
from latentseg.bitstream.context_payload import CENTRED, CONSTANT, PREDICTED, plan_tiles, unpack_context
from latentseg.bitstream.header import Coder, tile_for
from latentseg.kernels import entropy

# --- golden bytes: a change here is a new version of the format ------------------------------------------------------

CODEC = bytes(range(32))
Q = np.array([[[0, 1, 2], [1, 1, 7]], [[5, 5, 5], [5, 5, 5]]], np.uint8)
TILE = (4, 4)

# The first one by hand: -1.0 and 2.0; symbols 0..7 with lengths 4 2 4 0 0 1 0 3 (counts 1 3 1 0 0 6 0 1); a lane of 3
# bytes: 1110 10 1111 10 10 110 0 0 0 0 0 0, and one bit of filling.
# The head of the last one, in reading order: mode 1, f 16, g 0, centre 1: 1 1 00000100000 00101; mode 0, centre 5: 010
# 0001100; order 3, and 3 bytes, which is 6: 1100 1011; four bits of filling.
GOLDEN_PAYLOADS = {
    ("huffman-frame", "tensor"): "000080bf000000400007424d010303ebeb00",
    ("huffman-frame", "channel"): "000080bf0000003f000000400000003f0007424d010303ebeb00",
    ("huffman-frame", "fixed"): "0007424d010303ebeb00",
    ("huffman-channel", "tensor"): "000080bf000000400007313d22050502ce40",
    ("huffman-channel", "channel"): "000080bf0000003f000000400000003f0007313d22050502ce40",
    ("huffman-channel", "fixed"): "0007313d22050502ce40",
    ("context", "tensor"): "000080bf0000004083800a330df25a05",
    ("context", "channel"): "000080bf0000003f000000400000003f83800a330df25a05",
    ("context", "fixed"): "83800a330df25a05",
}
GOLDEN_PAYLOADS |= {(c, "codebook"): data for (c, mode), data in GOLDEN_PAYLOADS.items() if mode == "fixed"}
GOLDEN_STREAM_HUFFMAN = (
    "894c5345470d0a1a01000101030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc140d4ef"
    "894c5345470d0a1a01000101030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc140d4ef"
    "ab4c53460000000000000000000000000a0000008f2643928b4de01a"
    "0007313d22050502ce40"
    "ab4c534601000000a97dffffffffffff0a0000008f2643925d1b2095"
    "0007313d22050502ce40"
)


GOLDEN_STREAM_CONTEXT = (
    "894c5345470d0a1a01000200030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000400040000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2b72c91b"
    "894c5345470d0a1a01000200030200000200000002000000030000000d0000001100000030750000e9030000000000c30000"
    "fe42100000000400040000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2b72c91b"
    "ab4c534600000000000000000000000008000000a0688e03855fcc23"
    "83800a330df25a05"
    "ab4c534601000000a97dffffffffffff08000000a0688e0353090cac"
    "83800a330df25a05"
)
# Under a codebook only the header is another: scaling 3, 8 centres, no range; and the centres and their CRC, twice.
CENTRES = (-2.5, -1.0, -0.25, 0.0, 0.1, 0.5, 1.0, 3.0)
GOLDEN_CODEBOOK = "000020c0000080bf000080be00000000cdcccc3d0000003f0000803f000040402233f7bc"
GOLDEN_HEADERS = {
    "huffman-channel": (
        "894c5345470d0a1a01000101030308000200000002000000030000000d0000001100000030750000e9030000000000000000"
        "0000100000000000000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f875780b6"
    ),
    "context": (
        "894c5345470d0a1a01000200030308000200000002000000030000000d0000001100000030750000e9030000000000000000"
        "0000100000000400040000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f6d659d42"
    ),
}
GOLDEN_STREAMS = {("huffman-channel", "fixed"): GOLDEN_STREAM_HUFFMAN, ("context", "fixed"): GOLDEN_STREAM_CONTEXT}
GOLDEN_STREAMS |= {
    (coder, "codebook"): 2 * start + 2 * GOLDEN_CODEBOOK + GOLDEN_STREAMS[coder, "fixed"][400:]
    for coder, start in GOLDEN_HEADERS.items()
}

# Three channels of 8 bits in tiles of 4 x 4, 4 x 1, 3 x 4 and 3 x 1: steps with a spike, which are predicted and have
# escapes; values about 100, which are not; and one value.
Y, X = np.mgrid[:7, :5]
LARGER = np.stack([30 * Y + 0 * X, 100 + (Y * Y * 3 + X * 7) % 5, 0 * X + 200]).astype(np.uint8)
LARGER[0, 3, 3] = 255
GOLDEN_LARGER = (
    "8682053282093298022c0a9d40d2defccd9a4c71897576a491b2288052e8af4d232300790e168f0fad101d798e3c0200c733"
    "8000345d02639c075ed3c4d98901a0e800"
)


GOLDEN_SCALINGS = {
    "tensor": Scaling("tensor"), "channel": Scaling("channel"), "fixed": Scaling("fixed", -128.0, 127.0),
    "codebook": Scaling("codebook", centres=CENTRES),
}  # fmt: skip


def make_header(
    coder: str, mode: str, shape: tuple[int, int, int] = (2, 2, 3), bits: int = 3, tile: tuple[int, int] = TILE
) -> StreamHeader:
    return StreamHeader(
        codec_id=CODEC,
        latent_shape=shape,
        bits=bits,
        scaling=GOLDEN_SCALINGS[mode],
        source_size=(13, 17),
        frame_rate=(30000, 1001),
        coder=coder,  # type: ignore[arg-type]
        lane_symbols=16,
        tile=tile_for(coder, tile),
    )


def golden_payload(header: StreamHeader, implementation: str) -> bytes:
    ranges = {
        "tensor": (-1.0, 2.0),
        "channel": (np.array([-1, 0.5], np.float32), np.array([2, 0.5], np.float32)),
    }.get(header.scaling.mode, (None, None))
    return entropy.encode_symbols(Q, header, *ranges, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", ["auto", "numpy"])
@pytest.mark.parametrize(("coder", "mode"), GOLDEN_PAYLOADS)
def test_golden_payload(coder: str, mode: str, implementation: str) -> None:
    header = make_header(coder, mode)
    payload = bytes.fromhex(GOLDEN_PAYLOADS[coder, mode])
    assert golden_payload(header, implementation).hex() == payload.hex()
    assert (entropy.decode_symbols(payload, header, implementation) == Q).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", ["auto", "numpy"])
def test_golden_payload_of_many_tiles(implementation: Any) -> None:
    header = make_header("context", "fixed", LARGER.shape, 8)
    payload = bytes.fromhex(GOLDEN_LARGER)
    assert entropy.encode_symbols(LARGER, header, implementation=implementation).hex() == payload.hex()
    assert (entropy.decode_symbols(payload, header, implementation) == LARGER).all()
    parts = unpack_context(payload, header, plan_tiles(header))
    assert parts.channels.mode.tolist() == [PREDICTED, CENTRED, CONSTANT]


def golden_stream(coder: str, mode: str) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, make_header(coder, mode))
    for time in (0, -33367):
        writer.write(golden_payload(writer.header, "numpy"), time)
    return file.getvalue()


@pytest.mark.parametrize(("coder", "mode"), GOLDEN_STREAMS)
def test_golden_stream(coder: str, mode: str) -> None:
    assert golden_stream(coder, mode).hex() == GOLDEN_STREAMS[coder, mode]


# --- the stranger -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coder", "mode"), GOLDEN_STREAMS)
def test_stranger_reads_golden_stream(coder: str, mode: str) -> None:
    frames = _stranger.decode(bytes.fromhex(GOLDEN_STREAMS[coder, mode]))
    assert [(index, time) for index, time, *_ in frames] == [(0, 0), (1, -33367)]
    for _, _, symbols, ranges, values in frames:
        assert symbols == Q.reshape(-1).tolist()
        if mode == "fixed":
            assert (ranges, values) == ([(-128.0, 127.0)], [])
        else:
            assert (ranges, values) == ([], np.array(CENTRES, np.float32)[Q].reshape(-1).tolist())


def test_stranger_reads_golden_payload_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = bytes.fromhex(GOLDEN_LARGER)
    assert _stranger.context(payload, 0, LARGER.shape, 8, *TILE)[0] == LARGER.reshape(-1).tolist()
    # There is an escape in it: who does not know them fails.
    monkeypatch.setattr(_stranger, "ESCAPE", object())
    with pytest.raises(TypeError):
        _stranger.context(payload, 0, LARGER.shape, 8, *TILE)


def test_stranger_builds_the_tables_of_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
    assert f"`{_stranger.tables_crc():08X}`" in page


def agree(coder: str, mode: str, shape: tuple[int, int, int], tile: tuple[int, int] = TILE, bits: int = 6) -> None:
    """The stranger and we find the same in a stream of three latents: noise, slopes, and rare spikes."""
    rng = np.random.default_rng(shape)
    scaling = Scaling("codebook", centres=codebook(bits)) if mode == "codebook" else SCALINGS[mode]
    header = dataclasses.replace(make_header(coder, "tensor", shape, bits, tile), scaling=scaling)
    file = io.BytesIO()
    writer = Writer(file, header)
    spread = np.array([1.0, 0.0, 3.0, 0.2, 1.0])[: shape[0], None, None]
    for i in range(3):
        z = rng.laplace(size=shape) * spread
        z = (z, z.cumsum(axis=2) / 4, np.where(rng.random(shape) < 0.04, 3 * spread, z / 50))[i]
        writer.write(entropy.encode_latent(z.astype(np.float32), header), 1000 * i)
    stream = file.getvalue()
    ours = list(Reader(io.BytesIO(stream)))
    theirs = _stranger.decode(stream)
    assert len(ours) == len(theirs) == 3
    for frame, (index, time, symbols, ranges, values) in zip(ours, theirs, strict=True):
        assert (frame.index, frame.timestamp_us) == (index, time)
        assert entropy.decode_symbols(frame.payload, header).reshape(-1).tolist() == symbols
        if mode == "codebook":
            assert ranges == []
            assert entropy.decode_latent(frame.payload, header).reshape(-1).tolist() == values
            continue
        lo, hi = entropy.payload_range(frame.payload, header)
        assert list(zip(lo.tolist(), hi.tolist(), strict=True)) == ranges
        assert values == []


def codebook(bits: int) -> tuple[float, ...]:
    """One that leaves the last symbols of so many bits without centres, where it can."""
    count = 2 if bits == 1 else 3 * 2**bits // 4
    return tuple(np.sort(np.random.default_rng(bits).laplace(size=count)).tolist())


SHAPES = [(1, 1, 1), (3, 5, 7), (2, 11, 13), (5, 4, 8)]
SCALINGS = {"tensor": Scaling("tensor"), "channel": Scaling("channel"), "fixed": Scaling("fixed", -2.5, 3.0)}


@pytest.mark.parametrize("coder", get_args(Coder))
@pytest.mark.parametrize("mode", [*SCALINGS, "codebook"])
@pytest.mark.parametrize("shape", SHAPES)
def test_stranger_agrees_on_latents(coder: str, mode: str, shape: tuple[int, int, int]) -> None:
    agree(coder, mode, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [(1, 16), (16, 1), (14, 32)])
@pytest.mark.parametrize("bits", [1, 8])
def test_stranger_agrees_on_tiles(shape: tuple[int, int, int], tile: tuple[int, int], bits: int) -> None:
    agree("context", "channel", shape, tile, bits)
    agree("context", "codebook", shape, tile, bits)
