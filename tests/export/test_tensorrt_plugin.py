"""The one-file engine's plugin: what full TensorRT is told of it, on stand-ins, since it cannot be installed here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _fake_plugins import HEADER, ORDER, FakePlugins, Symbol, TensorDesc, fake_plugins, kernel, value

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.engine.tensorrt.engine_file import Profile
from latentseg.errors import ArtifactError, BackendMissingError, UsageError
from latentseg.export import tensorrt_plugin as plugin
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.batch import payload_limit, plan_batch
from latentseg.kernels.gpu.one_file import DecodeSpec, bind_batch


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("tensorrt")
    fake_plugins(monkeypatch, module)
    return SimpleNamespace(is_rtx=False, name="TensorRT", version="10.13.3", module=module)


def call(api: Any, plugin_id: str, spec: DecodeSpec) -> tuple[tuple[TensorDesc, ...], tuple[Any, ...]]:
    """What TensorRT would be told: the outputs, and (entry, PTX, launch, extra arguments), in symbols."""
    fed = spec.fed_shapes(Symbol("words"), Symbol("frames"))
    inputs = [TensorDesc(shape, None) for shape in (*fed.values(), (44 * 2048,), (48 * 48, 4))]
    outputs = api.module.plugin.registered[plugin_id](*inputs)
    return outputs, api.module.plugin.compiled[plugin_id](*inputs, outputs, None)


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
    spec = DecodeSpec.of(header, floats, 90)
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
    spec = DecodeSpec.of(HEADER, "float32", 90)
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
    spec = DecodeSpec.of(HEADER, "float32", 90)
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
        DecodeSpec.of(huffman, "float32", 90)
    with pytest.raises(UsageError, match="floats 'bfloat16'"):
        DecodeSpec.of(HEADER, "bfloat16", 90)


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


def test_the_profile_holds_the_worst_payloads() -> None:
    spec = DecodeSpec.of(HEADER, "float32", 90)
    found = plugin.profile(spec, 1, 4, 16)
    assert found["lanes"] == Profile((1, 6, 3, 2), (4, 6, 3, 2), (16, 6, 3, 2))
    assert found["ranges"].optimum == (4, 3, 2)
    assert [p.minimum <= p.optimum <= p.maximum for p in found.values()] == [True] * 4
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, HEADER.latent_shape).astype(np.uint8) * 255
    lo = np.zeros(3, np.float32)
    batch = plan_batch([entropy.encode_symbols(noise, HEADER, lo, lo + 1)] * 16, HEADER)
    _, views = bind_batch(batch, HEADER, spec)
    for name, view in views.items():
        assert found[name].admits(view.shape)
    assert 4 * found["words"].maximum[0] >= 16 * payload_limit(HEADER)
    for wrong in ((0, 1, 2), (2, 1, 2), (1, 3, 2)):
        with pytest.raises(UsageError, match="expected 1 <= least <= usual <= most"):
            plugin.profile(spec, *wrong)


class FakeNetwork:
    """A network of named ends: (dtype, shape) each."""

    def __init__(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        tensors = [
            [SimpleNamespace(name=name, dtype=SimpleNamespace(name=kind), shape=shape) for name, (kind, shape) in ends]
            for ends in (inputs.items(), outputs.items())
        ]
        self.num_inputs, self.num_outputs = map(len, tensors)
        self.get_input, self.get_output = (ends.__getitem__ for ends in tensors)


def test_the_network_is_parsed_with_its_plugin_known(api: Any, tmp_path: Path) -> None:
    spec = DecodeSpec.of(HEADER, "float32", 90)
    one = plugin.OneFile(tmp_path / "one.onnx", spec, kernel(spec))
    lanes = ("INT32", (-1, 6, 3, 2))
    inputs = {
        "ranges": ("FLOAT", (-1, 3, 2)), "words": ("INT32", (-1,)), "lanes": lanes, "channels": ("INT32", (-1, 3)),
    }  # fmt: skip
    outputs = {"damaged": ("INT32", (-1,)), "labels": ("UINT8", (-1, 80, -1))}
    parsed: list[str] = []

    def parse(path: str, ok: bool) -> bool:
        assert len(api.module.plugin.compiled) == 1  # an unknown node could not be parsed
        parsed.append(path)
        return ok

    def parser(ok: bool) -> Any:
        error = SimpleNamespace(node_name=lambda: spec.name, desc=lambda: "bad node")
        return SimpleNamespace(parse_from_file=lambda path: parse(path, ok), num_errors=1, get_error=lambda _: error)

    network = FakeNetwork(inputs, outputs)
    api.network, api.parser = lambda builder: network, lambda network: parser(True)
    found, takes, gives = plugin.one_file_network(api, object(), one)  # type: ignore[arg-type]
    assert (found, parsed) == (network, [str(tmp_path / "one.onnx")])
    assert [str(end) for end in takes] == [
        "words: int32[?]", "lanes: int32[?, 6, 3, 2]", "channels: int32[?, 3]", "ranges: float32[?, 3, 2]",
    ]  # fmt: skip
    assert [str(end) for end in gives] == ["labels: uint8[?, 80, ?]", "damaged: int32[?]"]
    for ends in (
        (inputs | {"words": ("INT64", (-1,))}, outputs),
        (inputs | {"lanes": ("INT32", (-1, 7, 3, 2))}, outputs),
        ({"words": ("INT32", (-1,)), "lanes": lanes}, outputs),
        (inputs, {"labels": ("UINT8", (-1, 80, -1))}),
        (inputs, outputs | {"labels": ("INT32", (-1, 80, -1))}),
        (inputs, outputs | {"damaged": ("INT32", (-1, 1))}),
        (inputs, outputs | {"x": ("INT32", (-1,))}),
    ):
        api.network = lambda builder, ends=ends: FakeNetwork(*ends)
        with pytest.raises(ArtifactError, match=r"the network takes .* expected words: int32\[\?\], lanes: .*damaged"):
            plugin.one_file_network(api, object(), one)  # type: ignore[arg-type]
    api.parser = lambda network: parser(False)
    with pytest.raises(ArtifactError, match=r"cannot parse one.onnx: ContextDecode_.*_sm90: bad node"):
        plugin.one_file_network(api, object(), one)  # type: ignore[arg-type]
