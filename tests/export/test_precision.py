"""fp16 and int8: what the rewritten files hold, against NumPy; and the gate, against models that deserve to fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from _tiny_bundle import write_tiny_bundle
from _tiny_runs import NARROW, frames
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from latentseg.cli import main
from latentseg.engine.bundle import Bundle, ClassInfo, load_bundle, write_bundle
from latentseg.errors import ArtifactError, InputError, UsageError, VerificationError
from latentseg.export.graphs import LabelsGraph
from latentseg.export.onnx import export_role, halve_weights
from latentseg.export.precision import MAX_GATE, gate, graph, half, int8, rewrite, split
from latentseg.export.precision.inputs import model_inputs
from latentseg.models import registry
from latentseg.models.dualgraph import DualGraphHead

SIZE = (41, 59)  # no multiple of the stride
CLASSES = [ClassInfo(f"class{i}", (i, 0, 0)) for i in range(5)]


def network(name: str, options: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = registry.create(name, **options)
    for key, buffer in net.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        if key == "entry.0.running_var" and name == "compact-latent":
            buffer.mul_(4000.0)  # of 8-bit means
    return net.eval()


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return {
        "segmenter": network("compact-latent", {"classes": 5, "channels": 3, **NARROW}, 2),
        "rgb_segmenter": network("compact-rgb", {"classes": 5, **NARROW}, 3),
    }


@pytest.fixture(scope="module")
def bundle(nets: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random segmenters behind the tiny bundle's codec, whose latent is the means of 8x8 blocks."""
    folder = tmp_path_factory.mktemp("precision")
    tiny = write_tiny_bundle(folder / "tiny", ["compressor"])
    models = {"compressor": (tiny.model_path("compressor"), 1.0, 0)}
    for role, net in nets.items():
        module = LabelsGraph(net, rgb=role == "rgb_segmenter").eval()
        made = export_role(role, module, folder / f"{role}.onnx", 3, 8)
        models[role] = (made.path, made.macs_per_pixel, made.parameters)
    return write_bundle(folder / "bundle", "random", tiny.codec, models, CLASSES)


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return load_bundle(Path(shutil.copytree(bundle.path, tmp_path / "copy")))


def real_frames(count: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(f) for f in frames(count, *SIZE)]


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


# --- fp16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["segmenter", "rgb_segmenter"])
def test_half_leaves_no_float32_but_what_it_lists(bundle: Bundle, role: str, tmp_path: Path) -> None:
    made = rewrite(bundle, role, "fp16", tmp_path, real_frames(3))
    model = onnx.load(made.path)
    assert {w.dtype.name for w in weights(model).values()} <= {"float16", "int64"}
    ends = [end.type.tensor_type.elem_type for end in (model.graph.input[0], model.graph.output[0])]
    assert ends == [TensorProto.FLOAT16 if role == "segmenter" else TensorProto.UINT8, TensorProto.UINT8]
    # By hand: the mean over positions of the global branch, and nothing else.
    means = {n.name for n in model.graph.node if n.op_type == "ReduceMean"}
    assert len(means) == 1
    assert set(made.report["float32"]) == half.float_nodes(model) == means
    assert made.report["gate"]["label_agreement"] > 0.99
    assert made.report["gate"]["frames"] == 3
    json.dumps(made.report, allow_nan=False)


def test_half_weights_are_the_rounded_ones(bundle: Bundle) -> None:
    model = graph.load(bundle.model_path("segmenter"))
    made = weights(half.to_half(model))
    for name, values in weights(model).items():
        if values.dtype == np.float32:
            np.testing.assert_array_equal(made[name], values.astype(np.float16), err_msg=name)


