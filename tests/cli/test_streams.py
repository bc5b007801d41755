"""encode, decode and run: what they write, pipes, Ctrl-C, and every bad input with its exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import av
import numpy as np
import pytest
from _clip import FRAMES, HEIGHT, WIDTH, clip
from PIL import Image

from latentseg import cli
from latentseg.bitstream import Reader, Writer
from latentseg.engine.bundle import Bundle
from latentseg.kernels import entropy

CAN_FILL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants /dev/full, which Linux has")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def frames_of(path: Path) -> list[np.ndarray]:
    """The symbols of a stream's frames, read without the engine."""
    with open(path, "rb") as file:
        reader = Reader(file)
        return [entropy.decode_symbols(frame.payload, reader.header) for frame in reader]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_encode_writes_the_codecs_symbols(stream: Path) -> None:
    np.testing.assert_array_equal(np.stack(frames_of(stream)), tiny.symbols(clip()))


def test_encode_summary(
    folder: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.lseg"
    assert cli.main(["encode", str(folder), "-o", str(out), "--limit", "4", "--json", *bundle_options]) == 0
    found = capsys.readouterr()
    (record,) = lines(found.out)
    size = out.stat().st_size
    assert (record["schema"], record["type"], record["bundle"]) == (1, "encode", "tiny")
    assert (record["frames"], record["lost"], record["bytes"], record["size"]) == (4, 0, size, [HEIGHT, WIDTH])
    assert record["bpp"] == pytest.approx(8 * size / (4 * HEIGHT * WIDTH))
    assert record["compression_factor"] == pytest.approx(24 / record["bpp"])
    assert f"4 frames of {WIDTH}x{HEIGHT}" in found.err


def test_run_on_a_stream(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--labels", str(tmp_path / "labels"), "--overlay", str(tmp_path / "x.mp4")]
    assert cli.main(["run", str(stream), *outputs, *bundle_options]) == 0
    *frames, summary = lines(capsys.readouterr().out)
    truth = tiny.labels(clip())
    assert [record["index"] for record in frames] == list(range(FRAMES))
    for record, labels in zip(frames, truth, strict=True):
        assert (record["schema"], record["type"], record["size"]) == (1, "frame", [HEIGHT, WIDTH])
        shares = np.bincount(labels.reshape(-1), minlength=3) / labels.size
        np.testing.assert_allclose(list(record["classes"].values()), shares, atol=1e-6)
        image = Image.open(tmp_path / "labels" / f"{record['index']:06d}.png")
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert (summary["type"], summary["frames"], summary["lost"]) == ("summary", FRAMES, 0)
    with av.open(str(tmp_path / "x.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == FRAMES


def test_run_on_frames_encodes_first_and_gives_the_same(
    folder: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(folder), "--labels", str(tmp_path / "labels"), *bundle_options]) == 0
    assert "compressing it to bytes first" in capsys.readouterr().err
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "labels").iterdir())]
    np.testing.assert_array_equal(np.stack(found), tiny.labels(clip()))


def test_decode_to_pngs_is_what_the_decompressor_gives(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "frames"
    assert cli.main(["decode", str(stream), "-o", str(out), "--limit", "3", "--json", *bundle_options]) == 0
    (record,) = lines(capsys.readouterr().out)
    assert (record["type"], record["frames"], record["size"]) == ("decode", 3, [HEIGHT, WIDTH])
    blocks = tiny.symbols(clip(3)).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)[:, :HEIGHT, :WIDTH]
    found = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    np.testing.assert_array_equal(np.stack(found), blocks)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_decode_to_video(suffix: str, stream: Path, tmp_path: Path, bundle_options: list[str]) -> None:
    out = tmp_path / f"x{suffix}"
    assert cli.main(["decode", str(stream), "-o", str(out), "-q", *bundle_options]) == 0
    with av.open(str(out)) as video:
        frames = [frame.to_ndarray(format="rgb24")[:HEIGHT, :WIDTH] for frame in video.decode(video=0)]
    assert len(frames) == FRAMES
    blocks = tiny.symbols(clip()).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)[:, :HEIGHT, :WIDTH]
    assert np.abs(np.stack(frames).astype(int) - blocks).mean() < 12  # 4:2:0 colour and H.264, on hard block edges


