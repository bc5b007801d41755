"""Video through DALI on the CPU, against PyAV: pixels, times, refused codecs, files that are cut or replaced."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from latentseg.engine.geometry import pad_to_stride
from latentseg.engine.sources import SourceFrame, open_frames
from latentseg.errors import InputError

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'latentseg[dali]'")

from latentseg.engine.sources.dali import DaliVideo


def frames_of(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Slow ramps that move: (N, H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    ramps = [
        np.stack([x * 255 // width, y * 255 // height, (x + y + 3 * n) * 255 // (width + height + 3 * count)], -1)
        for n in range(count)
    ]
    return np.stack(ramps).astype(np.uint8)


def write_video(
    path: Path, frames: npt.NDArray[np.uint8], codec: str, pixels: str = "yuv420p", rate: Fraction = Fraction(25)
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 5
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def pyav(path: Path) -> list[SourceFrame]:
    with open_frames(path, "video") as source:
        return list(source)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size", "most"),
    [
        ("odd.webm", "libvpx-vp9", "yuv420p", (37, 53), 0),
        ("odd.avi", "mjpeg", "yuvj420p", (37, 53), 0),
        ("odd8.mkv", "libvpx", "yuv420p", (37, 53), 0),
        ("even444.avi", "mjpeg", "yuvj444p", (48, 64), 0),
        # Of an even size PyAV repeats chroma and DALI interpolates it.
        ("even.webm", "libvpx-vp9", "yuv420p", (48, 64), 12),
        ("even.mp4", "mjpeg", "yuvj420p", (48, 64), 12),
    ],
)
def test_pixels_and_times(name: str, codec: str, pixels: str, size: tuple[int, int], most: int, tmp_path: Path) -> None:
    rate = Fraction(30000, 1001) if name.endswith(("webm", "mkv", "mp4")) else Fraction(25)
    path = write_video(tmp_path / name, frames_of(11, *size), codec, pixels, rate)
    expected = pyav(path)
    with DaliVideo(path, 4, threads=1) as source:
        assert (source.size, source.frame_rate, source.length) == (size, (rate.numerator, rate.denominator), 11)
        found = list(source)
    assert [f.index for f in found] == list(range(11))
    assert max(abs(f.timestamp_us - e.timestamp_us) for f, e in zip(found, expected, strict=True)) <= 1
    differences = np.abs(np.stack([f.rgb for f in found]).astype(int) - np.stack([e.rgb for e in expected]))
    assert differences.max() <= most
    assert differences.mean() < 2.0


@pytest.mark.parametrize("stride", [1, 8, 16])
def test_padding_to_the_stride(stride: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.webm", frames_of(5, 37, 53), "libvpx-vp9")
    expected = np.stack([frame.rgb for frame in pyav(path)])
    with DaliVideo(path, 2, threads=1, stride=stride) as source:
        found = list(source.batches())
        assert {batch.size for batch in found} == {pad_to_stride(expected, stride).shape[1:3]}
        np.testing.assert_array_equal(np.concatenate([b.host() for b in found]), pad_to_stride(expected, stride))
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in source]), expected)


@pytest.mark.parametrize(
    ("codec", "pixels", "called"),
    [("libx264", "yuv420p", "h264"), ("libx265", "yuv420p", "hevc"), ("libsvtav1", "yuv420p", "av1"),
     ("mpeg4", "yuv420p", "mpeg4"), ("ffv1", "bgr0", "ffv1")],
)  # fmt: skip
def test_codecs_that_the_cpu_does_not_decode(codec: str, pixels: str, called: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", frames_of(3, 64, 64), codec, pixels)
    with pytest.raises(InputError, match=f"DALI does not decode {called} on the CPU") as caught:
        DaliVideo(path)
    assert "kind='video'" in caught.value.hint
    assert len(pyav(path)) == 3  # the route that the hint names


def test_a_codec_that_no_gpu_decodes_is_said_before_a_gpu_is_looked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", frames_of(3, 64, 64), "ffv1", "bgr0")
    with pytest.raises(InputError, match="DALI does not decode ffv1 on GPU 0"):
        DaliVideo(path, device=0)


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    # DALI itself keeps the old file's index, and gives as many frames as that had.
    path = tmp_path / "x.webm"
    for count in (4, 2, 9):
        write_video(tmp_path / "new.webm", frames_of(count, 37, 53), "libvpx-vp9")
        shutil.copy(tmp_path / "new.webm", path)
        with DaliVideo(path, 2, threads=1) as source:
            assert [frame.rgb.tobytes() for frame in source] == [frame.rgb.tobytes() for frame in pyav(path)]


@pytest.mark.parametrize("name", ["12:30 a%02d.avi", "ünter.webm"])
def test_names_that_ffmpeg_would_read_something_into(name: str, tmp_path: Path) -> None:
    codec, pixels = ("mjpeg", "yuvj420p") if name.endswith("avi") else ("libvpx-vp9", "yuv420p")
    write_video(tmp_path / f"plain{Path(name).suffix}", frames_of(3, 37, 53), codec, pixels).rename(tmp_path / name)
    with DaliVideo(tmp_path / name, 2, threads=1) as source:
        assert len(list(source)) == 3


@pytest.mark.parametrize("name", ["x.webm", "x.mkv"])
def test_a_cut_video_gives_what_it_has_and_says_what_is_lost(name: str, tmp_path: Path) -> None:
    codec, pixels = ("mjpeg", "yuvj420p") if name.endswith("mkv") else ("libvpx-vp9", "yuv420p")
    path = write_video(tmp_path / name, frames_of(40, 37, 53), codec, pixels)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    for shard, shards in ((0, 1), (0, 2), (1, 2)):
        with DaliVideo(path, 3, threads=1, shard=shard, shards=shards) as source:
            found = [frame.index for frame in source]
            # Only the shard that has the end knows of it.
            assert source.lost == (40 - found[-1] - 1 if shard == shards - 1 else 0)
            assert 1 <= len(found) < 35
            assert all("and announces 40" in damage.reason for damage in source.damages)


def test_a_packet_that_does_not_decode(tmp_path: Path) -> None:
    whole, path = write_video(tmp_path / "whole.webm", frames_of(20, 37, 53), "libvpx-vp9"), tmp_path / "x.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is None:
                continue
            data = bytes(packet)
            copy = av.Packet(b"\xff" * len(data) if number == 13 else data)
            copy.stream, copy.pts, copy.dts, copy.time_base = stream, packet.pts, packet.dts, packet.time_base
            copy.is_keyframe = packet.is_keyframe
            target.mux(copy)
    with DaliVideo(path, 4, threads=1) as video:
        found = video.batches()
        assert [int(next(found).indices[0]) for _ in range(3)] == [0, 4, 8]
        with pytest.raises(InputError, match="vp9 frames 12 to 15 on the CPU") as caught:
            next(found)
    assert "passes over damaged frames" in caught.value.hint
    # A first batch that fails is found out on opening.
    with pytest.raises(InputError, match="frames 0 to 15"):
        DaliVideo(path, 16, threads=1)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.webm").write_text("hello " * 99)
    (tmp_path / "empty.webm").write_bytes(b"")
    for path, says in (
        (tmp_path / "none.webm", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "text.webm", "not a video"),
        (tmp_path / "empty.webm", "not a video"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            DaliVideo(path)
        assert path.name in str(caught.value)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    path = write_video(tmp_path / "x.webm", frames_of(3, 37, 53), "libvpx-vp9")
    source = DaliVideo(path, 2, threads=1)
    assert len(list((tmp_path / "temp").iterdir())) == 1
    source.close()
    source.close()
    assert list((tmp_path / "temp").iterdir()) == []
