"""Sinks: what they write, read back; outputs that exist; full disks; interruptions."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tiny_bundle import CLASSES
from PIL import Image

from latentseg.bitstream import Reader, Scaling, StreamHeader
from latentseg.engine.result import Result
from latentseg.engine.sinks import JsonLinesSink, LabelPngSink, OverlaySink, Sink, StreamSink, blend, palette
from latentseg.engine.sources import open_frames
from latentseg.errors import BackendMissingError, LatentsegError, OutputError, UsageError

RNG = np.random.default_rng(0)
HEADER = StreamHeader(bytes(32), (3, 1, 1), 8, Scaling("fixed", 0, 255), (8, 8))
Opener = Callable[..., Any]
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


def result(index: int, height: int = 8, width: int = 8, rgb: bool = True) -> Result:
    frame = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8) if rgb else None
    labels = RNG.integers(0, 3, (height, width), dtype=np.uint8)
    return Result(index, index * 40_000, labels, 10 + index, {"read": 0.12345, "segment": 2.0}, frame)


def json_sink(path: Any, **options: Any) -> Sink:
    return JsonLinesSink(path, CLASSES, **options)


def overlay_sink(path: Any, **options: Any) -> Sink:
    return OverlaySink(path, CLASSES, **options)


def label_sink(path: Any, **options: Any) -> Sink:
    return LabelPngSink(path, CLASSES, **options)


# JSON Lines


def test_json_lines(tmp_path: Path) -> None:
    results = [result(0), result(2, 3, 5)]
    with JsonLinesSink(tmp_path / "r.jsonl", CLASSES) as sink:
        for r in results:
            sink.write(r)
        sink.summary({"frames": sink.frames, "lost": 1})
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["schema"], line["type"]) for line in lines] == [(1, "frame"), (1, "frame"), (1, "summary")]
    assert lines[2] == {"schema": 1, "type": "summary", "frames": 2, "lost": 1}
    for line, r in zip(lines, results, strict=False):
        assert (line["index"], line["timestamp_us"], line["size"]) == (r.index, r.timestamp_us, list(r.labels.shape))
        assert line["payload_bytes"] == r.payload_bytes
        assert list(line["classes"]) == ["red", "green", "blue"]
        for label, share in enumerate(line["classes"].values()):
            assert share == pytest.approx(float((r.labels == label).mean()), abs=1e-6)
        assert line["timings_ms"] == {"read": 0.123, "segment": 2.0}


def test_json_lines_on_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with json_sink("-") as sink:
        sink.write(result(0))
        out, err = capfdbinary.readouterr()
        assert json.loads(out)["index"] == 0  # there before the sink is closed
    assert err == b""
    print("stdout is still open")


def test_half_written_line_is_taken_back(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "r.jsonl", CLASSES)
    sink.write(result(0))
    file = sink._file

    class Full:
        calls = 0

        def write(self, data: Any) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return file.write(data[:20])

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    sink._file = Full()  # type: ignore[assignment]
    with pytest.raises(OutputError, match="No space left on device"):
        sink.write(result(1))
    sink.close()
    (line,) = (tmp_path / "r.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == 0


# label PNGs


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (64, 48)])
def test_label_pngs(tmp_path: Path, height: int, width: int) -> None:
    results = [result(i, height, width) for i in (0, 3)]
    with label_sink(tmp_path / "deep" / "labels") as sink:
        for r in results:
            sink.write(r)
    assert sorted(p.name for p in (tmp_path / "deep" / "labels").iterdir()) == ["000000.png", "000003.png"]
    for r in results:
        with Image.open(tmp_path / "deep" / "labels" / f"{r.index:06d}.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), r.labels)
            colors = np.array([c.color for c in CLASSES], np.uint8)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[r.labels])


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(OSError(errno.ENOSPC, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_label_png_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: type[BaseException]
) -> None:
    sink = LabelPngSink(tmp_path / "labels", CLASSES)
    sink.write(result(0))

    def fail(self: Path, data: Any) -> int:
        with self.open("wb") as file:
            file.write(data[:20])
        raise raised

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(expected):
        sink.write(result(1))
    sink.close()
    assert [p.name for p in (tmp_path / "labels").iterdir()] == ["000000.png"]
    assert sink.frames == 1


# overlay


@pytest.mark.parametrize(("height", "width"), [(1, 1), (13, 17), (32, 48)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_overlay_of_any_size(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    with overlay_sink(tmp_path / f"o{suffix}", frame_rate=(30000, 1001)) as sink:
        for i in range(5):
            sink.write(result(i, height, width))
    with open_frames(tmp_path / f"o{suffix}") as source:
        assert source.size == (height + height % 2, width + width % 2)
        assert source.frame_rate == (30000, 1001)
        assert len(list(source)) == 5


def test_overlay_shows_the_colours(tmp_path: Path) -> None:
    labels = np.zeros((32, 48), np.uint8)
    labels[:, 24:] = 2
    flat = Result(0, 0, labels)  # no frame: the class colours alone
    grey = Result(1, 40_000, labels, rgb=np.full((32, 48, 3), 100, np.uint8))
    with overlay_sink(tmp_path / "o.mp4") as sink:
        sink.write(flat)
        sink.write(grey)
    with open_frames(tmp_path / "o.mp4") as source:
        first, second = (f.rgb.astype(int) for f in source)
    for found, left, right in ((first, (255, 0, 0), (0, 0, 255)), (second, (178, 50, 50), (50, 50, 178))):
        assert np.abs(found[8:24, 4:16].mean((0, 1)) - left).max() < 12
        assert np.abs(found[8:24, 32:44].mean((0, 1)) - right).max() < 12


def test_lost_frames_leave_the_one_before_standing(tmp_path: Path) -> None:
    with overlay_sink(tmp_path / "o.mkv", frame_rate=(10, 1)) as sink:
        for i in (0, 1, 5):
            sink.write(result(i))
    with open_frames(tmp_path / "o.mkv") as source:
        assert [f.timestamp_us for f in source] == [0, 100_000, 500_000]


def test_blend_is_exact() -> None:
    colors = palette(CLASSES)
    assert colors.shape == (256, 3)
    assert not colors[3:].any()
    r = result(0, 5, 7)
    assert r.rgb is not None
    np.testing.assert_array_equal(blend(None, r.labels, colors), colors[r.labels])
    np.testing.assert_array_equal(blend(r.rgb, r.labels, colors, 0.0), r.rgb)
    np.testing.assert_array_equal(blend(r.rgb, r.labels, colors, 1.0), colors[r.labels])
    half = (colors[r.labels].astype(int) + r.rgb) // 2
    np.testing.assert_array_equal(blend(r.rgb, r.labels, colors, 0.5), half)


def test_overlay_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.mp4"):
        overlay_sink(tmp_path / "o.txt")
    with pytest.raises(UsageError, match="weight is 2"):
        overlay_sink(tmp_path / "o.mp4", alpha=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendMissingError, match="'av'"):
        overlay_sink(tmp_path / "o.mp4")


# every sink


@pytest.mark.parametrize(("make", "name"), [(json_sink, "r.jsonl"), (overlay_sink, "o.mp4"), (StreamSink, "s.lseg")])
def test_output_that_exists(tmp_path: Path, make: Opener, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="output exists") as caught:
        make(tmp_path / name)
    assert (caught.value.exit_code, bool(caught.value.hint)) == (2, True)
    assert (tmp_path / name).read_text() == "precious"
    make(tmp_path / name, overwrite=True).close()
    with pytest.raises(UsageError, match="no folder"):
        make(tmp_path / "none" / name)
    with pytest.raises(UsageError, match="is a folder"):
        make(tmp_path)


def test_label_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    label_sink(tmp_path / "empty").close()
    (tmp_path / "empty" / "x").write_text("precious")
    with pytest.raises(UsageError, match="output exists"):
        label_sink(tmp_path / "empty")
    label_sink(tmp_path / "empty", overwrite=True).close()
    assert (tmp_path / "empty" / "x").read_text() == "precious"
    with pytest.raises(UsageError, match="is a file"):
        label_sink(tmp_path / "empty" / "x")


@needs_dev_full
@pytest.mark.parametrize(("make", "name"), [(json_sink, "full.jsonl"), (overlay_sink, "full.mp4")])
def test_full_disk(tmp_path: Path, make: Opener, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    sink = make(tmp_path / name)

    def fill() -> None:
        for i in range(50):
            sink.write(result(i, 64, 64))

    with pytest.raises(OutputError, match="No space left on device") as caught:
        fill()
    sink.close()  # the first error is the one to see: closing adds none
    assert (caught.value.exit_code, bool(caught.value.hint)) == (7, True)


@needs_dev_full
def test_full_disk_under_a_stream(tmp_path: Path) -> None:
    (tmp_path / "full.lseg").symlink_to("/dev/full")
    with StreamSink(tmp_path / "full.lseg") as sink, pytest.raises(OutputError, match="No space left"):
        sink.start(HEADER)


def test_stream_is_readable_before_it_is_closed(tmp_path: Path) -> None:
    sink = StreamSink(tmp_path / "s.lseg")
    assert not (tmp_path / "s.lseg").exists()  # nothing is made before there is something to write
    sink.start(HEADER)
    for i in range(3):
        sink.write(b"payload", i * 10)
    with (tmp_path / "s.lseg").open("rb") as file:
        assert [(f.index, f.timestamp_us) for f in Reader(file)] == [(0, 0), (1, 10), (2, 20)]
    assert (sink.frames, sink.bytes_written) == (3, (tmp_path / "s.lseg").stat().st_size)
    sink.close()
    sink.close()


def test_closed_pipe_is_not_an_output_error() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = json_sink(f"/proc/self/fd/{write}") if os.path.exists("/proc/self/fd") else None
    if sink is None:
        pytest.skip("no /proc")
    with pytest.raises(BrokenPipeError):
        sink.write(result(0))
    os.close(write)


def test_writing_to_a_closed_sink(tmp_path: Path) -> None:
    sink = json_sink(tmp_path / "r.jsonl")
    sink.close()
    sink.close()
    with pytest.raises(LatentsegError, match="is closed"):
        sink.write(result(0))


def test_overlay_plays_after_a_kill(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        import numpy as np
        from latentseg.engine.bundle import ClassInfo
        from latentseg.engine.result import Result
        from latentseg.engine.sinks import OverlaySink
        sink = OverlaySink(sys.argv[1], [ClassInfo("a", (1, 2, 3))])
        noise = np.random.default_rng(0)
        for i in range(60):
            rgb = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            sink.write(Result(i, 0, np.zeros((32, 32), np.uint8), rgb=rgb))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "o.mp4"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with open_frames(path) as source:
        assert len(list(source)) >= 25


def test_palette_of_no_classes_is_black() -> None:
    np.testing.assert_array_equal(palette(()), np.zeros((256, 3), np.uint8))


@pytest.mark.parametrize("rate", [(0xFFFFFFFF, 1), (1, 0xFFFFFFFF), (0, 1)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_overlay_of_a_rate_that_no_video_can_hold(rate: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    import av

    path = tmp_path / f"x.{suffix}"
    with OverlaySink(path, CLASSES, rate) as sink:
        sink.write(result(0))
    with av.open(str(path)) as video:
        assert video.streams.video[0].average_rate == 25
        assert sum(1 for _ in video.decode(video=0)) == 1
