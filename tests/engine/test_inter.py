"""Streams whose frames refer to each other: what they carry, and what exactly a lost frame costs."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import replace
from pathlib import Path

import _inter_clip as inter
import numpy as np
import pytest
from _tiny_bundle import CLASSIFYING, frame_means, labels, probabilities, symbols, write_tiny_bundle

from latentseg.bitstream import Damage, Scaling, StreamHeader, Writer
from latentseg.engine import Engine
from latentseg.engine.bundle import Bundle
from latentseg.engine.losses import Losses
from latentseg.engine.sources import StreamSource
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels.frames import FrameDecoder, FrameEncoder

FRAMES, INTERVAL = 11, 4
KEYS = [0, 4, 8]


@pytest.fixture
def stream(engine: Engine, tmp_path: Path) -> Path:
    """Eleven frames, with a key frame every four."""
    engine.encode(inter.Memory(), tmp_path / "x.lseg", key_interval=INTERVAL)
    return tmp_path / "x.lseg"


def hangs_on(index: int) -> list[int]:
    """The frames that are lost with frame `index`, that one included."""
    return list(range(index, next((key for key in KEYS if key > index), FRAMES)))


def check_labels(engine: Engine, path: Path, lost: list[int]) -> None:
    """All frames but the lost ones come out, and right."""
    truth = labels(inter.clip())
    results = list(engine.segment(path))
    assert [result.index for result in results] == [i for i in range(FRAMES) if i not in lost]
    for result in results:
        np.testing.assert_array_equal(result.labels, truth[result.index])
    assert engine.lost == len(lost)
    told = [d.frame_index + i for d in engine.damages if d.frame_index is not None for i in range(d.lost)]
    assert sorted(told) == lost


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "keys"), [(2, range(0, 11, 2)), (4, KEYS), (11, [0]), (12, [0]), (0, [0])])
def test_key_frames_and_symbols(engine: Engine, tmp_path: Path, interval: int, keys: list[int]) -> None:
    path = tmp_path / "x.lseg"
    summary = engine.encode(inter.Memory(), path, key_interval=interval)
    header, frames = inter.read(path)
    assert (header.coder, header.tile, summary.frames) == ("inter", (14, 32), FRAMES)
    assert inter.keys(path) == list(keys)
    decoder = FrameDecoder(header)
    found = [decoder.decode_symbols(frame.payload, frame.index) for frame in frames]
    np.testing.assert_array_equal(found, symbols(inter.clip()))
    check_labels(engine, path, [])


def test_an_interval_of_one_is_the_stream_of_before(engine: Engine, stream: Path, tmp_path: Path) -> None:
    engine.encode(inter.Memory(), tmp_path / "default.lseg")
    engine.encode(inter.Memory(), tmp_path / "one.lseg", key_interval=1)
    data = (tmp_path / "one.lseg").read_bytes()
    assert data == (tmp_path / "default.lseg").read_bytes()
    assert inter.read(tmp_path / "one.lseg")[0].coder == "context"
    assert stream.stat().st_size < len(data)


def test_a_stream_of_one_frame(engine: Engine, tmp_path: Path) -> None:
    for interval in (4, 0):
        engine.encode(inter.Memory(1), tmp_path / "x.lseg", key_interval=interval, overwrite=True)
        (result,) = engine.segment(tmp_path / "x.lseg")
        np.testing.assert_array_equal(result.labels, labels(inter.clip(1))[0])


def test_decoded_frames_and_frames_beside_labels(engine: Engine, stream: Path) -> None:
    height, width = inter.SIZE
    blocks = symbols(inter.clip()).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    np.testing.assert_array_equal([frame.rgb for frame in engine.decode(stream)], blocks)
    np.testing.assert_array_equal([result.rgb for result in engine.segment(stream, with_frames=True)], blocks)
    assert [result.index for result in engine.segment(stream, limit=6)] == [0, 1, 2, 3, 4, 5]


def test_classes(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "classifiers", CLASSIFYING)
    with Engine(bundle, threads=1) as engine:
        engine.encode(inter.Memory(), tmp_path / "x.lseg", key_interval=3)
        found = [result.probabilities for result in engine.classify(tmp_path / "x.lseg")]
    np.testing.assert_allclose(found, probabilities(symbols(inter.clip()).mean((2, 3), np.float64)), atol=1e-5)
    assert np.abs(np.array(found) - probabilities(frame_means(inter.clip()))).max() < 0.05


def test_frames_that_come_too_fast_are_dropped_before_they_are_coded(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.lseg"
    with Engine(tiny_bundle, threads=1, queue_depth=1) as engine:
        summary = engine.encode(inter.Memory(300), path, key_interval=5, drop_late=True)
        assert summary.dropped > 0
        assert summary.frames + summary.dropped == 300
        truth = labels(inter.clip(300))
        results = list(engine.segment(path))
        assert (len(results), engine.lost) == (summary.frames, 0)
    for result in results:
        np.testing.assert_array_equal(result.labels, truth[result.timestamp_us // 100_000])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(FRAMES))
def test_a_frame_that_is_missing_or_flipped(engine: Engine, stream: Path, tmp_path: Path, index: int) -> None:
    data = stream.read_bytes()
    begin, end = inter.spans(data, inter.read(stream)[1])[index]
    lost = hangs_on(index)
    flipped = bytearray(data)
    flipped[(begin + inter.HEADER + end) // 2] ^= 4
    (tmp_path / "flipped.lseg").write_bytes(flipped)
    check_labels(engine, tmp_path / "flipped.lseg", lost)
    if len(lost) > 1:
        span = f"frame {lost[1]} " if len(lost) == 2 else f"frames {lost[1]} to {lost[-1]} "
        assert engine.damages[-1].reason == f"{span}cannot be decoded without frame {index}"
        assert (engine.damages[-1].frame_index, engine.damages[-1].lost) == (index + 1, len(lost) - 1)
    if index < FRAMES - 1:  # a stream may end behind any frame
        (tmp_path / "dropped.lseg").write_bytes(data[:begin] + data[end:])
        check_labels(engine, tmp_path / "dropped.lseg", lost)


def test_cut_inside_each_frame(engine: Engine, stream: Path, tmp_path: Path) -> None:
    data = stream.read_bytes()
    truth = labels(inter.clip())
    for index, (begin, end) in enumerate(inter.spans(data, inter.read(stream)[1])):
        (tmp_path / "cut.lseg").write_bytes(data[: (begin + inter.HEADER + end) // 2])
        if index == 0:
            with pytest.raises(InputError):
                list(engine.segment(tmp_path / "cut.lseg"))
            continue
        found = [result.labels for result in engine.segment(tmp_path / "cut.lseg")]
        np.testing.assert_array_equal(found, truth[:index])
        assert engine.lost == 1


def test_two_losses_between_key_frames(engine: Engine, stream: Path, tmp_path: Path) -> None:
    data = stream.read_bytes()
    spans = inter.spans(data, inter.read(stream)[1])
    bad = bytearray(data)
    for index in (4, 6):
        bad[spans[index][1] - 1] ^= 1
    (tmp_path / "bad.lseg").write_bytes(bad)
    check_labels(engine, tmp_path / "bad.lseg", [4, 5, 6, 7])
    reasons = [damage.reason for damage in engine.damages if damage.offset < 0]
    assert reasons == ["frame 5 cannot be decoded without frame 4", "frame 7 cannot be decoded without frame 6"]


@pytest.mark.parametrize("index", [0, 2, 4, 5])
def test_a_payload_that_no_coder_wrote(engine: Engine, stream: Path, tmp_path: Path, index: int) -> None:
    payload = inter.read(stream)[1][index].payload
    for bad in (payload[:-3], payload + b"\x00", b"\x02" + payload[1:], b""):
        path = inter.rewrite(stream, tmp_path / "bad.lseg", {index: bad})
        check_labels(engine, path, hangs_on(index))
        assert engine.damages[0].reason.startswith(f"frame {index} does not decode: payload damaged")


def test_the_first_frame_claims_to_refer(engine: Engine, stream: Path, tmp_path: Path) -> None:
    data = stream.read_bytes()
    bad = inter.flip_kind(data, inter.spans(data, inter.read(stream)[1])[0])
    (tmp_path / "bad.lseg").write_bytes(bad)
    check_labels(engine, tmp_path / "bad.lseg", [0, 1, 2, 3])
    (damage,) = engine.damages
    assert damage.reason == "frames 0 to 3 cannot be decoded: the stream does not begin with a key frame"
    only = inter.read(tmp_path / "bad.lseg")[1][:3]
    end = inter.spans(bad, inter.read(tmp_path / "bad.lseg")[1])[len(only) - 1][1]
    (tmp_path / "bad.lseg").write_bytes(bad[:end])
    with pytest.raises(InputError, match="none of 3 frames could be read; frames 0 to 2 cannot be decoded"):
        list(engine.segment(tmp_path / "bad.lseg"))


def test_a_key_frame_claims_to_refer(engine: Engine, stream: Path, tmp_path: Path) -> None:
    """Its bytes may happen to decode; what is wrong ends at the next key frame, and the frames before it are right."""
    data = stream.read_bytes()
    (tmp_path / "bad.lseg").write_bytes(inter.flip_kind(data, inter.spans(data, inter.read(stream)[1])[4]))
    truth = labels(inter.clip())
    sound = [result for result in engine.segment(tmp_path / "bad.lseg") if result.index not in (4, 5, 6, 7)]
    assert [result.index for result in sound] == [0, 1, 2, 3, 8, 9, 10]
    for result in sound:
        np.testing.assert_array_equal(result.labels, truth[result.index])


def test_losses_without_a_decoder() -> None:
    header = StreamHeader(bytes(32), (1, 4, 4), 8, Scaling("fixed", 0.0, 255.0), coder="inter")
    damages: list[Damage] = []
    losses = Losses(header, damages)
    assert losses.lacks(b"\x01", 0)
    assert not losses.lacks(b"\x00", 0)
    losses.decoded(0)
    assert not losses.lacks(b"\x01", 1)
    assert losses.lacks(b"\x01", 2)
    for index in (2, 3, 9):
        losses.add(b"\x01", index)
    losses.add(b"\x07", 10, InputError("odd"))
    losses.add(b"\x01", 11)
    assert [(d.frame_index, d.lost) for d in damages] == [(2, 2), (9, 1), (10, 1), (11, 1)]
    assert damages[0].reason == "frames 2 to 3 cannot be decoded without frame 1"
    assert damages[2].reason == "frame 10 does not decode: odd"
    alone = Losses(replace(header, coder="context"), damages)
    assert not alone.lacks(b"\x01", 5)
    with pytest.raises(InputError, match="first byte 7"):
        losses.lacks(b"\x07", 12)


# --- pipes, and streams that go on ------------------------------------------------------------------------------------


def test_appended_to(engine: Engine, stream: Path) -> None:
    """A new encoder begins with a key frame, whatever the file ends with."""
    data = stream.read_bytes()
    stream.write_bytes(data[:-5])  # the last frame, 10, is cut
    with stream.open("r+b") as file:
        writer = Writer.append(file)
        encoder = FrameEncoder(writer.header, INTERVAL)
        for q in symbols(inter.clip(3)):
            writer.write(encoder.encode_symbols(q))
    assert inter.keys(stream) == [*KEYS, 11]
    results = list(engine.segment(stream))
    assert [result.index for result in results] == [*range(10), 11, 12, 13]
    assert engine.lost == 1
    np.testing.assert_array_equal([result.labels for result in results[10:]], labels(inter.clip(3)))


def test_piped_live(engine: Engine, stream: Path) -> None:
    """Each frame's labels come while the pipe is open and the next frame is not there."""
    data = stream.read_bytes()
    spans = inter.spans(data, inter.read(stream)[1])
    to_read, to_write = os.pipe()
    gone_on = threading.Semaphore(0)

    def send() -> None:
        with open(to_write, "wb", buffering=0) as file:
            file.write(data[: spans[0][0]])
            for begin, end in spans:
                file.write(data[begin:end])
                assert gone_on.acquire(timeout=20)

    sender = threading.Thread(target=send)
    sender.start()
    truth = labels(inter.clip())
    with engine.segment(StreamSource(open(to_read, "rb"), "pipe")) as run:
        for result in run:
            np.testing.assert_array_equal(result.labels, truth[result.index])
            gone_on.release()
        assert run.frames == FRAMES
    sender.join()