def test_a_norm_is_folded_and_halved_storage_widened(
    bundle: Bundle, nets: dict[str, nn.Module], tmp_path: Path
) -> None:
    file = Path(shutil.copy(bundle.model_path("segmenter"), tmp_path / "s.onnx"))
    assert any(n.op_type == "BatchNormalization" for n in onnx.load(file).graph.node)
    wide = weights(graph.load(file))
    norm = nets["segmenter"].entry[0]
    factor = 1 / np.sqrt(norm.running_var.double().numpy() + norm.eps)
    shift = -norm.running_mean.double().numpy() * factor
    (scaled,), (shifted,) = ([v for k, v in wide.items() if k.endswith(e)] for e in ("_factor", "_shift"))
    np.testing.assert_allclose(scaled.ravel(), factor, rtol=1e-6)
    np.testing.assert_allclose(shifted.ravel(), shift, rtol=1e-6)
    # The small net has no weight that is large enough to be stored as float16.
    model = onnx.load(file)
    big = np.random.default_rng(0).normal(size=(64, 64, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(big, "big"))
    model.graph.node.append(helper.make_node("Identity", ["big"], ["copied"]))
    onnx.save(model, file)
    halve_weights(file)
    assert weights(onnx.load(file))["big_fp16"].dtype == np.float16
    again = graph.load(file)
    np.testing.assert_array_equal(weights(again)["big"], big.astype(np.float16).astype(np.float32))
    assert not any(n.op_type in {"BatchNormalization"} for n in again.graph.node)
    assert "big_fp16" not in weights(again)


def run_ort(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_the_twin_rounds_as_float16_arithmetic_does() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n"]) for name in "xy"]
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "x"], ["b"], name="mul"),
        helper.make_node("Sub", ["b", "a"], ["y"], name="sub"),
    ]
    constant = numpy_helper.from_array(np.array([0.1], np.float16), "c")
    inner = helper.make_graph(nodes, "g", ends[:1], ends[1:], [constant])
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = np.array([3.3, 1000.5, -0.001, 300, 60000, 0], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        a = x + np.float16(0.1)
        expected = a * x - a
    assert np.isinf(expected[3])  # 300 * 300 is beyond fp16
    np.testing.assert_array_equal(run_ort(half.rounded_twin(model), x), expected)


class Graph(nn.Module):
    """The paper's head on a latent of 6 channels."""

    stride_in, align_corners = 8, True

    def __init__(self) -> None:
        super().__init__()
        self.head = DualGraphHead(6, 5, width=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_sums_over_positions_stay_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = Graph().eval()
    projection = net.head.graph.projection
    # phi and theta are large and of one sign, so that their product over 660 positions is near 1e7, and back's is more;
    # the last batch norm brings it down, as a trained one would.
    for part in (projection.phi, projection.theta):
        part[1].bias.data.fill_(120.0)
    projection.out[1].running_var.fill_(1e18)
    made = export_role("segmenter", LabelsGraph(net, rgb=False).eval(), tmp_path / "s.onnx", 6, 8)
    model = graph.load(made.path)
    kept = half.kept_float(model)
    products = [n.name for n in model.graph.node if n.op_type == "MatMul"]
    assert len(products) >= 4
    assert set(products) <= kept.keys()
    assert any(n.op_type == "Softmax" and n.name in kept for n in model.graph.node)
    halved = half.to_half(model)
    assert half.float_nodes(halved) <= kept.keys()
    floats = half.float_nodes(halved)
    convolutions = [n.name for n in halved.graph.node if n.op_type == "Conv"]
    assert sum(name in floats for name in convolutions) < len(convolutions) / 2
    x = torch.randn(1, 6, 22, 30).numpy()
    expected = run_ort(model, x)
    file = tmp_path / "twin.onnx"
    onnx.save(half.rounded_twin(halved), file)
    gate.check_finite(file, [x])
    assert (run_ort(onnx.load(file), x.astype(np.float16)) == expected).mean() > 0.97
    half.check_range(made.path, model, [x], set(kept))
    # Without the list, the same network is destroyed, and both checks see it.
    with pytest.raises(VerificationError, match=r"activation .* reaches .* expected at most 16376"):
        half.check_range(made.path, model, [x], set())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "kept_float", lambda model: {})
        onnx.save(half.rounded_twin(half.to_half(model)), file)
    with pytest.raises(VerificationError, match="logits are NaN or infinite"):
        gate.check_finite(file, [x])


def test_half_refuses_a_weight_that_it_cannot_hold(bundle: Bundle) -> None:
    model = graph.load(bundle.model_path("segmenter"))
    (weight,) = [w for w in model.graph.initializer if w.name.endswith("classifier.weight")]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(7e4), weight.name))
    with pytest.raises(VerificationError, match=r"classifier.weight holds 7000\d.*, fp16 ends at 65504"):
        half.to_half(model)


