"""Classification as a user types it: run, decode, inspect and verify on the tiny classifiers, and export's refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from _clip import clip
from _tiny_bundle import CLASSIFYING, KINDS, frame_means, probabilities, symbols, write_tiny_bundle

from latentseg import cli
from latentseg.engine.bundle import write_bundle


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("classify") / "tiny", CLASSIFYING).path


@pytest.fixture
def options(classifiers: Path) -> list[str]:
    return ["--bundle", str(classifiers), "--threads", "1"]


def test_run_classifies_streams_and_folders(
    folder: Path, stream: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stream of the tiny segmenters' codec, which is the classifiers' too."""
    expected = probabilities(symbols(clip()).astype(np.float64).mean((2, 3)))
    for source in (stream, folder):
        assert cli.main(["run", str(source), "--jsonl", str(tmp_path / f"{source.name}.jsonl"), *options]) == 0
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in (tmp_path / f"{source.name}.jsonl").read_text().splitlines()]
        assert (out, rows[-1]["type"], rows[-1]["frames"]) == ("", "summary", len(expected))
        for row, chances in zip(rows, expected, strict=False):
            assert [entry["index"] for entry in row["top5"]] == np.argsort(-chances, kind="stable")[:5].tolist()
            assert row["top5"][0]["class"] == KINDS[int(chances.argmax())].name
            assert row["top5"][0]["probability"] == pytest.approx(chances.max(), abs=2e-6)
        names, counts = np.unique([KINDS[i].name for i in expected.argmax(1)], return_counts=True)
        best = counts.argmax()
        assert f"likeliest: {names[best]} ({counts[best]} frames)" in err
        assert ("then classifying those" in err) == (source is folder)
    assert cli.main(["run", str(stream), "--limit", "1", *options]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert f"likeliest: {KINDS[expected[0].argmax()].name} ({100 * expected[0].max():.1f} %), " in err


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--labels", "out"], 2, "--labels with bundle 'tiny', which classifies frames and has no label maps"),
        (["--overlay", "out.mp4"], 2, "--overlay with bundle 'tiny', which classifies"),
        (["--backend", "tensorrt"], 2, "the classifier on tensorrt"),
        (["--precision", "int8"], 4, "has no int8 classifier, only fp32"),
        (["--precision", "fp16"], 2, "fp16 on onnxruntime"),
        (["--backend", "torch", "--provider", "cpu"], 4, "has no torch classifier, only fp32"),
    ],
)
def test_run_refuses_before_anything_is_written(
    more: list[str], code: int, says: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Even before the source is looked at, which is not there."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "nowhere.lseg", "--jsonl", "x.jsonl", *more, *options]) == code
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_the_rgb_classifier_alone(
    classifiers: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentseg.engine import load_bundle
    from latentseg.engine.roles import RgbClassifier

    whole = load_bundle(classifiers)
    models = {role: (whole.model_path(role), 1.0, 0) for role in ("compressor", "rgb_classifier")}
    small = write_bundle(tmp_path / "small", "small", whole.codec, models, KINDS)
    assert cli.main(["run", str(stream), "--bundle", str(small.path)]) == 4
    assert "has no classifier, only compressor, rgb_classifier" in capsys.readouterr().err
    with RgbClassifier(small) as role:
        np.testing.assert_allclose(role.probabilities(clip(2)), probabilities(frame_means(clip(2))), atol=1e-6)


def test_other_verbs_take_the_bundle(
    folder: Path,
    stream: Path,
    classifiers: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["encode", str(folder), "-o", str(tmp_path / "x.lseg"), *options]) == 0
    assert (tmp_path / "x.lseg").read_bytes() == stream.read_bytes()
    assert cli.main(["decode", str(stream), "-o", str(tmp_path / "x.mp4"), *options]) == 0
    assert (tmp_path / "x.mp4").stat().st_size > 0
    assert cli.main(["verify", str(classifiers)]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(classifiers)]) == 0
    assert "dusk, grass, sea, fire, snow, night, haze\n" in capsys.readouterr().out
    assert cli.main(["demo", "--source", str(folder), "--out", str(tmp_path / "demo"), *options]) == 4
    assert "has no segmenter" in capsys.readouterr().err
    argv = ["build", str(classifiers), "--target", "onnxruntime", "--precision", "int8", "--frames", str(folder)]
    assert cli.main(argv) == 2
    assert "has no segmenter, only" in capsys.readouterr().err


def test_inspect_does_not_list_a_thousand_classes(
    classifiers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentseg.engine import ClassInfo, load_bundle

    whole = load_bundle(classifiers)
    models = {role: (whole.model_path(role), 1.0, 0) for role in ("compressor", "classifier")}
    many = write_bundle(tmp_path / "many", "many", whole.codec, models, [ClassInfo(f"c{i}") for i in range(1000)])
    assert cli.main(["inspect", str(many.path)]) == 0
    assert "c18, c19 and 980 more\n" in capsys.readouterr().out


def test_export_refuses_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["export", "--codec", str(tmp_path), "-o", str(tmp_path / "out"), "--classifier", str(tmp_path)]
    assert cli.main([*argv, "--layout", "camvid"]) == 2
    assert "--layout camvid with classifiers: these name their own classes" in capsys.readouterr().err


def test_export_then_verify_and_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From checkpoints of random weights, as a user types it."""
    import torch

    from latentseg.models import registry
    from latentseg.training.checkpoint import load_weights, save_weights

    torch.manual_seed(0)
    codec = registry.create("torfason-codec-c8", width=8).eval()
    facts = {"settings": {"codec": ""}, "steps": 0}
    save_weights(tmp_path / "codec.safetensors", "torfason-codec-c8", {"width": 8}, dict(codec.state_dict()), facts)
    trained_on = load_weights(tmp_path / "codec.safetensors").content_id
    facts = {"settings": {"codec": trained_on, "class_names": ["cat", "dog", "newt"]}, "steps": 0}
    options = {"classes": 3, "channels": 8, "width": 8}
    net = registry.create("compact-cresnet", **options)
    save_weights(tmp_path / "net.safetensors", "compact-cresnet", options, dict(net.state_dict()), facts)
    out = tmp_path / "out"
    argv = ["export", "--codec", str(tmp_path / "codec.safetensors"), "--classifier", str(tmp_path / "net.safetensors")]
    assert cli.main([*argv, "--size", "16", "24", "--largest", "24", "40", "-o", str(out), "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)["verification"]
    assert set(found["models"]) == {"compressor", "decompressor", "classifier"}
    assert cli.main(["verify", str(out)]) == 0
    assert "probabilities_top1_differ 0.000%" in capsys.readouterr().out
    assert cli.main(["run", str(folder), "--bundle", str(out), "--limit", "2", "-q"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{entry["class"] for entry in row["top5"]} for row in rows[:2]] == [{"cat", "dog", "newt"}] * 2
    assert sum(entry["probability"] for entry in rows[0]["top5"]) == pytest.approx(1, abs=1e-5)
