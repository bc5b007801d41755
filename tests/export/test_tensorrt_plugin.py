"""The one-file engine as far as a machine without full TensorRT can show.

`tensorrt.plugin` is a stand-in that checks what the package's own source checks when a plugin is registered, and whose
symbolic expressions can be evaluated. The composed ONNX model is run by ONNX's reference evaluator.
"""

from __future__ import annotations

import inspect
import operator
import sys
import typing
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from _tiny_bundle import labels as labels_by_hand
from _tiny_bundle import symbols as symbols_by_hand
from _tiny_bundle import write_tiny_bundle
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.engine.bundle import Bundle
from latentseg.errors import ArtifactError, BackendMissingError, InputError, OutputError, UsageError
from latentseg.export import tensorrt_plugin as plugin
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.batch import check_damage, payload_limit, plan_batch, table_map_words

HEADER = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(4, 5))
ORDER = [
    "words", "lanes", "channels", "ranges", "tables", "table_map_words",
    "word_count", "frames", "channel_count", "height", "width", "ranges_a_frame", "out", "scratch",
]  # fmt: skip


def kernel(spec: plugin.DecodeSpec, **other: Any) -> Any:
    """What `compile_plugin` gives, without Triton."""
    arguments = tuple((name, "int32" if 6 <= index < 12 else "pointer") for index, name in enumerate(ORDER))
    facts = {"bits": spec.bits, "tile": spec.tile, "floats": spec.floats, "arch": spec.arch, "arguments": arguments}
    return SimpleNamespace(name="entry", text="ptx", warps=1, shared=1024, **facts | other)


def payloads_of(frames: int) -> list[bytes]:
    rng = np.random.default_rng(frames)
    rows = np.clip(np.rint(rng.normal(100, 4, (frames, *HEADER.latent_shape))), 0, 255).astype(np.uint8)
    lo = np.zeros(3, np.float32)
    return [entropy.encode_symbols(q, HEADER, lo, lo + 1) for q in rows]


# --- a stand-in for tensorrt.plugin (NVIDIA/TensorRT, python/packaging/bindings_wheel/tensorrt/plugin) ----------------


class Symbol:
    """SymInt32 and ShapeExpr: operators with the expression on the left, none reflected (_tensor.py)."""

    def __init__(self, value: Any = None) -> None:
        self.compute = value.compute if isinstance(value, Symbol) else lambda sizes: sizes.get(value, value)

    def _op(self, function: Any, other: int | Symbol) -> Symbol:
        assert isinstance(other, int | Symbol)
        result, right = Symbol(), Symbol(other)
        result.compute = lambda sizes: function(self.compute(sizes), right.compute(sizes))
        return result

    def __add__(self, other: int | Symbol) -> Symbol:
        return self._op(operator.add, other)

    def __mul__(self, other: int | Symbol) -> Symbol:
        return self._op(operator.mul, other)


def value(symbol: int | Symbol, **sizes: int) -> int:
    return Symbol(symbol).compute(sizes)


class TensorDesc:
    def __init__(self, shape_expr: Any, dtype: Any) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class KernelLaunchParams:
    def __init__(self) -> None:
        for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem"):
            self.__dict__[name] = Symbol(0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dict__, name
        self.__dict__[name] = Symbol(value)


class SymIntExprs(list):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class FakePlugins(ModuleType):
    SymInt32, from_shape_expr = Symbol, TensorDesc
    TensorDesc, KernelLaunchParams, SymIntExprs = TensorDesc, KernelLaunchParams, SymIntExprs

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.op = SimpleNamespace()
        self.registered: dict[str, Any] = {}
        self.compiled: dict[str, Any] = {}

    @staticmethod
    def cdiv(first: int | Symbol, second: int) -> Symbol:
        assert isinstance(first, Symbol)  # two numbers are a ValueError there
        return first._op(lambda a, b: -(-a // b), second)

    def register(self, plugin_id: str) -> Any:
        def decorate(function: Any) -> None:  # the checks of _validate.py and of _lib.py
            namespace, name = plugin_id.split("::")
            assert "." not in plugin_id
            assert namespace not in ("", "trt", "tensorrt", "std")
            signature = inspect.signature(function)
            results = typing.get_args(signature.return_annotation)
            assert typing.get_origin(signature.return_annotation) is tuple
            for kind in (*results, *(parameter.annotation for parameter in signature.parameters.values())):
                assert issubclass(kind, TensorDesc)
            home = self.op.__dict__.setdefault(namespace, SimpleNamespace())
            assert not hasattr(home, name), f"already has a definition for '{name}'"
            setattr(home, name, function)
            self.registered[plugin_id] = function

        return decorate

    def aot_impl(self, plugin_id: str) -> Any:
        def decorate(function: Any) -> None:
            inputs = inspect.signature(self.registered[plugin_id]).parameters
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*inputs, "outputs", "tactic"]
            assert typing.get_args(signature.return_annotation) == (str, str, KernelLaunchParams, SymIntExprs)
            self.compiled[plugin_id] = function

        return decorate


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("tensorrt")
    facts = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "QuickPluginCreationRequest": object}
    module.__dict__.update(facts, plugin=FakePlugins())
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module.plugin)
    return SimpleNamespace(is_rtx=False, name="TensorRT", version="10.13.3", module=module)


