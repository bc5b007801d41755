"""`latentseg build --one-file`: options, refusals, and what is told of an engine, on a stand-in for full TensorRT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _fake_plugins import OneFileTensorRt, kernel

from latentseg.cli import main
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import gpus
from latentseg.engine.tensorrt.sidecar import find_engine, read_one_file
from latentseg.errors import ArtifactError
from latentseg.export import tensorrt_one_file
from latentseg.kernels.gpu.one_file import DecodeSpec


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> OneFileTensorRt:
    """Full TensorRT and Triton on a machine with a GPU of compute capability 8.9."""
    compiler = ModuleType("latentseg.kernels.triton.ptx")
    compiler.compile_plugin = lambda bits, tile, arch, floats: kernel(  # type: ignore[attr-defined]
        DecodeSpec(bits, tile, (3, 1, 1), 1, floats, arch, 9)
    )
    monkeypatch.setitem(sys.modules, compiler.__name__, compiler)
    monkeypatch.setattr(tensorrt_one_file.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt_one_file, "this_gpu", lambda: gpus.GpuInfo("a GPU", 89, 1))
    return OneFileTensorRt(monkeypatch)


def test_one_file_of_a_bundle(
    tiny_bundle: Bundle, tmp_path: Path, trt: OneFileTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", str(tiny_bundle.path), "--target", "tensorrt", "--one-file", "--size", "33x50", "--workspace", "3"]
    argv += ["-o", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["type"], report["target"], report["path"]) == ("build", "tensorrt", str(tmp_path))
    (engine,) = report["engines"]
    path = tmp_path / "segmenter-fp32-tensorrt-33x50.one-file.engine"
    file = read_one_file(path)
    assert (engine["path"], engine["archs"], engine["frames"]["maximum"]) == (str(path), [89], [8, 33, 50])
    assert engine["one_file"]["stream"]["latent"] == [3, 5, 7]
    assert not {"profile", "input", "output", "schema"} & engine.keys()
    assert ("memory", ("WORKSPACE", 3 << 20)) in trt.calls
    assert not (tiny_bundle.path / "engines").exists()
    with pytest.raises(ArtifactError, match="has no TensorRT"):
        find_engine(tiny_bundle, "segmenter", "fp32", folder=tmp_path)
    # A second time only when asked to; the command of the sidecar is the one that builds it again.
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    again = file.rebuild(str(tiny_bundle.path)).split()
    assert main([*again[1:], "-o", str(tmp_path), "-q"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{path.name}  ")
    assert "compute capability 8.9, frames 1 of 50x33 to 8 of 50x33" in printed.out
    assert printed.err == ""
    assert read_one_file(path) == file


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        ("--target tensorrt-rtx --one-file --size 8x8", "--one-file does not go with --target tensorrt-rtx",
         "--one-file is for tensorrt"),
        ("--target kernels --one-file", "--one-file does not go with --target kernels", "--one-file is for tensorrt"),
        ("--target onnxruntime --size 8x8", "--size does not go with --target onnxruntime", "--size is for tensorrt"),
        ("--target tensorrt-rtx --batch 4", "--batch does not go with --target tensorrt-rtx", "--batch is for"),
        ("--target tensorrt --one-file", "--one-file wants the size of the frames", "--size HxW"),
        ("--target tensorrt --size 8x8", "--size is for --one-file", "other engines take --profile MIN:OPT:MAX"),
        ("--target tensorrt --batch 8", "--batch is for --one-file", "other engines take --profile MIN:OPT:MAX"),
        ("--target tensorrt --one-file --size 8x8 --profile 1x8x8", "--profile does not go with --one-file",
         "--size HxW and --batch N"),
        ("--target tensorrt --one-file --size 8x8 --arch 89", "--arch does not go with --target tensorrt", "--arch is"),
        ("--target tensorrt --one-file --size 8x8 --role segmenter compressor",
         "--one-file with --role segmenter compressor", "leave out --role"),
        ("--target tensorrt --one-file --size 8x8 --calibration 4", "--calibration is for int8", "--precision int8"),
        ("--target tensorrt --one-file --size 1x8x8", "expected height and width as HxW", "latentseg build --help"),
        ("--target tensorrt --one-file --size 8x0", "expected an integer of at least 1", "latentseg build --help"),
        ("--target tensorrt --one-file --size 8x8 --batch 0", "expected an integer of at least 1", "latentseg build"),
        ("--target tensorrt --one-file --size 8x8 --precision fp16", "fp16 without frames", "--frames FOLDER"),
    ],
)  # fmt: skip
def test_options_and_what_they_go_with(
    argv: str, message: str, hint: str, tiny_bundle: Bundle, trt: OneFileTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path), *argv.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert f"hint: {hint}" in err
    assert not trt.calls
    assert not (tiny_bundle.path / "engines").exists()


def test_what_this_machine_lacks(
    tiny_bundle: Bundle, trt: OneFileTensorRt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", str(tiny_bundle.path), "--target", "tensorrt", "--one-file", "--size", "8x8"]
    monkeypatch.setattr(gpus, "find_gpus", lambda cuda: gpus.Gpus("", "", (), "no NVIDIA driver that answers"))
    monkeypatch.setattr(tensorrt_one_file, "this_gpu", gpus.this_gpu)
    assert main(argv) == 6
    assert "this wants an NVIDIA GPU: no NVIDIA driver that answers" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    assert main(argv) == 6
    assert "its module 'plugin' does not import" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(argv) == 6
    assert "hint: pip install 'latentseg[tensorrt]'" in capsys.readouterr().err


def test_frames_that_no_stream_has(
    tiny_bundle: Bundle, trt: OneFileTensorRt, capsys: pytest.CaptureFixture[str]
) -> None:
    argv: list[Any] = ["build", str(tiny_bundle.path), "--target", "tensorrt", "--one-file", "--batch", "99999999"]
    assert main([*argv, "--size", "1080x1920"]) == 4
    assert "a batch of 99999999 frames" in capsys.readouterr().err
    assert main([*argv, "--size", "9999999x9999999"]) == 2
    assert "frames of 9999999x9999999: stream header: latent of 1250000 x 1250000" in capsys.readouterr().err
