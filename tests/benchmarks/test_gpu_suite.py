"""The GPU suite's check, on fakes of GPU and TensorRT: right is told from wrong, and nothing is left out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_engines import Context, write_fake_engine
from _fused_setup import Setup
from _kernel_images import kernels

from latentseg.benchmarks import gpu_checks, gpu_checks_sender, gpu_suite
from latentseg.bitstream import Scaling
from latentseg.engine.roles import Compressor
from latentseg.engine.tensorrt.gpus import GpuInfo
from latentseg.errors import BackendInactiveError, BackendMissingError, UsageError, VerificationError
from latentseg.kernels.gpu.images import KernelSet


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The fake machine, small frames, and kernels that were compiled elsewhere."""
    setup = Setup(tmp_path, monkeypatch)
    setup.plug_in()
    tile = setup.header.tile
    monkeypatch.setattr(gpu_checks, "SIZE", (24, 32))
    monkeypatch.setattr(gpu_checks, "AWKWARD", ((3, 1, 1), (5, 17, 31)))
    monkeypatch.setattr(gpu_checks, "FLOATS", ("float32",))
    check_stream = KernelSet.check_stream

    def compiled(self: Any, capability: int, scaling: Scaling | None = None) -> KernelSet:
        found = kernels(capability, tile=tile)
        return replace(found, codebook=scaling is not None and scaling.mode == "codebook")

    def noting(self: KernelSet, bits: int, tile: tuple[int, int], codebook: bool = False) -> None:
        setup.cuda.codebook = codebook  # the fake's kernels do not know what they were compiled for
        check_stream(self, bits, tile, codebook)

    monkeypatch.setattr(gpu_checks.Checks, "kernels", compiled)
    monkeypatch.setattr(KernelSet, "check_stream", noting)
    monkeypatch.setattr("latentseg.engine.tensorrt.gpus.this_gpu", lambda: GpuInfo("Fake", 90, 2**30))
    monkeypatch.setattr("latentseg.engine.tensorrt.api.is_installed", lambda flavour: flavour == "tensorrt")
    monkeypatch.setattr("latentseg.kernels.gpu.launch.Gpu", lambda: setup.device(bindings=True))

    def build(bundle: Any, role: str, precision: str, flavour: str, *rest: Any, **options: Any) -> None:
        write_fake_engine(bundle, setup.cuda, role, precision, flavour, frames=((1, 24, 32), (5, 24, 32)))

    monkeypatch.setattr("latentseg.export.tensorrt.build_role", build)
    return setup


def rows_of(machine: Setup, *parts: str) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    assert gpu_suite.check(str(machine.bundle.path), parts, rows.append) == rows
    return {row["part"]: row for row in rows}


def test_what_is_right_runs(machine: Setup) -> None:
    rows = rows_of(machine, "decode-cuda-bindings", "decode-pycuda", "graph", "tensorrt")
    assert {part: row["result"] for part, row in rows.items()} == dict.fromkeys(rows, "ran"), rows
    assert rows["decode-pycuda"]["detail"] == {"device": "Fake", "batches": 16, "floats": "equal", "damage": "found"}
    assert rows["graph"]["detail"] == {"nodes": 3, "floats": "equal"}
    found = rows["tensorrt"]["detail"]
    keys = [f"{what} {p}" for p in ("fp32", "fp16") for what in ("segmenter", "rgb_segmenter", "fused")]
    assert [found[key] for key in (*keys, "fused fp32 in graphs", "fused fp16 in graphs")] == [1.0] * 8
    assert found["int8"] == "the bundle has none"
    assert machine.cuda.calls["cuGraphLaunch"] > 0
    assert machine.clean


