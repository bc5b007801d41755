"""The measurement of the tiny classifiers, which NumPy repeats by hand; their MACs; and data that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import numpy as np
import onnx
import pytest
from _labelled import DIGITS, camvid_bundle, digit_bundle, write_camvid, write_idx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from latentseg.benchmarks import jpeg, report, segmentation
from latentseg.benchmarks.classification import ClassScores, load_images, spread, trained_size
from latentseg.benchmarks.clips import Clip
from latentseg.benchmarks.costs import frame_macs, onnx_macs
from latentseg.cli import main
from latentseg.engine.bundle import Bundle, load_bundle
from latentseg.engine.placement import Placement
from latentseg.errors import ArtifactError, UsageError

COUNT = 9


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return digit_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    write_idx(root, COUNT)
    return root


@pytest.fixture(scope="module")
def result(bundle: Bundle, data: Path) -> dict[str, Any]:
    clip = load_images(data, "idx", None, 24, 100)
    return segmentation.run(clip, bundle, batches=(1, 4), rounds=2, warmup=1, placement=Placement(threads=1))


def test_answers_scores_and_agreement_by_hand(result: dict[str, Any], tmp_path: Path) -> None:
    frames, truth = write_idx(tmp_path / "again", COUNT)
    stacked = np.stack(frames)
    decoded = tiny.symbols(stacked).astype(np.uint8).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)
    pictures = np.stack([jpeg.decode(jpeg.encode(frame, 95)) for frame in frames])
    means = {
        "compressed": tiny.symbols(stacked).astype(np.float64).mean((2, 3)),
        "learned-decode": tiny.frame_means(decoded),
        "jpeg-q95": tiny.frame_means(pictures),
    }
    reference = tiny.probabilities(tiny.frame_means(stacked)).argmax(1)
    rows = {row["name"]: row for row in result["arms"]}
    assert list(rows) == ["compressed", "learned-decode", "jpeg", "jpeg-q95"]
    for name, values in means.items():
        order = np.argsort(-tiny.probabilities(values), axis=1)
        assert rows[name]["agreement"] == pytest.approx(np.mean(order[:, 0] == reference))
        assert rows[name]["quality"] == {
            "top1": pytest.approx(np.mean(order[:, 0] == truth)),
            "top5": pytest.approx(np.mean([truth[i] in order[i, :5] for i in range(COUNT)])),
            "images": COUNT,
        }
        assert [timing["agreement_with_batch_1"] for timing in rows[name]["timings"]] == [1.0, 1.0]
    assert result["ceiling"]["agreement"] == 1.0
    assert result["ceiling"]["description"] == "RGB classifier on the original frames, not timed"
    assert rows["learned-decode"]["description"] == "bytes, entropy decode, decompressor, RGB classifier"
    assert 0 < rows["compressed"]["quality"]["top1"] < rows["compressed"]["quality"]["top5"] < 1


def test_rows_and_report_are_of_classifiers(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    setup = result["configuration"]
    assert (setup["task"], setup["source"], setup["labels"]) == ("classification", "digits-test", "test")
    for arm in result["arms"]:
        for timing in arm["timings"]:
            assert list(timing["stage_share"]) == ["entropy_decode", "decode", "classify", "rest"]
            assert timing["stage_share"]["classify"] > 0
            assert sum(timing["stage_share"].values()) == pytest.approx(1.0)
    text = report.text(result)
    assert "from bytes in memory to class probabilities" in text
    for words in ("top-1", "top-5", "classify"):
        assert words in text
    for words in ("mIoU", "IoU", "segment", "uint8 labels"):
        assert words not in text


def test_macs_of_a_classifier_are_those_of_its_input(result: dict[str, Any], bundle: Bundle) -> None:
    # The tiny classifiers multiply 3 means by 7 columns, at any size; the manifest says 1 MAC a pixel for the others.
    macs = {row["name"]: row["macs_per_frame"] for row in result["arms"]}
    assert macs == {"compressed": 21, "learned-decode": 24 * 24 + 21, "jpeg": 21, "jpeg-q95": 21}
    assert frame_macs(bundle, ("decompressor", "rgb_classifier"), (17, 30)) == 24 * 32 + 21
    assert frame_macs(bundle, ("compressor",), (1, 1)) == 64


def test_onnx_macs_by_hand_at_an_odd_size(tmp_path: Path) -> None:
    """Two strided convolutions, of which one is in 2 groups, one transposed, a mean and a linear layer."""
    shapes = {"a": (8, 3, 3, 3), "b": (6, 4, 5, 5), "c": (6, 4, 2, 2), "d": (4, 10), "bias": (10,)}
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y1"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["y1"], ["y2"]),
        helper.make_node("Conv", ["y2", "b"], ["y3"], strides=[2, 2], pads=[2, 2, 2, 2], group=2, kernel_shape=[5, 5]),
        helper.make_node("ConvTranspose", ["y3", "c"], ["y4"], strides=[2, 2], kernel_shape=[2, 2]),
        helper.make_node("GlobalAveragePool", ["y4"], ["y5"]),
        helper.make_node("Flatten", ["y5"], ["y6"]),
        helper.make_node("Gemm", ["y6", "d", "bias"], ["y7"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    ends.append(helper.make_tensor_value_info("y7", TensorProto.FLOAT, ["n", 10]))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    # 21x10 -> 11x5 -> 6x3 -> 12x6; a transposed convolution multiplies each input value by each of its weights.
    by_hand = 11 * 5 * 8 * 27 + 6 * 3 * 6 * 100 + 6 * 3 * 6 * 16 + 40
    assert onnx_macs(tmp_path / "m.onnx", (1, 3, 21, 10)) == by_hand
    assert onnx_macs(tmp_path / "m.onnx", (1, 3, 42, 20)) != by_hand
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.graph.node[1].op_type = "Unheard"
    model.graph.input[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension() for _ in range(4)])
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match="no fixed shape at Conv"):
        onnx_macs(tmp_path / "odd.onnx", (1, 3, 21, 10))


def test_ties_go_to_the_lower_class() -> None:
    scores = ClassScores([1, 5, 6], [np.eye(7, dtype=np.float32)[i] for i in (0, 5, 1)])
    for index in range(3):
        scores.add(index, np.full(7, 1 / 7, np.float32))
    assert scores.quality() == {"top1": 0.0, "top5": pytest.approx(1 / 3), "images": 3}
    assert scores.agreement() == pytest.approx(1 / 3)
    assert ClassScores(None, None).quality() is None


def test_images_are_taken_from_all_over_the_set(data: Path) -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 9) == spread(3, None) == [0, 1, 2]
    clip = load_images(data, "idx", "test", 16, 4)
    assert clip.kinds.tolist() == [0, 2, 4, 6]  # places 0, 2, 4 and 6 of 9
    assert {frame.shape for frame in clip.frames} == {(16, 16, 3)}
    assert clip.notes == ["4 of 9 images were used, evenly spaced (--frames)"]
    assert clip.names == tuple(DIGITS)


def test_a_clip_without_classes_has_agreement_alone(bundle: Bundle, data: Path) -> None:
    frames = load_images(data, "idx", None, 24, 3).frames
    found = segmentation.run(Clip("frames", frames), bundle, batches=[1], rounds=1, placement=Placement(threads=1))
    assert all(row["quality"] is None and row["agreement"] is not None for row in found["arms"])
    assert "top-1" not in report.text(found)


def test_truth_of_another_kind_is_refused(bundle: Bundle, tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    images = load_images(data, "idx", None, 24, 3)
    with pytest.raises(UsageError, match="'tiny' has no classifier, only compressor"):
        segmentation.run(images, tiny_bundle)
    with pytest.raises(UsageError, match="has no classifier"):
        trained_size(tiny_bundle)
    pixels = Clip("x", images.frames, labels=[np.zeros((24, 24), np.uint8)] * 3, labels_name="x")
    with pytest.raises(UsageError, match="classifies whole frames, the labels of x are of pixels"):
        segmentation.run(pixels, bundle)
    kinds = load_bundle(tiny.write_tiny_bundle(tmp_path / "kinds", tiny.CLASSIFYING).path)
    with pytest.raises(UsageError, match="class lists differ: class 0 is '0' in the data, 'dusk' of bundle 'tiny'"):
        segmentation.run(images, kinds)
    with pytest.raises(UsageError, match="notes no size of its training's images"):
        trained_size(kinds)


def test_without_onnx_the_macs_are_left_out(bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    onnx_macs.cache_clear()
    clip = load_images(data, "idx", None, 24, 2)
    found = segmentation.run(
        clip, bundle, arms=["compressed"], batches=[1], rounds=1, warmup=0, placement=Placement(threads=1)
    )
    assert found["arms"][0]["macs_per_frame"] is None
    assert "MACs left out: to count a classifier's needs the package onnx" in report.text(found)


def test_the_verb(bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["bench", "--bundle", str(bundle.path), "--threads", "1", "--rounds", "1", "--batch", "1"]
    options = ["--data", str(data), "--layout", "idx"]
    plot, rows = tmp_path / "plot.png", tmp_path / "rows.jsonl"
    assert main([*common, *options, "--plot", str(plot), "--record", str(rows), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configuration"]["frame_size"] == [24, 24]  # that of the training, as the manifest notes it
    assert found["arms"][0]["quality"]["images"] == COUNT
    assert json.loads(rows.read_text()) == found
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert main([*common, *options, "--size", "17", "--split", "test", "--frames", "2"]) == 0
    assert "17x17" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "neither SOURCE and --data"),
        (["clip.mp4", "--data", "DATA"], 2, "both SOURCE and --data"),
        (["clip.mp4", "--size", "64"], 2, "--size belongs to --data"),
        (["--data", "DATA", "--labels", "x"], 2, "--labels belongs to SOURCE"),
        (["--data", "DATA", "--layout", "camvid"], 2, "no layout of classified images"),
        (["--data", "DATA", "--layout", "idx", "--split", "val"], 3, "no split 'val' in layout idx"),
        (["--data", "nowhere", "--layout", "idx"], 3, "no split 'test' in nowhere"),
    ],
)
def test_mistakes(
    words: list[str], code: int, says: str, bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data) if word == "DATA" else word for word in words]
    assert main(["bench", "--bundle", str(bundle.path), *words]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_labelled_frames_stay_for_segmenters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path / "data", [(16, 24)] * 2)
    segmenters, pairs = camvid_bundle(tmp_path), str(tmp_path / "data" / "val.txt")
    common = ["--threads", "1", "--rounds", "1", "--batch", "1"]
    assert main(["bench", pairs, "--bundle", str(segmenters.path), *common]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main(["bench", pairs, "--bundle", str(digit_bundle(tmp_path).path), *common]) == 2
    assert "are of pixels" in capsys.readouterr().err