def call(api: Any, plugin_id: str, spec: plugin.DecodeSpec) -> tuple[tuple[TensorDesc, ...], tuple[Any, ...]]:
    """What TensorRT would be told: the outputs, and (entry, PTX, launch, extra arguments), in symbols."""
    fed = spec.fed_shapes(Symbol("words"), Symbol("frames"))
    inputs = [TensorDesc(shape, None) for shape in (*fed.values(), (44 * 2048,), (48 * 48, 4))]
    outputs = api.module.plugin.registered[plugin_id](*inputs)
    return outputs, api.module.plugin.compiled[plugin_id](*inputs, outputs, None)


# --- what TensorRT is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3, 37])
@pytest.mark.parametrize(
    ("shape", "tile", "mode", "floats"),
    [((3, 10, 9), (4, 5), "channel", "float32"), ((1, 1, 1), (14, 32), "tensor", "float16"),
     ((7, 33, 31), (16, 31), "fixed", "float32")],
)  # fmt: skip
def test_symbols_evaluate_to_what_the_launcher_computes(
    api: Any, shape: tuple[int, int, int], tile: tuple[int, int], mode: str, floats: str, frames: int
) -> None:
    scaling = Scaling("fixed", -2.0, 3.0) if mode == "fixed" else Scaling(mode)  # type: ignore[arg-type]
    header = StreamHeader(bytes(32), shape, 8, scaling, coder="context", tile=tile)
    spec = plugin.DecodeSpec.of(header, floats, 90)
    outputs, (entry, ptx, launch, extra) = call(api, plugin.register_plugin(api, spec, kernel(spec)), spec)
    q = np.zeros(shape, np.uint8)
    q[:, 0, 0] = 1
    payload = entropy.encode_symbols(q, header, *([] if mode == "fixed" else [0.0, 1.0]))
    batch = plan_batch([payload] * frames, header)
    sizes = {"words": batch.word_count, "frames": frames}
    assert (entry, ptx) == ("entry", "ptx")
    assert [value(number, **sizes) for number in extra] == [batch.word_count, frames, *shape, batch.ranges_a_frame]
    grid = [value(getattr(launch, f"{what}_{axis}"), **sizes) for what in ("grid", "block") for axis in "xyz"]
    assert grid == [shapes.programs(batch.lane_count), 1, 1, 32, 1, 1]
    assert value(launch.shared_mem) == 1024
    found = [[value(side, **sizes) for side in output.shape_expr] for output in outputs]
    assert found[0] == [frames, *shape]
    flags = 32 if frames <= 32 else 64
    words = shapes.history_words(batch.lane_count, tile)
    assert found[1] == [shapes.programs(batch.lane_count), words // shapes.programs(batch.lane_count) + flags]
    assert [output.dtype for output in outputs] == ["FLOAT" if floats == "float32" else "HALF", "INT32"]


def test_a_plugin_is_registered_once_and_named_after_all_that_it_depends_on(api: Any) -> None:
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
    first = plugin.register_plugin(api, spec, kernel(spec))
    assert first == plugin.register_plugin(api, spec, kernel(spec)) == f"latentseg::{spec.name}"
    assert len(api.module.plugin.registered) == 1
    changes: list[dict[str, Any]] = [
        {"arch": 89},
        {"bits": 7}, {"tile": (5, 4)}, {"latent": (3, 9, 10)}, {"ranges_a_frame": 1}, {"floats": "float16"},
    ]  # fmt: skip
    others = [replace(spec, **change) for change in changes]
    names = {plugin.register_plugin(api, other, kernel(other)) for other in others}
    assert len(names | {first}) == 7
    assert all(name.partition("::")[2].isidentifier() for name in names)


def test_another_streams_kernel_or_order_is_refused(api: Any) -> None:
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
    swapped = ("lanes", "words", *ORDER[2:])
    for other in (
        {"arch": 80}, {"tile": (14, 32)}, {"bits": 7}, {"floats": "float16"},
        {"arguments": tuple((name, "pointer") for name in swapped)},
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match=r"a kernel for .* expected one for \(8, \(4, 5\), 'float32', 90\)"):
            plugin.register_plugin(api, spec, kernel(spec, **other))
    assert not api.module.plugin.registered
    huffman = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="huffman-channel")
    with pytest.raises(ArtifactError, match="coder huffman-channel, expected context"):
        plugin.DecodeSpec.of(huffman, "float32", 90)
    with pytest.raises(UsageError, match="floats 'bfloat16'"):
        plugin.DecodeSpec.of(HEADER, "bfloat16", 90)


