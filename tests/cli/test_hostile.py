"""Inputs that nobody means to give: each ends with the design's exit code and words, never as a bug, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from _clip import FRAMES
from PIL import Image

from latentseg import cli
from latentseg.bitstream import Reader, Writer
from latentseg.engine.bundle import Bundle

Capture = pytest.CaptureFixture[str]


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264", muxer: str | None = None) -> Path:
    with av.open(str(path), "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def even(count: int = FRAMES, height: int = 48) -> np.ndarray:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (count, height, 64, 3), dtype=np.uint8)


def lseg_frames(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in Reader(file))


# --- sources ----------------------------------------------------------------------------------------------------------


def test_size_changes_midway(tmp_path: Path, bundle_options: list[str], capsys: Capture) -> None:
    first = write_video(tmp_path / "a.h264", even(3), muxer="h264").read_bytes()
    second = write_video(tmp_path / "b.h264", even(3, height=32), muxer="h264").read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    out = tmp_path / "x.lseg"
    assert cli.main(["encode", str(tmp_path / "both.h264"), "-o", str(out), *bundle_options]) == 3
    assert "frame 3 is 32x64, expected 48x64" in capsys.readouterr().err
    assert lseg_frames(out) == 3


def test_colons_in_a_file_name_are_no_protocol(
    tmp_path: Path, bundle_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", even(3)).rename(tmp_path / "12:30:05.mp4")
    monkeypatch.chdir(tmp_path)
    options = ["--overlay", "12:31.mp4", "--jsonl", "x.jsonl", *bundle_options]
    assert cli.main(["run", "12:30:05.mp4", *options]) == 0
    assert (tmp_path / "12:31.mp4").stat().st_size > 0


def test_no_decoder_for_the_video(tmp_path: Path, bundle_options: list[str], capsys: Capture) -> None:
    path = write_video(tmp_path / "a.mp4", even(2))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert cli.main(["encode", str(path), "-o", str(tmp_path / "x.lseg"), *bundle_options]) == 3
    assert "no decoder" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_images(size: tuple[int, int], tmp_path: Path, bundle_options: list[str]) -> None:
    Image.fromarray(np.full((*size, 3), (9, 200, 7), np.uint8)).save(tmp_path / "x.png")
    outputs = ["--jsonl", str(tmp_path / "x.jsonl"), "--overlay", str(tmp_path / "x.mp4")]
    assert cli.main(["run", str(tmp_path / "x.png"), *outputs, *bundle_options]) == 0
    record = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert (record["size"], record["classes"]["green"]) == (list(size), 1.0)


def test_sides_above_the_format_are_named(tmp_path: Path, bundle_options: list[str], capsys: Capture) -> None:
    Image.new("RGB", (70_000, 1)).save(tmp_path / "x.png")
    assert cli.main(["encode", str(tmp_path / "x.png"), "-o", str(tmp_path / "x.lseg"), *bundle_options]) == 3
    assert "source frames of 1 x 70000" in capsys.readouterr().err
    assert not (tmp_path / "x.lseg").exists()


def test_video_in_a_fifo(tmp_path: Path, bundle_options: list[str]) -> None:
    data = write_video(tmp_path / "a.h264", even(4), muxer="h264").read_bytes()
    fifo, out = tmp_path / "fifo", tmp_path / "x.lseg"
    os.mkfifo(fifo)
    threading.Thread(target=fifo.write_bytes, args=(data,), daemon=True).start()
    assert cli.main(["encode", str(fifo), "-o", str(out), *bundle_options]) == 0
    assert lseg_frames(out) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["decode", "file:///dev/null", "-o", "x"], 2, "can only be read as video"),
        (["run", "camera:0", "--kind", "images"], 2, "can only be read as video"),
        (["encode", "-", "--kind", "images", "-o", "y.lseg"], 2, "images cannot be read from stdin"),
        (["run", "loop"], 3, "no such file or folder: loop"),
        (["decode", "folder.lseg", "-o", "x"], 3, "is a folder"),
        (["run", "x.lseg", "--threads", "99999999999"], 2, "at most 2147483647"),
        (["run", "x.lseg", "--limit", "99999999999999999999"], 2, "at most 2147483647"),
        (["run", "x.lseg", "--limit", "0"], 2, "at least 1"),
        (["run", "x.lseg", "--threads", "2000000"], 2, "expected 1 to 1024"),
        (["encode", "x.png", "-o", "loop"], 7, "cannot write loop"),
        (["demo", "--source", "x.png", "--out", "/dev/null/x"], 2, "not a folder"),
        (["demo", "--source", "x.png", "--out", "/proc/x"], 7, "cannot write /proc/x"),
    ],
)
def test_refused(
    arguments: list[str], code: int, words: str, stream: Path, tmp_path: Path, tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("folder.lseg").mkdir()
    shutil.copy(stream, "x.lseg")
    Image.new("RGB", (8, 8)).save("x.png")
    assert cli.main([*arguments, "--bundle", str(tiny_bundle.path)]) == code
    assert words in capsys.readouterr().err


def test_frames_out_of_order(stream: Path, tmp_path: Path, bundle_options: list[str], capsys: Capture) -> None:
    with stream.open("rb") as file:
        reader = Reader(file)
        payloads = [frame.payload for frame in reader]
    path = tmp_path / "x.lseg"
    with path.open("wb") as out:
        writer = Writer(out, reader.header)
        for number in (0, 3, 1, 4):
            writer.frames = number
            writer.write(payloads[number])
    assert cli.main(["run", str(path), *bundle_options]) == 7
    found = capsys.readouterr()
    records = [json.loads(line) for line in found.out.splitlines()]
    assert [record["index"] for record in records[:-1]] == [0, 3, 4]
    assert records[-1]["lost"] == 2
    assert "frame 1 comes out of order" in found.err


def test_a_name_that_is_not_utf8(stream: Path, tmp_path: Path, bundle_options: list[str]) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n.lseg")
    shutil.copy(stream, name)
    out = tmp_path / "x.jsonl"
    assert cli.main(["run", name, "--jsonl", str(out), *bundle_options]) == 0
    *frames, summary = (json.loads(line) for line in out.read_bytes().splitlines())
    assert len(frames) == FRAMES
    assert summary["source"] == name


# --- limits and outputs -----------------------------------------------------------------------------------------------


def test_damage_behind_the_limit_is_not_met(stream: Path, tmp_path: Path, bundle_options: list[str]) -> None:
    data = bytearray(stream.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "x.lseg"
    path.write_bytes(data)
    for attempt in range(5):  # the reader runs ahead of the results, now more and now less
        out = ["--jsonl", str(tmp_path / f"{attempt}.jsonl")]
        assert cli.main(["run", str(path), "--limit", str(FRAMES - 1), *out, *bundle_options]) == 0
    assert cli.main(["decode", str(path), "--limit", "1", "-o", str(tmp_path / "p"), *bundle_options]) == 0
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["000000.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "a.mp4", "-o", "a.mp4", "--limit", "1"],
        ["run", "a.mp4", "--overlay", "a.mp4"],
        ["run", "a.lseg", "--jsonl", "a.lseg"],
        ["run", "frames", "--labels", "frames"],
        ["demo", "--source", "out/overlay.mp4", "--out", "out"],
    ],
)
def test_the_source_is_never_the_output(
    arguments: list[str], folder: Path, stream: Path, tmp_path: Path, tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "frames")
    shutil.copy(stream, "a.lseg")
    write_video(Path("a.mp4"), even(2))
    Path("out").mkdir()
    shutil.copy("a.mp4", "out/overlay.mp4")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main([*arguments, "--overwrite", "--bundle", str(tiny_bundle.path)]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_pngs_may_have_a_dot_in_its_name(stream: Path, tmp_path: Path, bundle_options: list[str]) -> None:
    out = tmp_path / "drive.2024"
    out.mkdir()
    assert cli.main(["decode", str(stream), "-o", str(out), *bundle_options]) == 0
    assert len(list(out.iterdir())) == FRAMES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(stream: Path, tmp_path: Path, bundle_options: list[str], capsys: Capture) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    assert cli.main(["run", str(stream), "--labels", str(out / "labels"), *bundle_options]) == 7
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "encode", "inspect", "unpack", "pack"])
def test_closed_stdin(verb: str, command: list[str], tmp_path: Path, tiny_bundle: Bundle) -> None:
    options = {"inspect": [], "unpack": ["-o", "x"], "pack": ["-o", "x"], "encode": ["-o", "x"], "run": []}[verb]
    if verb in {"run", "encode"}:
        options += ["--bundle", str(tiny_bundle.path)]
    code, _, err = with_closed("<&-", [*command, verb, "-", *options], tmp_path)
    assert (code, b"stdin is closed" in err) == (3, True), err
    assert list(tmp_path.iterdir()) == []


def test_closed_stdout(stream: Path, folder: Path, command: list[str], tmp_path: Path, tiny_bundle: Bundle) -> None:
    options = ["--bundle", str(tiny_bundle.path), "--threads", "1"]
    code, _, err = with_closed(">&-", [*command, "inspect", str(stream)], tmp_path)
    assert (code, b"stdout: it is closed" in err) == (7, True), err
    code, _, err = with_closed(">&-", [*command, "run", str(stream), *options], tmp_path)
    assert (code, b"cannot write stdout" in err) == (7, True), err
    out = tmp_path / "x.lseg"  # stdout is not needed, and its number must not go to this file
    code, _, err = with_closed(">&-", [*command, "encode", str(folder), "-o", str(out), *options], tmp_path)
    assert (code, out.read_bytes()) == (0, stream.read_bytes()), err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants /dev/full, which Linux has")
def test_stdout_is_full(stream: Path, command: list[str], tmp_path: Path, tiny_bundle: Bundle) -> None:
    options = ["--bundle", str(tiny_bundle.path), "--threads", "1"]
    code, _, err = with_closed(">/dev/full", [*command, "run", str(stream), *options], tmp_path)
    assert (code, b"No space left" in err, b"Exception" in err) == (7, True, False), err


def test_closed_stderr(stream: Path, command: list[str], tmp_path: Path, tiny_bundle: Bundle) -> None:
    options = ["--bundle", str(tiny_bundle.path), "--threads", "1"]
    code, out, _ = with_closed("2>&-", [*command, "run", str(stream), *options], tmp_path)
    assert (code, len(out.splitlines())) == (0, FRAMES + 1)
    assert with_closed("2>&-", [*command, "run", "missing", *options], tmp_path)[:2] == (3, b"")


def with_closed(stream: str, command: list[str], folder: Path) -> tuple[int, bytes, bytes]:
    """A command with one of its standard streams closed: its exit code, stdout and stderr."""
    found = subprocess.run(
        ["sh", "-c", f'exec "$@" {stream}', "sh", *command], cwd=folder, capture_output=True, timeout=60, check=False
    )
    return found.returncode, found.stdout, found.stderr


# --- Ctrl-C while nothing comes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["encode", "encode a cut video", "decode", "run", "unpack"])
def test_ctrl_c_on_a_silent_pipe_is_prompt(
    verb: str, stream: Path, tmp_path: Path, command: list[str], tiny_bundle: Bundle
) -> None:
    options = ["--bundle", str(tiny_bundle.path), "--threads", "1"]
    out, video = tmp_path / "out", write_video(tmp_path / "a.mp4", even(2)).read_bytes()
    arguments, data = {
        "encode": (["encode", "-", "-o", str(out), *options], b""),
        "encode a cut video": (["encode", "-", "-o", str(out), *options], video[:-100]),
        "decode": (["decode", "-", "-o", str(out), *options], stream.read_bytes()),
        "run": (["run", "-", "--jsonl", str(out), *options], stream.read_bytes()),
        "unpack": (["unpack", "-", "-o", str(out)], stream.read_bytes()),
    }[verb]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *arguments], **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(data)
        process.stdin.flush()
        if verb in {"decode", "run"}:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and written(out) < FRAMES:
                time.sleep(0.05)
        else:
            time.sleep(1.5)  # nothing shows that it waits
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        took = time.monotonic() - start
        assert process.returncode == 130, process.stderr.read()
        assert b"interrupted" in process.stderr.read()
    assert took < 1.0
    if verb in {"decode", "run"}:
        assert written(out) == FRAMES


def written(out: Path) -> int:
    """Whole frames in a folder of PNGs or a file of JSON Lines."""
    if out.is_dir():
        return len(list(out.glob("*.png")))
    return len(out.read_bytes().splitlines()) if out.exists() else 0
