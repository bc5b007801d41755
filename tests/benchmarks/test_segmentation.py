"""The whole measurement on the tiny bundle, whose networks NumPy can repeat: every label and every byte by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _tiny_bundle as tiny
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentseg.benchmarks import jpeg, plots, report, segmentation, sender
from latentseg.benchmarks.arms import ARM_NAMES, H264, Compressed, JpegQ95, LearnedDecode
from latentseg.benchmarks.clips import Clip, load_clip
from latentseg.benchmarks.measure import StageClock
from latentseg.bitstream import Reader, Writer
from latentseg.engine.placement import Placement
from latentseg.errors import InputError, UsageError

if TYPE_CHECKING:
    from latentseg.engine.bundle import Bundle

Frames = NDArray[np.uint8]


def make_frames(count: int, height: int, width: int, seed: int = 0) -> Frames:
    """Blocks of colour with a little noise, so that JPEG and H.264 change some labels but not all."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, -(-height // 8), -(-width // 8), 3))
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return np.clip(smooth + rng.integers(-20, 21, size=smooth.shape), 0, 255).astype(np.uint8)


def rgb_labels(frames: Frames) -> Frames:
    return frames.argmax(axis=3).astype(np.uint8)


def decompressed(frames: Frames) -> Frames:
    means = tiny.symbols(frames).transpose(0, 2, 3, 1)
    return means.repeat(8, axis=1).repeat(8, axis=2)[:, : frames.shape[1], : frames.shape[2]]


@pytest.fixture(scope="module")
def clip() -> Clip:
    frames = make_frames(5, 24, 32)
    truth = rgb_labels(frames)
    truth[:, :3] = 11  # not scored
    return Clip("tiny", list(frames), labels=list(truth), labels_name="truth")


@pytest.fixture(scope="module")
def result(clip: Clip, tiny_bundle: Bundle) -> dict[str, Any]:
    return segmentation.run(clip, tiny_bundle, batches=(1, 2, 8), rounds=3, warmup=1, placement=Placement(threads=1))


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [arm for arm in result["arms"] if arm["name"] == name]
    assert isinstance(found, dict)
    return found


