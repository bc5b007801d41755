"""The frontier: labels, rates, distortions and costs by hand; what is refused; what is timed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import _tiny_torch as tiny_torch
import numpy as np
import pytest
import torch
from _labelled import picture, with_classes, write_camvid
from _tiny_torch import write_run
from PIL import Image

from latentseg.benchmarks import frontier
from latentseg.benchmarks.frontier_arms import describe, labeller, parse_arm
from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.engine.bundle import ClassInfo, load_bundle
from latentseg.errors import ArtifactError, UsageError
from latentseg.kernels import entropy
from latentseg.models import registry
from latentseg.training import metrics
from latentseg.training.checkpoint import Weights
from latentseg.training.data import camvid_classes
from latentseg.training.evaluate import predict
from latentseg.training.received import Encoder

SIZES = [(24, 32), (17, 30), (24, 32)]


@pytest.fixture(autouse=True)
def _networks() -> Iterator[None]:
    with tiny_torch.networks():
        yield


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    """Content ids of the runs in tmp_path/runs, and the labelled frames in tmp_path/streets."""
    folder = tmp_path / "runs"
    codec = write_run(folder / "codec", "tiny-codec")
    return {
        "codec": codec,
        "latent": write_run(folder / "latent", "tiny-latent", codec=codec),
        "latent-1": write_run(folder / "latent-1", "tiny-latent", 1, codec=codec),
        "rgb": write_run(folder / "rgb", "tiny-rgb"),
    }


def measured(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """The rows that a call of the command records."""
    record = tmp_path / "rows.jsonl"
    common = ["--data", str(tmp_path / "streets"), "--threads", "1", "--record", str(record)]
    assert frontier.main([*common, *words]) == 0
    return [json.loads(line) for line in record.read_text().splitlines()]


def arms(tmp_path: Path, *specs: str) -> list[str]:
    """`--arm`s whose runs lie in tmp_path/runs."""
    words = []
    for spec in specs:
        head, _, parts = spec.partition("=")
        words += ["--arm", f"{head}={','.join(str(tmp_path / 'runs' / part) for part in parts.split(','))}"]
    return words


def coded_bytes(frames: list[np.ndarray], step: float) -> int:
    """Bytes of the streams of frames, one a size: payloads of symbols made by hand, framing, 200 of each header."""
    total = 0
    for frame in frames:
        q = tiny.symbols(frame[None], step)[0]
        scaling = Scaling("fixed", 0.0, step * 255.0)
        header = StreamHeader(bytes(32), q.shape, 8, scaling, frame.shape[:2], tile=(4, 4))  # type: ignore[arg-type]
        total += Writer(io.BytesIO(), header).write(entropy.encode_symbols(q, header))
    return total + 200 * len({frame.shape for frame in frames})


def decoded(frame: np.ndarray, step: float) -> np.ndarray:
    small = (tiny.symbols(frame[None], step)[0].astype(np.float64) * step).clip(0, 255).astype(np.uint8)
    return small.transpose(1, 2, 0).repeat(8, 0).repeat(8, 1)[: frame.shape[0], : frame.shape[1]]


def jpeg(frame: np.ndarray, quality: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(frame).save(target, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return target.getvalue()


def miou(labels: list[np.ndarray], answers: list[np.ndarray]) -> float:
    truth, found = (np.concatenate([part.ravel() for part in parts]) for parts in (labels, answers))
    found, truth = found[truth < 11], truth[truth < 11]
    both = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in range(3)]
    return float(np.mean(both))


def test_every_way_by_hand(tmp_path: Path, runs: dict[str, str]) -> None:
    frames, labels = write_camvid(tmp_path / "streets", SIZES)
    pixels = sum(frame[..., 0].size for frame in frames)
    specs = ["latent:a=latent,codec", "decoded:a=rgb,codec", "codec:a=codec", "original:a=rgb", "jpeg:a=rgb"]
    rows = measured(tmp_path, "--steps", "1", "64", "--qualities", "5", "80", *arms(tmp_path, *specs))
    found = {(row["way"], row["level"]): row for row in rows}
    assert set(found) == {(way, step) for way in ("latent", "decoded", "codec") for step in (1, 64)} | {
        ("original", None), ("jpeg", 5), ("jpeg", 80),
    }  # fmt: skip
    for step in (1, 64):
        pictures = [decoded(frame, step) for frame in frames]
        count = coded_bytes(frames, step)
        for way in ("latent", "decoded", "codec"):
            assert found[way, step]["bpp"] == pytest.approx(8 * count / pixels)
            assert found[way, step]["compression_factor"] == pytest.approx(3 * pixels / count)
        by_hand = [tiny.labels(frame[None], step)[0] for frame in frames]
        assert found["latent", step]["quality"]["miou"] == pytest.approx(miou(labels, by_hand))
        by_hand = [frame.argmax(2) for frame in pictures]
        assert found["decoded", step]["quality"]["miou"] == pytest.approx(miou(labels, by_hand))
        for way in ("decoded", "codec"):
            psnr = np.mean([metrics.psnr(a, b) for a, b in zip(pictures, frames, strict=True)])
            assert found[way, step]["psnr"] == pytest.approx(psnr)
        assert (found["latent", step]["psnr"], found["codec", step]["quality"]) == (None, None)
    assert found["latent", 64]["bpp"] < found["latent", 1]["bpp"]
    assert found["latent", 64]["quality"]["miou"] < found["latent", 1]["quality"]["miou"]
    assert (found["original", None]["quality"]["miou"], found["original", None]["bpp"]) == (1.0, 24.0)
    assert found["original", None]["psnr"] is None
    for quality in (5, 80):
        files = [jpeg(frame, quality) for frame in frames]
        row = found["jpeg", quality]
        assert row["bpp"] == pytest.approx(8 * sum(map(len, files)) / pixels)
        pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
        assert row["quality"]["miou"] == pytest.approx(miou(labels, [frame.argmax(2) for frame in pictures]))
        ssim = np.mean([metrics.ssim(a, b) for a, b in zip(pictures, frames, strict=True)])
        assert row["ssim"] == pytest.approx(ssim)
    # 3 multiplications a value: 24x32 pixels, or 3x4 positions of a latent; 17x30 is computed as 24x32.
    pixel, latent = 3 * 24 * 32, 3 * 3 * 4
    assert found["latent", 1]["macs"] == {"encoder": latent, "segmenter": latent}
    assert found["decoded", 1]["macs"] == {"encoder": latent, "decoder": latent, "segmenter": pixel}
    assert found["codec", 1]["macs"] == {"encoder": latent, "decoder": latent}
    assert found["jpeg", 5]["macs"] == {"segmenter": pixel}
    assert found["decoded", 1]["parameters"] == {"encoder": 3, "decoder": 3, "segmenter": 3 + 1}
    row = found["latent", 1]
    assert (row["images"], row["frame_size"], row["data"]) == (3, [24, 32], "streets-val")
    described = {key: row["network"][key] for key in ("name", "id", "steps", "seconds", "seed")}
    assert described == {"name": "tiny-latent", "id": runs["latent"], "steps": 10, "seconds": 1.5, "seed": 0}
    assert row["codec"]["id"] == runs["codec"]
    assert str(tmp_path) not in json.dumps(rows)


def test_the_paper_coder_is_counted_beside(tmp_path: Path, runs: dict[str, str]) -> None:
    frames, _ = write_camvid(tmp_path / "streets", SIZES[:1])
    q = tiny.symbols(frames[0][None])[0]
    header = StreamHeader(bytes(32), q.shape, 8, Scaling("fixed", 0, 255), (24, 32), coder="huffman-frame")
    size = Writer(io.BytesIO(), header).write(entropy.encode_symbols(q, header)) + 200
    (row,) = measured(tmp_path, "--steps", "1", *arms(tmp_path, "codec:a=codec"))
    assert row["bpp_paper_coder"] == pytest.approx(8 * size / (24 * 32))
    assert row["coder"] == "context"


def test_seeds_share_what_is_sent(tmp_path: Path, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is coded once a step, for the latents of two seeds and for the decoded way."""
    write_camvid(tmp_path / "streets", SIZES[:2])
    seen: list[float] = []
    encode = frontier.sources.__globals__["Learned"].encode

    def counted(self: Any, frame: Any) -> Any:
        seen.append(self.level)
        return encode(self, frame)

    monkeypatch.setattr(frontier.sources.__globals__["Learned"], "encode", counted)
    rows = measured(
        tmp_path, "--steps", "1", "2",
        *arms(tmp_path, "latent:a=latent,codec", "latent:a=latent-1,codec", "decoded:a=rgb,codec"),
    )  # fmt: skip
    assert seen == [1, 1, 2, 2]
    assert [row["network"]["seed"] for row in rows] == [0, 1, 0, 0, 1, 0]


