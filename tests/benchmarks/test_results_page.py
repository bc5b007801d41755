"""docs/results.md says what the recorded rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentseg.benchmarks.results_page import learned_table, main, page
from latentseg.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_current(tmp_path: Path) -> None:
    assert main([str(ROOT / "benchmarks" / "results"), str(tmp_path / "results.md")]) == 0
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()


def test_jpeg_is_interpolated_at_the_same_rate() -> None:
    def point(kind: str, codec: str, bpp: float, psnr: float, setting: dict) -> dict:
        return {"kind": kind, "codec": codec, "bpp": bpp, "psnr": psnr, "ssim": psnr / 100, "setting": setting} | {
            "compression_factor": 24 / bpp
        }

    rows = [
        point("jpeg", "JPEG 4:2:0", 0.25, 25.0, {"quality": 5}),
        point("jpeg", "JPEG 4:2:0", 1.0, 35.0, {"quality": 50}),
        point("learned", "ours", 0.5, 33.0, {"bundle": "a", "coder": "context"}),
        point("learned", "ours", 4.0, 44.0, {"bundle": "b", "coder": "context"}),
    ]
    lines = learned_table(rows).splitlines()
    assert "30.00" in lines[-2]  # half way between 0.25 and 1 bpp on a log axis
    assert "33.00" in lines[-2]
    assert "30.00" not in lines[-1]  # outside of what was measured: nothing is made up


def test_missing_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recorded rows"):
        page(tmp_path)
