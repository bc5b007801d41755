"""`--step` of encode, run, bench and inspect, and the list of bundles, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import numpy as np
import pytest
from _clip import clip

from latentseg import cli
from latentseg.bitstream import Reader, Writer
from latentseg.engine.bundle import Bundle, shipped_bundles
from latentseg.kernels import entropy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundles that LATENTSEG_BUNDLES names, with one of many rates in it: "rates"."""
    bundle = tiny.write_tiny_bundle(tmp_path / "bundles" / "rates", steps=(0.5, 2.5))
    raw = json.loads((bundle.path / "manifest.json").read_text())
    points: list[Any] = [{"step": 0.5, "bpp": 0.75, "miou": 0.5, "note": "text"}, {"step": 2, "bpp": 0.25}, "no point"]
    raw["scores"] = {"operating_points": points}
    (bundle.path / "manifest.json").write_text(json.dumps(raw))
    monkeypatch.setenv("LATENTSEG_BUNDLES", str(tmp_path / "bundles"))
    return tmp_path / "bundles"


def report(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*argv, "--json", "-q"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_encode_inspect_and_run(home: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.lseg")
    options = ["--bundle", "rates", "--threads", "1"]
    record = report(capsys, "encode", str(folder), "-o", out, "--step", "2.5", *options)
    assert record["step"] == 2.5
    with open(out, "rb") as file:
        reader = Reader(file)
        found = [entropy.decode_symbols(frame.payload, reader.header) for frame in reader]
    np.testing.assert_array_equal(found, tiny.symbols(clip(), 2.5))
    seen = report(capsys, "inspect", out)
    assert (seen["bundle"], seen["step"], seen["scaling"]["hi"]) == ("rates", 2.5, 637.5)
    assert cli.main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "(of bundle 'rates')" in shown
    assert "scaling fixed 0 to 637.5, step 2.5" in shown
    shares = []
    for source in ([out], [str(folder), "--step", "2.5"]):
        assert cli.main(["run", *source, *options, "-q"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        shares.append([row["classes"] for row in rows if row["type"] == "frame"])
    assert shares[0] == shares[1]
    labels = tiny.labels(clip(), 2.5)
    assert shares[0][0]["red"] == pytest.approx((labels[0] == 0).mean(), abs=1e-6)


def test_the_step_of_a_stream_without_its_bundle(
    home: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "x.lseg")
    assert cli.main(["encode", str(folder), "-o", out, "--step", "0.5", "--bundle", "rates", "-q"]) == 0
    assert report(capsys, "inspect", out)["step"] == 0.5
    assert cli.main(["inspect", out]) == 0
    assert ", step 0.5" in capsys.readouterr().out
    # A range that is no multiple of the codec's: the bundle is named, a step there is not.
    from dataclasses import replace

    from latentseg.bitstream import Scaling

    with open(out, "rb") as file, open(tmp_path / "odd.lseg", "wb") as other:
        reader = Reader(file)
        header = replace(reader.header, scaling=Scaling("fixed", 1.0, 256.0))
        writer = Writer(other, header)
        for frame in reader:
            writer.write(frame.payload)
    odd = report(capsys, "inspect", str(tmp_path / "odd.lseg"))
    assert (odd["bundle"], odd["step"]) == ("rates", None)
    assert cli.main(["run", str(tmp_path / "odd.lseg"), "--bundle", "rates", "-q"]) == 4
    assert "span 1 to 256, expected a multiple of 0 to 255" in capsys.readouterr().err
    monkeypatch.delenv("LATENTSEG_BUNDLES")
    seen = report(capsys, "inspect", out)
    assert (seen["bundle"], seen["step"]) == (None, None)
    assert cli.main(["inspect", str(home / "rates")]) == 0
    assert "8 bits, steps 0.5 to 2.5" in capsys.readouterr().out


def test_what_is_refused(
    home: Path, folder: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.lseg")
    rates = ["--bundle", "rates", "-q"]
    cases = [
        (["encode", str(folder), "-o", out, *rates, "--step", "0"], 2, "expected a number above 0, found '0'"),
        (["encode", str(folder), "-o", out, *rates, "--step", "nan"], 2, "expected a number above 0"),
        (["encode", str(folder), "-o", out, *rates, "--step", "inf"], 2, "expected a number above 0"),
        (["encode", str(folder), "-o", out, *rates, "--step", "9"], 2, "are for 0.5 to 2.5"),
        (["encode", str(folder), "-o", out, "--step", "3.5", "-q"], 2, "are for 0.28 to 3"),
        (["run", str(folder), *rates, "--step", "0.4"], 2, "are for 0.5 to 2.5"),
        (["run", str(stream), *rates, "--step", "2"], 2, "an .lseg stream, which has its own"),
        (["run", "-", *rates, "--step", "7"], 2, "are for 0.5 to 2.5"),  # before the pipe is waited for
        (["bench", str(tmp_path / "no clip"), *rates, "--step", "7"], 2, "are for 0.5 to 2.5"),
    ]
    for argv, code, message in cases:
        assert cli.main(argv) == code, argv
        assert message in capsys.readouterr().err, argv
    assert not Path(out).exists()


def test_bench_is_of_the_step(home: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bundle", "rates", "--threads", "1", "--arms", "compressed,learned-decode", "--rounds", "1"]
    options += ["--warmup", "0", "--batch", "1", "--frames", "3"]
    usual = report(capsys, "bench", str(folder), *options)
    coarse = report(capsys, "bench", str(folder), *options, "--step", "2.5")
    assert (usual["configuration"]["step"], coarse["configuration"]["step"]) == (1, 2.5)
    assert "the codec's quantisation step is 2.5" in coarse["notes"]
    assert not any("step" in note for note in usual["notes"])
    assert coarse["arms"][0]["bpp"] < usual["arms"][0]["bpp"]
    # What the arm says is what the segmenter makes of the coarser symbols.
    reference = clip()[:3].argmax(3)
    assert coarse["arms"][0]["agreement"] == pytest.approx(np.mean(tiny.labels(clip()[:3], 2.5) == reference))


# --- the list ---------------------------------------------------------------------------------------------------------


def test_bundles_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_tiny_bundle(home / "kinds", tiny.CLASSIFYING)
    found = report(capsys, "bundles")
    assert (found["schema"], found["type"]) == (1, "bundles")
    entries = {entry["name"]: entry for entry in found["bundles"]}
    assert list(entries) == [*shipped_bundles(), "kinds", "rates"]
    rates, kinds = entries["rates"], entries["kinds"]
    assert (rates["path"], rates["shipped"], rates["ambiguous"], rates["error"]) == (
        str(home / "rates"),
        False,
        False,
        "",
    )
    assert (rates["task"], rates["classes"], rates["steps"]) == ("segmentation", 3, [0.5, 2.5])
    assert rates["operating_points"] == [{"step": 0.5, "bpp": 0.75, "miou": 0.5}, {"step": 2, "bpp": 0.25}]
    assert rates["bytes"] == sum(file.stat().st_size for file in (home / "rates").glob("*.onnx"))
    assert (kinds["task"], kinds["classes"], kinds["steps"]) == ("classification", 7, [1, 1])
    assert entries["camvid-compact"]["shipped"]
    documented = cli.verb_parser("bundles").format_help()
    assert all(key in documented for entry in found["bundles"] for key in entry)
    assert cli.main(["bundles"]) == 0
    out = capsys.readouterr().out
    assert "0.5 to 2.5" in out
    assert "rates: step 0.5, bpp 0.75, miou 0.5\nrates: step 2, bpp 0.25\n" in out
    assert str(home / "rates") in out


def test_a_broken_bundle_and_a_name_there_twice(
    home: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle.path, home.parent / "more" / "rates")
    monkeypatch.setenv("LATENTSEG_BUNDLES", f"{home}{os.pathsep}{home.parent / 'more'}")
    twice = [entry for entry in report(capsys, "bundles")["bundles"] if entry["ambiguous"]]
    assert [entry["path"] for entry in twice] == [str(home / "rates"), str(home.parent / "more" / "rates")]
    assert cli.main(["bundles"]) == 0
    assert capsys.readouterr().out.count("(the name is there twice)") == 2
    (home / "rates" / "segmenter.onnx").unlink()
    entries = report(capsys, "bundles", code=4)["bundles"]
    assert ["the file of role 'segmenter' is missing" in entry["error"] for entry in entries] == [False] * (
        len(entries) - 2
    ) + [True, False]
    assert cli.main(["bundles"]) == 4
    out, err = capsys.readouterr()
    assert "(broken)" in out
    assert f"1 of {len(entries)} bundles cannot be used, the first: " in err
    monkeypatch.setenv("LATENTSEG_BUNDLES", str(home / "gone"))
    assert cli.main(["bundles"]) == 2
    assert "LATENTSEG_BUNDLES names" in capsys.readouterr().err
