"""TensorRT engines: real TensorRT-RTX builds of this project's models, which want no GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from _tiny_bundle import write_tiny_bundle
from onnx import TensorProto, helper, numpy_helper

from latentseg.engine import load_bundle
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import api
from latentseg.engine.tensorrt.gpus import GpuInfo
from latentseg.engine.tensorrt.sidecar import Profile, find_engine, read_engine
from latentseg.errors import ArtifactError, BackendMissingError, UsageError
from latentseg.export import tensorrt as export
from latentseg.export.tensorrt_onnx import cast_outside
from latentseg.export.verify import synthetic_frames

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or not sys.platform.startswith("linux"),
    reason="wants the package tensorrt-rtx, on Linux",
)
FRAMES = Profile((1, 8, 8), (2, 24, 16), (4, 61, 33))


# --- TensorRT-RTX, for real -------------------------------------------------------------------------------------------


@rtx
@pytest.mark.parametrize("role", ["compressor", "decompressor", "segmenter", "rgb_segmenter"])
def test_every_role_builds_for_four_capabilities(
    role: str, tiny_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int | None]] = []
    path, file, built = export.build_role(
        tiny_bundle, role, "fp32", "tensorrt-rtx", FRAMES, folder=tmp_path,
        on_progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert (
        path == tmp_path / f"{role}-fp32-tensorrt-rtx.engine" == find_engine(tiny_bundle, role, "fp32", folder=tmp_path)
    )
    assert read_engine(path) == file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file.engine_sha256
    assert file.archs == (80, 86, 89, 120)
    assert file.version == sys.modules["tensorrt_rtx"].__version__
    model = hashlib.sha256((tiny_bundle.path / f"{role}.onnx").read_bytes()).hexdigest()
    assert file.model_sha256 == model
    # Frames of 61x33 are padded to 64x40: 8x5 positions of the latent.
    shapes = {"frames": ((1, 8, 8, 3), (4, 64, 40, 3)), "latent": ((1, 3, 1, 1), (4, 3, 8, 5))}[file.input.name]
    assert (file.profile.minimum, file.profile.maximum) == shapes
    assert file.network["layers"] > 0
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert (capfd.readouterr(), built.data) == (("", ""), path.read_bytes())


@rtx
@pytest.mark.parametrize("arch", [80, 86, 89, 120])
def test_the_shipped_segmenter_builds_for_one_capability_each(arch: int, tmp_path: Path) -> None:
    bundle = load_bundle("camvid-compact")
    fixed = Profile((1, 360, 480), (1, 360, 480), (1, 360, 480))
    _, file, _ = export.build_role(bundle, "segmenter", "fp32", "tensorrt-rtx", fixed, [arch], tmp_path)
    assert (file.archs, file.profile.maximum) == ((arch,), (1, 32, 45, 60))
    graph = onnx.load(bundle.model_path("segmenter")).graph
    assert file.network["products"] == sum(node.op_type == "Conv" for node in graph.node)
    assert (file.network["half_products"], file.network["quantize"]) == (0, 0)
    assert file.onnx_sha256 == file.model_sha256  # built as it is in the bundle


@rtx
def test_the_bundles_own_int8_segmenter_builds_for_four_capabilities(tmp_path: Path) -> None:
    shutil.copytree(load_bundle("camvid-compact").path, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    file = bundle.model_path("segmenter", "int8")
    dynamic = Profile((1, 8, 8), (2, 360, 480), (4, 370, 500))
    path, made, _ = export.build_role(bundle, "segmenter", "int8", "tensorrt-rtx", dynamic)
    assert path == find_engine(bundle, "segmenter", "int8")
    report = bundle.manifest["variants"]["segmenter"]["int8"]["report"]
    assert (made.archs, made.source, made.verification) == ((80, 86, 89, 120), "bundle", report)
    assert made.onnx_sha256 == hashlib.sha256(file.read_bytes()).hexdigest() != made.model_sha256
    assert made.profile.maximum == (4, 32, 47, 63)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(file).graph.node)
    assert made.network["int8_products"] == convolutions - len(report["float32"]) == convolutions - 1
    assert made.network["half_products"] == 0
    # What is said to be of one precision and is of another does not become an engine.
    trt = api.open_flavour("tensorrt-rtx")
    for other in ("fp32", "fp16"):
        with pytest.raises(ArtifactError, match=f"the network is not in {other}: it has layers"):
            export.build_engine(
                file, trt, made.profile, (89,), ends=export.contract(bundle, "segmenter"), precision=other
            )


@rtx
@pytest.mark.parametrize("role", ["segmenter", "rgb_segmenter"])
def test_half_segmenters_are_made_with_frames_and_build_for_four_capabilities(role: str, tmp_path: Path) -> None:
    """A latent segmenter in fp16 takes what the GPU's decoder writes: float16."""
    bundle = load_bundle("camvid-compact")
    frames = list(synthetic_frames(3, 96, 128))
    path, made, _ = export.build_role(bundle, role, "fp16", "tensorrt-rtx", folder=tmp_path, images=frames)
    assert path.is_file()
    assert (made.source, made.verification["gate"]["frames"]) == ("frames", 3)
    assert made.input.dtype == (np.float16 if role == "segmenter" else np.uint8)
    assert made.output.dtype == np.uint8
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(bundle.model_path(role)).graph.node)
    assert made.network["half_products"] == convolutions
    assert made.network["int8_products"] == 0


