"""One-file engines, built on a stand-in for full TensorRT: what it is told, what is written, what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import _fake_tensorrt as fake
import onnx
import pytest
from _fake_plugins import OneFileTensorRt, Symbol, kernel, value
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.bundle import Bundle, add_variant
from latentseg.engine.tensorrt import sidecar
from latentseg.engine.tensorrt.gpus import GpuInfo
from latentseg.engine.tensorrt.sidecar import Profile
from latentseg.errors import ArtifactError, BackendMissingError, UsageError, VerificationError
from latentseg.export import tensorrt_one_file as export
from latentseg.kernels.gpu.one_file import DecodeSpec

SIZE = (131, 517)  # a latent of 17x65: 2x3 tiles of 14x32


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> OneFileTensorRt:
    """Full TensorRT on a machine with a GPU of compute capability 9.0."""
    monkeypatch.setattr(export, "this_gpu", lambda: GpuInfo("a GPU", 90, 1 << 34))
    return OneFileTensorRt(monkeypatch)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that only says what it was asked for."""
    module = ModuleType("latentseg.kernels.triton.ptx")
    module.compile_plugin = lambda bits, tile, arch, floats: kernel(  # type: ignore[attr-defined]
        DecodeSpec(bits, tile, (3, 1, 1), 1, floats, arch, 9)
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: object())


def build(bundle: Bundle, folder: Path, **options: Any) -> Any:
    return export.build_one_file(bundle, "fp32", SIZE, 6, folder, **options)