def test_costs_of_what_is_not_trained(tmp_path: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path / "streets", SIZES[:1])
    codec = str(tmp_path / "runs" / "codec")
    rows = measured(tmp_path, "--arm", f"latent:a=tiny-latent,{codec}", "--arm", "original:a=tiny-rgb")
    assert [row["network"]["id"] for row in rows] == [None, None]
    assert [row["macs"]["segmenter"] for row in rows] == [3 * 3 * 4, 3 * 24 * 32]
    assert all(row["quality"] is row["bpp"] is None and row["images"] == 0 for row in rows)
    assert "original a: tiny-rgb is not trained: costs alone" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(37, 50), (48, 64)])
def test_labels_are_those_of_eval_segmenter(size: tuple[int, int]) -> None:
    frame = picture(*size, seed=3)
    torch.manual_seed(1)
    for name, options in (("compact-rgb", {}), ("compact-latent", {"channels": 3})):
        network = registry.create(name, classes=5, width=8, dilations=(1, 2), **options).eval()
        codec = None if name == "compact-rgb" else registry.create("tiny-codec")
        expected = predict(network, Encoder(codec), frame)
        received = tiny.symbols(frame[None])[0].astype(np.float32) if codec else frame
        found = labeller(network, codec is None)(received, size)
        assert found.shape == size
        assert np.mean(found == expected) > 0.999  # the graph divides by 255 in another way