@rtx
def test_asymmetric_uint8_is_refused_in_the_parsers_words(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Why int8 here is signed and symmetric."""
    nodes = [
        helper.make_node("QuantizeLinear", ["latent", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("ArgMax", ["dq"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
    ]
    source = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", 3, "h", "w"])
    result = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "h", "w"])
    numbers = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(128), "zero")]
    graph = helper.make_graph(nodes, "asymmetric", [source], [result], numbers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "asymmetric.onnx")
    trt = api.open_flavour("tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"cannot parse asymmetric\.onnx: .*UINT8"):
        export.parse_onnx(trt, trt.builder(), tmp_path / "asymmetric.onnx")


@rtx
def test_capabilities_that_the_library_offers(tiny_bundle: Bundle, tmp_path: Path) -> None:
    trt = api.open_flavour("tensorrt-rtx")
    assert trt.archs() == api.RTX_ARCHS
    with pytest.raises(UsageError, match=r"cannot build for compute capability 9\.0, it offers 7\.5, 8\.0") as caught:
        export.build_role(tiny_bundle, "segmenter", "fp32", "tensorrt-rtx", None, [89, 90], tmp_path)
    assert "--target tensorrt" in caught.value.hint
    assert not list(tmp_path.iterdir())


@rtx
def test_for_this_machine_without_a_gpu(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> GpuInfo:
        raise BackendMissingError("this wants an NVIDIA GPU: none")

    monkeypatch.setattr(export, "this_gpu", none)
    with pytest.raises(BackendMissingError, match="wants an NVIDIA GPU"):
        export.build_role(tiny_bundle, "segmenter", "fp32", "tensorrt-rtx", None, (), tmp_path)


@rtx
def test_too_little_workspace_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot build segmenter\.onnx: .*memory|workspace") as caught:
        export.build_role(
            load_bundle("camvid-compact"), "segmenter", "fp32", "tensorrt-rtx", None, [89], tmp_path, workspace=1 << 20
        )
    assert "--workspace" in caught.value.hint


@rtx
def test_the_parsers_own_words(tmp_path: Path) -> None:
    source = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", 3, "h", "w"])
    result = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "h", "w"])
    node = helper.make_node("Unheard", ["latent"], ["labels"], name="the_odd_one", domain="elsewhere")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "odd", [source], [result]), opset_imports=opsets), path)
    trt = api.open_flavour("tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"cannot parse odd\.onnx: the_odd_one: .*Plugin not found"):
        export.parse_onnx(trt, trt.builder(), path)
    with pytest.raises(ArtifactError, match=r"cannot parse none\.onnx"):
        export.parse_onnx(trt, trt.builder(), tmp_path / "none.onnx")


@rtx
def test_a_network_of_another_precision_or_interface_is_refused(tiny_bundle: Bundle) -> None:
    trt = api.open_flavour("tensorrt-rtx")
    network = export.parse_onnx(trt, trt.builder(), tiny_bundle.model_path("segmenter"))
    for precision in ("fp16", "int8"):
        with pytest.raises(ArtifactError, match=f"not in {precision}: it has layers [1-9]"):
            export.check_network(trt, network, export.contract(tiny_bundle, "segmenter"), precision)
    with pytest.raises(
        ArtifactError, match=r"input is latent: float32\[\?, 3, \?, \?\], expected uint8\[\?, \?, \?, 3\]"
    ):
        export.check_network(trt, network, export.contract(tiny_bundle, "rgb_segmenter"), "fp32")
    with pytest.raises(ArtifactError, match=r"output is labels: uint8\[\?, \?, \?\], expected uint8\[\?, \?, \?, 3\]"):
        export.check_network(trt, network, export.contract(tiny_bundle, "decompressor"), "fp32")


@rtx
def test_rubbish_is_not_loaded() -> None:
    trt = api.open_flavour("tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"cannot load x\.engine: .*Serialization"):
        trt.deserialize(trt.runtime(), b"rubbish" * 40, "x.engine")


# --- uint8 at the ends ------------------------------------------------------------------------------------------------


@rtx
def test_bytes_are_permuted_outside_of_the_network(tiny_bundle: Bundle, tmp_path: Path) -> None:
    model = tiny_bundle.model_path("decompressor")
    trt = api.open_flavour("tensorrt-rtx")
    with pytest.raises(ArtifactError, match=r"(?i)uint8"):  # why the file is changed at all
        export.parse_onnx(trt, trt.builder(), model)
    source, _ = export.contract(tiny_bundle, "decompressor")
    path, moved = cast_outside(model, tmp_path / "moved.onnx", source, (1, 3, 1, 1))
    assert (path, moved) == (tmp_path / "moved.onnx", 1)
    export.parse_onnx(trt, trt.builder(), path)


@pytest.mark.parametrize(
    ("role", "moved"), [("compressor", 1), ("decompressor", 1), ("segmenter", 0), ("rgb_segmenter", 1)]
)
def test_moved_casts_change_no_value(role: str, moved: int, tmp_path: Path) -> None:
    bundle = load_bundle("camvid-compact")
    source, _ = export.contract(bundle, role)
    shape = export.input_profile(bundle, role, Profile((1, 8, 8), (1, 8, 8), (1, 8, 8))).minimum
    path, count = cast_outside(bundle.model_path(role), tmp_path / "moved.onnx", source, shape)
    assert (count, path == bundle.model_path(role)) == (moved, not moved)
    size = export.input_profile(bundle, role, Profile((3, 37, 83), (3, 37, 83), (3, 37, 83))).minimum
    array = np.random.default_rng(5).integers(0, 256, size).astype(source.dtype)
    name = "frames" if array.dtype == np.uint8 else "latent"
    runs = [
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {name: array})[0]
        for file in (path, bundle.model_path(role))
    ]
    np.testing.assert_array_equal(*runs)


def test_a_permutation_with_several_readers(tmp_path: Path) -> None:
    """Every reader gets its own cast; a permutation that something else reads as bytes stays."""
    nodes = [
        helper.make_node("Transpose", ["frames"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["chw"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["chw"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b"], ["twice"]),
    ]
    source = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])
    result = helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["N", 3, "H", "W"])
    spec, _ = export.contract(write_tiny_bundle(tmp_path / "tiny"), "compressor")

    def moved(nodes: list[Any]) -> tuple[int, list[str]]:
        graph = helper.make_graph(nodes, "g", [source], [result])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx"
        )
        path, count = cast_outside(tmp_path / "g.onnx", tmp_path / "moved.onnx", spec, (1, 3, 5, 3))
        return count, [node.op_type for node in onnx.load(path).graph.node]

    assert moved(nodes) == (2, ["Cast", "Transpose", "Cast", "Transpose", "Add"])
    nodes[3] = helper.make_node("Where", ["mask", "a", "b"], ["twice"])
    nodes.insert(3, helper.make_node("Cast", ["same"], ["mask"], to=TensorProto.BOOL))
    nodes.insert(3, helper.make_node("Identity", ["chw"], ["same"]))
    assert moved(nodes)[0] == 0
