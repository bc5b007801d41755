"""Video beside H.264 and AV1: bytes and pictures against PyAV's readers, curves by hand, the script on tiny runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from _labelled import write_camvid
from _tiny_runs import NARROW, TINY
from numpy.typing import NDArray
from PIL import Image

from latentseg.benchmarks import results_page, video_codecs, video_rates, video_report
from latentseg.benchmarks.video_codecs import AV1, H264, VideoCodec
from latentseg.benchmarks.video_ours import LearnedVideo, check_same
from latentseg.errors import BackendMissingError, InputError, VerificationError
from latentseg.kernels import entropy
from latentseg.models import registry
from latentseg.training import checkpoint, evaluate
from latentseg.training.received import Encoder

ROOT = Path(__file__).resolve().parents[2]
RATE = (15, 1)
Frame = NDArray[np.uint8]


def moving(count: int, height: int = 64, width: int = 96) -> list[Frame]:
    """Smooth waves that move two pixels a frame, so that each frame is unlike the others and easy to predict."""
    y, x = np.mgrid[:height, :width].astype(float)
    pictures = []
    for n in range(count):
        waves = [np.sin((x + 2 * n) / 9 + c) + np.cos(y / (7 + c)) for c in range(3)]
        pictures.append((127 + 60 * np.stack(waves, -1)).astype(np.uint8))
    return pictures


def psnr(frames: list[Frame], others: list[Frame]) -> float:
    return 10 * np.log10(255**2 / np.mean((np.stack(frames).astype(float) - np.stack(others)) ** 2))


def test_colours_survive() -> None:
    frames = [*moving(2), np.full((64, 96, 3), (255, 0, 30), np.uint8), np.zeros((64, 96, 3), np.uint8)]
    back = video_codecs.to_frames(video_codecs.to_planes(frames, RATE))
    assert psnr(frames, back) > 45
    # Of flat colours nothing but rounding to 8 bits is lost; another matrix or range would move them by tens.
    assert np.abs(back[2].astype(int) - frames[2]).max() <= 2
    assert np.abs(back[3].astype(int)).max() <= 1
    luma = video_codecs.to_planes(frames, RATE)[2].to_ndarray()[:64]
    assert np.abs(luma - (16 + 219 * (0.299 * 255 + 0.114 * 30) / 255)).max() <= 1  # BT.601, limited range


@pytest.mark.parametrize(("codec", "format"), [(H264, "h264"), (AV1, "obu")])
def test_packets_are_all_that_a_reader_needs(codec: VideoCodec, format: str) -> None:
    frames = moving(18)
    planes = video_codecs.to_planes(frames, RATE)
    sizes = {}
    for interval, keys in ((1, 18), (7, 3), (None, 1)):
        coded = video_codecs.encode(planes, codec, RATE, 12, interval, threads=1)
        assert coded.keys == keys
        data = coded.extradata + b"".join(bytes(packet) for packet in coded.packets)
        assert coded.bytes == len(data)
        assert b"x264" not in data
        sizes[interval] = len(data)
        decoded, seconds = video_codecs.decode(coded, threads=1)
        assert seconds > 0
        back = video_codecs.to_frames(decoded)
        assert psnr(frames, back) > 38
        with av.open(io.BytesIO(data), format=format) as container:
            read = [frame.to_ndarray() for frame in container.decode(video=0)]
        assert len(read) == len(frames)
        for frame, other in zip(read, decoded, strict=True):
            np.testing.assert_array_equal(frame, other.to_ndarray())
    assert sizes[1] > sizes[7] > sizes[None]
    coarse = video_codecs.encode(planes, codec, RATE, 45, None, threads=1)
    assert coarse.bytes < sizes[None] / 2
    assert (coded.version or "core").startswith("core")


def test_what_video_cannot_be() -> None:
    with pytest.raises(InputError, match="95x64, expected even sides"):
        video_codecs.to_planes(moving(1, width=95), RATE)
    planes = video_codecs.to_planes(moving(2), RATE)
    with pytest.raises(BackendMissingError, match="no encoder 'libnone'"):
        video_codecs.encode(planes, VideoCodec("None", "libnone", "none", {}), RATE, 30, 1, threads=1)
    coded = video_codecs.encode(planes, H264, RATE, 30, 1, threads=1)
    coded.packets.pop()
    with pytest.raises(InputError, match="1 frames came out of 2"):
        video_codecs.decode(coded, threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with a training's notes, but none behind them: codec, latent, rgb, other (an RGB one)."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(3)
    codec = registry.create("compact-codec", **TINY)
    codec.pca_init(torch.rand(400, 192), step=60.0)  # type: ignore[operator]
    own = checkpoint.content_id("compact-codec", TINY, codec.state_dict())
    made = {"codec": ("compact-codec", TINY, codec, {})}
    for name, network, settings in (("latent", "compact-latent", {"codec": own}), ("rgb", "compact-rgb", {"codec": ""}),
                                    ("other", "compact-rgb", {"codec": ""})):  # fmt: skip
        options = {"classes": 11, **NARROW} | ({"channels": 4} if name == "latent" else {})
        made[name] = (network, options, registry.create(network, **options), settings)
    for name, (network, options, module, settings) in made.items():
        (folder / name).mkdir()
        facts = {"settings": settings, "steps": 7, "seconds": 1.5}
        checkpoint.save_weights(folder / name / "model.safetensors", network, options, module.state_dict(), facts)
    return folder


def test_ours_by_hand(runs: Path) -> None:
    codec = checkpoint.load_weights(runs / "codec").build()
    frames = moving(9, 61, 75)
    frames[6:] = [frames[5]] * 3  # it stands still
    video = LearnedVideo(codec, frames, RATE, threads=1)
    received = {}
    for interval in (1, 4, None):
        sent = video.send(0.5, interval)
        assert sent.bytes == 200 + sum(28 + len(payload) for payload in sent.payloads)  # docs/format.md
        assert (sent.header.scaling.lo, sent.header.scaling.hi) == (-64, 63.5)
        assert sent.header.frame_rate == RATE
        assert sent.key_frames >= {1: 9, 4: 3, None: 1}[interval]
        received[interval], _ = video.receive(sent)
        check_same(received[interval], received[1], "here")
        if interval == 1:
            assert sent.payloads == [entropy.encode_latent(z, sent.header, "numpy") for z in video.latents]
        else:
            # Frames that stand still cost next to nothing by the frame before.
            assert len(sent.payloads[7]) < 0.5 * len(video.send(0.5, 1).payloads[7])
    pictures, _ = video.pictures(received[1])
    expected = [evaluate.decoded_by(codec, 0.5)(frame) for frame in frames]
    assert np.abs(np.stack(pictures).astype(int) - np.stack(expected)).max() <= 1
    received[4][3][0, 0, 0] += 1
    with pytest.raises(VerificationError, match="here: frame 3"):
        check_same(received[4], received[1], "here")


def test_curves_by_hand() -> None:
    curve = [(0.1, 0.5), (0.4, 0.6), (0.8, 0.58), (1.6, 0.7)]
    assert video_report.bpp_at(curve, 0.55) == pytest.approx(0.2)  # half way from 0.1 to 0.4 on a log axis
    assert video_report.bpp_at(curve, 0.59) == pytest.approx(0.1 * 4**0.9)  # the first of three places
    assert video_report.bpp_at(curve, 0.64) == pytest.approx(0.8 * np.sqrt(2))
    assert video_report.bpp_at(curve, 0.7) == pytest.approx(1.6)
    assert video_report.bpp_at(curve, 0.71) is None
    assert video_report.bpp_at(curve, 0.5) is None  # reached from the first point on: nothing is made up
    flat = [(0.05, 0.59), (3.2, 0.59)]
    bounds, points, sign = video_report.crossings(flat, curve) or ((), [], 0)
    assert bounds == (0.1, 1.6)
    assert [bpp for bpp, _ in points] == pytest.approx([0.1 * 4**0.9, 0.4 * 2**0.5, 0.8 * 2 ** (1 / 12)])
    assert [value for _, value in points] == pytest.approx([0.59] * 3)
    assert sign > 0
    text = video_report.crossing_text(flat, curve)
    assert text == "above from 0.1 to 0.348 (0.590), below to 0.566 (0.590), above to 0.848 (0.590), below to 1.6 bpp"
    assert video_report.crossings([(0.1, 0.5), (0.2, 0.6)], [(0.2, 0.5), (0.4, 0.6)]) is None
    # A touch is no crossing; what is equal throughout lies on it.
    touch = [(0.1, 0.6), (0.4, 0.6), (1.6, 0.6)]
    assert (video_report.crossings(touch, [(0.1, 0.5), (0.4, 0.6), (1.6, 0.5)]) or (0, 0))[1] == []
    assert video_report.crossing_text(touch, touch) == "on it from 0.1 to 1.6 bpp"
    assert video_report.levels([(0.1, 0.583), (0.2, 0.655)]) == [0.6, 0.62, 0.64]
    assert len(video_report.levels([(0.1, 0.0), (0.2, 1.0)])) <= 6


def test_equal_quality_table() -> None:
    def rows(codec: str, kind: str, way: str, name: str, points: list[tuple[float, float]]) -> list[dict[str, Any]]:
        shared = {"clip": {"name": "a", "labels": "x"}, "codec": {"name": codec, "kind": kind}, "key_interval": 1}
        return [
            shared | {"way": way, "name": name, "setting": str(bpp), "bpp": bpp, "quality": {"miou": miou}}
            for bpp, miou in points
        ]

    found = rows("H.264", "video", "rgb", "net", [(0.4, 0.52), (1.6, 0.62)])
    found += rows("ours", "learned", "latent", "lat", [(0.2, 0.5), (0.8, 0.6)])
    lines = video_report.equal_table(found).splitlines()
    assert lines[0].split()[:4] == ["keys", "quality", "ours,", "lat"]
    cells = [line.split() for line in lines[2:]]
    assert [row[1] for row in cells] == ["0.520", "0.540", "0.560", "0.580"]
    # Both climb 0.1 over two octaves.
    assert cells[0][3:] == ["<", "0.4000"]
    assert float(cells[1][2]) == pytest.approx(0.2 * 4**0.4, abs=1e-4)
    assert cells[1][3:] == [f"{0.4 * 4**0.2:.4f}", f"({2 * 4**-0.2:.2f})"]
    assert "ours, lat" in video_report.crossing_table(found)
    assert video_report.equal_table(found[:2]) == video_report.crossing_table(found[:2]) == ""


def write_video(path: Path, frames: list[Frame]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


def test_script(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, labels = write_camvid(tmp_path / "streets", [(64, 96)] * 5)
    write_video(tmp_path / "cars.mp4", moving(6))
    record, plot = tmp_path / "video_rates.jsonl", tmp_path / "plot.png"
    words = ["--labelled", f"val={tmp_path / 'streets'}", "--clip", f"cars={tmp_path / 'cars.mp4'}", "--limit", "4"]
    words += ["--codec", f"ours={runs / 'codec'}", "--latent", f"lat={runs / 'latent'}", "--rgb", f"net={runs / 'rgb'}"]
    words += ["--rgb", f"two={runs / 'other'}", "--steps", "0.5", "2", "--crf", "20", "40", "--av1-crf", "40"]
    words += ["--key-intervals", "1", "3", "0", "--threads", "1", "--record", str(record), "--plot", str(plot)]
    assert video_rates.main(words) == 0
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    # A clip: 2 originals; 2 steps of 3 networks, 3 CRFs of 2 networks, at 3 key intervals.
    assert len(rows) == 2 * (2 + 3 * (2 * 3 + 3 * 2))
    assert str(tmp_path) not in record.read_text()
    assert str(runs) not in record.read_text()
    assert {(r["clip"]["name"], r["clip"]["labels"], r["clip"]["video"], tuple(r["clip"]["rate"])) for r in rows} == {
        ("val", "camvid val", None, (15, 1)), ("cars", None, "h264", (12, 1))
    }  # fmt: skip
    for row in rows:
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / (4 * 64 * 96))
        rate = row["clip"]["rate"][0]
        assert row["kbit_s"] == pytest.approx(8 * row["bytes"] * rate / 4000)
        assert (row["quality"] is None) == (row["clip"]["labels"] is None)
        if row["codec"]["kind"] == "original":
            assert (row["agreement"], row["bpp"], row["psnr"]) == (1, 24, None)
        elif row["way"] == "rgb":
            assert row["psnr"] > 5

    def found(**wanted: Any) -> dict[str, Any]:
        (row,) = [r for r in rows if all(r[k] == v for k, v in wanted.items() if k not in ("clip", "codec"))
                  and r["clip"]["name"] == wanted["clip"] and r["codec"]["name"] == wanted["codec"]]  # fmt: skip
        return row

    codec, latent, rgb = (checkpoint.load_weights(runs / name).build() for name in ("codec", "latent", "rgb"))
    truth = np.stack(labels[:4])
    encoder = Encoder(codec)
    own = np.stack([evaluate.predict(latent, encoder, frame, 2.0) for frame in frames[:4]])
    on_originals = np.stack([evaluate.predict(rgb, Encoder(None), frame) for frame in frames[:4]])
    for interval in (1, 3, None):
        row = found(clip="val", codec="ours", name="lat", key_interval=interval, setting="step 2")
        assert row["quality"]["miou"] == pytest.approx(miou(own, truth), abs=2e-3)
        assert row["agreement_rgb"] == pytest.approx(np.mean(own == on_originals), abs=2e-3)
        assert row["psnr"] is None
    assert found(clip="val", codec="original", name="net")["quality"]["miou"] == pytest.approx(
        miou(on_originals, truth), abs=2e-3
    )
    kept = [(20, 0.99), (40, 0.5)]
    first, second = (
        found(clip="cars", codec="H.264", name="net", key_interval=1, setting=f"CRF {crf}") for crf, _ in kept
    )
    assert first["agreement"] > second["agreement"]
    assert first["psnr"] > second["psnr"]
    assert first["agreement"] == first["agreement_rgb"]

    printed = capsys.readouterr().out
    assert "val: 4 frames of 96x64, 15 a second" in printed
    assert "every 3" in printed
    assert "favours the codecs of its kind" in printed
    with Image.open(plot) as image:
        assert image.width > 1200  # a panel a clip
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("bench.jsonl", "rate_distortion.jsonl", "entropy.jsonl"):
        (folder / name).write_text((ROOT / "benchmarks" / "results" / name).read_text())
    record.rename(folder / record.name)
    assert results_page.main([str(folder), str(tmp_path / "results.md")]) == 0
    page = (tmp_path / "results.md").read_text()
    assert f"({video_report.PLOT})" in page
    assert (tmp_path / video_report.PLOT).is_file()
    for part in video_report.page_parts(rows):
        assert part in page


def miou(labels: NDArray[Any], truth: NDArray[Any]) -> float:
    known = truth < 11
    ious = []
    for k in range(11):
        own, other = (labels == k) & known, (truth == k) & known
        if (own | other).any():
            ious.append((own & other).sum() / (own | other).sum())
    return float(np.mean(ious))


def test_script_s_errors(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "cars.mp4", moving(2))
    clip = f"a={tmp_path / 'cars.mp4'}"
    nets = ["--codec", f"ours={runs / 'codec'}", "--rgb", f"net={runs / 'rgb'}"]
    for words, code, said in (
        ([*nets], 2, "no clip to measure on"),
        (["--clip", str(tmp_path), *nets], 2, "expected NAME=PATH"),
        (["--clip", f"a={tmp_path / 'no'}", *nets], 3, "no such file or folder"),
        (["--clip", clip, "--clip", clip, *nets], 2, "2 clips are named 'a'"),
        (["--clip", clip, *nets, "--rgb", f"net={runs / 'other'}"], 2, "2 networks are named 'net'"),
        (["--clip", clip, *nets, "--latent", f"x={runs / 'rgb'}"], 4, "expected latent_segmenter"),
        (["--clip", clip, *nets, "--layout", "voc"], 2, "11 classes, the data 21"),
        (["--clip", clip, "--codec", "x=compact-codec", "--rgb", f"net={runs / 'rgb'}"], 2, "expected a run"),
        (["--clip", clip, *nets, "--steps", "0"], 2, "--steps 0.0"),
        (["--clip", clip, *nets, "--crf", "52"], 2, "expected 0 to 51"),
        (["--clip", clip, *nets, "--key-intervals", "-1"], 2, "expected 0 or more"),
        (["--clip", clip, *nets, "--frame-rate", "0"], 2, "--frame-rate 0, expected at least 1"),
        (["--clip", clip, *nets, "--plot", str(tmp_path / "no" / "a.png")], 2, "no such folder"),
    ):
        assert video_rates.main(words) == code, words
        assert said in capsys.readouterr().err


def test_a_curve_that_begins_above_a_level_has_no_rate_for_it() -> None:
    curve = [(0.1, 0.5), (0.2, 0.3), (0.4, 0.6)]
    assert video_report.bpp_at(curve, 0.45) is None
    assert video_report.bpp_at(curve, 0.55) == pytest.approx(0.1 * 2 ** (1 + 0.25 / 0.3))
    assert video_report.bpp_at(curve, 0.7) is None
