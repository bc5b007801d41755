"""The facade from end to end on the tiny bundle: every frame's labels against NumPy, and all that can go wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from _tiny_bundle import labels, symbols, write_tiny_bundle
from PIL import Image

import latentseg
from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.bitstream.header import HEADER_BYTES
from latentseg.engine import Engine
from latentseg.engine.bundle import Bundle
from latentseg.engine.sinks import JsonLinesSink, LabelPngSink, OverlaySink
from latentseg.engine.sources import FrameSource, SourceFrame, StreamSource, open_source
from latentseg.errors import ArtifactError, InputError, OutputError, UsageError
from latentseg.kernels import entropy


class Memory(FrameSource):
    """Frames from memory, as a source."""

    def __init__(self, frames: npt.NDArray[np.uint8], repeat: int = 1) -> None:
        super().__init__("memory")
        self.frames, self.repeat = frames, repeat
        self.size = (frames.shape[1], frames.shape[2])
        self.frame_rate = (10, 1)
        self.length = len(frames) * repeat
        self.closed = False

    def __iter__(self) -> Iterator[SourceFrame]:
        for index in range(len(self.frames) * self.repeat):
            yield SourceFrame(index, index * 100_000, self.frames[index % len(self.frames)])

    def close(self) -> None:
        self.closed = True


def frames_of(n: int, height: int = 17, width: int = 31) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.fixture
def stream(engine: Engine, tmp_path: Path) -> Path:
    """Five frames of 17x31 as an .lseg file."""
    engine.encode(Memory(frames_of(5)), tmp_path / "five.lseg")
    return tmp_path / "five.lseg"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (13, 17), (16, 24), (31, 2)])
def test_the_main_job(engine: Engine, tmp_path: Path, size: tuple[int, int]) -> None:
    frames = frames_of(6, *size)
    summary = engine.encode(Memory(frames), tmp_path / "x.lseg")
    assert (summary.frames, summary.lost, summary.dropped, summary.size) == (6, 0, 0, size)
    assert summary.bytes == (tmp_path / "x.lseg").stat().st_size > summary.payload_bytes > 0
    assert summary.bpp == pytest.approx(summary.bytes * 8 / (6 * size[0] * size[1]))
    assert summary.factor == pytest.approx(24 / summary.bpp)
    json.dumps(summary.as_dict())
    for source in (tmp_path / "x.lseg", Memory(frames)):  # the bytes, and frames that are made into bytes first
        with engine.segment(source) as run:
            assert (run.size, run.frame_rate) == (size, (10, 1))
            results = list(run)
        assert [(r.index, r.timestamp_us) for r in results] == [(i, i * 100_000) for i in range(6)]
        np.testing.assert_array_equal(np.stack([r.labels for r in results]), labels(frames))
        assert all(r.rgb is None and r.payload_bytes > 0 for r in results)
        assert {"read", "entropy_decode", "segment"} <= set(results[0].timings_ms)
    assert (engine.lost, engine.dropped, engine.damages) == (0, 0, [])


def test_frames_beside_labels(engine: Engine, stream: Path) -> None:
    frames = frames_of(5)
    decoded = symbols(frames).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)[:, :17, :31]
    np.testing.assert_array_equal([r.rgb for r in engine.segment(stream, with_frames=True)], decoded)
    np.testing.assert_array_equal([r.rgb for r in engine.segment(Memory(frames), with_frames=True)], frames)
    np.testing.assert_array_equal([f.rgb for f in engine.decode(stream)], decoded)


def test_image_folder_and_video_and_every_sink(engine: Engine, tmp_path: Path) -> None:
    frames = frames_of(4, 16, 24)
    (tmp_path / "images").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "images" / f"{i}.png")
    classes = engine.bundle.classes
    with (
        engine.segment(tmp_path / "images", with_frames=True) as run,
        OverlaySink(tmp_path / "o.mp4", classes, run.frame_rate) as overlay,
        LabelPngSink(tmp_path / "labels", classes) as pngs,
        JsonLinesSink(tmp_path / "r.jsonl", classes) as lines,
    ):
        for result in run:
            for sink in (overlay, pngs, lines):
                sink.write(result)
        lines.summary(run.summary())
    with Image.open(tmp_path / "labels" / "000003.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels(frames)[3])
    last = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["frames"], last["lost"], last["size"]) == ("summary", 4, 0, [16, 24])
    # The overlay is a video like any other.
    assert engine.encode(tmp_path / "o.mp4", tmp_path / "o.lseg").frames == 4


def test_package_facade(stream: Path, tiny_bundle: Bundle) -> None:
    with latentseg.Engine(latentseg.load_bundle(tiny_bundle.path)) as engine:
        assert sum(1 for _ in engine.segment(str(stream))) == 5


# damage


def test_cut_at_every_byte(engine: Engine, stream: Path, tmp_path: Path) -> None:
    data, truth = stream.read_bytes(), labels(frames_of(5))
    starts = [i for i in range(len(data)) if data.startswith(b"\xabLSF", i)]
    ends = [*starts[1:], len(data)]
    cut = tmp_path / "cut.lseg"
    for size in range(0, len(data), 1 if len(data) < 800 else 3):
        cut.write_bytes(data[:size])
        if size < HEADER_BYTES + 28:  # not one whole frame header
            with pytest.raises(InputError):
                list(engine.segment(cut))
            continue
        with suppress(InputError):  # where no frame is whole yet
            results = []
            results.extend(engine.segment(cut))
        for r in results:
            np.testing.assert_array_equal(r.labels, truth[r.index])
        assert [r.index for r in results] == list(range(len(results)))
        assert len(results) == sum(end <= size for end in ends)
        assert engine.lost == int(size not in (HEADER_BYTES, *ends))


def test_flipped_bits_anywhere(engine: Engine, stream: Path, tmp_path: Path) -> None:
    data, truth = stream.read_bytes(), labels(frames_of(5))
    flipped = tmp_path / "flipped.lseg"
    for offset in range(0, len(data), 2):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << (offset % 8)
        flipped.write_bytes(damaged)
        results = list(engine.segment(flipped))
        for r in results:
            np.testing.assert_array_equal(r.labels, truth[r.index])
        # One bit costs at most one frame, and is told; in the header it costs none.
        assert len(results) + engine.lost == 5, offset
        assert engine.lost == (0 if offset < HEADER_BYTES else 1), offset
        assert engine.damages


def test_payload_that_the_coder_cannot_read(engine: Engine, tiny_bundle: Bundle, tmp_path: Path) -> None:
    frames = frames_of(3)
    header = tiny_bundle.header(17, 31)
    with (tmp_path / "x.lseg").open("wb") as file:
        writer = Writer(file, header)
        for i, q in enumerate(symbols(frames)):
            writer.write(b"\xff" * 9 if i == 1 else entropy.encode_symbols(q, header))
    with engine.segment(tmp_path / "x.lseg") as run:
        assert [r.index for r in run] == [0, 2]
        assert run.summary()["lost"] == 1
    assert engine.lost == 1
    assert engine.damages[0].frame_index == 1
    assert "does not decode" in engine.damages[0].reason
    assert [f.index for f in engine.decode(tmp_path / "x.lseg")] == [0, 2]


def test_nothing_readable_is_an_error(engine: Engine, tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.lseg"
    with path.open("wb") as file:
        writer = Writer(file, tiny_bundle.header(17, 31))
    with pytest.raises(InputError, match="no readable frame"):
        list(engine.segment(path))
    with path.open("wb") as file:
        writer = Writer(file, tiny_bundle.header(17, 31))
        writer.write(b"\xff" * 9)
    with pytest.raises(InputError, match="none of 1 frames could be read"):
        list(engine.segment(path))
    path.write_bytes(b"hello, this is no stream at all" * 20)
    with pytest.raises(InputError, match=r"not an \.lseg stream"):
        engine.segment(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        engine.segment(path)
    with pytest.raises(InputError, match="no such file"):
        engine.segment(tmp_path / "none.lseg")


def test_decode_wants_a_stream(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(frames_of(1)[0]).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="looks like"):
        engine.decode(tmp_path / "x.png")


# what does not fit


def test_wrong_codec_and_wrong_shape(engine: Engine, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", codec_seed="other")
    with Engine(other) as stranger:
        stranger.encode(Memory(frames_of(2)), tmp_path / "x.lseg")
    for call in (engine.segment, engine.decode):
        with pytest.raises(ArtifactError, match="was written by codec") as caught:
            call(tmp_path / "x.lseg")
        assert (caught.value.exit_code, bool(caught.value.hint)) == (4, True)
    with (tmp_path / "unnamed.lseg").open("wb") as file:
        Writer(file, StreamHeader(bytes(32), (3, 1, 1), 8, Scaling("tensor")))
    with pytest.raises(ArtifactError, match="names no codec"):
        engine.segment(tmp_path / "unnamed.lseg")


def test_changed_bundle(tiny_bundle: Bundle, stream: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    data = bytearray((folder / "segmenter.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "segmenter.onnx").write_bytes(data)
    with Engine(folder) as engine, pytest.raises(ArtifactError, match="was changed"):
        engine.segment(stream)


def test_bundle_without_decompressor(stream: Path, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "small", ("compressor", "segmenter"))
    with Engine(tmp_path / "small") as engine:
        assert sum(1 for _ in engine.segment(stream)) == 5
        with pytest.raises(ArtifactError, match="has no decompressor"):
            engine.decode(stream)


def test_usage(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown backend"):
        Engine(tiny_bundle, backend="abacus")
    with pytest.raises(UsageError, match="queue depth"):
        Engine(tiny_bundle, queue_depth=0)
    with pytest.raises(UsageError, match="no bundle named"):
        Engine("no-such-bundle")


# outputs


def test_encode_to_what_exists(engine: Engine, stream: Path, tmp_path: Path) -> None:
    before = stream.read_bytes()
    source = Memory(frames_of(1))
    with pytest.raises(UsageError, match="output exists"):
        engine.encode(source, stream)
    assert stream.read_bytes() == before
    assert engine.encode(source, stream, overwrite=True).frames == 1
    Image.fromarray(frames_of(1)[0]).save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="is the source itself"):
        engine.encode(tmp_path / "x.png", tmp_path / "x.png", overwrite=True)


def test_encode_of_nothing_makes_no_file(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none.mp4"):
        with pytest.raises(InputError):
            engine.encode(source, tmp_path / "x.lseg")
    assert not (tmp_path / "x.lseg").exists()


def test_disk_that_fills_up_while_encoding(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    class Filling(io.FileIO):
        left = 500

        def write(self, data: Any) -> int:
            take = min(len(data), self.left)
            if take == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= take
            return super().write(bytes(data)[:take]) or 0

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Filling(str(self), "w"))
    source = Memory(frames_of(5), repeat=100)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        engine.encode(source, tmp_path / "x.lseg")
    monkeypatch.setattr(Path, "open", opened)
    assert caught.value.exit_code == 7
    assert source.closed
    found = [r.index for r in engine.segment(tmp_path / "x.lseg")]
    assert found == list(range(len(found)))
    assert len(found) >= 2
    assert engine.lost == 1  # the frame that the disk cut


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_from_the_start(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"):
        engine.encode(Memory(frames_of(2)), "/dev/full")


# streams that go on


def test_one_run_at_a_time(engine: Engine, stream: Path) -> None:
    first = engine.segment(Memory(frames_of(5), repeat=1000))
    assert next(first).index == 0
    second = engine.segment(stream)
    with pytest.raises(UsageError, match="stopped after 1 frames"):  # not an end that looks like the source's own
        next(first)
    assert len(list(second)) == 5


def test_source_is_closed_however_a_run_ends(engine: Engine) -> None:
    for take in (0, 1, 10):
        source = Memory(frames_of(5), repeat=1000)
        with engine.segment(source) as run:
            for _ in range(take):
                next(run)
        assert source.closed
    source = Memory(frames_of(2, 8, 8))
    list(engine.segment(source))
    assert source.closed


def test_late_frames_of_a_live_source_are_dropped_and_counted(engine: Engine) -> None:
    source = Memory(frames_of(5), repeat=200)
    source.live = True
    results = []
    for r in engine.segment(source):
        if not results:
            time.sleep(0.2)  # the caller is slow: the queues fill up
        results.append(r)
    truth = labels(frames_of(5))
    indices = [r.index for r in results]
    assert indices == sorted(indices)
    assert len(results) + engine.dropped == 1000
    assert engine.dropped > 0
    assert indices[-1] == 999
    for r in results[:20]:
        np.testing.assert_array_equal(r.labels, truth[r.index % 5])
    assert len(list(engine.segment(source, drop_late=False))) == 1000


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this system has no /proc")
def test_memory_is_flat_on_10000_frames(engine: Engine, tmp_path: Path) -> None:
    frames = np.repeat(np.arange(250, dtype=np.uint8), 8 * 8 * 3).reshape(250, 8, 8, 3)
    path = tmp_path / "long.lseg"
    assert engine.encode(Memory(frames, repeat=40), path).frames == 10_000
    early = 0
    for count, r in enumerate(engine.segment(path)):
        if count == 1000:
            early = resident_kb()
        assert r.index == count
    assert count == 9_999
    assert resident_kb() - early < 8_000  # one leaked kB a frame would be 9 MB


def test_live_pipe_gives_each_frame_as_it_comes(engine: Engine, stream: Path) -> None:
    """A frame written to a pipe comes out before the next one is written."""
    data = stream.read_bytes()
    starts = [i for i in range(len(data)) if data.startswith(b"\xabLSF", i)]
    cuts = [*starts[1:], len(data)]
    read, write = os.pipe()
    os.write(write, data[: cuts[0]])
    with engine.segment(StreamSource(os.fdopen(read, "rb"), "pipe")) as run:
        for i, (start, end) in enumerate(zip(cuts, [*cuts[1:], None], strict=True)):
            assert next(run).index == i
            if end is not None:
                os.write(write, data[start:end])
        os.close(write)
        assert next(run, None) is None


CHILD = """
    import sys
    from latentseg.engine import Engine
    with Engine(sys.argv[1]) as engine, engine.segment("-") as run:
        for r in run:
            print(r.index, flush=True)