def test_what_tensorrt_lacks_is_said(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.plugin_module(api) is api.module.plugin
    rtx = SimpleNamespace(is_rtx=True, name="TensorRT-RTX", version="1.7.1.116", module=ModuleType("tensorrt_rtx"))
    with pytest.raises(ArtifactError, match=r"TensorRT-RTX 1\.7\.1\.116 has no Python plugins, full TensorRT has"):
        plugin.plugin_module(rtx)
    monkeypatch.delattr(FakePlugins, "aot_impl")
    monkeypatch.delattr(api.module, "QuickPluginCreationRequest")
    wanted = r"TensorRT 10\.13\.3 lacks plugin\.aot_impl, QuickPluginCreationRequest, expected 10\.9 or later"
    with pytest.raises(ArtifactError, match=wanted) as caught:
        plugin.plugin_module(api)
    assert "--one-file" in caught.value.hint
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    with pytest.raises(BackendMissingError, match="its module 'plugin' does not import"):
        plugin.plugin_module(api)


# --- what the engine is fed -------------------------------------------------------------------------------------------


def test_a_batch_is_bound_at_aligned_places_of_one_run() -> None:
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
    payloads = payloads_of(3)
    batch = plan_batch(payloads, HEADER)
    data, views = plugin.bind_batch(batch, spec)
    assert list(views) == ["words", "lanes", "channels", "ranges"]
    taken = np.zeros(len(data), bool)
    for name, view in views.items():
        start = view.ctypes.data - data.ctypes.data
        assert start % 256 == 0
        assert not taken[start : start + view.nbytes].any()
        taken[start : start + view.nbytes] = True
        assert view.dtype == (np.float32 if name == "ranges" else np.int32)
    assert views["words"].tobytes()[: sum(map(len, payloads))] == b"".join(payloads)
    assert views["lanes"].shape == (3, 6, 3, 2)
    parts = (batch.lanes, batch.payloads), (batch.channels, batch.lanes), (batch.ranges, batch.channels)
    for name, (start, end) in zip(("lanes", "channels", "ranges"), parts, strict=True):
        assert batch.data[start:end].tobytes().startswith(views[name].tobytes())
    # A longer "words" changes nothing but its own end.
    _, longer = plugin.bind_batch(batch, spec, words=batch.word_count + 70)
    assert longer["words"].shape == (batch.word_count + 70,)
    assert np.array_equal(longer["words"][: batch.word_count], views["words"])
    assert not longer["words"][batch.word_count :].any()
    assert all(np.array_equal(longer[name], views[name]) for name in ("lanes", "channels", "ranges"))
    with pytest.raises(UsageError, match=f"{batch.word_count - 1} words for a batch of {batch.word_count}"):
        plugin.bind_batch(batch, spec, words=batch.word_count - 1)
    other = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("tensor"), coder="context", tile=(4, 5))
    with pytest.raises(ArtifactError, match="18 lanes and 3 ranges a frame, but the engine was built for 18 and 1"):
        plugin.bind_batch(batch, plugin.DecodeSpec.of(other, "float32", 90))