def test_result_is_complete_and_plain(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1
    assert [arm["name"] for arm in result["arms"]] == ["compressed", "learned-decode", "jpeg", "jpeg-q95"]
    assert result["left_out"] == [{"name": "h264", "reason": "not applicable: the source is not a video file"}]
    assert result["notes"] == [
        "jpeg: quality 1, 4:2:0, optimised Huffman tables, the nearest that JPEG has to the codec's size",
        "jpeg-q95: quality 95, 4:2:0, optimised Huffman tables",
        "batch 8 left out: 5 frames",
    ]
    assert result["configuration"]["batches"] == [1, 2]
    assert {entry["name"] for entry in result["sender"]} == {"codec", "jpeg", "jpeg-q95"}
    assert set(result["sender"][0]["cost"]) == {"compress_ms", "entropy_encode_ms"}
    for arm in result["arms"]:
        assert [timing["batch"] for timing in arm["timings"]] == [1, 2]
        for timing, count in zip(arm["timings"], (5, 4), strict=True):
            assert timing["frames_per_round"] == count
            assert timing["n"] == 3 * count // timing["batch"]
            assert sum(timing["stage_share"].values()) == pytest.approx(1.0)
            assert len(timing["time_over_compressed"]["per_round"]) == 3
            assert timing["agreement_with_batch_1"] == 1.0
            assert timing["latency_ms"]["p50"] <= timing["latency_ms"]["p99"] <= timing["latency_ms"]["max"]
    for timing in row(result, "compressed")["timings"]:
        assert timing["time_over_compressed"]["per_round"] == [1.0, 1.0, 1.0]
        assert timing["stage_share"]["decode"] == 0.0
    assert row(result, "jpeg")["timings"][0]["stage_share"]["entropy_decode"] == 0.0


def test_labels_scores_and_agreement_by_hand(result: dict[str, Any], clip: Clip) -> None:
    frames = np.stack(clip.frames)
    jpeg95 = np.stack([jpeg.decode(jpeg.encode(frame, 95)) for frame in frames])
    expected = {
        "compressed": tiny.labels(frames),
        "learned-decode": rgb_labels(decompressed(frames)),
        "jpeg-q95": rgb_labels(jpeg95),
    }
    assert clip.labels is not None
    truth = np.stack(clip.labels)
    known = truth < 3
    for name, labels in expected.items():
        arm = row(result, name)
        assert arm["agreement"] == pytest.approx(np.mean(labels == rgb_labels(frames)))
        iou, dice = [], []
        for k in range(3):
            both = np.sum((labels == k) & (truth == k) & known)
            either = np.sum(((labels == k) | (truth == k)) & known)
            iou.append(both / either)
            dice.append(2 * both / (both + either))
        assert list(arm["quality"]["iou"]) == ["red", "green", "blue"]
        assert list(arm["quality"]["iou"].values()) == pytest.approx(iou)
        assert arm["quality"]["miou"] == pytest.approx(np.mean(iou))
        assert arm["quality"]["mean_dice"] == pytest.approx(np.mean(dice))
        assert arm["quality"]["pixel_accuracy"] == pytest.approx(np.mean(labels[known] == truth[known]))
    ceiling = result["ceiling"]
    assert ceiling["agreement"] == ceiling["quality"]["miou"] == 1.0
    assert ceiling["bpp"] == 24.0


def test_rate_is_the_stream_s_own_bytes(result: dict[str, Any], clip: Clip, tiny_bundle: Bundle) -> None:
    from latentseg.engine.roles import Compressor

    header = tiny_bundle.header(24, 32)
    stream = io.BytesIO()
    writer = Writer(stream, header)
    start = len(stream.getvalue())
    with Compressor(tiny_bundle, Placement(threads=1)) as compressor:
        for frame in clip.frames:
            writer.write(compressor.encode(frame[None], header)[0])
        sent = sender.send_codec(compressor, header, clip.frames)
    total = len(stream.getvalue()) - start
    arm = row(result, "compressed")
    assert arm["bytes_per_frame"] == pytest.approx(total / 5)
    assert arm["bpp"] == pytest.approx(8 * total / 5 / (24 * 32))
    assert arm["compression_factor"] == pytest.approx(24 / arm["bpp"])
    assert arm["detail"]["stream_header_bytes"] == start
    assert row(result, "learned-decode")["bytes_per_frame"] == arm["bytes_per_frame"]
    assert sent.payloads == [frame.payload for frame in Reader(io.BytesIO(stream.getvalue()))]


def test_cost_comes_from_the_manifest_at_padded_size(clip: Clip, tiny_bundle: Bundle) -> None:
    odd = Clip("odd", list(make_frames(2, 17, 30)))
    found = segmentation.run(
        odd, tiny_bundle, arms=["compressed", "learned-decode"], batches=[1], rounds=1, placement=Placement(threads=1)
    )
    # The tiny bundle says 1 MAC a pixel for each network; 17x30 is computed as 24x32.
    assert [arm["macs_per_frame"] for arm in found["arms"]] == [24 * 32, 2 * 24 * 32]
    assert found["arms"][0]["quality"] is None
    assert found["arms"][0]["agreement"] == pytest.approx(
        np.mean(tiny.labels(np.stack(odd.frames)) == rgb_labels(np.stack(odd.frames)))
    )


def test_jpeg_of_equal_size_says_what_it_is(result: dict[str, Any], clip: Clip) -> None:
    detail = row(result, "jpeg")["detail"]
    assert detail["target_bytes"] == pytest.approx(row(result, "compressed")["bytes_per_frame"])
    assert [entry["huffman"] for entry in detail["tried"]] == ["optimised", "standard"]
    assert detail["subsampling"] == "4:2:0"
    # So small a frame cannot be a JPEG of the codec's size: that is said, and the smallest is taken.
    assert detail["reached"] is False
    assert detail["quality"] == 1
    roomy = sender.send_jpeg_near(clip.frames, 900.0)
    assert roomy.detail["reached"] is True
    assert abs(np.mean(roomy.sizes) - 900) < 30


def test_arms_give_the_labels_of_any_run_of_frames(clip: Clip, tiny_bundle: Bundle) -> None:
    frames = np.stack(clip.frames)
    with segmentation.Setup(tiny_bundle, clip, placement=Placement(threads=2)) as setup:
        by_name = {arm.name: arm for arm in setup.arms}
        for first, last in ((0, 5), (1, 2), (3, 5)):
            clock = StageClock()
            part = frames[first:last]
            assert np.array_equal(by_name[Compressed.name].run(first, last, clock), tiny.labels(part))
            learned = by_name[LearnedDecode.name].run(first, last, clock)
            assert np.array_equal(learned, rgb_labels(decompressed(part)))
            pictures = np.stack([jpeg.decode(jpeg.encode(frame, 95)) for frame in part])
            assert np.array_equal(by_name[JpegQ95.name].run(first, last, clock), rgb_labels(pictures))
            assert all(seconds > 0 for seconds in clock.seconds.values())


def test_bundle_without_optional_networks(clip: Clip, tmp_path: Path) -> None:
    bundle = tiny.write_tiny_bundle(tmp_path / "small", ("compressor", "segmenter"))
    found = segmentation.run(clip, bundle, batches=[2], rounds=1, warmup=0, placement=Placement(threads=1))
    assert [arm["name"] for arm in found["arms"]] == ["compressed"]
    assert {entry["name"]: entry["reason"] for entry in found["left_out"]} == {
        "learned-decode": "the bundle has no decompressor and no rgb_segmenter",
        "jpeg": "the bundle has no rgb_segmenter",
        "jpeg-q95": "the bundle has no rgb_segmenter",
        "h264": "the bundle has no rgb_segmenter",
    }
    assert found["ceiling"] is None
    assert found["arms"][0]["agreement"] is None
    assert found["arms"][0]["quality"] is not None
    assert "compressed" in report.text(found)


def test_usage_errors(clip: Clip, tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown arm 'jepg'") as caught:
        segmentation.run(clip, tiny_bundle, arms=["jepg"])
    assert all(name in caught.value.hint for name in ARM_NAMES)
    with pytest.raises(UsageError, match="'h264' cannot run here: not applicable"):
        segmentation.run(clip, tiny_bundle, arms=["compressed", "h264"])
    with pytest.raises(UsageError, match="nothing to measure"):
        segmentation.run(clip, tiny_bundle, batches=[6])


def test_plot_is_a_picture(result: dict[str, Any], tmp_path: Path) -> None:
    plots.plot_bench(result, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.fixture(scope="module")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    av = pytest.importorskip("av")

    def make(codec: str, count: int = 9, **options: str) -> Path:
        path = tmp_path_factory.mktemp("video") / f"{codec}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for rgb in make_frames(1, 48, 64).repeat(count, axis=0) // np.arange(1, count + 1)[:, None, None, None]:
                picture = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path

    return make


@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_h264_arm_decodes_the_clip_s_own_packets(
    make_video: Callable[..., Path], tiny_bundle: Bundle, b_frames: str
) -> None:
    clip = load_clip(make_video("libx264", bf=b_frames, crf="30"), frames=7)
    assert clip.frame_rate == (25, 1)
    found = segmentation.run(
        clip, tiny_bundle, arms=["compressed", "h264"], batches=(1, 3), rounds=2, placement=Placement(threads=2)
    )
    arm = row(found, "h264")
    assert arm["detail"]["codec"] == "h264"
    # The source's frames come from the same packets, so that the RGB network says the same of both.
    assert arm["agreement"] == pytest.approx(1.0, abs=0.01)
    assert [timing["agreement_with_batch_1"] for timing in arm["timings"]] == [1.0, 1.0]
    assert arm["timings"][1]["frames_per_round"] == 6
    packets = sender.read_packets(Path(clip.video or ""), 7)
    assert arm["bytes_per_frame"] == pytest.approx(np.mean([len(data) for data in packets.data]))
    assert 7 <= len(packets.data) <= 9


def test_h264_arm_keeps_order(make_video: Callable[..., Path], tiny_bundle: Bundle) -> None:
    clip = load_clip(make_video("libx264", bf="2"))
    with segmentation.Setup(tiny_bundle, clip, ["h264"], placement=Placement(threads=1)) as setup:
        (arm,) = setup.arms
        assert isinstance(arm, H264)
        arm.start(1)
        arm.run(0, 2, StageClock())
        with pytest.raises(ValueError, match="next is 2"):
            arm.run(5, 6, StageClock())
        arm.run(2, 9, StageClock())
        with pytest.raises(ValueError, match="hold no frame"):
            arm.run(9, 10, StageClock())


def test_other_codecs_are_left_out_by_name(make_video: Callable[..., Path], tiny_bundle: Bundle) -> None:
    clip = load_clip(make_video("mpeg4"))
    with segmentation.Setup(tiny_bundle, clip, ["h264"], placement=Placement(threads=1)) as setup:
        assert setup.left_out == [{"name": "h264", "reason": "not applicable: the video's packets are mpeg4"}]


def test_packets_of_no_video(tmp_path: Path) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot read the video packets"):
        sender.read_packets(path, 1)
