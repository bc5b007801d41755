"""`latentseg build`: kernels for a bundle's streams, engines of its models, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _fake_tensorrt import FakeTensorRt
from _tiny_bundle import write_tiny_bundle
from PIL import Image

from latentseg.cli import main
from latentseg.engine import bundle as engine_bundle
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import gpus
from latentseg.engine.tensorrt.sidecar import find_engine, read_engine
from latentseg.errors import VerificationError
from latentseg.export import tensorrt as export_tensorrt
from latentseg.kernels.gpu.images import load_kernels

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or not sys.platform.startswith("linux"),
    reason="wants the package tensorrt-rtx, on Linux",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@triton
def test_kernels_of_a_bundle(tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels"
    argv = ["build", str(tiny_bundle.path), "--target", "kernels", "--arch", "86", "-o", str(out)]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["type"] == "build"
    assert report["bundle"] == tiny_bundle.name
    kernels = load_kernels(out)
    kernels.check_stream(tiny_bundle.codec.bits, tiny_bundle.codec.tile)
    assert (kernels.archs(), kernels.triton) == ([86], report["triton"])
    assert [(i["kernel"], i["arch"], i["registers"]) for i in report["images"]] == [
        (i.kernel, i.arch, i.registers) for i in kernels.images
    ]
    assert not (tiny_bundle.path / "kernels").exists()
    # A second time only when asked to.
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith("context_decode  float16   registers: sm86 ")


@triton
@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--arch", "9"], 2, "compute capability 9, expected some of 75, 80"),
        (["--arch", "80", "85"], 2, "compute capability 85, expected some of 75, 80"),
        (["--arch", "current"], 2, "--arch current with --target kernels"),
        (["--arch", "86", "-o", "/proc/none"], 7, "cannot write kernels to /proc/none"),
    ],
)
def test_kernels_that_cannot_be_built(
    changes: list[str], code: int, message: str, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path), "--target", "kernels", *changes]) == code
    assert message in capsys.readouterr().err


@triton
def test_interpreter_and_compiler_exclude_each_other(tiny_bundle: Bundle, tmp_path: Path) -> None:
    code = "import sys; from latentseg.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "build", str(tiny_bundle.path), "--target", "kernels", "-o", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert (result.returncode, "TRITON_INTERPRET is set" in result.stderr) == (2, True)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        ("", "the following arguments are required: --target", "latentseg build --help"),
        ("--target cuda", "invalid choice: 'cuda'", "latentseg build --help"),
        ("--target kernels --precision fp16", "--precision does not go with --target kernels",
         "--precision is for onnxruntime, tensorrt, tensorrt-rtx"),
        ("--target kernels --profile 1x8x8", "--profile does not go with --target kernels",
         "--profile is for tensorrt, tensorrt-rtx"),
        ("--target kernels --role segmenter", "--role does not go with --target kernels",
         "--role is for onnxruntime, tensorrt, tensorrt-rtx"),
        ("--target tensorrt --arch 89", "--arch does not go with --target tensorrt",
         "--arch is for kernels, tensorrt-rtx"),
        ("--target onnxruntime --workspace 9", "--workspace does not go with --target onnxruntime",
         "--workspace is for tensorrt, tensorrt-rtx"),
        ("--target onnxruntime -o x", "--out does not go with --target onnxruntime",
         "--out is for kernels, tensorrt, tensorrt-rtx"),
        ("--target tensorrt-rtx --frames a --data b", "--frames and --data are both given", "give one"),
        ("--target tensorrt-rtx --split val", "--layout and --split belong to --data", "--data DIR"),
        ("--target tensorrt-rtx --calibration 8", "--calibration is for int8", "--precision int8"),
        ("--target tensorrt-rtx --arch x", "expected an integer of at least 1, found 'x'", "latentseg build --help"),
    ],
)  # fmt: skip
def test_options_and_the_target_they_go_with(
    argv: str, message: str, hint: str, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path), *argv.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert f"hint: {hint}" in err


# --- engines ----------------------------------------------------------------------------------------------------------


@rtx
def test_engines_of_a_bundle(tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "engines"
    argv = [
        "build",
        str(tiny_bundle.path),
        "--target",
        "tensorrt-rtx",
        "--role",
        "segmenter",
        "compressor",
        "segmenter",
    ]
    argv += ["--profile", "1x8x8:2x33x50:4x64x64", "--arch", "120", "89", "-o", str(out)]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["type"], report["target"], report["path"]) == ("build", "tensorrt-rtx", str(out))
    segmenter, compressor = report["engines"]
    assert (segmenter["role"], compressor["role"]) == ("segmenter", "compressor")
    assert (segmenter["archs"], segmenter["precision"]) == ([120, 89], "fp32")
    assert segmenter["frames"] == {"minimum": [1, 8, 8], "optimum": [2, 33, 50], "maximum": [4, 64, 64]}
    # 33x50 is padded to 40x56: a latent of 5x7.
    assert segmenter["profile"] == {"minimum": [1, 3, 1, 1], "optimum": [2, 3, 5, 7], "maximum": [4, 3, 8, 8]}
    assert compressor["profile"]["optimum"] == [2, 40, 56, 3]
    for engine in report["engines"]:
        path = find_engine(tiny_bundle, engine["role"], "fp32", folder=out)
        assert engine["path"] == str(path)
        assert engine["bytes"] == path.stat().st_size
    assert not (tiny_bundle.path / "engines").exists()
    # A second time only when asked to, and nothing is built where one of them is in the way.
    (out / "segmenter-fp32-tensorrt-rtx.engine").unlink()
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
    assert not (out / "segmenter-fp32-tensorrt-rtx.engine").exists()
    assert main([*argv, "--overwrite", "-q"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("segmenter-fp32-tensorrt-rtx.engine  ")
    assert "compute capability 12.0, 8.9, frames 1 of 8x8 to 4 of 64x64" in printed.out
    assert printed.err == ""


@rtx
def test_the_command_of_a_sidecar_builds_the_engine_again(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", str(tiny_bundle.path), "--target", "tensorrt-rtx", "--profile", "2x16x16", "--arch", "75"]
    assert main([*argv, "-o", str(tmp_path)]) == 0
    path = tmp_path / "segmenter-fp32-tensorrt-rtx.engine"
    first = read_engine(path)
    again = first.rebuild(str(tiny_bundle.path)).split()
    assert again[0] == "latentseg"
    assert main([*again[1:], "-o", str(tmp_path)]) == 0
    second = read_engine(path)
    assert replace(second, engine_sha256="", bytes=0) == replace(first, engine_sha256="", bytes=0)


@rtx
@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("--arch 90", 2, "cannot build for compute capability 9.0, it offers 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        ("--arch current 89", 2, "--arch current goes with no other"),
        ("--precision fp16", 2, "fp16 without frames"),
        ("--precision int8", 2, "int8 without frames"),
        ("--precision int8 --role compressor --frames .", 2, "the compressor in int8: a codec stays in fp32"),
        ("--precision fp16 --frames nowhere", 3, "no such file or folder: nowhere"),
        ("--precision fp16 --data nowhere", 3, "no split 'train' in nowhere"),
        ("--profile 1x8x8:2x8x8", 2, "expected the least, the best and the most batch and frame size"),
        ("--profile 1x8", 2, "expected the least, the best and the most batch and frame size"),
        ("--profile 0x8x8", 2, "expected the least, the best and the most batch and frame size"),
        ("--profile 4x8x8:2x8x8:8x8x8", 2, "the best does not lie between the least and the most"),
        ("-o /proc/none", 7, "cannot write /proc/none/segmenter-fp32-tensorrt-rtx.engine"),
        ("-o /proc/version", 2, "/proc/version"),
    ],
)
def test_engines_that_cannot_be_built(
    argv: str, code: int, message: str, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path), "--target", "tensorrt-rtx", *argv.split()]) == code
    assert message in capsys.readouterr().err
    assert not (tiny_bundle.path / "engines").exists()


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("outcome", ["gate fails", "made of another precision"])
def test_a_precision_is_made_and_judged_with_the_users_frames(
    outcome: str,
    labelled: bool,
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt())
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (9, 14, 3), np.uint8) for _ in range(2)]
    labels = [rng.integers(0, 12, (9, 14), np.uint8) for _ in range(2)]  # 11 is CamVid's unlabelled
    for index in range(2):
        Image.fromarray(images[index]).save(tmp_path / f"image{index}.png")
        if labelled:
            Image.fromarray(labels[index]).save(tmp_path / f"label{index}.png")
    (tmp_path / "train.txt").write_text("".join(f"image{i}.png label{i}.png\n" for i in range(2)))
    asked: list[Any] = []

    def rewrite(*arguments: Any) -> Any:
        asked.append(arguments)
        if outcome == "gate fails":
            raise VerificationError("labels agree on 91 % of the pixels, expected 99 %")
        return SimpleNamespace(path=tiny_bundle.model_path("segmenter"), report={})

    precision = ModuleType("precision")
    precision.rewrite = rewrite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "latentseg.export.precision", precision)
    argv = ["build", str(tiny_bundle.path), "--target", "tensorrt", "--precision", "int8", "--calibration", "3"]
    argv += ["--data" if labelled else "--frames", str(tmp_path), "-o", str(tmp_path / "engines")]
    monkeypatch.setattr(export_tensorrt, "this_gpu", lambda: gpus.GpuInfo("a GPU", 90, 1))
    assert main(argv) == (5 if outcome == "gate fails" else 4)
    err = capsys.readouterr().err
    assert ("labels agree on 91 %" if outcome == "gate fails" else "the network is not in int8") in err
    ((bundle, role, made, _, given, truth, calibration),) = asked
    assert (bundle.path, role, made, calibration) == (tiny_bundle.path, "segmenter", "int8", 3)
    np.testing.assert_array_equal(given, images)
    if labelled:
        np.testing.assert_array_equal(truth, np.where(np.array(labels) == 11, 255, labels))
    else:
        assert truth is None
    assert not (tmp_path / "engines").exists()


def test_a_flavour_that_is_not_installed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", str(tiny_bundle.path), "--target", "tensorrt"]) == 6
    assert "hint: pip install 'latentseg[tensorrt]'" in capsys.readouterr().err


def test_a_role_that_the_bundle_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "codec", ("compressor", "decompressor"))
    assert main(["build", str(tmp_path / "codec"), "--target", "tensorrt-rtx"]) == 4
    assert "has no segmenter" in capsys.readouterr().err


# --- doctor -----------------------------------------------------------------------------------------------------------


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """(the report, the same for people)."""
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    return report, capsys.readouterr().out


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.setattr(engine_bundle, "shipped_bundles", lambda: {"tiny": bundle.path})
    return bundle


def test_doctor_says_what_building_would_bring(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "find_gpus", lambda: gpus.Gpus("", "", (), "no NVIDIA driver that answers"))
    report, text = doctor(capsys)
    assert report["gpu"] == {"driver": "", "cuda": "", "devices": [], "reason": "no NVIDIA driver that answers"}
    assert report["built"] == [{"bundle": "tiny", "kernels": [], "kernels_error": "", "engines": []}]
    assert {"tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings"} <= report["packages"].keys()
    assert "no GPU: no NVIDIA driver that answers; one would bring --backend tensorrt" in text
    assert "wants them: latentseg build tiny --target kernels" in text
    assert "wants them: latentseg build tiny --target tensorrt (or tensorrt-rtx)" in text


@rtx
def test_doctor_shows_the_gpu_and_what_was_built(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gpus.Gpus("580.65.06", "13.0", (gpus.GpuInfo("NVIDIA L4", 89, 24 << 30),), "")
    monkeypatch.setattr(gpus, "find_gpus", lambda: found)
    assert main(["build", "./" + os.path.relpath(shipped.path), "--target", "tensorrt-rtx", "--arch", "89", "-q"]) == 0
    name = "segmenter-fp32-tensorrt-rtx.engine"
    broken = shipped.path / "engines" / "segmenter-int8-tensorrt.engine"
    broken.write_bytes(b"no sidecar")
    (shipped.path / "kernels").mkdir()
    (shipped.path / "kernels" / "index.json").write_text("{}")
    report, text = doctor(capsys)
    assert report["gpu"]["devices"] == [{"name": "NVIDIA L4", "capability": 89, "memory": 24 << 30}]
    (built,) = report["built"]
    assert [(e["file"], e["archs"], e["error"] == "") for e in built["engines"]] == [
        (name, [89], True), (broken.name, [], False),
    ]  # fmt: skip
    assert "schema" in built["kernels_error"]
    assert "GPU NVIDIA L4, compute capability 8.9, 24.0 GiB, driver 580.65.06, CUDA up to 13.0" in text
    assert f"{name}: TensorRT-RTX " in text
    assert "has no sidecar" in text


def test_doctor_imports_neither_tensorrt_nor_torch() -> None:
    code = (
        "import sys; from latentseg.cli import main; main(['doctor', '--json']);"
        "sys.exit(bool({'tensorrt', 'tensorrt_rtx', 'torch', 'triton'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