def test_wrong_floats_are_found(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    good = machine.cuda.kernel

    def off_by_one_bit(kernel: str, named: dict[str, int]) -> None:
        good(kernel, named)
        machine.cuda.view(named["out"], 4)[0] ^= 1

    monkeypatch.setattr(machine.cuda, "kernel", off_by_one_bit)
    rows = rows_of(machine, "decode-pycuda", "graph")
    assert [row["result"] for row in rows.values()] == ["failed", "failed"]
    assert "other floats" in rows["decode-pycuda"]["detail"]["error"]


def test_damage_that_is_passed_over_is_found(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentseg.kernels.gpu.launch.check_damage", lambda damaged: None)
    row = rows_of(machine, "decode-pycuda")["decode-pycuda"]
    assert row["result"] == "failed"
    assert "damaged payload was decoded" in row["detail"]["error"]


def test_labels_of_another_network_are_found(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.full((5, 24, 32), 9, np.uint8)
    monkeypatch.setattr(gpu_checks.Checks, "cpu_labels", lambda self, precision="fp32": (wrong, wrong))
    row = rows_of(machine, "tensorrt")["tensorrt"]
    assert row["result"] == "failed"
    assert "0.0000% of the labels are the CPU's, expected at least 99.8%" in row["detail"]["error"]


def test_each_flavour_is_measured_with_its_own_engines(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    full, rtx = machine.module, machine.install("tensorrt-rtx")
    modules = {"tensorrt": full, "tensorrt_rtx": rtx}
    monkeypatch.setattr("latentseg.engine.tensorrt.api.importlib.import_module", modules.__getitem__)
    rows = rows_of(machine, "tensorrt", "tensorrt-rtx")
    assert rows["tensorrt"]["detail"]["provider"].startswith("TensorRT 10.13")
    assert rows["tensorrt-rtx"]["detail"]["provider"].startswith("TensorRT-RTX 1.7")
    assert full.contexts
    assert rtx.contexts


def test_a_graph_that_starts_nothing_is_found(machine: Setup) -> None:
    machine.module.silent = True
    assert rows_of(machine, "tensorrt")["tensorrt"]["result"] == "failed"


def test_the_sender_is_compared(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks_sender, "SHAPES", ((3, 1, 1), (5, 17, 31)))
    rows = rows_of(machine, "quantize", "sender")
    assert {part: row["result"] for part, row in rows.items()} == {"quantize": "ran", "sender": "ran"}, rows
    expected = {"device": "Fake", "batches": 16, "payloads": "equal", "not finite": "found"}
    assert rows["quantize"]["detail"] == expected
    found = rows["sender"]["detail"]
    assert found["provider"].startswith("TensorRT")
    assert [found[key] for key in ("float2int", "symbols", "most levels apart", "latents off, steps")] == [
        "exact", 1.0, 0, 0.0
    ]  # fmt: skip
    assert machine.cuda.calls["cuGraphLaunch"] > 0
    assert machine.clean


@pytest.mark.parametrize(("argument", "message"), [("q", "other symbols or ranges"), ("bad", "without a word")])
def test_wrong_symbols_and_hidden_nan_are_found(
    machine: Setup, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.setattr(gpu_checks_sender, "SHAPES", ((5, 17, 31),))
    good = machine.cuda.kernel

    def wrong(kernel: str, named: dict[str, Any]) -> None:
        good(kernel, named)
        if kernel == "quantize" and argument == "q":
            machine.cuda.view(named["q"], 1)[0] ^= 1
        elif kernel == "quantize":
            machine.cuda.view(named["bad"], 4, np.int32)[0] = 0

    monkeypatch.setattr(machine.cuda, "kernel", wrong)
    rows = rows_of(machine, "quantize", *(["sender"] if argument == "q" else []))
    assert {row["result"] for row in rows.values()} == {"failed"}
    assert message in rows["quantize"]["detail"]["error"]
    if argument == "q":
        assert "other payloads than the CPU's of the same latents" in rows["sender"]["detail"]["error"]


@pytest.mark.parametrize(
    ("off", "message"),
    [
        (0.04, ""),
        (0.06, r"latents lie 0\.06 steps from the CPU's, expected at most 0\.05"),
        (np.nan, "latent holds"),
    ],
)
def test_latents_of_another_network_are_found(
    machine: Setup, monkeypatch: pytest.MonkeyPatch, off: float, message: str
) -> None:
    good = Context.compute

    def shifted(self: Context, array: np.ndarray) -> np.ndarray:
        found = good(self, array)
        found[:, 0, 0, 0] = np.rint(found[:, 0, 0, 0]) + off
        return found

    cpu = Compressor.latents

    def rounded(self: Compressor, frames: np.ndarray) -> np.ndarray:
        found = cpu(self, frames)
        found[:, 0, 0, 0] = np.rint(found[:, 0, 0, 0])
        return found

    monkeypatch.setattr(Context, "compute", shifted)
    monkeypatch.setattr(Compressor, "latents", rounded)
    row = rows_of(machine, "sender")["sender"]
    assert row["result"] == ("failed" if message else "ran"), row
    if message:
        assert re.search(message, row["detail"]["error"])
    else:
        assert row["detail"]["latents off, steps"] == pytest.approx(0.04, abs=1e-4)


def test_too_many_other_symbols_are_found(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks_sender, "LATENT_STEPS", 9)
    good = Context.compute
    monkeypatch.setattr(Context, "compute", lambda self, array: good(self, array) + np.float32(2))
    row = rows_of(machine, "sender")["sender"]
    assert row["result"] == "failed"
    assert re.search(r"of a frame's symbols are the CPU's, and the others up to 2 levels", row["detail"]["error"])


def test_results_are_told_apart() -> None:
    def raising(error: Exception) -> Any:
        def body() -> dict[str, Any]:
            raise error

        return body

    def result(error: Exception) -> tuple[str, str]:
        row = gpu_suite.run_part("x", raising(error))
        return row["result"], next(iter(row["detail"]))

    assert result(BackendMissingError("no GPU")) == ("not available here", "reason")
    assert result(BackendInactiveError("the session runs on the CPU")) == ("failed", "error")
    assert result(ModuleNotFoundError("no", name="torch")) == ("not available here", "reason")
    assert result(ModuleNotFoundError("no", name="latentseg.x")) == ("failed", "error")
    assert result(ImportError("cannot import name")) == ("failed", "error")
    assert result(VerificationError("other")) == ("failed", "error")
    assert result(ZeroDivisionError()) == ("failed", "error")
    codes = {("ran",): 0, ("ran", "not available here"): 0, ("not available here",): 6, ("ran", "failed"): 5}
    for results, code in codes.items():
        assert gpu_suite.exit_code([{"part": "x", "result": found} for found in results]) == code
    assert gpu_suite.exit_code([{"part": "gpu", "result": "ran"}]) == 6  # names the GPU, compares nothing


def test_command_line(machine: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "rows.jsonl"
    options = ["--check", "--bundle", str(machine.bundle.path), "--record", str(record)]
    assert gpu_suite.main([*options, "--parts", "decode-pycuda"]) == 0
    (row,) = [json.loads(line) for line in record.read_text().splitlines()]
    shown = capsys.readouterr()
    assert row == json.loads(shown.out)
    assert row.keys() >= {"part", "result", "detail", "seconds", "machine", "versions", "date", "bundle"}
    assert "decode-pycuda" in shown.err
    assert gpu_suite.main([*options, "--parts", "decode-opencl"]) == UsageError.exit_code
    assert "no part 'decode-opencl'" in capsys.readouterr().err
    assert gpu_suite.main(["--check", "--bundle", str(tmp_path / "none")]) in (3, 4)
    assert gpu_suite.main([*options[:3], "--record", str(tmp_path / "no" / "rows.jsonl")]) == UsageError.exit_code
    assert "no such folder" in capsys.readouterr().err
    assert gpu_suite.main([*options, "--parts", " decode-pycuda, graph"]) == 0
