"""The tables, word for word, from a result made by hand; and rows that are appended, never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentseg.benchmarks import report
from latentseg.errors import OutputError


def arm(name: str, factor: float, quality: dict[str, Any] | None) -> dict[str, Any]:
    shares = {"entropy_decode": 0.012, "decode": 0.0, "segment": 0.98, "rest": 0.008}
    latency = {"mean": 20.0 * factor, "p50": 20.0 * factor, "p90": 21.0, "p99": 22.5, "max": 30.0}
    return {
        "name": name,
        "bytes_per_frame": 7776.0,
        "bpp": 0.36,
        "compression_factor": 24 / 0.36,
        "macs_per_frame": 1.5e9,
        "parameters": 860_000,
        "agreement": 0.9,
        "quality": quality,
        "timings": [
            {
                "batch": 1,
                "n": 303,
                "frames_per_second": 50.0 / factor,
                "latency_ms": latency,
                "stage_share": shares,
                "time_over_compressed": {"median": factor, "min": factor - 0.02, "max": factor + 0.031},
            }
        ],
    }


@pytest.fixture
def result() -> dict[str, Any]:
    quality = {"miou": 0.61, "mean_dice": 0.72, "pixel_accuracy": 0.9, "iou": {"sky": 0.9, "pole": None}}
    ceiling = {**arm("rgb-original", 1.0, {**quality, "miou": 0.63}), "bpp": 24.0, "bytes_per_frame": 518400.0}
    return {
        "configuration": {
            "source": "val.txt",
            "labels": "val.txt",
            "frames": 101,
            "frame_size": [360, 480],
            "bundle": {"name": "tiny"},
            "batches": [1],
            "rounds": 3,
            "threads": 2,
            "backend": "onnxruntime",
        },
        "machine": {"cpu": "Some CPU", "cores": 2},
        "versions": {"onnxruntime": "1.31.1"},
        "sender": [{"name": "codec", "cost": {"compress_ms": {"mean": 9.0}, "entropy_encode_ms": {"mean": 0.5}}}],
        "arms": [arm("compressed", 1.0, quality), arm("jpeg", 1.25, quality)],
        "ceiling": {**ceiling, "compression_factor": 1.0},
        "left_out": [{"name": "h264", "reason": "not applicable: no video"}],
        "notes": ["a note"],
    }


GOLDEN = """\
val.txt: 101 frames of 480x360, bundle tiny, 3 interleaved rounds
Some CPU, 2 of 2 cores, onnxruntime 1.31.1

Batch 1 (latency of one frame), from bytes in memory to uint8 labels; shares of the time by stage:
arm         frames/s  p50 ms  p90 ms  p99 ms  max ms    n  entropy  decode  segment   rest    time / compressed
----------  --------  ------  ------  ------  ------  ---  -------  ------  -------  -----  -------------------
compressed     50.00    20.0    21.0    22.5    30.0  303    1.2 %       -     98 %  0.8 %  1.00 (0.98 to 1.03)
jpeg           40.00    25.0    21.0    22.5    30.0  303    1.2 %       -     98 %  0.8 %  1.25 (1.23 to 1.28)

Rate, cost and quality; factor: against 24-bit RGB; agreement: with the RGB network on the original frames:
arm           bytes/frame     bpp  factor  GMAC/frame  M param  agreement    mIoU    Dice  pixel acc.
------------  -----------  ------  ------  ----------  -------  ---------  ------  ------  ----------
compressed          7,776   0.360    66.7        1.50     0.86     0.9000  0.6100  0.7200      0.9000
jpeg                7,776   0.360    66.7        1.50     0.86     0.9000  0.6100  0.7200      0.9000
rgb-original      518,400  24.000     1.0        1.50     0.86     0.9000  0.6300  0.7200      0.9000

IoU   compressed   jpeg  rgb-original
----  ----------  -----  ------------
sky        0.900  0.900         0.900
pole           -      -             -

Encoding, before the timing:
sender  ms/frame                           of which
------  --------  ---------------------------------
codec        9.5  compress 9.0 + entropy encode 0.5

left out: h264: not applicable: no video
a note
"""


def test_report_word_for_word(result: dict[str, Any]) -> None:
    assert report.text(result) == GOLDEN


def test_report_without_labels_or_ceiling(result: dict[str, Any]) -> None:
    result["configuration"]["labels"] = None
    result["ceiling"] = None
    for entry in result["arms"]:
        entry["quality"] = entry["agreement"] = None
        entry["timings"][0]["time_over_compressed"] = None
    text = report.text(result)
    assert "mIoU" not in text
    assert "IoU " not in text
    assert all(line.rstrip() == line for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "-"), (0.004, "0.4 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (1.0, "100 %")]
)
def test_share(value: float, text: str) -> None:
    assert report.share(value) == text


def test_rows_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for number in (1, 2):
        report.append_row(path, {"number": number, "text": "ä\n"})
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [1, 2]
    with pytest.raises(OutputError, match="cannot append"):
        report.append_row(tmp_path / "no" / "rows.jsonl", {})
    with pytest.raises(ValueError, match="JSON"):
        report.append_row(path, {"number": float("nan")})