"""


_children: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_child_survives() -> Iterator[None]:
    yield
    while _children:
        _children.pop().kill()  # one that has ended already does not mind


def child(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    # A shell makes what it runs in the background deaf to Ctrl-C, and its children inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", listen + textwrap.dedent(code), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    _children.append(process)
    return process


def test_stdin(tiny_bundle: Bundle, stream: Path) -> None:
    with stream.open("rb") as file:
        process = child(CHILD, tiny_bundle.path, stdin=file)
        out, err = process.communicate(timeout=60)
    assert (out.split(), process.returncode) == (["0", "1", "2", "3", "4"], 0), err


def test_ctrl_c_while_a_pipe_is_silent(tiny_bundle: Bundle, stream: Path) -> None:
    read, write = os.pipe()
    os.write(write, stream.read_bytes())
    process = child(CHILD, tiny_bundle.path, stdin=read)
    assert process.stdout is not None
    for i in range(5):
        assert process.stdout.readline().strip() == str(i)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)  # the writer still has the pipe open
    _, err = process.communicate(timeout=60)
    os.close(read)
    os.close(write)
    assert time.monotonic() - start < 10
    assert err.strip().endswith("KeyboardInterrupt")
    assert "Fatal Python error" not in err


def test_ctrl_c_while_encoding_leaves_a_readable_stream(tiny_bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    code = """
        import itertools, sys
        import numpy as np
        from latentseg.engine import Engine
        from latentseg.engine.sources import FrameSource, SourceFrame
        class Endless(FrameSource):
            def __iter__(self):
                for i in itertools.count():
                    yield SourceFrame(i, i, np.full((8, 8, 3), i % 256, np.uint8))
        source = Endless("endless")
        source.size = (8, 8)
        tell = lambda run: print("go", flush=True) if run.frames == 50 else None
        with Engine(sys.argv[1]) as engine:
            engine.encode(source, sys.argv[2], on_frame=tell)
    """
    process = child(code, tiny_bundle.path, tmp_path / "x.lseg")
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.strip().endswith("KeyboardInterrupt")
    found = [r.index for r in engine.segment(tmp_path / "x.lseg")]
    assert found == list(range(len(found)))
    assert len(found) >= 50
    assert engine.lost <= 1  # at most the frame that was being written


@pytest.mark.shared
def test_real_video(engine: Engine, shared_data: Path) -> None:
    with open_source(shared_data / "video" / "udacity_solidWhiteRight.mp4") as source:
        assert isinstance(source, FrameSource)
        frames = np.stack([f.rgb for f, _ in zip(source, range(3), strict=False)])
    with engine.segment(shared_data / "video" / "udacity_solidWhiteRight.mp4") as run:
        assert run.size == (540, 960)
        found = np.stack([next(run).labels for _ in range(3)])
    np.testing.assert_array_equal(found, labels(frames))
