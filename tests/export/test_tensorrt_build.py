"""What every build sets: TensorRT-RTX engines that can be captured in a CUDA graph, and no TF32."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from latentseg.engine.tensorrt import api
from latentseg.engine.tensorrt.engine_file import Profile
from latentseg.errors import ArtifactError
from latentseg.export.tensorrt import parse_onnx
from latentseg.export.tensorrt_build import serialize

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or not sys.platform.startswith("linux"),
    reason="wants the package tensorrt-rtx, on Linux",
)
PROFILE = Profile((1, 3, 1, 1), (2, 3, 5, 7), (4, 3, 9, 9))


def model(path: Path, nodes: list[Any], shape: list[Any], kind: int) -> Path:
    source = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", 3, "h", "w"])
    result = helper.make_tensor_value_info("result", kind, shape)
    graph = helper.make_graph(nodes, "small", [source], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def build(trt: api.TensorRt, path: Path) -> bytes:
    builder = trt.builder()
    return serialize(trt, builder, parse_onnx(trt, builder, path), {"latent": PROFILE}, path.name, (89,))


@rtx
def test_an_engine_allocates_nothing_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = api.open_flavour("tensorrt-rtx")
    made: list[Any] = []
    config = trt.config
    monkeypatch.setattr(trt, "config", lambda builder: made.append(config(builder)) or made[0])
    assert build(trt, model(tmp_path / "fine.onnx", [helper.make_node("Relu", ["latent"], ["result"])],
                            ["N", 3, "h", "w"], TensorProto.FLOAT))  # fmt: skip
    flags = trt.module.BuilderFlag
    assert (made[0].get_flag(flags.REQUIRE_USER_ALLOCATION), made[0].get_flag(flags.TF32)) == (True, False)


def test_a_flag_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(
        add_optimization_profile=lambda profile: 0, clear_flag=lambda flag: None, set_flag=lambda flag: None,
        get_flag=lambda flag: False,
    )  # fmt: skip
    trt: Any = SimpleNamespace(
        config=lambda builder: config, set_archs=lambda config, archs: None, is_rtx=True,
        module=SimpleNamespace(BuilderFlag=SimpleNamespace(TF32=1, REQUIRE_USER_ALLOCATION=2)),
        failed=lambda what: ArtifactError(f"TensorRT-RTX {what}"),
    )  # fmt: skip
    builder: Any = SimpleNamespace(create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shape: None))
    with pytest.raises(ArtifactError, match="refused REQUIRE_USER_ALLOCATION, which CUDA graphs want"):
        serialize(trt, builder, SimpleNamespace(), {"latent": PROFILE}, "a file")  # type: ignore[arg-type]