def test_overlay_without_a_decompressor_shows_labels_alone(
    stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny.write_tiny_bundle(tmp_path / "bundle", roles=("compressor", "segmenter"))
    argv = ["run", str(stream), "--overlay", str(tmp_path / "x.mp4"), "--jsonl", str(tmp_path / "x.jsonl")]
    assert cli.main([*argv, "--bundle", str(bundle.path)]) == 0
    assert "the overlay shows labels alone" in capsys.readouterr().err
    assert cli.main(["decode", str(stream), "-o", str(tmp_path / "frames"), "--bundle", str(bundle.path)]) == 4
    assert "has no decompressor" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (1, 19), (8, 8), (13, 7)])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_sizes_and_image_kinds(
    size: tuple[int, int], mode: str, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    frame = clip(1, *size)[0]
    array = {"RGB": frame, "L": frame[..., 0], "I;16": frame[..., 0].astype(np.uint16) << 8}[mode]
    Image.fromarray(array).save(tmp_path / "x.png")
    assert cli.main(["run", str(tmp_path / "x.png"), "-q", *bundle_options]) == 0
    assert lines(capsys.readouterr().out)[0]["size"] == list(size)


# --- pipes ------------------------------------------------------------------------------------------------------------


def test_encode_to_run_through_a_pipe(folder: Path, command: list[str], bundle_options: list[str]) -> None:
    with subprocess.Popen(
        [*command, "encode", str(folder), "-o", "-", *bundle_options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as sender:
        done = subprocess.run([*command, "run", "-", *bundle_options], stdin=sender.stdout, capture_output=True)
        assert sender.stderr is not None
        assert b"error" not in sender.stderr.read()
    assert (sender.returncode, done.returncode) == (0, 0)
    assert [record["type"] for record in lines(done.stdout.decode())] == ["frame"] * FRAMES + ["summary"]


def test_video_on_stdin(tmp_path: Path, command: list[str], bundle_options: list[str], stream: Path) -> None:
    assert cli.main(["decode", str(stream), "-o", str(tmp_path / "x.mkv"), "-q", *bundle_options]) == 0
    with open(tmp_path / "x.mkv", "rb") as video:
        argv = [*command, "encode", "-", "-o", str(tmp_path / "x.lseg"), *bundle_options]
        done = subprocess.run(argv, stdin=video, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(frames_of(tmp_path / "x.lseg")) == FRAMES


def test_reader_that_goes_away_is_no_error_message(
    folder: Path, stream: Path, command: list[str], bundle_options: list[str]
) -> None:
    for argv in (["encode", str(folder), "-o", "-"], ["run", str(stream)]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*command, *argv, *bundle_options], stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, "Traceback" in done.stderr, "Exception" in done.stderr) == (141, False, False)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def interrupt(process: subprocess.Popen[bytes], ready: Any) -> bytes:
    """Send Ctrl-C once `ready()`; returns stderr."""
    deadline = time.monotonic() + 30
    while not ready() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)[1]


def test_ctrl_c_leaves_a_readable_stream(tmp_path: Path, command: list[str], bundle_options: list[str]) -> None:
    source, out = tmp_path / "frames", tmp_path / "x.lseg"
    source.mkdir()
    Image.fromarray(clip(1)[0]).save(source / "0.png")
    for index in range(1, 5000):
        os.link(source / "0.png", source / f"{index}.png")
    argv = [*command, "encode", str(source), "-o", str(out), *bundle_options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    err = interrupt(process, lambda: out.exists() and out.stat().st_size > 1000)
    assert process.returncode == 130, err
    assert err.strip() == b"latentseg encode: interrupted"
    found = frames_of(out)
    assert 0 < len(found) < 5000
    np.testing.assert_array_equal(found[-1], tiny.symbols(clip(1))[0])


def test_ctrl_c_leaves_readable_results(
    tmp_path: Path, command: list[str], bundle_options: list[str], tiny_bundle: Bundle
) -> None:
    header = tiny_bundle.header(HEIGHT, WIDTH, (25, 1))
    payload = entropy.encode_symbols(tiny.symbols(clip(1))[0], header)
    with open(tmp_path / "long.lseg", "wb") as file:
        writer = Writer(file, header)
        for index in range(20000):
            writer.write(payload, index * 40_000)
    jsonl, labels, overlay = tmp_path / "x.jsonl", tmp_path / "labels", tmp_path / "x.mp4"
    argv = [
        "run",
        str(tmp_path / "long.lseg"),
        "--jsonl",
        str(jsonl),
        "--labels",
        str(labels),
        "--overlay",
        str(overlay),
    ]
    process = subprocess.Popen([*command, *argv, *bundle_options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    err = interrupt(process, lambda: jsonl.exists() and jsonl.stat().st_size > 20_000)
    assert process.returncode == 130, err
    records = lines(jsonl.read_text())
    assert 20 < len(records) < 20000
    assert all(record["type"] == "frame" for record in records)  # no summary: the stream was interrupted
    pngs = sorted(labels.iterdir())
    assert len(records) - 1 <= len(pngs) <= len(records)
    np.testing.assert_array_equal(np.asarray(Image.open(pngs[-1])), tiny.labels(clip(1))[0])
    with av.open(str(overlay)) as video:
        assert len(records) - 2 <= sum(1 for _ in video.decode(video=0)) <= len(records)


def test_ctrl_c_while_waiting_for_a_silent_pipe(command: list[str], bundle_options: list[str], stream: Path) -> None:
    argv = [*command, "run", "-", *bundle_options]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stream.read_bytes())  # all frames, but the pipe stays open
        process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for _ in range(FRAMES)]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert process.returncode == 130
    assert [record["index"] for record in found] == list(range(FRAMES))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["encode", "decode", "run"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.mp4", "missing.mp4"),
        ("empty.mp4", "empty"),
        ("text.mp4", "text.mp4"),
        ("noise.mp4", "noise.mp4"),
        ("empty-folder", "empty-folder"),
        ("folder-of-text", "folder-of-text"),
        ("cut.png", "cut.png"),
        ("audio.wav", "audio.wav"),
    ],
)
def test_unreadable_sources(
    verb: str, name: str, words: str, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("these are not the frames you are looking for\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "folder-of-text").mkdir()
    (tmp_path / "folder-of-text" / "a.txt").write_text("a")
    Image.fromarray(clip(1)[0]).save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:90])
    (tmp_path / "audio.wav").write_bytes(
        b"RIFF\x64\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x40\x1f\x00\x00\x01\x00\x08\x00"
        b"data\x40\x00\x00\x00" + bytes(64)
    )
    output = ["-o", str(tmp_path / "out.lseg")] if verb == "encode" else []
    output = ["-o", str(tmp_path / "out")] if verb == "decode" else output
    assert cli.main([verb, str(tmp_path / name), *output, *bundle_options]) == 3
    found = capsys.readouterr()
    assert words in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "out.lseg").exists()


def test_encode_refuses_a_stream(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["encode", str(stream), "-o", str(tmp_path / "x.lseg"), *bundle_options]) == 3
    assert "already an .lseg stream" in capsys.readouterr().err


def test_images_of_two_sizes(tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for index, size in enumerate([(8, 8), (8, 9)]):
        Image.fromarray(clip(1, *size)[0]).save(tmp_path / f"{index}.png")
    assert cli.main(["run", str(tmp_path), *bundle_options]) == 3
    assert "8x9, expected 8x8" in capsys.readouterr().err


def test_one_unreadable_image_of_many(
    folder: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    frames = tmp_path / "frames"
    shutil.copytree(folder, frames)
    data = (frames / "2.png").read_bytes()
    (frames / "2.png").write_bytes(data[: len(data) // 2])
    argv = ["encode", str(frames), "-o", str(tmp_path / "x.lseg"), "--json"]
    assert cli.main([*argv, *bundle_options]) == 7
    found = capsys.readouterr()
    assert (lines(found.out)[0]["frames"], lines(found.out)[0]["lost"]) == (FRAMES - 1, 1)
    assert "2.png" in found.err
    assert len(frames_of(tmp_path / "x.lseg")) == FRAMES - 1


def layout(path: Path) -> list[tuple[int, int]]:
    """(start, end) of every frame in the bytes of an intact stream."""
    with open(path, "rb") as file:
        sizes = [28 + len(frame.payload) for frame in Reader(file)]
    return [(200 + sum(sizes[:index]), 200 + sum(sizes[: index + 1])) for index in range(len(sizes))]


def test_flipped_bits_in_each_part(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, frames = stream.read_bytes(), layout(stream)
    for place, lost in [(frames[0][0] + 2, 0), (frames[2][0] + 5, 2), (frames[3][0] + 40, 3), (frames[5][1] - 1, 5)]:
        bad = bytearray(data)
        bad[place] ^= 0x40
        (tmp_path / "bad.lseg").write_bytes(bad)
        assert cli.main(["run", str(tmp_path / "bad.lseg"), *bundle_options]) == 7
        found = capsys.readouterr()
        *records, summary = lines(found.out)
        assert [record["index"] for record in records] == [index for index in range(FRAMES) if index != lost]
        assert (summary["frames"], summary["lost"]) == (FRAMES - 1, 1)
        assert "damage at byte" in found.err
        assert "1 frame(s) lost" in found.err


def test_flipped_bit_in_either_header_loses_nothing(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (3, 17, 99, 100, 150, 199):
        bad = bytearray(stream.read_bytes())
        bad[place] ^= 1
        (tmp_path / "bad.lseg").write_bytes(bad)
        assert cli.main(["run", str(tmp_path / "bad.lseg"), "--kind", "lseg", *bundle_options]) == 7
        found = capsys.readouterr()
        assert lines(found.out)[-1]["frames"] == FRAMES
        assert "no frame lost" in found.err


def test_truncated_stream_at_every_byte(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    header = tiny_bundle.header(8, 8)
    with open(tmp_path / "x.lseg", "wb") as file:
        writer = Writer(file, header)
        for value in (3, 200, 90):
            writer.write(entropy.encode_symbols(np.full((3, 1, 1), value, np.uint8), header))
    data, ends = (tmp_path / "x.lseg").read_bytes(), [end for _, end in layout(tmp_path / "x.lseg")]
    for size in range(len(data)):
        (tmp_path / "cut.lseg").write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        code = 3 if whole == 0 else 0 if size in ends else 7
        argv = ["unpack", str(tmp_path / "cut.lseg"), "-o", str(tmp_path / "x.npy"), "--overwrite"]
        assert cli.main(argv) == code, size
        if whole:
            assert np.load(tmp_path / "x.npy")[:, 0, 0, 0].tolist() == [3, 200, 90][:whole]
    assert "Traceback" not in capsys.readouterr().err


def test_truncated_stream_in_run(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, frames = stream.read_bytes(), layout(stream)
    cuts = [(0, 3), (150, 3), (200, 3), (frames[0][1] - 1, 3), (frames[0][1], 0), (frames[2][1] + 30, 7)]
    for size, code in cuts:
        (tmp_path / "cut.lseg").write_bytes(data[:size])
        assert cli.main(["run", str(tmp_path / "cut.lseg"), *bundle_options]) == code, size
        assert "Traceback" not in capsys.readouterr().err


def test_header_that_lies_about_sizes(
    stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import struct
    import zlib

    body = bytearray(stream.read_bytes())
    for shape in ((4096, 65536, 65536), (0, 1, 1), (2**32 - 1, 1, 1)):
        head = body[:96]
        head[16:28] = struct.pack("<3I", *shape)
        copy = bytes(head) + struct.pack("<I", zlib.crc32(head))
        (tmp_path / "lie.lseg").write_bytes(copy + copy + body[200:])
        for argv in (
            ["run"],
            ["decode", "-o", str(tmp_path / "out")],
            ["inspect"],
            ["unpack", "-o", str(tmp_path / "o")],
        ):
            options = bundle_options if argv[0] in ("run", "decode") else []
            assert cli.main([argv[0], str(tmp_path / "lie.lseg"), *argv[1:], *options]) == 3
            assert "stream header" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "decode"])
def test_stream_of_another_codec(verb: str, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny.write_tiny_bundle(tmp_path / "other", codec_seed="other")
    output = ["-o", str(tmp_path / "out")] if verb == "decode" else ["--jsonl", str(tmp_path / "x.jsonl")]
    assert cli.main([verb, str(stream), *output, "--bundle", str(other.path)]) == 4
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("verb", ["run", "encode"])
def test_bundle_with_a_changed_file(
    verb: str, folder: Path, tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    model = tmp_path / "bundle" / "compressor.onnx"
    data = bytearray(model.read_bytes())
    data[-3] ^= 1
    model.write_bytes(data)
    output = ["-o", str(tmp_path / "x.lseg")] if verb == "encode" else []
    assert cli.main([verb, str(folder), *output, "--bundle", str(tmp_path / "bundle")]) == 4
    assert "was changed" in capsys.readouterr().err
    assert not (tmp_path / "x.lseg").exists()


def test_unknown_bundle_and_backend(
    stream: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(stream), "--bundle", "nonsense"]) == 2
    assert "no bundle named 'nonsense'" in capsys.readouterr().err
    assert cli.main(["run", str(stream), "--backend", "nonsense", *bundle_options]) == 2
    assert cli.main(["run", str(stream), "--bundle", str(stream.parent / "none" / "here")]) == 3


def test_outputs_that_exist(
    folder: Path, stream: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.any").write_bytes(b"old")
    (tmp_path / "x.mp4").write_bytes(b"old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.png").write_bytes(b"old")
    full, file, video = str(tmp_path / "full"), str(tmp_path / "x.any"), str(tmp_path / "x.mp4")
    for argv in (
        ["encode", str(folder), "-o", file],
        ["encode", str(folder), "-o", full],
        ["encode", str(folder), "-o", str(tmp_path / "none" / "x.lseg")],
        ["decode", str(stream), "-o", video],
        ["decode", str(stream), "-o", full],
        ["decode", str(stream), "-o", file, "--overwrite"],  # no suffix that means a video, and no folder
        ["decode", str(stream), "-o", "-"],
        ["run", str(stream), "--jsonl", file],
        ["run", str(stream), "--labels", full],
        ["run", str(stream), "--labels", file, "--overwrite"],
        ["run", str(stream), "--overlay", video],
        ["run", str(stream), "--overlay", str(tmp_path / "x.txt")],
        ["encode", str(folder), "-o", "-", "--json"],
    ):
        assert cli.main([*argv, *bundle_options]) == 2, argv
        found = capsys.readouterr()
        assert (found.out, "Traceback" in found.err) == ("", False)
    assert [(tmp_path / name).read_bytes() for name in ("x.any", "x.mp4", "full/old.png")] == [b"old"] * 3
    assert cli.main(["encode", str(folder), "-o", file, "--overwrite", "-q", *bundle_options]) == 0
    assert len(frames_of(Path(file))) == FRAMES


@CAN_FILL
def test_full_disk(
    folder: Path, stream: Path, command: list[str], bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["encode", str(folder), "-o", "/dev/full"], ["run", str(stream), "--jsonl", "/dev/full"]):
        assert cli.main([*argv, *bundle_options]) == 7
        err = capsys.readouterr().err
        assert "No space left" in err
        assert "Traceback" not in err
    with open("/dev/full", "wb") as full:
        for argv in (["encode", str(folder), "-o", "-"], ["run", str(stream)], ["inspect", str(stream)]):
            options = bundle_options if argv[0] != "inspect" else []
            done = subprocess.run([*command, *argv, *options], stdout=full, stderr=subprocess.PIPE, text=True)
            assert done.returncode == 7, done.stderr
            assert "space left" in done.stderr
            assert "Traceback" not in done.stderr
            assert "Exception" not in done.stderr
