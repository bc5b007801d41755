"""The shipped presets: complete, marked with their origin, and two steps of each at full width on tiny images."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentseg.cli import main
from latentseg.errors import InputError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.presets import FOLDER, preset_names, preset_words, read_preset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two images each, two images in VOC's folders, and an untrained codec of 8 and of 32 channels."""
    root = tmp_path_factory.mktemp("presets")
    rng = np.random.default_rng(0)
    for name in ("a/1", "a/2", "b/1", "b/2"):
        path = root / "images" / "train" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    voc = root / "voc"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in ("1", "2"):
        shutil.copy(root / "images" / "train" / "a" / f"{name}.jpg", voc / "JPEGImages")
        label = rng.integers(0, 21, (40, 50)).astype(np.uint8)
        Image.fromarray(label).save(voc / "SegmentationClassAug" / f"{name}.png")
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("1\n2\n")
    for channels in (8, 32):
        network = f"torfason-codec-c{channels}"
        torch.manual_seed(0)
        tensors = registry.create(network).state_dict()
        checkpoint.save_weights(root / f"c{channels}.safetensors", network, {}, tensors, {"settings": {}})
    return root


def test_every_network_of_the_paper_has_a_preset() -> None:
    networks = {name for name in registry.names() if name.startswith("torfason")}
    assert {read_preset(name)["network"] for name in preset_names()} == networks
    rates = {read_preset(n)["target-bpp"] for n in preset_names() if read_preset(n)["train"] == "joint"}
    assert rates == {0.635, 0.0983}


@pytest.mark.parametrize("name", preset_names())
def test_every_value_says_where_it_is_from(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    keys = [line for line in lines if line and line[0] != "#"]
    unmarked = [k.split(" =")[0] for k in keys if not any(mark in k for mark in ("[P]", "[M]", "[N]", "[R]", "[O]"))]
    assert set(unmarked) <= {"train", "network", "decay-at"}  # decay-at: said at schedule, the line before
    assert "warmup" in tomllib.loads("\n".join(lines))


@pytest.mark.parametrize("name", preset_names())
def test_two_steps_of_each(data: Path, tmp_path: Path, name: str) -> None:
    preset, out = read_preset(name), tmp_path / "run"
    argv = ["train", preset["train"], "--config", name, "--steps", "2", "--batch", "2", "--threads", "1", "-q"]
    argv += ["--out", str(out), "--data", str(data / ("voc" if preset["train"] == "segmenter" else "images"))]
    size = {"codec": ["--patch", "32"], "segmenter": ["--size", "32", "32"]}.get(preset["train"], ["--size", "32"])
    channels = 8 if name.endswith("c8") else 32
    codec = ["--codec", str(data / f"c{channels}.safetensors")] if "cresnet" in name else []
    assert main([*argv, *size, *codec]) == 0
    results = sorted(out.glob("**/model.safetensors"))
    assert [path.parent.name for path in results] == (
        ["classifier", "codec"] if preset["train"] == "joint" else ["run"]
    )
    settings = checkpoint.load_weights(results[0]).facts["settings"]["loop"]
    assert (settings["lr"], settings["steps"]) == (preset["lr"], 2)
    shutil.rmtree(out)  # some 500 MB


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_words_of_a_preset() -> None:
    preset = {"train": "x", "lr": 0.5, "size": [3, 4], "fp32": True, "resume": False, "option": {"a": 1, "b": 2}}
    flags = ["--lr", "--size", "--fp32", "--resume", "--option"]
    switches = ["--fp32", "--resume"]
    assert preset_words(preset, "p", "x", flags, switches) == [
        "--lr", "0.5", "--size", "3", "4", "--fp32", "--option", "a=1", "--option", "b=2"
    ]  # fmt: skip
    with pytest.raises(UsageError, match="p is for `train x`, not `train y`"):
        preset_words(preset, "p", "y", flags, switches)
    for key, value, expected in (("lr", False, "a value"), ("lr", True, "a value"), ("fp32", 3, "true or false")):
        with pytest.raises(UsageError, match=f"p: {key} is {str(value).lower()}, expected {expected}"):
            preset_words({"train": "x", key: value}, "p", "x", flags, switches)
    with pytest.raises(UsageError, match="does not say what it trains"):
        preset_words({"train": ["x"]}, "p", "x", flags, switches)
    with pytest.raises(UsageError, match="does not say what it trains") as caught:
        preset_words({}, "p", "y", flags, switches)
    assert 'train = "y"' in caught.value.hint
    for key in ("colour", "config"):
        with pytest.raises(UsageError, match=f"p: unknown key '{key}'"):
            preset_words({"train": "x", key: 1}, "p", "x", [*flags, "--config"], switches)


def test_presets_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preset named 'torfason'") as caught:
        read_preset("torfason")
    assert "torfason-resnet50" in caught.value.hint
    with pytest.raises(InputError, match="cannot read the preset"):
        read_preset(write(tmp_path / "a.toml", "train ="))
    (tmp_path / "b.toml").write_bytes(b'train = "\xff"')
    with pytest.raises(InputError, match="cannot read the preset"):
        read_preset(str(tmp_path / "b.toml"))


def test_flags_come_before_the_preset_wherever_they_stand(data: Path, tmp_path: Path) -> None:
    text = """
        train = "classifier"
        network = "compact-resnet"
        steps = 1
        batch = 3
        size = 32
        lr = 0.5
        no-flip = true
        bf16 = true
        option = {width = 16}
    """
    preset = write(tmp_path / "p.toml", text)
    argv = ["--data", str(data / "images"), "--fp32", "-q"]
    for number, more in enumerate((["--batch", "2", "--config", preset], [f"--config={preset}", "--batch", "2"])):
        out = tmp_path / str(number)
        assert main(["train", "classifier", *more, *argv, "--out", str(out), "--option", "width=8"]) == 0
        found = checkpoint.load_weights(out)
        assert (found.network, found.options) == ("compact-resnet", {"classes": 2, "width": 8})
        settings = found.facts["settings"]
        assert (settings["classifier"]["batch"], settings["classifier"]["size"]) == (2, 32)
        assert (settings["loop"]["lr"], settings["loop"]["bf16"], settings["classifier"]["flip"]) == (0.5, False, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('train = "codec"', "is for `train codec`, not `train classifier`"),
        ('train = "classifier"\ncolour = 1', "unknown key 'colour'"),
        ('train = "classifier"\nsteps = "many"', "argument --steps"),
        ('train = "classifier"\nsteps = 1\nsize = [1, 2]', "unknown argument '2'"),
        ('train = "classifier"\nsteps = 1\nfp32 = 3', "fp32 is 3, expected true or false"),
        ('train = "classifier"\nlr = 1.0', "required: --steps"),
    ],
)
def test_presets_that_do_not_fit(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    preset = write(tmp_path / "p.toml", text)
    argv = ["train", "classifier", "--config", preset, "--data", str(data / "images"), "--out", str(tmp_path / "x")]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
