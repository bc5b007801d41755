"""The measurement on fakes of GPU and TensorRT and DALI's CPU decoder: what is right is timed, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_cuda import Code
from _fake_drivers import FakeDriver
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, Setup, frames_of

from latentseg.benchmarks import (
    gpu_arms,
    gpu_chain,
    gpu_jpeg,
    gpu_material,
    gpu_measure,
    gpu_sender,
    gpu_suite,
    gpu_timing,
)
from latentseg.benchmarks import measure as measure_module
from latentseg.benchmarks.clips import Clip
from latentseg.benchmarks.gpu_engines import kernels_for
from latentseg.benchmarks.gpu_jpeg import Decoded, JpegDecoder, fastest
from latentseg.benchmarks.gpu_measure import Plan, measure
from latentseg.engine.roles import Compressor
from latentseg.engine.sources.dali.pipe import Pipe
from latentseg.engine.tensorrt.gpus import GpuInfo
from latentseg.errors import ArtifactError, BackendMissingError, UsageError
from latentseg.kernels.gpu.images import load_kernels

CANDIDATES = gpu_jpeg.CANDIDATES
ARMS = ["compressed", "learned-decode", "jpeg", "jpeg-q95"]
FRAMES = 5  # batches of 2 wrap round


class Driver(FakeDriver):
    """With what the meters ask for."""

    def _cuMemGetInfo(self) -> tuple[int, int]:
        total = 1 << 30
        return total - sum(map(len, self.cuda.memory.values())), total

    def _cuDeviceGetPCIBusId(self, size: int, device: int) -> bytes:
        return b"0000:01:00.0"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The fake machine, whose TensorRT builds at once; DALI decodes on the CPU, into the fake's memory."""
    setup = Setup(tmp_path, monkeypatch)
    setup.plug_in()
    for name in ("gpu_arms.open_device", "gpu_measure.open_device"):
        monkeypatch.setattr(f"latentseg.benchmarks.{name}", setup.device)
    monkeypatch.setattr("latentseg.benchmarks.gpu_engines.this_gpu", lambda: GpuInfo("Fake", 90, 2**30))
    monkeypatch.setattr("latentseg.kernels.gpu.device.cuda_bindings", lambda: Driver(setup.cuda))
    monkeypatch.setattr(gpu_measure, "synthetic_clip", lambda count, size: Clip("colours", list(frames_of(FRAMES))))
    monkeypatch.setattr(gpu_chain, "_HOLD_BYTES", 4096)
    for name in ("LEAST_BATCHES", "MOST_BATCHES", "LEAST_SINGLES", "MOST_SINGLES"):
        monkeypatch.setattr(gpu_timing, name, 3)
    monkeypatch.setattr(measure_module.gc, "collect", lambda: 0)  # with torch loaded it takes longer than all the rest
    monkeypatch.setattr(gpu_jpeg, "_TUNED", 3)
    monkeypatch.setattr(gpu_jpeg, "CANDIDATES", CANDIDATES[:1])
    monkeypatch.setattr("latentseg.benchmarks.gpu_arms.SAMPLES", 2)
    monkeypatch.setattr(gpu_jpeg, "SAMPLES", 2)

    def build(bundle: Any, role: str, precision: str, flavour: str, frames: Any, *rest: Any, **options: Any) -> None:
        batch, *sides = frames.maximum
        most = (batch, *(-(-side // 8) * 8 for side in sides))
        write_fake_engine(bundle, setup.cuda, role, precision, flavour, frames=((1, 8, 8), most))

    monkeypatch.setattr("latentseg.export.tensorrt.build_role", build)
    monkeypatch.setattr(gpu_jpeg, "GPU", None)
    real = JpegDecoder.batches

    def on_device(self: JpegDecoder, count: int | None = None, first: int = 0) -> Iterator[Decoded]:
        rooms = self.__dict__.setdefault("rooms", [])  # as many buffers as batches can be under way, by turns
        for number, decoded in enumerate(real(self, count, first)):
            frames = np.asarray(decoded.tensor)
            if len(rooms) < 4:
                rooms.append(setup.cuda.allocate(frames.nbytes, setup.cuda.memory))
            address = rooms[number % len(rooms)]
            setup.cuda.view(address, frames.nbytes)[:] = frames.reshape(-1)
            yield Decoded(address, decoded.tensor)

    monkeypatch.setattr(JpegDecoder, "batches", on_device)
    return setup


def plan_for(machine: Setup, **changes: Any) -> Plan:
    settings = {"precisions": ("fp32",), "batches": (1, 2), "rounds": 2, **changes}
    return Plan(str(machine.bundle.path), **settings)


def rows_of(plan: Plan, *parts: str, checked: dict[str, str] | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    assert measure(plan, parts, checked or {}, rows.append) == rows
    json.dumps(rows, allow_nan=False)
    return rows


def of(rows: list[dict[str, Any]], kind: str) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["arm"], row["batch"]): row for row in rows if row["kind"] == kind}


def test_every_arm_is_measured_with_the_cpus_labels(machine: Setup) -> None:
    rows = rows_of(plan_for(machine), "measure-tensorrt")
    (last,) = [row for row in rows if row["kind"] == "part"]
    assert last is rows[-1]
    assert last["result"] == "ran", last
    assert [row["detail"] for row in rows if row["result"] == "failed"] == []
    assert last["detail"] == {"gpu": "Fake", "capability": 9.0, "version": "10.13.0.35", "rows": "16 ran"}
    arms, stages = of(rows, "arm"), of(rows, "stages")
    assert list(arms) == [(arm, batch) for batch in (1, 2) for arm in ARMS]
    for (arm, batch), row in arms.items():
        assert row["agreement"] == 1.0, arm
        assert row["frames_per_round"] % batch == 0
        assert row["rounds"] == 2
        assert row["latency_ms"]["n"] == 6
        assert row["frames_per_second"]["min"] > 0
        assert row["host_ms"]["total"] > 0
        assert row["gpu_memory_mib"] > 0
        assert row["joules_per_frame"].startswith("not readable: ")
        assert len(row["time_over_compressed"]["per_round"]) == 2
        assert row["provider"] == "TensorRT 10.13.0.35 on Fake (9.0)"
        assert (row["codec_precision"], row["weights"], row["frame_size"]) == ("fp32", "trained", [61, 83])
    assert arms["compressed", 1]["bytes_per_frame"] == arms["learned-decode", 2]["bytes_per_frame"]
    assert set(arms["learned-decode", 1]["engines"]) == {"kernels", "decompressor fp32", "rgb_segmenter fp32"}
    assert arms["compressed", 1]["engines"]["kernels"] == "the bundle's own"
    # The bundle has a segmenter's engine of its own, for many sizes: no arm has another kind of engine than the others.
    assert list((machine.bundle.path / "engines").glob("segmenter-fp32-*.engine"))
    for row in arms.values():
        assert all(made.startswith("built here in ") for role, made in row["engines"].items() if role != "kernels")
    assert [list(stages[arm, 2]["stage_ms"]) for arm in ARMS[:3]] == [
        ["copy_in", "entropy_decode", "segmenter", "copy_out"],
        ["copy_in", "entropy_decode", "decompressor", "rgb_segmenter", "copy_out"],
        ["decode", "copy_frames", "rgb_segmenter", "copy_out"],
    ]
    assert machine.cuda.calls["cuGraphLaunch"] > 100
    left = (machine.cuda.pinned, machine.cuda.graphs, machine.cuda.retained)
    assert left == ({}, {}, 0)


def test_all_of_dalis_settings_are_tried_and_the_fastest_taken(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_jpeg, "CANDIDATES", CANDIDATES)
    rows = rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt")
    detail = of(rows, "arm")["jpeg", 2]["detail"]
    settings = detail["tried"]
    tried = {(each["hardware_share"], each["fancy_upsampling"]): each["frames_per_second"] for each in settings}
    assert sorted(tried) == [(0.65, False), (0.65, True), (0.9, False), (0.9, True)]
    best = max(tried, key=tried.__getitem__)
    assert detail["decoder"] == {"hardware_share": best[0], "fancy_upsampling": best[1]}
    assert of(rows, "arm")["jpeg-q95", 2]["sent"]["quality"] == 95


def test_a_setting_with_other_labels_is_not_taken() -> None:
    wrong = {"error": "other labels"}
    assert fastest([{"frames_per_second": 5.0}, wrong, {"frames_per_second": 7.0}]) == 2
    assert fastest([wrong, {"frames_per_second": 1.0}]) == 1
    assert fastest([wrong]) is None


def test_labels_of_another_network_are_not_timed(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = gpu_material.Material._truth

    def wrong(self: Any, arm: str, precision: str) -> Any:
        labels = truth(self, arm, precision)
        return labels if arm == "compressed" else (labels + 1) % 3

    monkeypatch.setattr(gpu_material.Material, "_truth", wrong)
    arms = of(rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt"), "arm")
    assert {name: row["result"] for (name, _), row in arms.items()} == {
        "compressed": "ran", "learned-decode": "failed", "jpeg": "failed", "jpeg-q95": "failed",
    }  # fmt: skip
    error = arms["learned-decode", 2]["detail"]["error"]
    assert "learned-decode, fp32, batch 2: 0.0000% of the labels are the CPU's, expected at least 99.8%" in error
    assert "expected at least 97.0%" in arms["jpeg", 2]["detail"]["error"]


def test_an_arm_that_cannot_run_costs_the_others_nothing(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_dali(*args: Any) -> None:
        raise BackendMissingError("this needs the package 'nvidia-dali-cuda130', which is not installed")

    monkeypatch.setattr(gpu_jpeg, "Pipe", no_dali)
    rows = rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt")
    results = {name: row["result"] for (name, _), row in of(rows, "arm").items()}
    assert results == dict(zip(ARMS, ["ran", "ran", "not available here", "not available here"], strict=True))
    assert "nvidia-dali" in of(rows, "arm")["jpeg", 2]["detail"]["reason"]
    assert [name for name, _ in of(rows, "stages")] == ARMS[:2]
    assert rows[-1]["detail"]["rows"] == "4 ran, 2 not available here"
    assert gpu_suite.exit_code(rows) == 0


@pytest.mark.parametrize(("arm", "kind"), [("learned-decode", gpu_arms.LearnedDecodeArm), ("jpeg", gpu_jpeg.JpegArm)])
@pytest.mark.parametrize(("method", "after"), [("run", 3), ("singles", 0), ("singles", 2), ("host", 0)])
def test_an_arm_that_fails_while_it_is_timed_costs_the_others_nothing(
    machine: Setup, monkeypatch: pytest.MonkeyPatch, arm: str, kind: Any, method: str, after: int
) -> None:
    good, calls = getattr(kind, method), []
    closed: list[str] = []

    def bad(self: Any, *arguments: Any) -> Any:
        calls.append(self.name)
        if self.name == arm and calls.count(arm) > after:
            raise ArtifactError(f"the {arm} went away")
        return good(self, *arguments)

    close = kind.close
    monkeypatch.setattr(kind, method, bad)
    monkeypatch.setattr(kind, "close", lambda self: (closed.append(self.name), close(self)))
    time_arms = gpu_measure.time_arms
    together: list[list[str]] = []

    def noted(arms: Any, *rest: Any, **options: Any) -> Any:
        together.append([*arms, "without" if arm in closed else "with"])
        return time_arms(arms, *rest, **options)

    monkeypatch.setattr(gpu_measure, "time_arms", noted)
    rows = rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt")
    found = of(rows, "arm")
    assert {name: row["result"] for (name, _), row in found.items()} == {
        name: "failed" if name == arm else "ran" for name in ARMS
    }
    assert found[arm, 2]["detail"]["error"] == f"ArtifactError: the {arm} went away"
    others = [name for name in ARMS if name != arm]
    if method != "host":  # those that are left are timed together, with the other one closed
        assert together[-1] == [*others, "without"]
    assert all(row["rounds"] == 2 for (name, _), row in found.items() if name != arm)
    stages = of(rows, "stages")
    assert {name: row["result"] for (name, _), row in stages.items()} == dict.fromkeys(others, "ran")
    assert (machine.cuda.pinned, machine.cuda.graphs, machine.cuda.retained) == ({}, {}, 0)


def test_stages_that_fail_are_lost_alone(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    good = gpu_jpeg.JpegArm.stages

    def bad(self: Any) -> Any:
        if self.name == "jpeg":
            raise ArtifactError("no events")
        return good(self)

    monkeypatch.setattr(gpu_jpeg.JpegArm, "stages", bad)
    rows = rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt")
    assert {row["result"] for row in of(rows, "arm").values()} == {"ran"}
    assert {name: row["result"] for (name, _), row in of(rows, "stages").items()} == {
        name: "failed" if name == "jpeg" else "ran" for name in ARMS
    }


def test_a_pipeline_is_built_once_for_many_runs(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    build, depths = Pipe._build, []

    def noted(self: Any) -> None:
        depths.append(self._depth)
        build(self)

    monkeypatch.setattr(Pipe, "_build", noted)
    rows = rows_of(plan_for(machine, batches=(2,), rounds=4), "measure-tensorrt")
    assert {row["result"] for row in rows} == {"ran"}
    # Of each of the two arms: one batch at a time in every round, the host's time and the stages.
    assert depths.count(1) == 2
    assert depths.count(gpu_jpeg.AHEAD) == 6  # to be opened, for the one setting to try, and for it again as the best


def test_what_is_loaded_once_is_no_arms_memory(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    load, once = gpu_arms.FusedSegmenter.__init__, []

    def loading(self: Any, *arguments: Any, **options: Any) -> None:
        if not once:
            once.append(machine.cuda.allocate(64 << 20, machine.cuda.memory))
        load(self, *arguments, **options)

    monkeypatch.setattr(gpu_arms.FusedSegmenter, "__init__", loading)
    found = of(rows_of(plan_for(machine, batches=(2,)), "measure-tensorrt"), "arm")
    assert once
    assert 0 < found["compressed", 2]["gpu_memory_mib"] < 32


def test_kernels_that_were_changed_are_said(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine.bundle.path / "kernels"
    made = load_kernels(folder)
    monkeypatch.setattr("latentseg.kernels.triton.compile.compile_kernels", lambda *codec, codebook: made)
    capability = made.images[0].arch
    assert kernels_for(machine.bundle, capability)[1] == "the bundle's own"
    assert "not the bundle's own: no compiled kernel context_decode" in kernels_for(machine.bundle, 70)[1]
    cubin = next(folder.glob("*.cubin"))
    cubin.write_bytes(cubin.read_bytes() + b"x")
    kernels, where = kernels_for(machine.bundle, capability)
    assert kernels is made
    assert where.startswith("compiled here in ")
    assert where.endswith(f"not the bundle's own: compiled kernel kernels/{cubin.name} was changed")
    shutil.rmtree(folder)
    assert "bundle" not in kernels_for(machine.bundle, capability)[1]


def test_too_little_memory_is_said_of_the_batch(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = machine.cuda.allocate

    def small(size: int, where: Any) -> int:
        if where is machine.cuda.pinned and size > 2 * 64 * 88 + 4096:
            machine.cuda.fail["cuMemHostAlloc"] = Code.CUDA_ERROR_OUT_OF_MEMORY
            machine.cuda.called("cuMemHostAlloc")
        return allocate(size, where)

    monkeypatch.setattr(machine.cuda, "allocate", small)
    found = of(rows_of(plan_for(machine, batches=(1, 8)), "measure-tensorrt"), "arm")
    assert found["jpeg", 1]["result"] == "ran"
    assert found["jpeg", 8]["result"] == "not available here"
    assert "too little GPU memory: cuMemHostAlloc failed" in found["jpeg", 8]["detail"]["reason"]


def test_what_failed_in_the_check_is_not_measured(machine: Setup) -> None:
    (row,) = rows_of(plan_for(machine), "measure-tensorrt", checked={"tensorrt": "failed"})
    assert row["result"] == "failed"
    assert "not measured: its check 'tensorrt' failed" in row["detail"]["error"]
    (row,) = rows_of(plan_for(machine), "full-tensorrt", checked={"decode-pycuda": "not available here"})
    assert row["result"] == "not available here"
    assert "its check 'decode-pycuda' was not available here" in row["detail"]["reason"]
    assert not machine.cuda.calls
    rows = rows_of(plan_for(machine, batches=(1,)), "measure-tensorrt", checked={"tensorrt": "ran"})
    assert rows[-1]["result"] == "ran"


def test_the_papers_networks_want_a_folder_and_are_said_to_be_random(machine: Setup) -> None:
    (row,) = rows_of(plan_for(machine), "full-tensorrt")
    assert row["result"] == "not available here"
    assert "python -m latentseg.benchmarks.gpu_networks DIR" in row["detail"]["hint"]
    manifest = machine.bundle.path / "manifest.json"
    raw = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**raw, "training": {"segmenter": {"weights": "random"}}}))
    rows = rows_of(plan_for(machine, batches=(2,), full=machine.bundle.path), "full-tensorrt")
    assert rows[-1]["result"] == "ran"
    assert {row["weights"] for row in rows[:-1]} == {"random"}


def test_the_sender_is_measured_with_the_cpus_symbols(machine: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sender, "SIZE", SIZE)
    monkeypatch.setattr(gpu_sender, "LEAST_BATCHES", 2)
    monkeypatch.setattr(gpu_sender, "MOST_BATCHES", 2)
    made = load_kernels(machine.bundle.path / "kernels")
    shutil.rmtree(machine.bundle.path / "kernels")
    monkeypatch.setattr("latentseg.kernels.triton.compile.compile_kernels", lambda *codec, codebook: made)
    rows = rows_of(plan_for(machine, batches=(1, 3)), "sender-tensorrt")
    assert [row["result"] for row in rows] == ["ran"] * 3, rows
    assert [row["frames_per_round"] for row in rows[:2]] == [2, 6]
    assert [row["symbols_equal"] for row in rows[:2]] == [1.0, 1.0]
    assert rows[0]["frames_per_second"]["max"] > 0
    assert rows[0]["engines"]["kernels"].startswith("compiled here in ")
    assert rows[0]["engines"]["compressor fp32"].startswith("built here in ")
    right, encode = rows, Compressor.encode
    monkeypatch.setattr(
        Compressor, "encode", lambda self, frames, header: encode(self, frames[:, ::-1], header)
    )  # fmt: skip
    rows = rows_of(plan_for(machine, batches=(1,)), "sender-tensorrt")
    assert "of the symbols are the CPU's, expected at least 99.9%" in rows[0]["detail"]["error"]
    assert rows[-1]["result"] == "failed"
    # The bytes are the sender's own, whatever the CPU makes of the frames.
    sent = right[0]["bytes_per_frame"]
    monkeypatch.setattr(gpu_sender, "same_symbols", lambda *payloads: 1.0)
    monkeypatch.setattr(Compressor, "encode", lambda self, frames, header: [b"\0" * 7] * len(frames))
    assert rows_of(plan_for(machine, batches=(1,)), "sender-tensorrt")[0]["bytes_per_frame"] == sent


def test_a_machine_without_a_gpu_says_so_of_every_part(tiny_bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--measure", "--bundle", str(tiny_bundle.path)]) == 6
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["part"] for row in rows] == list(gpu_measure.PARTS)
    assert {row["result"] for row in rows} == {"not available here"}
    assert all(row["detail"]["reason"] for row in rows)


def test_command_line(machine: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "gpu.jsonl"
    options = ["--measure", "--bundle", str(machine.bundle.path), "--record", str(record), "--rounds", "1"]
    options += ["--precision", "fp32", "--batches", "2"]
    assert gpu_suite.main([*options, "--parts", "measure-tensorrt"]) == 0
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    shown = capsys.readouterr()
    assert rows == [json.loads(line) for line in shown.out.splitlines()]
    assert all(row.keys() >= {"part", "kind", "result", "mode", "machine", "versions", "date"} for row in rows)
    assert "time / compressed" in shown.err
    assert "host time a batch (ms), fp32, batch 2" in shown.err
    for wrong, said in (
        (["--parts", "measure-opencl"], "no part 'measure-opencl'"),
        (["--parts", "graph"], "no part 'graph'"),
        (["--check", "--parts", "measure-tensorrt"], "--check, and no part of it among --parts"),
    ):
        assert gpu_suite.main([*options, *wrong]) == UsageError.exit_code
        assert said in capsys.readouterr().err
    for wrong in (["--batches", "0"], ["--batches", "x"], ["--precision", "fp64"], ["--rounds", "-1"]):
        with pytest.raises(SystemExit):
            gpu_suite.main([*options, *wrong])
    with pytest.raises(SystemExit):
        gpu_suite.main([])
