"""The benchmark of the entropy coder: its rows, its own check, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentseg.benchmarks import entropy as benchmark
from latentseg.errors import VerificationError

FAST = ["--repeats", "3", "--seconds", "0.01"]


@pytest.fixture
def symbols(tmp_path: Path) -> Path:
    path = tmp_path / "latent.npy"
    np.save(path, np.random.default_rng(0).integers(0, 50, (4, 16, 17), np.uint8))
    return path


def test_rows_are_recorded(symbols: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([str(symbols), "--json", "--record", str(tmp_path / "rows.jsonl"), *FAST]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert [row["coder"] for row in rows] == ["context", "huffman-channel", "huffman-frame", "zlib -1", "zlib -9"]
    for row in rows:
        assert row["bits_per_symbol"] == pytest.approx(8 * row["bytes"] / (4 * 16 * 17), abs=1e-4)
        for way in ("encode_msymbols_s", "decode_msymbols_s"):
            assert 0 < row[way]["min"] <= row[way]["median"] <= row[way]["max"]
        assert row["machine"]["cpu"]
        assert row["versions"]["latentseg"]


def test_table(symbols: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([str(symbols), *FAST]) == 0
    out = capsys.readouterr().out
    assert "context" in out
    assert "huffman-channel" in out


def test_a_coder_that_loses_symbols_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentseg.kernels.entropy.decode_latent", lambda payload, header, out, *rest: out.fill(0))
    with pytest.raises(VerificationError, match="did not come back"):
        benchmark.measure(np.ones((1, 2, 3), np.uint8), "numpy", 4096, 1, 3, 0.01)


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.npy"
    text.write_text("no array")
    floats = tmp_path / "floats.npy"
    np.save(floats, np.zeros((1, 2, 3)))
    for path, message in ((text, "not a .npy"), (floats, "expected uint8"), (tmp_path / "none.npy", "No such file")):
        assert benchmark.main([str(path)]) == 3
        assert message in capsys.readouterr().err
