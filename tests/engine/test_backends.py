"""The backend contract: found by name, guarded, and never something else in silence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from latentseg.engine.backends import BACKENDS, open_backend
from latentseg.engine.bundle import Bundle
from latentseg.errors import ArtifactError, BackendMissingError, UsageError


def test_runs_and_tells(tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle.model_path("rgb_segmenter"), threads=1) as backend:
        assert backend.provider == "CPUExecutionProvider"
        assert (str(backend.input), str(backend.output)) == ("frames: uint8[?, ?, ?, 3]", "labels: uint8[?, ?, ?]")
        frames = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
        np.testing.assert_array_equal(backend.run(frames), frames.argmax(3))
        backend.run(frames[:, ::2])  # not contiguous
        assert backend.runs == 2
        assert 0 < backend.last_run_s <= backend.total_run_s


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)],
)
def test_input_that_does_not_fit(tiny_bundle: Bundle, array: Any) -> None:
    with open_backend(tiny_bundle.model_path("compressor")) as backend:
        with pytest.raises(ArtifactError, match=r"input is .*, expected frames: uint8\[\?, \?, \?, 3\]"):
            backend.run(array)
        assert backend.runs == 0


def test_state_is_guarded(tiny_bundle: Bundle) -> None:
    backend = open_backend(tiny_bundle.model_path("segmenter"))
    with pytest.raises(UsageError, match="expected a new one"):
        backend.load()
    backend.close()
    backend.close()
    with pytest.raises(UsageError, match="is closed, expected it loaded"):
        backend.run(np.zeros((1, 3, 1, 1), np.float32))


def test_unknown_name_and_threads(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.model_path("segmenter")
    with pytest.raises(UsageError, match="unknown backend 'abacus'") as caught:
        open_backend(path, "abacus")
    assert all(name in caught.value.hint for name in BACKENDS)
    with pytest.raises(UsageError, match="threads is 0"):
        open_backend(path, threads=0)


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model file"):
        open_backend(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf at all")
    with pytest.raises(ArtifactError, match="cannot load") as caught:
        open_backend(tmp_path / "bad.onnx")
    assert caught.value.exit_code == 4


def test_model_with_two_inputs(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="2 inputs and 1 outputs"):
        open_backend(tmp_path / "m.onnx")


def test_unknown_provider(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="backend onnxruntime has no provider 'rocm'") as caught:
        open_backend(tiny_bundle.model_path("segmenter"), provider="rocm")
    assert caught.value.hint == "its providers: cpu, cuda"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
def test_gpu_asked_for_and_not_there(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendMissingError, match="asked for CUDAExecutionProvider, found") as caught:
        open_backend(tiny_bundle.model_path("segmenter"), provider="cuda")
    assert caught.value.exit_code == 6


class FakeCuda:
    """onnxruntime-gpu as far as this backend calls it, computing on the CPU: what a session says is up to the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, active: str, elsewhere: dict[str, list[str]]) -> None:
        self.asked: list[Any] = []
        real = onnxruntime.InferenceSession

        def session(path: str, options: Any, providers: list[Any]) -> Any:
            self.asked += providers
            made = real(path, options, ["CPUExecutionProvider"])
            monkeypatch.setattr(made, "get_providers", lambda: [active, "CPUExecutionProvider"])
            parts = [
                SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
                for name, ops in elsewhere.items()
            ]
            monkeypatch.setattr(made, "get_provider_graph_assignment_info", lambda: parts)
            return made

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)


def test_provider_that_falls_back_in_silence(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # What onnxruntime-gpu does on a machine without a driver: the provider is available, and the session is on the CPU.
    FakeCuda(monkeypatch, "CPUExecutionProvider", {})
    with pytest.raises(BackendMissingError, match="the session runs on CPUExecutionProvider"):
        open_backend(tiny_bundle.model_path("segmenter"), provider="cuda")


def test_operation_that_falls_back_in_silence(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cuda = tiny_bundle.model_path("segmenter"), "CUDAExecutionProvider"
    FakeCuda(monkeypatch, cuda, {cuda: ["Conv"], "CPUExecutionProvider": ["Shape", "QLinearConv", "ArgMax"]})
    with pytest.raises(BackendMissingError, match="2 operations run elsewhere, such as QLinearConv on CPU"):
        open_backend(path, provider="cuda")
    fake = FakeCuda(monkeypatch, cuda, {cuda: ["Conv", "ArgMax"], "CPUExecutionProvider": ["Shape", "Gather"]})
    with open_backend(path, provider="cuda") as backend:  # the arithmetic of shapes is meant to be there
        assert (backend.asked, backend.provider) == ("cuda", cuda)
    ((name, options),) = fake.asked
    assert (name, options["use_tf32"]) == (cuda, "0")


def test_recorded_assignment_is_the_real_one(tiny_bundle: Bundle) -> None:
    """The API that the check above reads, as the installed onnxruntime has it."""
    with open_backend(tiny_bundle.model_path("segmenter")) as backend:
        parts = backend._session.get_provider_graph_assignment_info()  # type: ignore[attr-defined]
        assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
        assert sorted(node.op_type for part in parts for node in part.get_nodes()) == ["ArgMax", "Cast", "Resize"]


def test_onnxruntime_not_installed(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissingError, match="onnxruntime") as caught:
        open_backend(tiny_bundle.model_path("segmenter"))
    assert caught.value.hint == "pip install 'latentseg[cpu]'"


def test_output_that_was_not_announced(tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle.model_path("segmenter")) as backend:
        backend._session = SimpleNamespace(run=lambda *_: [np.zeros((1, 8, 8), np.int64)])  # type: ignore[attr-defined]
        with pytest.raises(ArtifactError, match=r"output is int64\[1, 8, 8\], expected labels: uint8"):
            backend.run(np.zeros((1, 3, 1, 1), np.float32))


def test_int8_is_exact_on_every_cpu(tmp_path: Path) -> None:
    """x86 without VNNI adds two products in 16 bits, which overflow; ONNX Runtime is told to take other kernels."""
    rng = np.random.default_rng(0)
    x = rng.integers(60, 128, (1, 16, 9, 11)).astype(np.int8)
    weight = rng.choice(np.array([-127, 127], np.int8), (8, 16, 3, 3))
    weight[:4] = 127
    scale = {"one": np.float32(1), "out": np.float32(4096)}
    constants = {**scale, "zero": np.int8(0), "weight": weight, "bias": np.zeros(8, np.int32), "izero": np.int32(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "zero"], ["w"]),
        helper.make_node("DequantizeLinear", ["bias", "one", "izero"], ["b"]),
        helper.make_node("Conv", ["a", "w", "b"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "out", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "out", "zero"], ["z"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("z", (1, 8, 7, 9)))]
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.int64), (3, 3), (1, 2))
    expected = np.einsum("chwij,ocij->ohw", windows, weight.astype(np.int64)) / 4096
    with open_backend(tmp_path / "m.onnx") as backend:
        found = backend.run(x.astype(np.float32))[0] / 4096
    np.testing.assert_array_equal(found, np.clip(np.rint(expected), -128, 127))
    assert len(np.unique(found)) > 20