def test_joined_in_the_middle(engine: Engine, stream: Path) -> None:
    """A receiver that has the header and missed the first frames decodes from the next key frame on."""
    data = stream.read_bytes()
    spans = inter.spans(data, inter.read(stream)[1])
    source = StreamSource(io.BytesIO(data[: spans[0][0]] + data[spans[5][0] :]), "joined")
    results = list(engine.segment(source))
    assert [result.index for result in results] == [8, 9, 10]
    np.testing.assert_array_equal([result.labels for result in results], labels(inter.clip())[8:])
    assert engine.lost == 8


# --- what is refused --------------------------------------------------------------------------------------------------


def test_key_intervals_that_cannot_be(engine: Engine, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a key frame every -1 frames, expected 1 or more, or 0"):
        engine.encode(inter.Memory(), tmp_path / "x.lseg", key_interval=-1)
    huffman = replace(tiny_bundle.codec, coder="huffman-frame", tile=(0, 0))
    assert huffman.coder_at(1) == "huffman-frame"
    with pytest.raises(UsageError, match="a key interval of 0 for codec 'tiny-mean', whose coder is 'huffman-frame'"):
        huffman.coder_at(0)
    assert not (tmp_path / "x.lseg").exists()


def test_frames_that_others_refer_to_cannot_be_dropped(engine: Engine, stream: Path) -> None:
    with pytest.raises(UsageError, match="late frames of a stream of coder inter cannot be dropped"):
        engine.segment(stream, drop_late=True)
    assert len(list(engine.segment(stream, drop_late=False))) == FRAMES


def test_tensorrt_refuses_before_any_work(tiny_bundle: Bundle, stream: Path, tmp_path: Path) -> None:
    with Engine(tiny_bundle, "tensorrt") as engine:
        for act in (
            lambda: engine.segment(stream),
            lambda: engine.segment(stream, with_frames=True),
            lambda: engine.encode(tmp_path / "missing.mp4", tmp_path / "y.lseg", key_interval=4),
        ):
            with pytest.raises(ArtifactError, match="a stream of coder inter, expected context") as caught:
                act()
            assert "--backend onnxruntime" in caught.value.hint
            assert "--key-interval 1" in caught.value.hint
    assert not (tmp_path / "y.lseg").exists()