def test_what_a_network_learned_from() -> None:
    def described(network: str, **settings: Any) -> dict[str, Any]:
        return describe(Weights(network, {}, {}, {"settings": settings, "steps": 5}))

    def learned(network: str, **settings: Any) -> tuple[Any, ...]:
        found = described(network, **settings)["input"]
        return found["kind"], found["codec"], found["levels"]

    assert learned("tiny-rgb", codec="") == ("originals", None, None)
    assert learned("tiny-rgb", segmenter={"jpeg_quality": [4, 50]}) == ("jpeg", None, [4, 50])
    assert learned("tiny-rgb", decoded_by="ab") == ("decoded", "ab", [1.0, 1.0])
    ranged = {"step_range": [0.4, 2.5]}
    assert learned("tiny-rgb", decoded_by="ab", segmenter=ranged) == ("decoded", "ab", [0.4, 2.5])
    assert learned("tiny-latent", codec="cd", segmenter=ranged) == ("latents", "cd", [0.4, 2.5])
    joint = {"joint": {}, "crops": ranged, "segmenter": {}, "codec": "ef", "init": "1", "segmenter_init": "2"}
    assert learned("tiny-latent", **joint) == ("latents", "ef", [0.4, 2.5])
    assert (described("tiny-latent", **joint)["init"], described("tiny-codec", **joint)["init"]) == ("2", "1")
    averaged = described("tiny-codec", average_of=["x", "y"])
    assert (averaged["average_of"], averaged["seed"], averaged["input"]) == (2, None, None)