@pytest.mark.usefixtures("compiler")
def test_bytes_to_labels_in_one_file(tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt) -> None:
    trt.on_build = lambda monitor, logger: logger.log(2, "slow")
    path, file, warnings = build(tiny_bundle, tmp_path, workspace=5 << 20)
    assert path == tmp_path / "segmenter-fp32-tensorrt-131x517.one-file.engine"
    assert (path.read_bytes(), warnings) == (fake.PLAN, ("slow",))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"segmenter-fp32-tensorrt-131x517.one-file.{suffix}" for suffix in ("engine", "json", "timing")
    ]
    # What TensorRT was told: strong typing, a shape of each input, no TF32, the memory, the timing cache.
    calls = dict(trt.calls)
    longest = file.spec.payload_limit
    assert calls["profile"] == [
        ("words", (1,), (6 * 3 * 17 * 65 // 16 + 1,), (6 * longest // 4 + 4,)),
        ("lanes", (1, 6, 3, 2), (6, 6, 3, 2), (6, 6, 3, 2)),
        ("channels", (1, 3), (6, 3), (6, 3)),
        ("ranges", (1, 1, 2), (6, 1, 2), (6, 1, 2)),
    ]
    assert calls["network"] == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert (calls["clear_flag"], calls["memory"]) == ("TF32", ("WORKSPACE", 5 << 20))
    assert calls["timing"] == (b"", False)
    # The sidecar reads back, and says what to feed it.
    assert sidecar.read_one_file(path) == file
    assert [str(end) for end in (*file.inputs, *file.outputs)] == [
        "words: int32[?]", "lanes: int32[?, 6, 3, 2]", "channels: int32[?, 3]", "ranges: float32[?, 1, 2]",
        "labels: uint8[?, ?, ?]", "damaged: int32[?]",
    ]  # fmt: skip
    assert file.frames == Profile((1, 131, 517), (6, 131, 517), (6, 131, 517))
    assert file.spec == DecodeSpec.of(tiny_bundle.header(*SIZE), "float32", 90)
    assert (file.archs, file.version, file.codec_id) == ((90,), "10.13.0.35", tiny_bundle.codec.id)
    assert file.onnx_sha256 == hashlib.sha256(trt.read[0]).hexdigest()
    assert onnx.load_from_string(trt.read[0]).graph.node[0].op_type == file.spec.name
    model = hashlib.sha256((tiny_bundle.path / "segmenter.onnx").read_bytes()).hexdigest()
    assert file.model_sha256 == model != file.onnx_sha256
    # A second one is built when asked for, faster; of another size it has a file of its own.
    with pytest.raises(UsageError, match="the engine exists"):
        build(tiny_bundle, tmp_path)
    build(tiny_bundle, tmp_path, overwrite=True)
    assert trt.calls[-1] == ("timing", (b"+measured", False))
    other, *_ = export.build_one_file(tiny_bundle, "fp32", (8, 8), folder=tmp_path)
    assert other.name == "segmenter-fp32-tensorrt-8x8.one-file.engine"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")
def test_the_engine_gets_the_kernel_that_triton_compiled(
    tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    path, file, _ = build(tiny_bundle, tmp_path)
    ((plugin_id, compiled),) = trt.plugin.compiled.items()  # type: ignore[attr-defined]
    assert plugin_id == f"latentseg::{file.spec.name}"
    fed = file.spec.fed_shapes(Symbol("words"), Symbol("frames"))
    inputs = [SimpleNamespace(shape_expr=shape) for shape in (*fed.values(), (1,), (1,))]
    entry, text, launch, extra = compiled(*inputs, None, None)
    assert f".visible .entry {entry}(" in text
    assert f".target {file.kernel['target']}" in text
    assert (file.kernel["entry"], file.kernel["ptx"]) == (entry, text.split(".version ")[1].split()[0])
    assert value(launch.block_x) == 32 * file.kernel["warps"]
    assert [value(number, words=11, frames=5) for number in extra] == [11, 5, 3, 17, 65, 1]
    assert 0 < file.kernel["registers"] < 256
    assert sidecar.read_one_file(path) == file


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_the_bundles_own_or_made_with_frames(
    precision: str, tmp_path: Path, trt: OneFileTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(UsageError, match=f"{precision} without frames"):
        export.build_one_file(bundle, precision, SIZE)
    asked: list[Any] = []
    rewriting = ModuleType("precision")
    rewriting.rewrite = lambda *arguments: (
        asked.append(arguments)
        or SimpleNamespace(  # type: ignore[attr-defined]
            path=bundle.model_path("segmenter"), report={"label_agreement": 0.75}
        )
    )
    monkeypatch.setitem(sys.modules, "latentseg.export.precision", rewriting)
    with pytest.raises(ArtifactError, match=f"the network is not in {precision}: it has layers"):
        export.build_one_file(bundle, precision, SIZE, images=["image"], labels=["labels"], calibration=3)  # type: ignore[list-item]
    ((_, role, made, _, images, labels, calibration),) = asked
    assert (role, made, images, labels, calibration) == ("segmenter", precision, ["image"], ["labels"], 3)
    rewriting.rewrite = lambda *_: (_ for _ in ()).throw(VerificationError("labels agree on 9 %"))  # type: ignore[attr-defined]
    with pytest.raises(VerificationError, match="9 %"):
        export.build_one_file(bundle, precision, SIZE, images=["image"])  # type: ignore[list-item]
    if precision == "fp16":
        return  # made for an engine each time; no bundle has it
    # Its own, of a network that is in that precision.
    bundle = add_variant(bundle, "segmenter", precision, bundle.model_path("segmenter"), {"label_agreement": 0.5})
    q, x = fake.tensor("q"), fake.tensor("x")
    layers = [fake.layer("QUANTIZE", [x], q), fake.layer("DEQUANTIZE", [q], x), fake.layer("CONVOLUTION", [x, x], q)]
    trt.parsed = fake.network(layers)
    path, file, _ = export.build_one_file(bundle, precision, SIZE)
    assert path == bundle.path / "engines" / f"segmenter-{precision}-tensorrt-131x517.one-file.engine"
    assert (file.source, file.verification) == ("bundle", {"label_agreement": 0.5})
    assert (file.network["half_products"], file.network["int8_products"]) == (0, 1)


@pytest.mark.usefixtures("compiler")
def test_what_the_parser_and_the_builder_refuse(tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt) -> None:
    trt.plan = None
    trt.on_build = lambda monitor, logger: logger.log(0, "out of memory")
    with pytest.raises(ArtifactError, match=r"cannot build segmenter-one-file\.onnx: out of memory") as caught:
        build(tiny_bundle, tmp_path)
    assert "--batch" in caught.value.hint
    trt.parser_errors = [SimpleNamespace(node_name=lambda: "the plugin", desc=lambda: "cannot be compiled")]
    with pytest.raises(ArtifactError, match=r"cannot parse segmenter-one-file\.onnx: the plugin: cannot be compiled"):
        build(tiny_bundle, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiler")
def test_ctrl_c_stops_the_build(tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt) -> None:
    def interrupted(monitor: Any, logger: Any) -> None:
        monitor.phase_start("all", None, 2)
        os.kill(os.getpid(), signal.SIGINT)
        assert not monitor.step_complete("all", 1)
        trt.plan = None

    seen: list[tuple[int, int | None]] = []
    trt.on_build = interrupted
    with pytest.raises(KeyboardInterrupt):
        build(tiny_bundle, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert (seen, list(tmp_path.iterdir())) == ([(1, 2)], [])


def test_what_a_machine_lacks(
    tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: (name != "triton" and find_spec(name)) or None)
    with pytest.raises(BackendMissingError, match="needs the package 'triton'"):
        build(tiny_bundle, tmp_path)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: object())

    def none() -> GpuInfo:
        raise BackendMissingError("this wants an NVIDIA GPU: none")

    monkeypatch.setattr(export, "this_gpu", none)
    with pytest.raises(BackendMissingError, match="wants an NVIDIA GPU"):
        build(tiny_bundle, tmp_path)
    monkeypatch.delattr(trt, "QuickPluginCreationRequest")
    with pytest.raises(ArtifactError, match=r"lacks QuickPluginCreationRequest, expected 10\.9 or later"):
        build(tiny_bundle, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendMissingError, match="needs the package 'tensorrt'"):
        build(tiny_bundle, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiler")
def test_batches_that_the_kernel_cannot_count(tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt) -> None:
    for batch in (0, 2**31 // (3 * 17 * 65) + 1):
        with pytest.raises(ArtifactError, match=f"a batch of {batch} frames"):
            export.build_one_file(tiny_bundle, "fp32", SIZE, batch, tmp_path)
    with pytest.raises(UsageError, match="frames are 0x8"):
        export.build_one_file(tiny_bundle, "fp32", (0, 8), folder=tmp_path)
