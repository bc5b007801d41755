"""Coder 3: golden bytes of a stream, and the agreement with the decoder of tests/_stranger.py."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import _stranger
import numpy as np
import pytest

from latentseg.bitstream import Reader, Scaling, StreamHeader, Writer
from latentseg.bitstream.context_payload import plan_tiles, unpack_context
from latentseg.kernels import entropy
from latentseg.kernels.frames import FrameDecoder, FrameEncoder, is_key

HEADER = StreamHeader(bytes(range(32)), (6, 7, 5), 8, Scaling("fixed", -128.0, 127.0), coder="inter", tile=(4, 4))
# Each header's copy, then each frame: its header, and the payload.
GOLDEN = (
    "894c5345470d0a1a010003000802000006000000070000000500000000000000000000000000000001000000000000c30000fe4210000000"
    "0400040000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc510cbcc"
    "894c5345470d0a1a010003000802000006000000070000000500000000000000000000000000000001000000000000c30000fe4210000000"
    "0400040000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc510cbcc"
    "ab4c5346000000000000000000000000c00000002edbeaad0aa2ee70"
    "00060116c8083c208329c022036340b1400a36e064b0800c24a34ba2f27ba7b798e658a78592b8ff4c173485b51cd72005e8af4d23230079"
    "4e85b51cd72005798e3c0200c7338000345d02639c075ed3c4d98901a0e80085ddabf8c7ee75e0a53e10aeff41bce40f00001484190200de"
    "12f91cf0b017a98e22d915020096a79d0400e48d597811258e4600005098d4007a68fdda8c1400548a00d3a492dd1309b14b30f5d4e8e2e3"
    "0b00deebc51300c486c1609f15d4cb5ce20d004314e50600"
    "ab4c534601000000409c000000000000870000009381068b6e664af9"
    "0138a82020f019481180458e22860a1e4088c11f58885452a934669b1215b4520a234f00a5d4811ad33c6300c4a4060318526f435e127fc5"
    "0750c829917b222c00f7135106577b6698970019086d4009326b120008ff43003a29e9300073d402000f114b2ac41ebb62f9e021d83c3f03"
    "00d3187f2c001e809d6cb4f8d313a1161a0010b7480300"
    "ab4c53460200000080380100000000008a00000085fa65fc423c33c3"
    "014c203087015204e091a31987060f013c40052aa129ad9ec6cd4c0a55520902dfb6c03dd26302b0054073032d93cb6a01eebb019348b594"
    "d3ac1f72390e7fdfe7f86f00dbdb00fa9ff42f0619dc0f4b04106c87d932d1004d29510017fdbed901005d300a811fe34ab997a2a62dd875"
    "a7647a0126b8a07300abcf7339482ffbb944d80d00eb14783700"
    "ab4c534603000000c0d4010000000000c2000000f431f70af335ce62"
    "0006010ec8083ca08229c022036340b1400a36e064b0800ca80e81242bc6fee92da67bd688a504c4b34d07ef236c9e299d6212bbd44cad5b"
    "009d3a6778e977a24fbc029db2620b00feb3cd34769807fa14064bf81f97ff062fd90070e234003f67dee08323f0be47806ef10700fae1cb"
    "1b0200e729217d9fd020f0de40fae6010090ed2504007cb776176fdadf01f4127600bf18b3308db1011583cf01cd7ad336796f62ae545cb1"
    "dd3be60f00eaee43fc0036821d06fbaca05ee6126f008212dd00"
    "ab4c5346040000000071020000000000860000009608992856f7f141"
    "010c0502820f52011639941c0a9810c003448040918aa05416bb4f2b2168a114afd47e4ff4c90058d2e4bedcfba0c800f2670b9f51e20e84"
    "1906ceb4b9e50acc2600c308b2252aba00440165b283b3640400eb6c474e00a5cb63a70256250e00857a11bf46c02a645e4ef041ea7e0f00"
    "0d338617009e8385c13e2ba897b9c41b00fb13750300"
)
GOLDEN_MODES = [
    [2, 1, 0, 2, 1, 2],  # a key frame
    [6, 4, 0, 3, 4, 5],
    [3, 4, 0, 3, 6, 2],
    [2, 1, 0, 2, 1, 2],  # a key frame
    [3, 1, 0, 3, 6, 2],
]


def golden_frames() -> list[np.ndarray]:
    """Steps with a spike; values about 100; a constant; noise that stays; noise that changes where it was; slopes."""
    y, x = np.mgrid[:7, :5]
    noise = (y * y * 5 + x * x * 3 + y * x * 7) % 9
    frames = []
    for i in range(5):
        w = (noise * (i + 3) + i * x) % 11
        channels = [
            30 * y + 3 * (w > 9) * i, 100 + (y * y * 3 + x * 7 + i * w) % 5, 0 * x + 200 + (i == 2),
            noise * 29 + (w == i), 128 + np.where(x < 2, 0, (noise * (7 * i + 5) + w * x) % 17 - 8),
            25 * x + 20 * y + 60 * i + np.where(y < 3, w * (i + 2) % 13, 0),
        ]  # fmt: skip
        frames.append((np.stack(channels) % 256).astype(np.uint8))
    frames[1][0, 3, 3] = 255
    return frames


def golden_stream(implementation: Any) -> bytes:
    file = io.BytesIO()
    writer, encoder = Writer(file, HEADER), FrameEncoder(HEADER, 3, implementation)
    for i, q in enumerate(golden_frames()):
        writer.write(encoder.encode_symbols(q), 40_000 * i)
    return file.getvalue()


@pytest.mark.parametrize("implementation", ["auto", "numpy"])
def test_golden_stream(implementation: Any) -> None:
    assert golden_stream(implementation).hex() == GOLDEN
    frames = list(Reader(io.BytesIO(bytes.fromhex(GOLDEN))))
    decoder = FrameDecoder(HEADER, implementation=implementation)
    for frame, q, modes in zip(frames, golden_frames(), GOLDEN_MODES, strict=True):
        key = is_key(frame.payload, HEADER)
        assert key == (frame.index in (0, 3))
        assert unpack_context(frame.payload[1:], HEADER, plan_tiles(HEADER), not key).channels.mode.tolist() == modes
        assert (decoder.decode_symbols(frame.payload, frame.index) == q).all()


def test_key_frames_are_payloads_of_coder_2() -> None:
    alone = dataclasses.replace(HEADER, coder="context")
    for i, (frame, q) in enumerate(zip(Reader(io.BytesIO(bytes.fromhex(GOLDEN))), golden_frames(), strict=True)):
        key = b"\0" + entropy.encode_symbols(q, alone)
        assert (frame.payload == key) == (i in (0, 3))
        assert len(frame.payload) <= len(key)


def test_stranger_reads_the_golden_stream() -> None:
    found = _stranger.decode(bytes.fromhex(GOLDEN))
    assert [(index, time) for index, time, *_ in found] == [(i, 40_000 * i) for i in range(5)]
    for (_, _, symbols, ranges, _), q in zip(found, golden_frames(), strict=True):
        assert symbols == q.reshape(-1).tolist()
        assert ranges == [(-128.0, 127.0)]


CODEBOOK = Scaling("codebook", centres=tuple(np.linspace(-2, 2, 49).tolist()))


@pytest.mark.parametrize("scaling", [Scaling("tensor"), Scaling("channel"), Scaling("fixed", -2, 3), CODEBOOK])
@pytest.mark.parametrize(("shape", "tile"), [
    ((1, 1, 1), (4, 4)), ((3, 5, 7), (4, 4)), ((2, 11, 13), (16, 1)), ((2, 9, 1), (1, 16)), ((5, 6, 9), (14, 32)),
])  # fmt: skip
def test_stranger_agrees(scaling: Scaling, shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    """Latents that stay, move by a column, stay but for a little noise, and jump."""
    rng = np.random.default_rng(shape)
    header = dataclasses.replace(HEADER, latent_shape=shape, tile=tile, scaling=scaling, bits=6)
    file = io.BytesIO()
    writer, encoder = Writer(file, header), FrameEncoder(header, None)
    z = rng.laplace(size=shape).cumsum(axis=2) / 4
    expected = []
    for move in (0, 0, 1, 0, 0, 2):
        z = (
            np.roll(z, move, axis=2)
            + 0.04 * rng.laplace(size=shape) * (move < 2)
            + rng.normal(size=shape) * (move == 2)
        )
        writer.write(encoder.encode_latent(z.astype(np.float32)), 0)
        expected.append(entropy.to_symbols(z.astype(np.float32), header)[0])
    frames = list(Reader(io.BytesIO(file.getvalue())))
    decoder = FrameDecoder(header)
    for ours, theirs, q in zip(frames, _stranger.decode(file.getvalue()), expected, strict=True):
        assert theirs[2] == q.reshape(-1).tolist()
        floats = decoder.decode_latent(ours.payload, ours.index)
        if scaling.mode == "codebook":
            assert theirs[4] == floats.reshape(-1).tolist()
        else:
            assert theirs[3] == list(
                zip(*(r.tolist() for r in entropy.payload_range(ours.payload, header)), strict=True)
            )
    if np.prod(shape) > 50:
        assert not all(is_key(frame.payload, header) for frame in frames)
