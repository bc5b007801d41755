"""Hints: a student that starts with its teacher's trunk learns its entry's features first. And `init`, beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import (
    CODEC,
    NARROW,
    SEGMENTER,
    TINY,
    Counted,
    KilledError,
    frames,
    labels,
    loop,
    rows,
    tiny_codec,
    weights,
)
from torch import nn

from latentseg.errors import ArtifactError, LatentsegError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.loop import LoopConfig, Part, Run, warm
from latentseg.training.train_codec import train_codec
from latentseg.training.train_joint import JointConfig, Teacher, train_joint
from latentseg.training.train_segmenter import train_segmenter


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB segmenter of two classes, of the width that a student has."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    torch.manual_seed(11)
    module = registry.create("compact-rgb", classes=2)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.affine):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    checkpoint.save_weights(path, "compact-rgb", {"classes": 2}, module.state_dict(), {"settings": {}})
    return path


def joint(folder: Path, codec: Path, steps: int, hint_steps: int, **changes: Any) -> tuple[Path, Path]:
    images = changes.pop("images", frames(3))
    configs = (SEGMENTER, CODEC, JointConfig(hint_steps=hint_steps, ramp=0), changes.pop("loop", loop(steps)))
    network = changes.pop("network", "compact-latent")
    return train_joint(network, images, labels(3), 2, folder, *configs, codec=codec, progress=False, **changes)


def same(path: Path, other: Path, prefix: str) -> bool:
    """Whether two results agree in every tensor under a prefix, of which there must be some."""
    a, b = weights(path), weights(other)
    names = [name for name in a if name.startswith(prefix)]
    assert names
    return all(torch.equal(a[name], b[name]) for name in names)


def test_the_entry_learns_alone_and_then_all_do(tmp_path: Path, codec: Path, teacher: Path) -> None:
    hinted_codec, hinted = joint(tmp_path / "hinted", codec, 4, 4, teacher=teacher)
    assert same(hinted, teacher, "trunk.")
    assert same(hinted_codec, codec, "")
    first, last = (row["hint"] for row in rows(tmp_path / "hinted"))
    assert last < first  # it learns
    assert rows(tmp_path / "hinted")[0].keys() == {"step", "seconds", "lr", "loss", "hint"}
    whole_codec, whole = joint(tmp_path / "whole", codec, 6, 4, teacher=teacher)
    assert not same(whole, teacher, "trunk.")
    assert not same(whole_codec, codec, "")
    assert [("hint" in row, "task" in row) for row in rows(tmp_path / "whole")] == [(True, False)] * 2 + [(False, True)]
    assert checkpoint.load_weights(whole).facts["settings"]["joint"]["hint_steps"] == 4
    # A row that has steps of both kinds means each figure over the steps that have it.
    joint(tmp_path / "mixed", codec, 4, 3, teacher=teacher)
    psnr = [row.get("psnr") for row in rows(tmp_path / "mixed")]
    assert psnr[0] is None
    assert psnr[1] > 0.8 * rows(tmp_path / "whole")[-1]["psnr"]  # of one step in two: not half of it


def test_hint_by_hand(teacher: Path) -> None:
    teaching = Teacher(teacher, 2)
    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    wanted = teaching.module.entry(x).numpy().astype(float)  # type: ignore[operator]
    rng = np.random.default_rng(4)
    found = wanted + rng.normal(size=wanted.shape)
    spread = wanted.var((0, 2, 3), keepdims=True, ddof=1) + 1e-4
    expected = np.mean((found - wanted) ** 2 / spread)
    assert teaching.hint(x, torch.tensor(found, dtype=torch.float32)).item() == pytest.approx(expected, rel=1e-4)
    # A student that says the mean of each channel everywhere is at about 1, the teacher itself at 0.
    constant = np.broadcast_to(wanted.mean((0, 2, 3), keepdims=True), wanted.shape)
    alive = wanted.var((0, 2, 3)) > 0.01
    at_mean = teaching.hint(x, torch.tensor(constant.copy(), dtype=torch.float32)).item()
    assert 0.8 * alive.mean() < at_mean <= 1.0
    assert teaching.hint(x, torch.tensor(wanted, dtype=torch.float32)).item() == pytest.approx(0.0, abs=1e-9)


def test_a_hinted_run_resumes_as_itself(tmp_path: Path, codec: Path, teacher: Path) -> None:
    whole = joint(tmp_path / "a", codec, 6, 3, teacher=teacher)
    # Killed in step 6, after the checkpoint at step 4; hints take two views a step, the others two crops as well.
    mortal = Counted(frames(3), last=2 * 3 + 4 * 2 + 1)
    with pytest.raises(KilledError):
        joint(tmp_path / "b", codec, 6, 3, teacher=teacher, images=mortal)
    assert [row["step"] for row in rows(tmp_path / "b")] == [2, 4]
    resumed = joint(tmp_path / "b", codec, 6, 3, teacher=teacher, resume=True)
    for one, other in zip(whole, resumed, strict=True):
        assert checkpoint.load_weights(one).content_id == checkpoint.load_weights(other).content_id


def test_hints_that_nobody_can_give(tmp_path: Path, codec: Path, teacher: Path) -> None:
    narrow = tmp_path / "narrow.safetensors"
    options = {"classes": 2, **NARROW}
    tensors = registry.create("compact-rgb", **options).state_dict()
    checkpoint.save_weights(narrow, "compact-rgb", options, tensors, {"settings": {}})
    refused: list[tuple[dict[str, Any], type[LatentsegError], str]] = [
        ({}, UsageError, "hints come from a teacher, found none"),
        ({"teacher": narrow}, ArtifactError, "the teacher and 'compact-latent' do not share a trunk"),
    ]
    for changes, error, message in refused:
        with pytest.raises(error, match=message):
            joint(tmp_path / "out", codec, 2, 1, **changes)
    with pytest.raises(UsageError, match="3 steps of hints, expected at most the run's 2"):
        joint(tmp_path / "out", codec, 2, 3, teacher=teacher)
    with pytest.raises(UsageError, match="hint_steps is -1"):
        JointConfig(hint_steps=-1)
    assert not (tmp_path / "out").exists()


def test_a_part_waits_for_its_start_and_warms_up(tmp_path: Path) -> None:
    config = LoopConfig(steps=100, warmup=10)
    assert [warm(config, step, 0) for step in (0, 5, 99)] == [1.0, 1.0, 1.0]
    assert [warm(config, step, 40) for step in (0, 39, 40, 44, 49, 60)] == [0.0, 0.0, 0.1, 0.5, 1.0, 1.0]
    assert warm(replace(config, warmup=0), 40, 40) == 1.0
    module = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    before = module["b"].weight.item()
    parts = [Part(module["a"], 0.0), Part(module["b"], 0.5, start=2)]
    run = Run(tmp_path, "pair", {}, module, loop(3, lr=0.1, warmup=0, ema=0.0), {}, parts=parts)
    seen: list[float] = []

    def losses(step: int, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(module["b"].weight.item())
        return torch.stack([p.sum() for p in module.parameters()]).sum(), {}

    run.train(int, losses, progress=False)
    assert seen == [before] * 3  # neither the gradient nor the weight decay before its start
    assert module["b"].weight.item() != before


def test_a_segmenter_goes_on_from_given_weights(tmp_path: Path, teacher: Path) -> None:
    def train(name: str, network: str = "compact-rgb", **changes: Any) -> Path:
        args = (network, frames(3), labels(3), 2, tmp_path / name, SEGMENTER)
        return train_segmenter(*args, loop(1, lr=1e-12, warmup=0, ema=0.0), progress=False, **changes)

    path = train("on", init=teacher)
    found, start = weights(path), weights(teacher)
    trained = [name for name in start if "running" not in name and "num_batches" not in name]
    for name in trained:
        torch.testing.assert_close(found[name], start[name], rtol=0, atol=1e-9)
    assert checkpoint.load_weights(path).facts["settings"]["init"] == checkpoint.load_weights(teacher).content_id
    alone = weights(train("alone"))
    assert not torch.equal(alone["trunk.fuse.0.weight"], start["trunk.fuse.0.weight"])
    latent = train("latent", "compact-latent", init=teacher, codec=train_codec(
        "compact-codec", frames(3), tmp_path / "codec", CODEC, loop(1), options=TINY, progress=False
    ))  # fmt: skip
    for name in (name for name in trained if name.startswith("trunk.")):
        torch.testing.assert_close(weights(latent)[name], start[name], rtol=0, atol=1e-9)
    with pytest.raises(ArtifactError, match="holds a latent_segmenter"):
        train("back", init=latent)
    with pytest.raises(ArtifactError, match="do not fit network 'compact-rgb'"):
        train("narrow", init=teacher, options=NARROW)
