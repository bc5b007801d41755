"""train, eval, export and verify as a user types them, on a tiny data set in CamVid's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from _tiny_runs import scores
from PIL import Image

from latentseg.cli import main
from latentseg.training import checkpoint

LOOP = ["--steps", "2", "--batch", "2", "--interval", "1", "--warmup", "1", "--threads", "1", "-q"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of three 40x48 frames, and three runs: codec, latent and RGB segmenter."""
    root = tmp_path_factory.mktemp("factory")
    lines = []
    for index in range(3):
        y, x = np.mgrid[:40, :48]
        label = ((x + 5 * index) // 12 % 4).astype(np.uint8)
        frame = np.stack([label * 60, 255 - label * 60, (y * 6) % 256], -1).astype(np.uint8)
        for folder, array in (("train", frame), ("trainannot", label)):
            (root / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / "data" / folder / f"{index}.png")
        lines.append(f"train/{index}.png trainannot/{index}.png\n")
    (root / "data" / "train.txt").write_text("".join(lines))
    data = ["--data", str(root / "data"), "--size", "40", "48"]
    codec, latent, rgb = (str(root / name) for name in ("codec", "latent", "rgb"))
    frames = str(root / "data" / "train")
    argv = ["train", "codec", "--frames", frames, "--target-bpp", "0.5", "--patch", "32", "--out", codec, *LOOP]
    assert main(argv) == 0
    assert main(["train", "segmenter", "--codec", codec, *data, "--out", latent, *LOOP]) == 0
    assert main(["train", "segmenter", "--network", "compact-rgb", *data, "--out", rgb, *LOOP]) == 0
    return root


@pytest.fixture(scope="module")
def bundle(work: Path) -> Path:
    out = work / "bundle"
    (work / "scores.json").write_text('{"miou": 0.25}')
    argv = ["export", "--codec", str(work / "codec"), "--segmenter", str(work / "latent"), "--rgb-segmenter"]
    argv += [str(work / "rgb"), "--frames", str(work / "data" / "train"), "--size", "40", "48", "--largest", "48", "64"]
    assert main([*argv, "--scores", str(work / "scores.json"), "-o", str(out), "-q"]) == 0
    return out


def test_eval_codec(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(capsys, "eval", "codec", str(work / "codec"), "--frames", str(work / "data" / "train"))
    assert found["frames"] == 3
    assert found["compression_factor"] == pytest.approx(24 / found["bpp"])
    assert found["rate_model_bpp"] > 0
    assert 5 < found["psnr"] < 60


def test_eval_segmenter(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(work / "data"), "--split", "train"]
    latent = scores(capsys, "eval", "segmenter", str(work / "latent"), "--codec", str(work / "codec"), *data)
    assert latent["frames"] == 3
    assert 0 <= latent["miou"] <= 1
    assert set(latent["iou"]) >= {"pole", "sign_symbol"}
    decoded = ["--decoded-by", str(work / "codec"), *data]
    assert scores(capsys, "eval", "segmenter", str(work / "rgb"), *decoded)["frames"] == 3
    assert main(["eval", "segmenter", str(work / "rgb"), *data, "--floor", "0.99", "-q"]) == 5
    assert "below the floor" in capsys.readouterr().err


def test_eval_refuses_what_does_not_fit(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(work / "data"), "--split", "train", "-q"]
    assert main(["eval", "segmenter", str(work / "latent"), *data]) == 2
    assert "--codec" in capsys.readouterr().err
    assert main(["eval", "codec", str(work / "rgb"), "--frames", str(work / "data")]) == 4
    assert main(["eval", "codec", str(work / "nowhere"), "--frames", str(work / "data")]) == 3
    assert main(["eval", "segmenter", str(work / "rgb"), "--data", str(work / "data"), "--split", "test"]) == 3
    assert main(["eval", "segmenter", str(work / "rgb"), *data, "--floor", "nan"]) == 5


def test_eval_refuses_data_without_its_classes(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = "aachen_000000_000019"
    files = {
        f"leftImg8bit/val/aachen/{stem}_leftImg8bit.png": np.zeros((16, 16, 3), np.uint8),
        f"gtFine/val/aachen/{stem}_gtFine_labelIds.png": np.full((16, 16), 7, np.uint8),
        "a.png": np.full((16, 16), 200, np.uint8),
    }
    for name, array in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "val.txt").write_text("a.png a.png\n")
    argv = ["eval", "segmenter", str(work / "rgb"), "--data", str(tmp_path), "-q"]
    assert main([*argv, "--layout", "cityscapes"]) == 2
    assert "has 11 classes, layout 'cityscapes' 19" in capsys.readouterr().err
    assert main(argv) == 3
    assert "no pixel of any label has a class" in capsys.readouterr().err


def test_train_again_needs_resume(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "codec", "--frames", str(work / "data" / "train"), "--target-bpp", "0.5", "--patch", "32"]
    argv += ["--out", str(work / "codec"), *LOOP]
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert main(["train", "codec", "--frames", str(work / "none"), "--out", str(work / "x"), *LOOP]) == 3


@pytest.fixture(scope="module")
def joint(work: Path) -> Path:
    """A run of joint training, taught by the RGB segmenter."""
    out = work / "joint"
    argv = ["train", "joint", "--codec", str(work / "codec"), "--target-bpp", "0.4", "--teacher", str(work / "rgb")]
    argv += ["--data", str(work / "data"), "--size", "40", "48", "--task-weight", "3", "--out", str(out)]
    assert main([*argv, *LOOP]) == 0
    return out


def test_train_joint_gives_a_codec_and_its_segmenter(
    work: Path, joint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec, segmenter, data = joint / "codec", joint / "segmenter", ["--data", str(work / "data"), "--split", "train"]
    assert scores(capsys, "eval", "segmenter", str(segmenter), "--codec", str(codec), *data)["frames"] == 3
    # The codec that it began with is another one, and so is the segmenter that goes with it.
    for weights, wrong in ((segmenter, work / "codec"), (work / "latent", codec)):
        assert main(["eval", "segmenter", str(weights), "--codec", str(wrong), *data, "-q"]) == 2
        assert "the segmenter was trained on codec" in capsys.readouterr().err
    argv = ["export", "--codec", str(work / "codec"), "--segmenter", str(segmenter), "-o", str(work / "mixed"), "-q"]
    assert main(argv) == 4
    assert "trained on the latents of codec" in capsys.readouterr().err
    settings = checkpoint.load_weights(segmenter).facts["settings"]
    assert settings["joint"]["task_weight"] == 3
    assert settings["crops"]["target_bpp"] == 0.4
    assert settings["crops"]["batch"] == 1  # half of the views'


def test_train_joint_takes_every_setting_of_its_own(work: Path) -> None:
    out = work / "joint-settings"
    argv = ["train", "joint", "--codec", str(work / "codec"), "--target-bpp", "0.4", "--teacher", str(work / "rgb")]
    argv += ["--data", str(work / "data"), "--size", "40", "48", "--out", str(out), "--teacher-weight", "0.5"]
    argv += ["--codec-lr-share", "0", "--step-range", "0.5", "2", *LOOP]
    assert main(argv) == 0
    settings = checkpoint.load_weights(out / "segmenter").facts["settings"]
    assert (settings["joint"]["teacher_weight"], settings["joint"]["codec_lr_share"]) == (0.5, 0)
    assert settings["crops"]["step_range"] == [0.5, 2]
    assert main([*argv, "--resume", "--step-range", "0.5", "3"]) == 4
    alone = [a for a in argv if a not in {"--teacher", str(work / "rgb")}]
    assert main([*alone, "--out", str(work / "joint-untaught")]) == 2


def test_train_joint_says_what_it_wrote_and_resumes(
    work: Path, joint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "joint", "--codec", str(work / "codec"), "--target-bpp", "0.4", "--teacher", str(work / "rgb")]
    argv += ["--data", str(work / "data"), "--size", "40", "48", "--task-weight", "3", "--out", str(joint), *LOOP]
    capsys.readouterr()
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([a for a in argv if a != "-q"] + ["--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    paths = [joint / part / "model.safetensors" for part in ("codec", "segmenter")]
    assert f"wrote {paths[0]} and {paths[1]}\n" in err


def test_train_joint_refuses_bad_arguments(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"--codec": str(work / "codec"), "--target-bpp": "0.4", "--data": str(work / "data"), "--size": "40 48"}
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"--target-bpp": ""}, 2, "the following arguments are required: --target-bpp"),
        ({"--codec": ""}, 2, "the following arguments are required: --codec"),
        ({"--target-bpp": "0", "--data": "nowhere"}, 2, "a target of 0.0 bpp"),
        ({"--task-weight": "nan", "--data": "nowhere"}, 2, "a task weight of nan"),
        ({"--network": "compact-rgb"}, 2, "'compact-rgb' is not a segmenter of latents"),
        ({"--size": "40 44"}, 2, "a canvas of 40x44"),
        ({"--data": "nowhere"}, 3, "no split 'train' in nowhere"),
        ({"--codec": "nowhere"}, 3, "no such checkpoint"),
        ({"--codec": str(work / "rgb")}, 4, "holds a rgb_segmenter"),
        ({"--teacher": str(work / "latent")}, 4, "holds a latent_segmenter"),
    ]
    for changes, code, message in cases:
        words = [word for k, v in {**run, **changes}.items() if v for word in (k, *v.split())]
        assert main(["train", "joint", *words, "--out", str(work / "bad"), *LOOP]) == code, changes
        assert message in capsys.readouterr().err
    assert not (work / "bad").exists()


def test_help_of_train_joint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "joint", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: latentseg train joint")
    assert all(option in shown for option in ("--codec", "--target-bpp", "--task-weight", "--teacher", "--resume"))
    assert main(["train", "jiont"]) == 2
    assert "joint" in capsys.readouterr().err


def test_export_then_verify_and_run(work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["scores"] == {"miou": 0.25}
    assert manifest["verification"]["real_frames"] == 3
    found = scores(capsys, "verify", str(bundle))
    assert found["reference"]["symbols_differ"] <= 2e-3
    stream = work / "x.lseg"
    assert main(["encode", str(work / "data" / "train"), "--bundle", str(bundle), "-o", str(stream), "-q"]) == 0
    # The bpp of `eval` is the one of the stream that the deployed compressor writes (a header copy is 100 bytes).
    evaluated = scores(capsys, "eval", "codec", str(work / "codec"), "--frames", str(work / "data" / "train"))
    assert (stream.stat().st_size - 200) * 8 / (3 * 40 * 48) == pytest.approx(evaluated["bpp"], rel=0.02)
    assert main(["run", str(stream), "--bundle", str(bundle), "-q"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["type"] for r in rows].count("frame") == 3


def test_export_overwrites_only_when_told(work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--codec", str(work / "codec"), "-o", str(bundle)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    argv = ["export", "--codec", str(work / "codec"), "--size", "16", "16", "--largest", "16", "24", "-q"]
    folder = work / "again"
    folder.mkdir()
    assert main([*argv, "-o", str(folder), "--description", "first"]) == 0
    (folder / "README.md").write_text("a model card")
    assert main([*argv, "-o", str(folder), "--description", "second", "--overwrite"]) == 0
    assert json.loads((folder / "manifest.json").read_text())["description"] == "second"
    assert (folder / "README.md").read_text() == "a model card"


def test_export_refuses_bad_arguments(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["export", "--codec", str(work / "codec"), "-o", str(tmp_path / "out"), "-q"]
    assert main([*argv, "--segmenter", str(work / "latent"), "--layout", "kitti"]) == 2
    (tmp_path / "scores.json").write_text("[1]")
    assert main([*argv, "--scores", str(tmp_path / "scores.json")]) == 3
    for side in (16, 24):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{side}.png")
    assert main([*argv, "--frames", str(tmp_path)]) == 3
    assert "differ in size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_verify_catches_a_changed_file(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    file = copy / "segmenter.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["verify", str(copy)]) == 4
    assert "was changed" in capsys.readouterr().err
