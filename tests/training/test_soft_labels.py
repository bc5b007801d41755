"""Soft labels: what is averaged, where a view finds them, what students make of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _labelled import write_camvid
from _tiny_runs import CODEC, NARROW, SEGMENTER, TINY, frames, labels, loop, rows, weights
from torch.nn import functional as F

from latentseg.cli import main
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.training import checkpoint
from latentseg.training.augment import random_view
from latentseg.training.soft_labels import (
    FILE,
    SoftLabels,
    divergence,
    load_soft_labels,
    make_soft_labels,
    probabilities,
)
from latentseg.training.train_codec import train_codec
from latentseg.training.train_joint import JointConfig, train_joint
from latentseg.training.train_segmenter import train_segmenter


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    args = ("compact-rgb", frames(3), labels(3), 2, out, SEGMENTER, loop(4, lr=5e-3))
    return train_segmenter(*args, options=NARROW, progress=False)


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    return make_soft_labels(teacher, frames(3), tmp_path_factory.mktemp("soft"), (1.0, 1.5), progress=False)


class Reddish(torch.nn.Module):
    """Two classes: logits are the red channel, and its opposite, at half the resolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = 8.0 * (F.avg_pool2d(x[:, :1], 2) - 0.5)
        return torch.cat([red, -red], 1)


@pytest.mark.parametrize("size", [(24, 40), (37, 53)])
def test_the_average_of_an_image_and_its_mirror_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 256, (5, 7, 3)), 8, 0), 8, 1)[: size[0], : size[1]].astype(np.uint8)
    found = probabilities(Reddish(), image, (1.0,))
    assert found.shape == (2, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]))
    if size == (24, 40):  # sides that need no rescaling: at every place exactly what the module says of both
        red = 1.0 / (1.0 + np.exp(-16.0 * (image[::2, ::2, 0] / 255.0 - 0.5)))
        np.testing.assert_allclose(found[0].numpy(), red, atol=1e-5)
    enlarged = probabilities(Reddish(), image, (1.0, 2.0))
    assert (enlarged - found).abs().max() > 1e-3
    assert ((enlarged > 0.5) == (found > 0.5)).float().mean() > 0.9