def test_the_profile_holds_the_worst_payloads() -> None:
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
    found = plugin.profile(spec, 1, 4, 16)
    assert found["lanes"] == ((1, 6, 3, 2), (4, 6, 3, 2), (16, 6, 3, 2))
    assert found["ranges"][1] == (4, 3, 2)
    assert [least <= usual <= most for least, usual, most in found.values()] == [True] * 4
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, HEADER.latent_shape).astype(np.uint8) * 255
    lo = np.zeros(3, np.float32)
    batch = plan_batch([entropy.encode_symbols(noise, HEADER, lo, lo + 1)] * 16, HEADER)
    _, views = plugin.bind_batch(batch, spec)
    for name, view in views.items():
        least, _, most = found[name]
        assert all(a <= b <= c for a, b, c in zip(least, view.shape, most, strict=True))
    assert 4 * found["words"][2][0] >= 16 * payload_limit(HEADER)
    for wrong in ((0, 1, 2), (2, 1, 2), (1, 3, 2)):
        with pytest.raises(UsageError, match="expected 1 <= least <= usual <= most"):
            plugin.profile(spec, *wrong)


# --- the composed model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def decoder(
    spec: plugin.DecodeSpec, header: StreamHeader, payloads: list[bytes], damage: dict[tuple[int, int], int]
) -> type[OpRun]:
    """The plugin on the CPU, as an operator of ONNX's evaluator. damage: a program's flag for a frame, to be set."""

    def run(self: Any, words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, numbers: Any, **_: Any) -> Any:
        assert words.tobytes()[: sum(map(len, payloads))] == b"".join(payloads)
        assert (tables.dtype, tables.shape, numbers.dtype) == (np.int32, (44 * 2048,), np.int32)
        assert numbers.tobytes() == table_map_words().tobytes()
        latents = np.stack([entropy.decode_latent(payload, header) for payload in payloads])
        symbolic = spec.result_shapes(len(lanes), lambda a, b: -(-a // b))
        scratch = np.full(symbolic["scratch"], -7, np.int32)
        flags = scratch[:, spec.history :]
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
    spec = plugin.DecodeSpec.of(header, plugin.latent_floats(segmenter), 90)
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
    _, views = plugin.bind_batch(batch, spec)
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
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
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


class FakeNetwork:
    """A network of named, typed ends."""

    def __init__(self, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        tensors = [
            [SimpleNamespace(name=name, dtype=SimpleNamespace(name=kind)) for name, kind in ends.items()]
            for ends in (inputs, outputs)
        ]
        self.num_inputs, self.num_outputs = map(len, tensors)
        self.get_input, self.get_output = (ends.__getitem__ for ends in tensors)


def test_the_network_is_parsed_with_its_plugin_known(api: Any, tmp_path: Path) -> None:
    spec = plugin.DecodeSpec.of(HEADER, "float32", 90)
    one = plugin.OneFile(tmp_path / "one.onnx", spec, kernel(spec))
    inputs = {"words": "INT32", "lanes": "INT32", "channels": "INT32", "ranges": "FLOAT"}
    outputs = {"labels": "UINT8", "damaged": "INT32"}
    parsed: list[str] = []

    def parse(path: str, ok: bool) -> bool:
        assert len(api.module.plugin.compiled) == 1  # an unknown node could not be parsed
        parsed.append(path)
        return ok

    def parser(ok: bool) -> Any:
        return SimpleNamespace(
            parse_from_file=lambda path: parse(path, ok), num_errors=1, get_error=lambda _: "bad node"
        )

    api.failed = lambda what: ArtifactError(f"TensorRT {what}")
    network = FakeNetwork(inputs, outputs)
    api.network, api.parser = lambda builder: network, lambda network: parser(True)
    assert plugin.one_file_network(api, object(), one) is network  # type: ignore[arg-type]
    assert parsed == [str(tmp_path / "one.onnx")]
    for ends in (
        (inputs | {"words": "INT64"}, outputs),
        (inputs, {"labels": "UINT8"}),
        (inputs, outputs | {"x": "INT32"}),
    ):
        api.network = lambda builder, ends=ends: FakeNetwork(*ends)
        with pytest.raises(ArtifactError, match=r"the network takes .* expected .*'ranges': 'FLOAT'"):
            plugin.one_file_network(api, object(), one)  # type: ignore[arg-type]
    api.parser = lambda network: parser(False)
    with pytest.raises(ArtifactError, match=r"cannot parse one.onnx with plugin ContextDecode_.*_sm90: bad node"):
        plugin.one_file_network(api, object(), one)  # type: ignore[arg-type]
