"""train and eval of classifiers as a user types them, on folders of tiny images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _tiny_runs import scores
from PIL import Image

from latentseg.cli import main
from latentseg.training import checkpoint

LOOP = ["--steps", "2", "--interval", "1", "--warmup", "1", "--threads", "1", "-q"]
NARROW = ["--option", "width=8"]
VIEWS = ["--size", "16", "--batch", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of two classes, a codec with learned centres, and classifiers of RGB, decoded RGB and latents."""
    root = tmp_path_factory.mktemp("classifiers")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(level, 20, (26 + index, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    data = ["--data", str(root / "data")]
    codec = ["train", "codec", "--network", "torfason-codec-c8", "--option", "width=48", *data, "--size", "24"]
    codec += [
        "--patch",
        "16",
        "--batch",
        "2",
        "--target-bpp",
        "0.5",
        "--beta",
        "100",
        "--out",
        str(root / "codec"),
        *LOOP,
    ]
    assert main(codec) == 0
    for name, more in {
        "rgb": ["--network", "compact-resnet"],
        "decoded": ["--network", "compact-resnet", "--decoded-by", str(root / "codec")],
        "latent": ["--codec", str(root / "codec")],
    }.items():
        assert main(["train", "classifier", *more, *data, *NARROW, *VIEWS, "--out", str(root / name), *LOOP]) == 0
    return root


def test_eval_of_each_kind(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, codec = ["--data", str(work / "data")], str(work / "codec")
    rgb = scores(capsys, "eval", "classifier", str(work / "rgb"), *data)
    assert rgb.keys() == {"images", "top1", "top5"}
    assert (rgb["images"], rgb["top5"]) == (4, 1.0)
    latent = scores(capsys, "eval", "classifier", str(work / "latent"), "--codec", codec, *data)
    decoded = scores(capsys, "eval", "classifier", str(work / "decoded"), "--decoded-by", codec, *data)
    assert latent.keys() == decoded.keys() == {"images", "top1", "top5", "coder", "bpp", "sheet_bpp"}
    assert latent["bpp"] == decoded["bpp"] > latent["sheet_bpp"]
    both = ["--split", "train", "--limit-per-class", "2", "--size", "32", "--coder", "huffman-frame"]
    assert scores(capsys, "eval", "classifier", str(work / "latent"), "--codec", codec, *data, *both)["images"] == 4
    of_codec = scores(capsys, "eval", "codec", codec, *data, "--size", "16")
    assert (of_codec["frames"], of_codec["bpp"]) == (4, pytest.approx(latent["bpp"]))
    assert scores(capsys, "eval", "codec", codec, *data)["frames"] == 4
    floor = ["eval", "classifier", str(work / "rgb"), *data, "--floor", "1.1", "-q"]
    assert main(floor) == 5
    assert "top-1 is" in capsys.readouterr().err


def test_joint_and_its_control(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, codec, out = ["--data", str(work / "data")], str(work / "codec"), work / "joint"
    argv = ["train", "joint", "--network", "compact-cresnet", "--codec", codec, "--init", str(work / "latent")]
    argv += [*data, *NARROW, *VIEWS, "--target-bpp", "0.5", "--gamma", "0.01", "--beta", "9", "--out", str(out), *LOOP]
    assert main(argv) == 0
    assert main([*argv, "--resume"]) == 0
    both = ["--codec", str(out / "codec"), *data]
    assert scores(capsys, "eval", "classifier", str(out / "classifier"), *both)["images"] == 4
    assert main(["eval", "classifier", str(out / "classifier"), "--codec", codec, *data]) == 2
    assert "the classifier was trained on codec" in capsys.readouterr().err
    settings = checkpoint.load_weights(out / "classifier").facts["settings"]
    assert settings["joint"] == {"target_bpp": 0.5, "gamma": 0.01, "beta": 9.0, "codec_lr_share": 1.0}
    assert settings["classifier_init"] == checkpoint.load_weights(work / "latent").content_id
    assert main(["train", "average", str(out), str(out), "--out", str(work / "mean"), "-q"]) == 0
    mean = ["--codec", str(work / "mean" / "codec"), *data]
    assert scores(capsys, "eval", "classifier", str(work / "mean" / "classifier"), *mean)["images"] == 4
    # The control: the codec alone to the same rate, then a classifier of its latents.
    alone = ["train", "codec", "--network", "torfason-codec-c8", "--option", "width=48", "--init", codec, *data]
    alone += ["--patch", "16", "--batch", "2", "--target-bpp", "0.5", "--out", str(work / "alone"), *LOOP]
    assert main(alone) == 0
    argv = ["train", "classifier", "--codec", str(work / "alone"), "--init", str(work / "latent")]
    assert main([*argv, *data, *NARROW, *VIEWS, "--out", str(work / "control"), *LOOP]) == 0
    both = ["--codec", str(work / "alone"), *data]
    assert scores(capsys, "eval", "classifier", str(work / "control"), *both)["images"] == 4


def test_what_does_not_fit_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, codec = ["--data", str(work / "data")], ["--codec", str(work / "codec")]
    joint = ["train", "joint", *codec, *data, "--target-bpp", "0.5", "--out", str(tmp_path / "x"), *LOOP]
    alone = ["train", "classifier", *data, "--out", str(tmp_path / "x"), *LOOP]
    of_codec = ["train", "codec", "--out", str(tmp_path / "x"), *LOOP]
    evaluate = ["eval", "classifier"]
    other = tmp_path / "other" / "val" / "cat"
    other.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(other / "1.png")
    cases: list[tuple[list[str], int, str]] = [
        (alone, 2, "'compact-cresnet' is a latent classifier"),
        ([*alone, "--network", "compact-resnet", *codec], 2, "'compact-resnet' is an RGB classifier"),
        ([*alone, "--network", "compact-rgb"], 2, "'compact-rgb' is not a classifier"),
        ([*alone, *codec, "--size", "20"], 2, "views of 20"),
        ([*alone, *codec, "--layout", "camvid"], 2, "'camvid' is no layout of classified images"),
        ([*alone, *codec, "--layout", "idx"], 3, "no split 'train'"),
        ([*alone, *codec, "--split", "test"], 3, "no split 'test'"),
        ([*alone, *codec, "--option", "width"], 2, "expected KEY=NUMBER"),
        ([*alone, *codec, "--option", "width=2.5"], 2, "--option width=2.5: 'compact-cresnet' has 64"),
        ([*alone, *codec, "--option", "classes=3"], 2, "they are those of the data"),
        ([*alone, *codec, "--option", "depth=3"], 2, "unexpected keyword argument 'depth'"),
        ([*alone, *codec, "--area", "0.5", "2"], 2, "windows of 0.5 to 2.0"),
        ([*alone, *codec, "--optimizer", "lion"], 2, "optimizer 'lion'"),
        ([*alone, *codec, "--decay-at", "0.5"], 2, "--schedule step"),
        ([*joint, "--network", "compact-cresnet", "--size", "16", "16"], 2, "--size of 2 side(s), expected 1"),
        ([*joint, "--network", "compact-cresnet", "--task-weight", "2"], 2, "--task-weight means nothing to"),
        ([*joint, "--network", "compact-latent", "--size", "16"], 2, "--size of 1 side(s), expected 2"),
        ([*joint, "--network", "compact-latent", "--gamma", "2"], 2, "--gamma means nothing to 'compact-latent'"),
        ([*joint, "--network", "compact-latent", "--no-flip"], 2, "--no-flip means nothing to 'compact-latent'"),
        ([*joint, "--network", "compact-resnet"], 2, "'compact-resnet' is not a classifier of latents"),
        ([*joint, "--network", "compact-cresnet", "--codec", str(work / "rgb")], 4, "holds a rgb_classifier"),
        ([*of_codec, "--target-bpp", "1"], 2, "one of the arguments --frames --data is required"),
        ([*of_codec, *data, "--frames", "x", "--target-bpp", "1"], 2, "not allowed with argument"),
        ([*of_codec, *data, "--target-bpp", "1", "--beta", "1"], 2, "--beta means nothing to 'compact-codec'"),
        ([*evaluate, str(work / "latent"), *data], 2, "'compact-cresnet' is a latent classifier"),
        ([*evaluate, str(work / "codec"), *data], 4, "expected rgb_classifier or latent_classifier"),
        ([*evaluate, str(work / "rgb"), "--data", str(tmp_path / "other")], 2, "1 classes in the data, 2 of the class"),
        (["eval", "codec", str(work / "codec")], 2, "one of the arguments --frames --data is required"),
    ]
    for argv, code, message in cases:
        assert main([*argv, "-q"]) == code, argv
        assert message in capsys.readouterr().err, argv
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("--frames", ["--size", "16"], "--size means nothing beside --frames"),
        ("--frames", ["--limit-per-class", "1"], "--limit-per-class means nothing beside --frames"),
        ("--frames", ["--split", "val"], "--split means nothing beside --frames"),
        ("--frames", ["--layout", "idx"], "--layout means nothing beside --frames"),
        ("--data", ["--every", "2"], "--every means nothing beside --data"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_flags_of_the_other_source_are_refused(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    source: str,
    flags: list[str],
    message: str,
) -> None:
    train = [
        "train",
        "codec",
        "--network",
        "torfason-codec-c8",
        "--target-bpp",
        "1",
        "--out",
        str(tmp_path / "x"),
        *LOOP,
    ]
    start = train if verb == "train" else ["eval", "codec", str(work / "codec")]
    assert main([*start, source, str(work / "data"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "leave" in said


def test_images_decoded_by_another_codec_are_pointed_out(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "codec", "--network", "torfason-codec-c8", "--option", "width=48", "--data", str(work / "data")]
    train += ["--size", "24", "--patch", "16", "--batch", "2", "--target-bpp", "0.5", "--seed", "1"]
    assert main([*train, "--out", str(tmp_path / "other"), *LOOP]) == 0
    said = {}
    for name, codec in {"own": work / "codec", "other": tmp_path / "other"}.items():
        capsys.readouterr()
        evaluate = [
            "eval",
            "classifier",
            str(work / "decoded"),
            "--decoded-by",
            str(codec),
            "--data",
            str(work / "data"),
        ]
        assert main(evaluate) == 0
        said[name] = capsys.readouterr().err
    assert "another codec" in said["other"]
    assert "another codec" not in said["own"]
