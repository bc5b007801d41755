"""`latentseg build`: kernels for a bundle's streams, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentseg.cli import main
from latentseg.engine.bundle import Bundle
from latentseg.kernels.gpu.images import load_kernels

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


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


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--target", "kernels", "--arch", "9"], 2, "compute capability 9, expected some of 75, 80"),
        (["--target", "kernels", "--arch", "80", "85"], 2, "compute capability 85, expected some of 75, 80"),
        (["--target", "tensorrt"], 2, "invalid choice: 'tensorrt'"),
        ([], 2, "--target"),
        (["--target", "kernels", "--arch", "86", "-o", "/proc/none"], 7, "cannot write kernels to /proc/none"),
    ],
)
def test_what_cannot_be_built(
    changes: list[str], code: int, message: str, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_bundle.path), *changes]) == code
    assert message in capsys.readouterr().err


def test_interpreter_and_compiler_exclude_each_other(tiny_bundle: Bundle, tmp_path: Path) -> None:
    code = "import sys; from latentseg.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "build", str(tiny_bundle.path), "--target", "kernels", "-o", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert (result.returncode, "TRITON_INTERPRET is set" in result.stderr) == (2, True)
