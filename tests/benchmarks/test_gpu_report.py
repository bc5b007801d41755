"""What is shown of the rows of a GPU: numbers by hand, aims met and missed, nothing where nothing was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentseg.benchmarks.gpu_plots import main, plot_throughput
from latentseg.benchmarks.gpu_report import aims, text
from latentseg.benchmarks.results_page import page
from latentseg.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMON = {
    "part": "measure-tensorrt", "bundle": "tiny", "weights": "trained", "frame_size": [720, 960], "precision": "fp16",
    "date": "2026-11-22T10:00:00+00:00", "mode": "measure",
}  # fmt: skip


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 0.1, "max": median + 0.1}


def arm(name: str, batch: int, rate: float, over: float, **changes: Any) -> dict[str, Any]:
    return {
        **COMMON, "kind": "arm", "arm": name, "batch": batch, "result": "ran", "provider": "TensorRT on a card",
        "frames_per_second": {"median": rate, "min": rate - 10, "max": rate + 10},
        "latency_ms": {"p50": 1.25, "p95": 1.5, "p99": 2.0, "max": 3.0, "n": 70},
        "time_over_compressed": ratio(over), "host_ms": {"submit": 0.02, "collect": 0.02, "total": 0.04},
        "cpu_ms_per_frame": 0.5, "gpu_memory_mib": 812.0, "joules_per_frame": "not readable: no NVML",
        "bytes_per_frame": 6543.0, "agreement": 0.9991, "detail": {}, **changes,
    }  # fmt: skip


def stages(batch: int, share: float) -> dict[str, Any]:
    times = {"copy_in": 0.05, "entropy_decode": share, "segmenter": 0.94 - share, "copy_out": 0.01}
    return {**COMMON, "kind": "stages", "arm": "compressed", "batch": batch, "result": "ran", "stage_ms": times,
            "stage_share": times, "batches": 20, "detail": {}}  # fmt: skip


ROWS = [
    arm("jpeg", 8, 900.0, 1.05),
    arm("compressed", 8, 1000.0, 1.0, joules_per_frame=0.25),
    arm("learned-decode", 8, 500.0, 2.0),
    {**COMMON, "kind": "arm", "arm": "jpeg-q95", "batch": 8, "result": "failed", "detail": {"error": "other labels"}},
    stages(8, 0.008),
    arm("compressed", 1, 300.0, 1.0, host_ms={"total": 0.07}),
    stages(1, 0.031),
    {**COMMON, "kind": "part", "result": "ran", "detail": {"rows": "6 ran, 1 failed"}, "seconds": 1.0},
]
SENDER = {
    "part": "sender-tensorrt", "kind": "sender", "bundle": "tiny", "frame_size": [1080, 1920], "batch": 8,
    "result": "ran", "precision": "fp32", "frames_per_second": {"median": 25.0, "min": 24.0, "max": 26.0},
    "cpu_ms_per_frame": 30.0, "bytes_per_frame": 9000.0, "symbols_equal": 0.9999, "real_time": 30.0, "detail": {},
}  # fmt: skip


def test_aims_beside_what_was_found() -> None:
    found = {aim.text: (aim.wanted, aim.found, aim.met) for aim in aims([*ROWS, SENDER])}
    share, host = "entropy decode + int2float, share of the time, fp16, batch ", "host time a batch (ms), fp16, batch "
    assert found == {
        f"{share}8": (0.01, 0.008, True),
        f"{share}1": (0.03, 0.031, False),
        f"{host}8": (0.05, 0.04, True),
        f"{host}1": (0.05, 0.07, False),
        "time of jpeg over compressed, fp16, batch 8": (1.1, 1.05, False),
        "time of learned-decode over compressed, fp16, batch 8": (1.8, 2.0, True),
        "sender, 1920x1080 frames/s, batch 8": (30.0, 25.0, False),
    }


def test_the_tables_say_what_the_rows_say() -> None:
    shown = text([*ROWS, SENDER])
    lines = [line.split() for line in shown.splitlines()]
    compressed = next(words for words in lines if words[:2] == ["compressed", "1,000"])
    assert compressed == [
        "compressed", "1,000", "(990", "to", "1,010)", "1.25", "1.50", "2.00", "1.00", "(0.90", "to", "1.10)", "0.040",
        "0.500", "812", "0.250", "6,543", "0.9991",
    ]  # fmt: skip
    names = [words[0] for words in lines if words and words[0] in ("compressed", "learned-decode", "jpeg", "jpeg-q95")]
    assert names[:4] == ["compressed", "learned-decode", "jpeg", "jpeg-q95"]  # whatever the order of the rows
    assert "jpeg-q95 (arm): failed: other labels" in shown
    assert "0.008 (0.8 %)" in shown
    assert "25.0 (24.0 to 26.0)" in shown
    assert "sender-tensorrt: was not finished" in shown
    assert "random" not in shown
    assert "random weights: speed only" in text([{**ROWS[0], "weights": "random"}])
    assert text([]) == ""


def test_a_share_that_no_aim_names_is_no_aim() -> None:
    assert aims([{**stages(4, 0.5)}, {**ROWS[3]}]) == []


def test_the_page_shows_a_gpu_only_where_there_are_rows(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", folder)
    (folder / "gpu.jsonl").unlink(missing_ok=True)
    without = page(folder)
    assert "On a GPU" not in without
    (folder / "gpu.jsonl").write_text("")
    assert page(folder) == without
    check = {"part": "graph", "mode": "check", "result": "ran", "detail": {}, "date": "2026-11-22T10:00:00+00:00"}
    (folder / "gpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [check, *ROWS]))
    shown = page(folder)
    assert shown.startswith(without.rstrip("\n"))
    assert "## On a GPU" in shown
    assert "time of jpeg over compressed, fp16, batch 8" in shown
    assert "(gpu-throughput.png)" in shown


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        (b"\xff\xfe", "cannot read"),
        (b'{"result": "ran"}\n{"kind"', "line 2: not JSON"),
        (b"\n", "line 1: not JSON"),
        (b"[1]\n", "line 1: expected an object with a 'result'"),
        (b'{"result": "failed", "kind": "arm"}\n', "no row of an arm that ran"),
    ],
)
def test_rows_that_cannot_be_drawn_are_an_error_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    rows, plot = tmp_path / "gpu.jsonl", tmp_path / "plot.png"
    if content is not None:
        rows.write_bytes(content)
    assert main([str(rows), str(plot)]) == InputError.exit_code
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert "gpu_suite --measure --record" in hint
    assert not plot.exists()
    with pytest.raises(SystemExit) as caught:
        main([str(rows)])
    assert caught.value.code == 2


def test_the_plot_has_a_line_an_arm(tmp_path: Path) -> None:
    rows = tmp_path / "gpu.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert main([str(rows), str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no row of an arm that ran"):
        plot_throughput([ROWS[3], SENDER], tmp_path / "none.png")
    rows.write_text("")
    assert main([str(rows), str(tmp_path / "none.png")]) == InputError.exit_code