# --- int8 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("int8")
    return {
        r: rewrite(bundle, r, "int8", folder, real_frames(18), calibration=8) for r in ("segmenter", "rgb_segmenter")
    }


@pytest.mark.parametrize("role", ["segmenter", "rgb_segmenter"])
def test_int8_is_signed_symmetric_and_per_channel(bundle: Bundle, quantised: dict[str, Any], role: str) -> None:
    made = quantised[role]
    model, source = onnx.load(made.path), weights(graph.load(bundle.model_path(role)))
    held = weights(model)
    points = [held[n.input[2]] for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert points
    for point in points:
        assert point.dtype == np.int8
        assert not point.any()
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    floats = [n.name for n in convolutions if n.input[1] in source]
    assert floats == [convolutions[0].name] == list(made.report["float32"])  # the one that reads the input
    for node in convolutions[1:]:
        pair = makers[node.input[1]]
        codes, scales = held[pair.input[0]], held[pair.input[1]]
        values = source[pair.input[0].removesuffix("_quantized")]
        axis = next(a.i for a in pair.attribute if a.name == "axis")
        assert (codes.dtype, axis, scales.shape) == (np.int8, 0, (len(values),))
        largest = np.abs(values).reshape(len(values), -1).max(1)
        np.testing.assert_allclose(scales * 127, largest, rtol=0.005)
        np.testing.assert_allclose(codes * scales[:, None, None, None], values, atol=float(scales.max()) * 0.51)
        assert all(name in source for name in node.input[2:])  # the bias stays as it is
        assert makers[node.input[0]].op_type == "DequantizeLinear"
    assert made.report["calibration"]["frames"] == 8
    assert made.report["gate"]["frames"] == 10
    assert made.report["gate"]["label_agreement"] > 0.97


def test_int8_runs_in_integer_kernels(quantised: dict[str, Any], tmp_path: Path) -> None:
    """Every quantised convolution is fused on ONNX Runtime's CPU: one that is not is slower than in float32."""
    for made in quantised.values():
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
        after = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
        before = [n.op_type for n in onnx.load(made.path).graph.node]
        assert after.count("QLinearConv") == before.count("Conv") - 1


def test_the_step_of_an_activation_is_its_percentile(bundle: Bundle, tmp_path: Path) -> None:
    model = graph.load(bundle.model_path("segmenter"))
    inputs = model_inputs(bundle, "segmenter", real_frames(9), lambda: None)
    used = int8.to_int8(model, tmp_path / "q.onnx", inputs, set(int8.kept_float(model)), lambda: None)
    assert (len(inputs), used) == (9, 8)
    made = onnx.load(tmp_path / "q.onnx")
    held, readers = weights(made), {n.input[0]: n for n in made.graph.node if n.op_type == "QuantizeLinear"}
    name = next(n.output[0] for n in made.graph.node if n.op_type == "Relu" and n.output[0] in readers)
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    looked.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(looked.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.concatenate([session.run([name], {"latent": x})[0].ravel() for x in inputs[:used]])
    found = float(held[readers[name].input[1]]) * 127
    assert found == pytest.approx(np.quantile(np.abs(values), int8.PERCENTILE / 100), rel=0.02)
    assert found < values.max()


def test_calibration_wants_frames_of_one_size(bundle: Bundle, tmp_path: Path) -> None:
    mixed = [*real_frames(3), *[f[:20] for f in real_frames(3)]]
    with pytest.raises(InputError, match="frames of 2 sizes"):
        rewrite(bundle, "segmenter", "int8", tmp_path, mixed)
    assert rewrite(bundle, "segmenter", "fp16", tmp_path, mixed).report["gate"]["frames"] == 6


@pytest.mark.parametrize(("count", "calibration"), [(2, 64), (3, 1), (7, 3), (130, 64), (367, 64), (500, 0), (1, 0)])
def test_no_frame_both_calibrates_and_judges(count: int, calibration: int) -> None:
    fitted, judged = split(count, calibration)
    assert len(fitted) == len(set(fitted)) == min(calibration, count // 2)
    assert len(judged) == len(set(judged)) == min(MAX_GATE, count - len(fitted))
    assert not set(fitted) & set(judged)
    assert set(fitted) | set(judged) <= set(range(count))
    if count >= 100:  # spread, not the first ones
        assert max(judged) > 0.95 * count


@pytest.mark.parametrize(("count", "calibration"), [(0, 0), (0, 64), (1, 64)])
def test_too_few_frames(count: int, calibration: int) -> None:
    with pytest.raises(UsageError, match="expected at least"):
        split(count, calibration)


# --- the gate ---------------------------------------------------------------------------------------------------------

A = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)  # the truth; 255 has no class
B = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
C = np.array([[0, 0, 0, 1], [0, 0, 1, 0]], np.uint8)


def compare(after: np.ndarray, labels: np.ndarray | None, agreement: float = 0.0, loss: float = 1.0) -> dict[str, Any]:
    truth = None if labels is None else [labels]
    return gate.compare([B], [after], truth, ["a", "b"], gate.Limits(agreement, loss), "the model")


def test_agreement_and_loss_by_hand() -> None:
    report = compare(C, A)
    assert report["label_agreement"] == 6 / 8
    assert report["miou_fp32"] == 1.0
    assert report["miou"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert report["iou_loss"] == {"a": pytest.approx(1 / 5), "b": pytest.approx(1 / 3)}
    assert "miou" not in compare(C, None)


def test_limits_fail_with_found_and_expected() -> None:
    assert compare(C, A, agreement=0.75, loss=0.27)
    with pytest.raises(VerificationError, match=r"the model: 75.00% of the labels agree .* at least 76.00%") as caught:
        compare(C, None, agreement=0.76)
    assert (caught.value.exit_code, bool(caught.value.hint)) == (5, True)
    with pytest.raises(VerificationError, match=r"mIoU 0.7333 against 1.0000 of fp32, expected at most 0.26 less"):
        compare(C, A, loss=0.26)


def test_constant_outputs_are_no_result() -> None:
    with pytest.raises(VerificationError, match="the model finds class 1 alone in all 1 frame"):
        compare(np.ones_like(B), None)
    with pytest.raises(VerificationError, match="fp32 finds one class alone"):
        gate.compare([B * 0], [B * 0], None, ["a", "b"], gate.Limits(0, 1), "the model")
    with pytest.raises(InputError, match="no pixel of any label"):
        compare(C, np.full_like(A, 255))


@pytest.mark.parametrize(
    ("precision", "damage", "says"),
    [
        ("fp16", 0.7, "of the labels agree with fp32|alone in all"),
        ("int8", 0.7, "of the labels agree with fp32|alone in all"),
        ("fp16", float("nan"), "logits are NaN"),
        (
            "int8",
            float("nan"),
            "of the labels agree with fp32|alone in all",
        ),  # integers hold no NaN: it ends in some class
    ],
)
def test_a_broken_model_fails_the_build(
    bundle: Bundle, tmp_path: Path, precision: str, damage: float, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bias of one class is damaged in what the gate is given: it wins too often, or logits are NaN."""
    original = gate.gate

    def spoiled(*arguments: Any) -> Any:
        candidate = arguments[4]
        model = onnx.load(candidate)
        (bias,) = [w for w in model.graph.initializer if "classifier.bias" in w.name]
        values = numpy_helper.to_array(bias).copy()
        values[:16] += damage
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        onnx.save(model, candidate)
        return original(*arguments)

    monkeypatch.setattr(gate, "gate", spoiled)
    with pytest.raises(VerificationError, match=says):
        rewrite(bundle, "segmenter", precision, tmp_path, real_frames(4))


def test_a_model_that_gives_nan_is_not_calibrated(copy: Bundle, tmp_path: Path) -> None:
    model = onnx.load(copy.model_path("segmenter"))
    (bias,) = [w for w in model.graph.initializer if w.name.endswith("classifier.bias")]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32("nan"), bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    models = {"compressor": (copy.model_path("compressor"), 1.0, 1), "segmenter": (tmp_path / "nan.onnx", 1.0, 1)}
    broken = write_bundle(tmp_path / "broken", "nan", copy.codec, models, CLASSES)
    for precision in ("fp16", "int8"):
        with pytest.raises(VerificationError, match=r"segmenter.onnx: \d+ of \d+ logits are NaN"):
            rewrite(broken, "segmenter", precision, tmp_path, real_frames(4))


def test_what_is_not_rewritten(bundle: Bundle, tmp_path: Path) -> None:
    for role, precision in (("compressor", "int8"), ("segmenter", "fp32"), ("segmenter", "fp8")):
        with pytest.raises(UsageError, match="only segmenters are rewritten"):
            rewrite(bundle, role, precision, tmp_path, real_frames(2))
    with pytest.raises(UsageError, match="2 frames and 1 labels"):
        rewrite(bundle, "segmenter", "fp16", tmp_path, real_frames(2), [A])


def test_no_torch_is_needed() -> None:
    code = "import sys; sys.modules['torch'] = None; import latentseg.export.precision.gate as g, "
    code += "latentseg.export.precision.half, latentseg.export.precision.int8, onnxruntime.transformers.float16, "
    code += "onnxruntime.quantization"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- the command ------------------------------------------------------------------------------------------------------


def test_build_adds_int8_to_the_bundle(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(real_frames(10)):
        Image.fromarray(frame).save(folder / f"{index}.png")
    argv = ["build", str(copy.path), "--target", "onnxruntime", "--precision", "int8", "--calibration", "4"]
    # What the bundle says where it lacks the file is the command that makes it.
    with pytest.raises(ArtifactError) as lacks:
        copy.model_path("segmenter", "int8")
    assert lacks.value.hint == " ".join(["latentseg", *argv[:6], "--frames", "FOLDER"])
    assert main(argv) == 2
    assert "int8 without frames" in capsys.readouterr().err
    assert main([*argv, "--frames", str(folder), "--json", "-q"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    report = json.loads(printed.out)
    assert (report["type"], report["target"], set(report["variants"])) == (
        "build", "onnxruntime", {"segmenter", "rgb_segmenter"},
    )  # fmt: skip
    again = load_bundle(copy.path)
    for role in ("segmenter", "rgb_segmenter"):
        assert again.variants(role) == ("fp32", "int8")
        assert again.model_path(role, "int8").stat().st_size == report["variants"][role]["int8"]["bytes"]
        assert report["variants"][role]["int8"]["report"]["gate"]["frames"] == 6
        assert again.manifest["variants"][role]["int8"] == report["variants"][role]["int8"]
    assert main([*argv, "--frames", str(folder)]) == 2
    assert "the bundle has an int8 segmenter" in capsys.readouterr().err
    assert main([*argv, "--frames", str(folder), "--overwrite", "--role", "segmenter"]) == 0
    assert capsys.readouterr().out.startswith("segmenter-int8.onnx  ")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--precision", "fp16"], "fp16 gains nothing on a CPU"),
        ([], "found no --precision"),
        (["--precision", "int8", "--role", "compressor"], "a codec stays in fp32"),
    ],
)
def test_what_the_command_refuses(
    bundle: Bundle, tmp_path: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["build", str(bundle.path), "--target", "onnxruntime", "--frames", str(tmp_path)]
    assert main([*common, *argv]) == 2
    assert says in capsys.readouterr().err
