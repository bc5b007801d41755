"""The one-file engine's ONNX model, run by ONNX's reference evaluator with the decoder as an operator of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from _fake_plugins import HEADER, ORDER
from _tiny_bundle import labels as labels_by_hand
from _tiny_bundle import symbols as symbols_by_hand
from _tiny_bundle import write_tiny_bundle
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentseg.bitstream import StreamHeader
from latentseg.engine.bundle import Bundle
from latentseg.errors import ArtifactError, BackendMissingError, InputError, OutputError
from latentseg.export import tensorrt_plugin as plugin
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.batch import check_damage, plan_batch, table_map_words
from latentseg.kernels.gpu.one_file import DecodeSpec, bind_batch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def decoder(
    spec: DecodeSpec, header: StreamHeader, payloads: list[bytes], damage: dict[tuple[int, int], int]
) -> type[OpRun]:
    """The plugin on the CPU, as an operator of ONNX's evaluator. damage: a program's flag for a frame, to be set."""

    def run(self: Any, words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, numbers: Any, **_: Any) -> Any:
        assert words.tobytes()[: sum(map(len, payloads))] == b"".join(payloads)
        assert (tables.dtype, tables.shape, numbers.dtype) == (np.int32, (44 * 2048,), np.int32)
        assert numbers.tobytes() == table_map_words().tobytes()
        latents = np.stack([entropy.decode_latent(payload, header) for payload in payloads])
        symbolic = plugin.result_shapes(spec, len(lanes), lambda a, b: -(-a // b))
        scratch = np.full(symbolic["scratch"], -7, np.int32)
        flags = scratch[:, plugin.history_words(spec) :]
        flags[...] = shapes.SOUND
        for place, lane in damage.items():
            flags[place] = lane
        return latents.astype(spec.floats), scratch

    return type(spec.name, (OpRun,), {"op_domain": "latentseg", "_run": run})


@pytest.mark.parametrize("size", [(80, 72), (8, 8), (131, 517)])
def test_bytes_go_in_and_labels_come_out(bundle: Bundle, size: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (3, *size, 3), np.uint8)
    header = bundle.header(*size)
    payloads = [entropy.encode_symbols(q, header) for q in symbols_by_hand(frames)]
    segmenter = bundle.model_path("segmenter")
    spec = DecodeSpec.of(header, plugin.latent_floats(segmenter), 90)
    model = plugin.one_file_model(segmenter, spec)
    onnx.checker.check_model(model)
    assert [tensor.name for tensor in model.graph.input] == ["words", "lanes", "channels", "ranges"]
    assert [tensor.name for tensor in model.graph.output] == ["labels", "damaged"]
    node = model.graph.node[0]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (node.op_type, node.domain) == (spec.name, "latentseg")
    assert attributes == {"plugin_namespace": b"latentseg", "plugin_version": b"1", "aot": 1}
    assert list(node.input) == ORDER[:6]
    path = tmp_path / "one.onnx"
    onnx.save(model, path)
    batch = plan_batch(payloads, header)
    _, views = bind_batch(batch, header, spec)
    run = ReferenceEvaluator(str(path), new_ops=[decoder(spec, header, payloads, {})])
    found, damaged = run.run(None, views)
    height, width = size
    assert np.array_equal(found[:, :height, :width], labels_by_hand(frames))
    assert found.dtype == np.uint8
    assert (damaged.dtype, damaged.tolist()) == (np.int32, [shapes.SOUND] * 3)
    check_damage(damaged)
    # Damage: the lowest lane that any program names, of the frame that it is in.
    last = shapes.programs(batch.lane_count) - 1
    damage = {(0, 1): 9, (last, 1): 4, (0, 0): 2}
    run = ReferenceEvaluator(str(path), new_ops=[decoder(spec, header, payloads, damage)])
    damaged = run.run(["damaged"], views)[0]
    assert damaged.tolist() == [2, 4, shapes.SOUND]
    with pytest.raises(InputError, match="frame 0 of the batch: payload damaged: lane 2 "):
        check_damage(damaged)


def _segmenter(path: Path, dims: list[Any], dtype: int = TensorProto.FLOAT, opset: int = 18, name: str = "x") -> Path:
    nodes = [
        helper.make_node("ArgMax", ["latent"], [name], axis=1, keepdims=0),
        helper.make_node("Cast", [name], ["labels"], to=TensorProto.UINT8),
    ]
    ends = [
        helper.make_tensor_value_info("latent", dtype, dims),
        helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W"]),
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def test_models_that_do_not_fit_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    spec = DecodeSpec.of(HEADER, "float32", 90)
    good = _segmenter(tmp_path / "good.onnx", ["N", 3, "h", "w"])
    assert plugin.one_file_model(good, spec).graph.node[0].op_type == spec.name
    half = _segmenter(tmp_path / "half.onnx", ["N", 3, "h", "w"], TensorProto.FLOAT16)
    assert plugin.latent_floats(half) == "float16"
    for path, message in (
        (half, r"half.onnx takes float16 \[3, 0, 0\], expected float32 \[3, 10, 9\]"),
        (_segmenter(tmp_path / "four.onnx", ["N", 4, "h", "w"]), r"four.onnx takes float32 \[4, 0, 0\]"),
        (_segmenter(tmp_path / "size.onnx", ["N", 3, 10, 8]), r"size.onnx takes float32 \[3, 10, 8\]"),
        (_segmenter(tmp_path / "old.onnx", ["N", 3, "h", "w"], opset=17), "old.onnx has opset 17, expected 18 or"),
        (_segmenter(tmp_path / "taken.onnx", ["N", 3, "h", "w"], name="scratch"), "tensors named scratch"),
        (bundle.model_path("rgb_segmenter"), "a model with inputs frames, expected one latent"),
    ):
        with pytest.raises(ArtifactError, match=message):
            plugin.one_file_model(path, spec)


def test_everything_is_prepared_without_a_gpu(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = bundle.model_path("segmenter")
    asked: list[tuple[Any, ...]] = []
    compiler = ModuleType("latentseg.kernels.triton.ptx")
    compiler.compile_plugin = lambda *args: asked.append(args) or "kernel"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, compiler.__name__, compiler)
    one = plugin.prepare_one_file(bundle, segmenter, (131, 517), 86, tmp_path / "made")
    assert (one.kernel, one.spec.latent, one.spec.arch) == ("kernel", (3, 17, 65), 86)
    assert asked == [(8, bundle.codec.tile, 86, "float32")]
    assert onnx.load(one.model).graph.node[0].op_type == one.spec.name
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        plugin.prepare_one_file(bundle, segmenter, (131, 517), 86, tmp_path / "file")
    monkeypatch.setitem(sys.modules, compiler.__name__, None)
    with pytest.raises(BackendMissingError, match="the package 'triton'"):
        plugin.prepare_one_file(bundle, segmenter, (131, 517), 86, tmp_path)
