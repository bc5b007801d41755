"""Full TensorRT, which wants a GPU to be imported at all: what it is told, on a stand-in that records it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _fake_tensorrt as fake
import pytest
from _fake_tensorrt import FakeTensorRt

from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import api
from latentseg.engine.tensorrt.gpus import GpuInfo
from latentseg.engine.tensorrt.sidecar import Profile
from latentseg.errors import ArtifactError, BackendMissingError, UsageError
from latentseg.export import tensorrt as export

FRAMES = Profile((1, 8, 8), (2, 24, 16), (4, 61, 33))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    module = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(export, "this_gpu", lambda: GpuInfo("a GPU", 90, 1 << 34))
    return module


def build(bundle: Bundle, folder: Path, **options: Any) -> Any:
    return export.build_role(bundle, "segmenter", "fp32", "tensorrt", FRAMES, folder=folder, **options)


def test_full_tensorrt_builds_for_the_gpu_it_is_on(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    path, file, built = build(tiny_bundle, tmp_path, workspace=5 << 20)
    assert (path.name, path.read_bytes(), built.data) == ("segmenter-fp32-tensorrt.engine", fake.PLAN, fake.PLAN)
    assert (file.archs, file.version, file.flavour) == ((90,), "10.13.0.35", "tensorrt")
    assert dict(trt.calls) == {
        "network": 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "parse": str(tiny_bundle.path / "segmenter.onnx"),
        "profile": [("latent", (1, 3, 1, 1), (2, 3, 3, 2), (4, 3, 8, 5))],
        "clear_flag": "TF32",
        "memory": ("WORKSPACE", 5 << 20),
        "timing": (b"", False),
    }
    # The next build starts from what this one measured.
    assert path.with_suffix(".timing").read_bytes() == b"+measured"
    with pytest.raises(UsageError, match="the engine exists"):
        build(tiny_bundle, tmp_path)
    build(tiny_bundle, tmp_path, overwrite=True)
    assert trt.calls[-1] == ("timing", (b"+measured", False))
    assert path.with_suffix(".timing").read_bytes() == b"+measured+measured"


def test_a_timing_cache_of_another_machine_is_left_out(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    trt.foreign_timing = b"another GPU's"
    (tmp_path / "segmenter-fp32-tensorrt.timing").write_bytes(trt.foreign_timing)
    build(tiny_bundle, tmp_path)
    assert [call for call in trt.calls if call[0] == "timing"] == [
        ("timing", (b"another GPU's", False)), ("timing", (b"", False)),
    ]  # fmt: skip
    assert (tmp_path / "segmenter-fp32-tensorrt.timing").read_bytes() == b"+measured"


def test_tensorrt_without_the_flag_is_strongly_typed_anyway(
    tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt
) -> None:
    trt.NetworkDefinitionCreationFlag = SimpleNamespace()
    build(tiny_bundle, tmp_path)
    assert ("network", 0) in trt.calls


def test_full_tensorrt_takes_no_capability(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    with pytest.raises(UsageError, match="takes no compute capability"):
        build(tiny_bundle, tmp_path, archs=[89])


def test_what_the_builder_and_the_parser_say(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    trt.plan = None
    trt.on_build = lambda monitor, logger: (
        logger.log(1, "cudaError 35: no driver"), logger.log(2, "slow"), logger.log(0, "no tactic\n for conv 7"),
    )  # fmt: skip
    with pytest.raises(
        ArtifactError, match=r"^TensorRT 10\.13\.0\.35 cannot build segmenter\.onnx: no tactic for conv 7$"
    ):
        build(tiny_bundle, tmp_path)
    assert not list(tmp_path.iterdir())
    trt.parser_errors = [
        SimpleNamespace(node_name=lambda: "conv_7", desc=lambda: "unsupported\n  dilation"),
        SimpleNamespace(node_name=lambda: "", desc=lambda: "and more"),
    ]
    with pytest.raises(
        ArtifactError, match=r"cannot parse segmenter\.onnx: conv_7: unsupported dilation; the model: and"
    ):
        build(tiny_bundle, tmp_path)


def test_errors_of_a_build_that_worked_are_not_believed(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    trt.on_build = lambda monitor, logger: (logger.log(1, "cudaError 35"), logger.log(2, "slow"), logger.log(2, "slow"))
    *_, built = build(tiny_bundle, tmp_path)
    assert built.warnings == ("slow",)


def test_progress_is_the_sum_of_all_phases(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    seen: list[tuple[int, int | None]] = []

    def phases(monitor: Any, logger: Any) -> None:
        monitor.phase_start("all", None, 2)
        assert monitor.step_complete("all", 0)
        monitor.phase_start("tactics", "all", 3)
        for step in range(5):  # more than it announced
            assert monitor.step_complete("tactics", step)
        monitor.phase_finish("tactics")
        monitor.phase_finish("all")  # with a step left

    trt.on_build = phases
    build(tiny_bundle, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_ctrl_c_stops_the_build(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    answers: list[bool] = []

    def interrupted(monitor: Any, logger: Any) -> None:
        monitor.phase_start("all", None, 2)
        answers.append(monitor.step_complete("all", 0))
        os.kill(os.getpid(), signal.SIGINT)
        answers.append(monitor.step_complete("all", 1))
        trt.plan = None

    trt.on_build = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_bundle, tmp_path)
    assert (answers, signal.getsignal(signal.SIGINT)) == ([True, False], before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layers", "is_one"),
    [
        ("float", {"fp32"}),
        ("half", {"fp16"}),
        ("quantised", {"int8"}),
        ("half weights, float products", {"fp32"}),
        ("nothing", {"fp32"}),
    ],
)
def test_the_precision_is_read_off_the_tensors(
    layers: str, is_one: set[str], tiny_bundle: Bundle, trt: FakeTensorRt
) -> None:
    x, w, q, dq, dw = (fake.tensor(name) for name in ("x", "w", "q", "dq", "dw"))
    h = fake.tensor("h", "HALF")
    kinds = {
        "float": [fake.layer("CONVOLUTION", [x, w], fake.tensor("y"))],
        "half": [fake.layer("CONVOLUTION", [h, h], h)],
        "quantised": [
            fake.layer("QUANTIZE", [x], q), fake.layer("DEQUANTIZE", [q], dq), fake.layer("DEQUANTIZE", [w], dw),
            fake.layer("CONVOLUTION", [dq, dw, None], fake.tensor("y")),
        ],
        "half weights, float products": [
            fake.layer("CAST", [h], w), fake.layer("CAST", [h], h), fake.layer("CONVOLUTION", [x, w], fake.tensor("y")),
        ],
        "nothing": [fake.layer("CAST", [x], fake.tensor("y"))],
    }  # fmt: skip
    opened = api.open_flavour("tensorrt")
    for precision in ("fp32", "fp16", "int8"):
        network, ends = fake.network(kinds[layers]), export.contract(tiny_bundle, "segmenter")
        if precision in is_one:
            export.check_network(opened, network, ends, precision)
        else:
            with pytest.raises(ArtifactError, match=f"the network is not in {precision}"):
                export.check_network(opened, network, ends, precision)


def test_odd_networks(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    labels = fake.tensor("labels", "UINT8", (-1, -1, -1))
    trt.parsed = fake.network(ends=(fake.tensor("latent"), labels, labels))
    with pytest.raises(ArtifactError, match="1 inputs and 2 outputs"):
        build(tiny_bundle, tmp_path)
    trt.parsed = fake.network(ends=(fake.tensor("latent", "FP8"), labels))
    with pytest.raises(ArtifactError, match="latent is FP8, expected one of FLOAT"):
        build(tiny_bundle, tmp_path)
    trt.parsed = fake.network(ends=(fake.tensor("latent", shape=(-1, 4, -1, -1)), labels))
    with pytest.raises(ArtifactError, match=r"input is latent: float32\[\?, 4, \?, \?\], expected float32\[\?, 3"):
        build(tiny_bundle, tmp_path)


def test_a_builder_that_cannot_be_made(tiny_bundle: Bundle, tmp_path: Path, trt: FakeTensorRt) -> None:
    def no_gpu(logger: Any) -> None:
        logger.log(0, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = no_gpu
    with pytest.raises(ArtifactError, match="cannot make a builder: CUDA initialization failure"):
        build(tiny_bundle, tmp_path)


# --- opening a flavour ------------------------------------------------------------------------------------------------


def test_flavours_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour, module in api.FLAVOURS.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendMissingError, match=f"needs the package '{module}'") as caught:
            api.open_flavour(flavour)
        assert caught.value.hint == f"pip install 'latentseg[{flavour}]'"
    with pytest.raises(UsageError, match="expected tensorrt or tensorrt-rtx"):
        api.open_flavour("tensorflow")


def test_a_flavour_whose_libraries_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvonnxparser.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendMissingError, match="TensorRT is installed but does not import: libnvonnxparser"):
        api.open_flavour("tensorrt")


def test_a_version_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt("8.6.1"))
    with pytest.raises(ArtifactError, match=r"TensorRT 8\.6\.1 is installed, expected at least 10\.13"):
        api.open_flavour("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt("11.4.0.106"))
    assert api.open_flavour("tensorrt").version == "11.4.0.106"
