"""`latentseg bench` as it is typed: table, JSON, record and plot, and the exit codes of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from latentseg.cli import main

if TYPE_CHECKING:
    from latentseg.engine.bundle import Bundle


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, size=(16, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_everything_at_once(
    frames: Path, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(frames), "--bundle", str(tiny_bundle.path), "--rounds", "2", "--batch", "1,2", "--threads", "1"]
    rows, plot = tmp_path / "rows.jsonl", tmp_path / "plot.png"
    assert main(["bench", *common, "--record", str(rows), "--plot", str(plot), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert json.loads(rows.read_text()) == result
    assert result["schema"] == 1
    assert result["configuration"]["rounds"] == 2
    assert str(frames.parent) not in line
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert main(["bench", *common, "--arms", "compressed, jpeg-q95", "--frames", "2", "--record", str(rows)]) == 0
    printed = capsys.readouterr().out
    assert "compressed" in printed
    assert "learned-decode" not in printed
    assert "only the first 2 of about 3 frames" in printed
    assert len(rows.read_text().splitlines()) == 2
    assert main(["bench", *common, "--plot", str(plot)]) == 2
    assert "the output exists" in capsys.readouterr().err


def test_result_survives_a_record_that_cannot_be_written(
    frames: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(frames), "--bundle", str(tiny_bundle.path), "--rounds", "1", "--batch", "1", "--threads", "1"]
    assert main(["bench", *argv, "--arms", "compressed", "--record", "/dev/full", "--json"]) == 7
    captured = capsys.readouterr()
    assert json.loads(captured.out)["type"] == "bench"
    assert "cannot append" in captured.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--arms", "jepg"], 2, "unknown arm 'jepg'"),
        (["--arms", "h264"], 2, "'h264' cannot run here"),
        (["--batch", "0"], 2, "at least 1"),
        (["--batch", "9"], 2, "nothing to measure"),
        (["--warmup", "-1"], 2, "at least 0"),
        (["--labels", "no-such-folder"], 3, "cannot read the pairs"),
        (["--bundle", "no-such-bundle"], 2, "no bundle named"),
    ],
)
def test_mistakes(
    frames: Path,
    tiny_bundle: Bundle,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", str(frames), "--bundle", str(tiny_bundle.path), "--threads", "1", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_missing_source(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "no-such-file.mp4", "--bundle", str(tiny_bundle.path)]) == 3
    assert "no-such-file.mp4" in capsys.readouterr().err
