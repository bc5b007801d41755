"""Every JSON record's keys are named in its verb's help."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from _tiny_bundle import CLASSIFYING, write_tiny_bundle

from latentseg import cli
from latentseg.engine.bundle import Bundle


def documented(verb: str) -> set[str]:
    """Words of the help from "JSON keys" to the examples, without what stands in brackets."""
    text = cli.verb_parser(verb).format_help().split("JSON keys", 1)[1].split("examples:", 1)[0]
    return set(re.findall(r"[a-z_0-9]+", re.sub(r"\([^)]*\)", "", text)))


@pytest.mark.parametrize("verb", ["doctor", "demo", "encode", "decode", "run", "inspect", "pack", "unpack"])
def test_keys_are_documented(
    verb: str,
    folder: Path,
    stream: Path,
    tmp_path: Path,
    tiny_bundle: Bundle,
    bundle_options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    classifiers = write_tiny_bundle(tmp_path / "classifiers", CLASSIFYING).path
    npy, out = tmp_path / "x.npy", str(tmp_path / "out")
    np.save(npy, np.zeros((2, 3, 4), np.uint8))
    commands = {
        "doctor": [["doctor", "--json"]],
        "demo": [["demo", "--source", str(folder), "--out", out, "--json", *bundle_options]],
        "encode": [["encode", str(folder), "-o", out, "--json", *bundle_options]],
        "decode": [["decode", str(stream), "-o", out, "--json", *bundle_options]],
        "run": [["run", str(stream), *bundle_options], ["run", str(stream), "--bundle", str(classifiers)]],
        "inspect": [
            ["inspect", "--json", str(path)]
            for path in (stream, npy, tiny_bundle.path, classifiers, tiny_bundle.path / "segmenter.onnx")
        ],
        "pack": [["pack", str(npy), "-o", out, "--json"]],
        "unpack": [["unpack", str(stream), "-o", out, "--json"]],
    }
    for argv in commands[verb]:
        assert cli.main(argv) == 0
        for line in capsys.readouterr().out.splitlines():
            record = json.loads(line)
            assert record["schema"] == 1
            assert record.keys() <= documented(verb), argv
            assert (record.get("anatomy") or {}).keys() <= documented(verb), argv
            assert all(entry.keys() == {"class", "index", "probability"} for entry in record.get("top5", ())), argv