class Sided(torch.nn.Module):
    """Says class 0 on the left half of what it sees, class 1 on the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.where(torch.arange(x.shape[3] // 2) < x.shape[3] // 4, 4.0, -4.0)
        left = left.expand(len(x), 1, x.shape[2] // 2, -1)
        return torch.cat([left, -left], 1)


def test_what_depends_on_the_side_averages_out() -> None:
    found = probabilities(Sided(), np.zeros((16, 32, 3), np.uint8), (1.0,))
    torch.testing.assert_close(found, torch.full((2, 8, 16), 0.5))


@pytest.mark.parametrize("size", [(48, 64), (96, 80)])
def test_a_view_finds_what_its_labels_are(size: tuple[int, int]) -> None:
    """Maps that are the labels, one-hot, come out where a view's labels are: in every window, at every scale."""
    label = (np.arange(60)[:, None] // 12 + np.arange(84)[None] // 12) % 10
    image = np.zeros((60, 84, 3), np.uint8)
    coarse = torch.from_numpy(label[::2, ::2])  # blocks of 12 are blocks of 6 there
    maps = F.one_hot(coarse, 10).permute(2, 0, 1).mul(255).to(torch.uint8)
    agree, mirrored = [], set()
    for seed in range(16):
        _, target, placement = random_view(image, label.astype(np.uint8), size, np.random.default_rng(seed))
        view = SoftLabels([maps], "").view(0, placement, size)
        assert view.shape == (10, size[0] // 2, size[1] // 2)
        torch.testing.assert_close(view.sum(0), torch.ones(view.shape[1:]), atol=1e-4, rtol=0)
        fine = F.interpolate(view[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        agree.append((fine == target)[target != 255].float().mean().item())
        mirrored.add(placement.flipped)
    assert mirrored == {False, True}
    # A shift by one pixel would spoil a sixth of all pixels; the borders of blocks are blended.
    assert min(agree) > 0.9
    assert np.mean(agree) > 0.95


def test_files_come_back(soft: Path, teacher: Path) -> None:
    assert soft.name == FILE
    found = load_soft_labels(soft.parent, frames(3), 2)
    assert found.content_id == load_soft_labels(soft, frames(3), 2).content_id
    module = checkpoint.load_weights(teacher).build()
    for index, image in enumerate(frames(3)):
        expected = probabilities(module, image, (1.0, 1.5)) * 255
        assert (found.maps[index].float() - expected).abs().max() <= 0.5 + 1e-3


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Soft labels of a teacher that says class 0 everywhere, and is sure of it, where most labels are 1."""
    made = checkpoint.load_weights(teacher)
    made.tensors["trunk.classifier.weight"].zero_()
    made.tensors["trunk.classifier.bias"].copy_(torch.tensor([6.0, 0.0]).repeat_interleave(16))
    folder = tmp_path_factory.mktemp("stubborn")
    checkpoint.save_weights(folder / "model.safetensors", made.network, made.options, made.tensors, made.facts)
    return make_soft_labels(folder, frames(3), folder / "soft", (1.0,), progress=False)


def test_a_segmenter_learns_them(tmp_path: Path, stubborn: Path) -> None:
    maps = load_soft_labels(stubborn, frames(3), 2).maps
    assert all((m[0] > 250).all() for m in maps)

    def train(name: str, **changes: Any) -> Path:
        args = ("compact-rgb", frames(3), labels(3), 2, tmp_path / name, SEGMENTER, loop(30, lr=2e-2, ema=0.0))
        return train_segmenter(*args, options=NARROW, progress=False, **changes)

    plain, taught = train("plain"), train("taught", soft_labels=stubborn, teacher_weight=50.0)
    says_zero = {}
    for name, path in {"plain": plain, "taught": taught}.items():
        module = checkpoint.load_weights(path).build()
        says_zero[name] = np.mean([probabilities(module, image, (1.0,))[0].mean().item() for image in frames(3)])
    assert says_zero["taught"] > says_zero["plain"] + 0.3
    assert rows(tmp_path / "taught")[-1].keys() >= {"loss", "task", "taught"}
    assert "taught" not in rows(tmp_path / "plain")[-1]
    settings = checkpoint.load_weights(taught).facts["settings"]
    assert settings["soft_labels"] == {"id": load_soft_labels(stubborn, frames(3), 2).content_id, "weight": 50.0}
    assert "soft_labels" not in checkpoint.load_weights(plain).facts["settings"]
    # Of no weight they change nothing: the views are the same ones.
    ignored = weights(train("ignored", soft_labels=stubborn, teacher_weight=0.0))
    for name, value in weights(plain).items():
        torch.testing.assert_close(ignored[name], value, rtol=1e-4, atol=1e-6)


def test_weighted_divergence_of_labels_is_the_cross_entropy() -> None:
    """Of probabilities 0 and 1 it is what `cross_entropy` with class weights gives, which knows no other kind."""
    rng = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(2, 3, 4, 6, generator=rng), torch.tensor([0.3, 1.0, 4.0])
    target = torch.randint(0, 3, (2, 4, 6), generator=rng)
    wanted = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    target[0, :2] = 255
    expected = F.cross_entropy(logits, target, weight=weight, ignore_index=255)
    torch.testing.assert_close(divergence(wanted, logits, target, weight), expected)
    plain = F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(divergence(wanted, logits, target), plain)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_codec(
        "compact-codec", frames(3), tmp_path_factory.mktemp("codec"), CODEC, loop(2), options=TINY, progress=False
    )


def test_joint_training_with_them(tmp_path: Path, codec: Path, soft: Path, teacher: Path) -> None:
    def joint(name: str, config: JointConfig, **changes: Any) -> tuple[Path, Path]:
        args = ("compact-latent", frames(3), labels(3), 2, tmp_path / name, SEGMENTER, CODEC, config, loop(2))
        return train_joint(*args, codec=codec, progress=False, **changes)

    _, segmenter = joint("soft", JointConfig(), soft_labels=soft)
    settings = checkpoint.load_weights(segmenter).facts["settings"]
    assert settings["soft_labels"] == load_soft_labels(soft, frames(3), 2).content_id
    assert rows(tmp_path / "soft")[-1]["taught"] > 0
    _, plain = joint("plain", JointConfig())
    assert any(not torch.equal(weights(segmenter)[k], v) for k, v in weights(plain).items())
    # Beside them a teacher may only give hints.
    joint("hints", JointConfig(hint_steps=1), soft_labels=soft, teacher=teacher, options=NARROW)
    with pytest.raises(UsageError, match="a teacher beside soft labels gives hints alone"):
        joint("both", JointConfig(), soft_labels=soft, teacher=teacher)


def test_what_does_not_fit_is_refused(tmp_path: Path, soft: Path, teacher: Path, codec: Path) -> None:
    with pytest.raises(ArtifactError, match="of 3 other images than the 2"):
        load_soft_labels(soft, frames(3)[:2], 2)
    with pytest.raises(ArtifactError, match="other images"):
        load_soft_labels(soft, frames(3)[::-1], 2)
    with pytest.raises(ArtifactError, match="know 2 classes, expected 11"):
        load_soft_labels(soft, frames(3), 11)
    with pytest.raises(ArtifactError, match="holds no soft labels"):
        load_soft_labels(teacher, frames(3), 2)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_soft_labels(tmp_path / "none", frames(3), 2)
    for scales in ((), (0.0,), (1.0, float("nan")), (5.0,)):
        with pytest.raises(UsageError, match="expected one or more above 0 and up to 4"):
            make_soft_labels(teacher, frames(1), tmp_path / "out", scales, progress=False)
    with pytest.raises(ArtifactError, match="holds a codec"):
        make_soft_labels(codec, frames(1), tmp_path / "out", (1.0,), progress=False)
    with pytest.raises(UsageError, match="already holds soft labels"):
        make_soft_labels(teacher, frames(3), soft.parent, (1.0,), progress=False)
    with pytest.raises(UsageError, match="teacher_weight is nan"):
        train_segmenter(
            "compact-rgb", frames(3), labels(3), 2, tmp_path / "out", SEGMENTER, loop(1), options=NARROW,
            soft_labels=soft, teacher_weight=float("nan"), progress=False,
        )  # fmt: skip
    assert not list(tmp_path.glob("out/*"))


def test_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path, [(48, 64), (48, 64)])
    data = ["--data", str(tmp_path), "--split", "val"]
    small = ["--option", "width=8", "--size", "24", "32", "--batch", "2", "--steps", "1", "--warmup", "0"]
    rgb = ["train", "segmenter", "--network", "compact-rgb", *data, *small, "--threads", "1", "-q"]
    assert main([*rgb, "--out", str(tmp_path / "rgb")]) == 0
    soft = ["train", "soft-labels", "--teacher", str(tmp_path / "rgb"), *data, "--out", str(tmp_path / "soft"), "-q"]
    assert main([*soft, "--scales", "1"]) == 0
    taught = ["--soft-labels", str(tmp_path / "soft"), "--teacher-weight", "2"]
    assert main([*rgb, *taught, "--out", str(tmp_path / "again")]) == 0
    settings = checkpoint.load_weights(tmp_path / "again").facts["settings"]
    assert settings["soft_labels"]["weight"] == 2.0
    capsys.readouterr()
    for argv, message in [
        (soft, "already holds soft labels"),
        ([*rgb, *taught[2:], "--out", str(tmp_path / "x")], "--teacher-weight without soft labels"),
        ([*soft[:-2], str(tmp_path / "y"), "-q", "--scales", "9"], "up to 4"),
    ]:
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