def test_times_through_torch_or_a_bundle(
    tmp_path: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_camvid(tmp_path / "streets", SIZES)
    specs = ["latent:a=latent,codec", "latent:a=latent-1,codec", "decoded:a=rgb,codec", "original:a=rgb", "jpeg:a=rgb"]
    specs += ["codec:a=codec"]
    words = ["--timing", "2", "--steps", "4", "0.9", "--qualities", "5", "20", "80", *arms(tmp_path, *specs)]
    plain = {(r["way"], r["network"] and r["network"]["seed"], r["level"]): r for r in measured(tmp_path, *words)}
    timed = {key for key, row in plain.items() if row["timing"]}
    # One level and one seed a series: the step nearest to 1, the quality in the middle.
    assert timed == {("latent", 0, 0.9), ("decoded", 0, 0.9), ("original", 0, None), ("jpeg", 0, 20)}
    stages = {key[0]: plain[key]["timing"]["stage_ms_per_frame"] for key in timed}
    worked = {
        way: {stage for stage, value in found.items() if value and stage != "rest"} for way, found in stages.items()
    }
    assert worked == {
        "latent": {"entropy_decode", "segment"}, "decoded": {"entropy_decode", "decode", "segment"},
        "original": {"segment"}, "jpeg": {"decode", "segment"},
    }  # fmt: skip
    assert {plain[key]["timing"]["backend"] for key in timed} == {"torch"}
    # Frames of one size alone: of the first two, the first.
    assert {plain[key]["timing"]["n"] for key in timed} == {3}

    tiny.write_tiny_bundle(tmp_path / "plain")
    classes = camvid_classes()
    infos = [ClassInfo(name, color) for name, color in zip(classes.names, classes.colors, strict=True)]
    training = {"codec": {"id": runs["codec"]}, "segmenter": {"id": runs["latent"]}, "rgb_segmenter": {"id": "other"}}
    bundle = with_classes(tmp_path / "streets-bundle", load_bundle(tmp_path / "plain"), infos, training)
    (tmp_path / "rows.jsonl").unlink()
    capsys.readouterr()
    rows = measured(tmp_path, *words, "--bundle", str(bundle.path))
    backends = {row["way"]: row["timing"]["backend"] for row in rows if row["timing"]}
    assert backends == {"latent": "onnxruntime", "decoded": "torch", "original": "torch", "jpeg": "torch"}
    assert "jpeg a: in none of the bundles, timed through torch" in capsys.readouterr().err


def test_command_line(tmp_path: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path / "streets", SIZES)
    folder = tmp_path / "runs"
    codec = write_run(folder / "codec-1", "tiny-codec", 1)
    write_run(folder / "latent-2", "tiny-latent", 2, codec=codec)
    write_run(folder / "many", "tiny-rgb", 3, classes=19)
    words = ["--plot", str(tmp_path / "p.png"), "--limit", "2", "--steps", "1", "--qualities", "50"]
    rows = measured(tmp_path, *words, *arms(tmp_path, "latent:ours=latent,codec", "jpeg:rgb=rgb"))
    out = capsys.readouterr().out
    assert out.startswith("streets-val: 2 frames of 32x24\n")
    assert "latent ours" in out
    assert "at the rate of" in out
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert {row["images"] for row in rows} == {2}
    common = ["--data", str(tmp_path / "streets"), "--threads", "1"]
    good = arms(tmp_path, "original:a=rgb")
    for words, code, says in (
        (["--arm", "latent:a"], 2, "--arm latent:a, expected WAY:NAME=RUN[,CODEC]"),
        (["--arm", "latents:a=x,y"], 2, "unknown way 'latents'"),
        (["--arm", "original:a=nowhere"], 2, "'nowhere' is neither a run's folder nor a network's name"),
        (["--arm", "original:a=compact-codec"], 2, "'compact-codec' is a codec, expected a rgb_segmenter"),
        (arms(tmp_path, "latent:a=latent-2,codec"), 2, f"latent-2 learned on codec {codec[:16]}, found"),
        (arms(tmp_path, "original:a=many"), 2, "many has 19 classes, the data 11"),
        (arms(tmp_path, "original:a=latent"), ArtifactError.exit_code, "holds a latent_segmenter"),
        (arms(tmp_path, "original:a=rgb", "original:a=rgb"), 2, "the same networks twice in one series"),
        ([*good, "--arm", "original:a=compact-rgb"], 2, "compact-rgb, expected tiny-rgb as of the first arm"),
        ([*good, "--bundle", "camvid-compact"], 2, "--bundle without --timing"),
        ([*good, "--steps", "1", "-2"], 2, "--steps -2.0, expected finite numbers above 0"),
        ([*good, "--qualities", "0"], 2, "quality 0 of jpeg, expected 1 to 100"),
        ([*good, "--limit", "0"], 2, "--limit 0, expected at least 1"),
        ([*good, "--record", str(tmp_path / "no" / "x")], 2, "no such folder\nhint: mkdir -p "),
        ([*good, "--plot", str(tmp_path)], 2, "is a folder, expected a file"),
        ([*good, "--split", "night"], 3, "no split 'night'"),
    ):
        assert frontier.main([*common, *words]) == code
        seen = capsys.readouterr()
        assert says in seen.err
        assert not seen.out  # before anything is measured


def test_arms_are_read() -> None:
    spec = parse_arm("decoded:RGB, on ours=runs/a=b,runs/codec")
    assert (spec.way, spec.name, spec.run, spec.codec) == ("decoded", "RGB, on ours", "runs/a=b", "runs/codec")
    for text in ("jpeg:a=x,y", "latent:a=x", "codec:a=x,y", "jpeg:=x", "jpeg=x", "latent:a=x,"):
        with pytest.raises(UsageError, match=r"expected WAY:NAME|the way '"):
            parse_arm(text)


def test_paths_of_a_machine_do_not_travel() -> None:
    words = ["--data", "/home/me/streets", "--arm", "latent:my own=/a/b/seg,runs/codec", "--record", "../x/rows.jsonl"]
    assert frontier.portable(words) == (
        "python -m latentseg.benchmarks.frontier --data streets "
        "--arm 'latent:my own=seg,runs/codec' --record rows.jsonl"
    )
