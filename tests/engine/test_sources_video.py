"""Video as a source: files, URLs and pipes, decoded by PyAV and compared with what was encoded."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from latentseg.engine.sources import open_frames, open_source
from latentseg.errors import BackendMissingError, InputError


def frames_of(n: int, height: int = 32, width: int = 48) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def write_video(
    path: Path, frames: npt.NDArray[np.uint8], codec: str = "libx264", rate: Fraction = Fraction(25), **options: str
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.gop_size = 5
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_lossless_video_comes_back_exactly(tmp_path: Path) -> None:
    frames = frames_of(7, 13, 17)
    path = write_video(tmp_path / "x.mkv", frames, "ffv1", Fraction(30000, 1001))
    with open_frames(path) as source:
        assert (source.size, source.frame_rate, source.live) == ((13, 17), (30000, 1001), False)
        assert source.length == 7
        found = list(source)
    assert [f.index for f in found] == list(range(7))
    assert [round(f.timestamp_us / 33366.7) for f in found] == list(range(7))
    assert found[0].timestamp_us == 0
    for frame, expected in zip(found, frames, strict=True):
        assert frame.rgb.flags.c_contiguous
        np.testing.assert_array_equal(frame.rgb, expected)
    assert source.damages == []


def test_frame_counts_with_reordered_frames(tmp_path: Path) -> None:
    # x264's B-frames leave the decoder late: the flush at the end must not be forgotten.
    path = write_video(tmp_path / "x.mp4", frames_of(23))
    with open_frames(path) as source:
        assert source.length == 23
        times = [f.timestamp_us for f in source]
    assert times == [i * 40_000 for i in range(23)]


def test_one_pixel(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", frames_of(1, 1, 1), "ffv1")
    with open_frames(path) as source:
        assert [f.rgb.shape for f in source] == [(1, 1, 3)]


def test_url(tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    write_video(tmp_path / "x.mkv", frames_of(4), "ffv1")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            with open_frames(f"{base}/x.mkv") as source:
                assert not source.live
                assert len(list(source)) == 4
            with pytest.raises(InputError, match="cannot open"):
                open_source(f"{base}/none.mkv")
        finally:
            server.shutdown()


def test_pipe(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", frames_of(6), "ffv1")
    code = "from latentseg.engine.sources import open_source; print(len(list(open_source('-', 'video'))))"
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=cat.stdout, capture_output=True, text=True, timeout=60
        )
    assert done.stdout.strip() == "6", done.stderr


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    yield folder / "missing.mp4", "no such file or folder"
    yield write("empty.mp4", b""), "is empty, 0 bytes"
    yield write("text.mp4", b"hello " * 100), "not a video"
    yield write("text.txt", b"hello " * 100), "not a video"
    yield write("noise.mp4", np.random.default_rng(0).bytes(5000)), "not a video"
    whole = write_video(folder / "whole.mp4", frames_of(5)).read_bytes()
    yield write("no_index.mp4", whole[: len(whole) // 2]), "not a video"
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    yield folder / "sound.wav", "no video in it, only audio"
    # A header that is in order, and not one frame.
    yield write("zero.y4m", b"YUV4MPEG2 W32 H32 F25:1 Ip A1:1 C420jpeg\n"), "zero frames could be decoded"


def test_files_that_are_no_video(tmp_path: Path) -> None:
    for path, says in bad_files(tmp_path):
        with pytest.raises(InputError, match=says) as caught:
            open_source(path)
        assert caught.value.exit_code == 3
        assert caught.value.hint, path.name
        assert path.name in str(caught.value)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_cut_video_gives_what_it_has_and_says_what_is_lost(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, frames_of(50), movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with open_frames(path) as source:
        found = len(list(source))
        assert 20 <= found < 40
        assert abs(source.lost + found - 50) <= 2
        assert "ends" in source.damages[0].reason


def test_size_that_changes_midway(tmp_path: Path) -> None:
    # Motion JPEG as a bare stream: pictures of two sizes one after the other.
    from PIL import Image

    with (tmp_path / "x.mjpeg").open("wb") as file:
        for height in (32, 32, 48):
            Image.fromarray(frames_of(1, height, 32)[0]).save(file, "JPEG")
    with open_frames(tmp_path / "x.mjpeg") as source:
        frames = iter(source)
        assert [next(frames).index, next(frames).index] == [0, 1]
        with pytest.raises(InputError, match="frame 2 is 48x32, expected 32x32"):
            next(frames)


def test_camera_that_is_not_there() -> None:
    with pytest.raises((InputError, BackendMissingError)) as caught:
        open_source("camera:93")
    assert caught.value.hint


def test_stream_where_pixels_are_wanted(tmp_path: Path) -> None:
    from latentseg.bitstream import Scaling, StreamHeader, Writer

    with (tmp_path / "odd name").open("wb") as file:
        Writer(file, StreamHeader(bytes(32), (1, 1, 1), 8, Scaling("tensor")))
    with pytest.raises(InputError, match=r"already an \.lseg stream"):
        open_frames(tmp_path / "odd name")


def test_pyav_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mkv", frames_of(1), "ffv1")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendMissingError, match="'av'") as caught:
        open_source(path)
    assert caught.value.exit_code == 6


@pytest.mark.shared
def test_real_video(shared_data: Path) -> None:
    with open_frames(shared_data / "video" / "udacity_solidWhiteRight.mp4") as source:
        assert (source.size, source.frame_rate, source.length) == ((540, 960), (25, 1), 221)
        first = next(iter(source))
    assert first.rgb.shape == (540, 960, 3)
