"""pack, inspect and unpack of streams with a codebook."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentseg import cli
from latentseg.cli import _common

CENTRES = np.array([-2.0, -0.5, 0.25, 1.0, 4.0], np.float32)
TEXT = "--centres=-2,-0.5,0.25,1,4"


def run(*argv: str | Path, code: int = 0) -> None:
    assert cli.main([str(word) for word in argv]) == code


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(0, 2, (2, 3, 7, 11)).astype(np.float32))
    return tmp_path / "z.npy"


@pytest.mark.parametrize("coder", _common.CODERS)
@pytest.mark.parametrize("as_file", [False, True])
def test_floats_come_back_as_their_nearest_centres(
    floats: Path, coder: str, as_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "c.npy", CENTRES.astype(np.float64))
    given = f"--centres={tmp_path / 'c.npy'}" if as_file else TEXT
    lseg, back = tmp_path / "x.lseg", tmp_path / "back.npy"
    run("pack", floats, "--quantize", "codebook", given, "-o", lseg, "--coder", coder, "--json", "-q")
    assert json.loads(capsys.readouterr().out)["bits"] == 3
    z = np.load(floats)
    nearest = abs(z[..., None] - CENTRES).argmin(axis=-1)  # no value lies on a midpoint
    run("unpack", lseg, "-o", back, "-q")
    np.testing.assert_array_equal(np.load(back), nearest)
    run("unpack", lseg, "--float", "-o", back, "--overwrite", "-q")
    np.testing.assert_array_equal(np.load(back), CENTRES[nearest])
    run("inspect", lseg, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["scaling"] == {"mode": "codebook", "lo": 0.0, "hi": 0.0, "centres": CENTRES.tolist()}
    assert (report["bits"], report["bytes"]) == (3, lseg.stat().st_size - 200 - 2 * 24)
    assert report["anatomy"]["scales"] == 0
    run("inspect", lseg)
    assert "2x3x7, 3 bits" not in (out := capsys.readouterr().out)
    assert "3x7x11, 3 bits, scaling codebook of 5 centres -2 to 4" in out


def test_integers_are_indices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q = np.random.default_rng(1).integers(0, 5, (3, 4, 5)).astype(np.int32)
    np.save(tmp_path / "q.npy", q)
    lseg, back = tmp_path / "x.lseg", tmp_path / "back.npy"
    run("pack", tmp_path / "q.npy", TEXT, "--bits", "3", "-o", lseg, "-q")
    run("unpack", lseg, "--float", "-o", back, "-q")
    np.testing.assert_array_equal(np.load(back)[0], CENTRES[q])
    q[1, 2, 3] = 5
    np.save(tmp_path / "q.npy", q)
    run("pack", tmp_path / "q.npy", TEXT, "-o", tmp_path / "y.lseg", "-q", code=3)
    assert "values from 0 to 5, expected 0 to 4 (5 centres)" in capsys.readouterr().err
    assert not (tmp_path / "y.lseg").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--quantize", "codebook"], 2, "--quantize codebook needs --centres"),
        (["--quantize", "fixed", TEXT], 2, "--centres with --quantize fixed, expected a codebook"),
        (["--quantize", "codebook", TEXT, "--lo", "0"], 2, "a codebook has no range"),
        (["--quantize", "codebook", TEXT, "--bits", "8"], 2, "--bits 8 with 5 centres, expected 3"),
        (["--quantize", "codebook", "--centres", "one,two"], 2, "expected numbers such as --centres=-1,0,1.5"),
        (["--quantize", "codebook", "--centres", "1"], 3, "--centres 1: codebook of 1 centres, expected 2 to 256"),
        (["--quantize", "codebook", "--centres", "1,nan"], 3, "centre 1 is nan"),
        (["--quantize", "codebook", "--centres", "2,1"], 3, "expected ascending centres"),
        (["--quantize", "codebook", "--centres", "none.npy"], 3, "cannot read it: No such file"),
        (["--quantize", "codebook", "--centres", "text.npy"], 3, "text.npy: not an .npy array"),
        (["--quantize", "codebook", "--centres", "words.npy"], 3, "an array of <U1 (2,), expected numbers (L,)"),
        (["--quantize", "codebook", "--centres", "flat.npy"], 3, "an array of float64 (2, 2), expected numbers (L,)"),
        (["--quantize", "codebook", "--centres", "many.npy"], 3, "300 numbers, expected at most 256"),
    ],
)
def test_mistakes(
    options: list[str], code: int, says: str, floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("no array")
    np.save("words.npy", np.array(["a", "b"]))
    np.save("flat.npy", np.eye(2))
    np.save("many.npy", np.arange(300.0))
    run("pack", floats, *options, "-o", "x.lseg", "-q", code=code)
    assert says in capsys.readouterr().err
    assert not Path("x.lseg").exists()
