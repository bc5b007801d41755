"""Optimizers and schedules of the training loop, against formulas, and runs from before there was a choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import CODEC, TINY, frames, loop, weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentseg.errors import ArtifactError, UsageError
from latentseg.training.loop import LoopConfig, Run, learning_rate
from latentseg.training.train_codec import train_codec


def test_step_schedule_falls_to_a_tenth_at_each_share() -> None:
    config = LoopConfig(steps=200, lr=0.5, warmup=4, schedule="step", decay_at=(0.25, 0.5, 0.995))
    rates = [learning_rate(config, step) for step in range(200)]
    assert rates[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert rates[49:51] == pytest.approx([0.5, 0.05])
    assert rates[99:101] == pytest.approx([0.05, 0.005])
    assert rates[198:] == pytest.approx([0.005, 0.0005])


def test_poly_schedule() -> None:
    config = LoopConfig(steps=100, lr=2.0, warmup=0, schedule="poly")
    for step in (0, 1, 37, 99):
        assert learning_rate(config, step) == pytest.approx(2.0 * (1 - step / 100) ** 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam', expected one of adamw, sgd"),
        ({"schedule": "linear"}, "schedule 'linear', expected one of cosine, step, poly"),
        ({"schedule": "step"}, r"schedule 'step' with 0 decay\(s\)"),
        ({"decay_at": (0.5,)}, r"schedule 'cosine' with 1 decay\(s\)"),
        ({"schedule": "step", "decay_at": (0.5, 0.5)}, "expected rising shares"),
        ({"schedule": "step", "decay_at": (0.0,)}, "expected rising shares"),
        ({"schedule": "step", "decay_at": (1.0,)}, "expected rising shares"),
        ({"schedule": "step", "decay_at": (float("nan"),)}, "expected rising shares"),
        ({"clip_norm": 0.0}, "gradients clipped to 0.0"),
        ({"clip_norm": float("nan")}, "gradients clipped to nan"),
    ],
)
def test_loops_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loop(2, **changes)


def steps_of_sgd(tmp_path: Path, steps: int, **changes: Any) -> tuple[Tensor, Tensor]:
    """Start and end of a weight whose gradient is 2 everywhere, but for weight decay."""
    module = nn.Linear(1, 3)
    start = module.weight.detach().clone()
    config = loop(steps, optimizer="sgd", warmup=0, final_lr_share=1.0, ema=0.0, clip_norm=100.0, **changes)
    run = Run(tmp_path / "r", "one", {}, module, config, {})
    run.train(int, lambda step, batch: (2 * module.weight.sum(), {}), progress=False)
    return start, module.weight.detach()


def test_sgd_has_momentum(tmp_path: Path) -> None:
    start, end = steps_of_sgd(tmp_path, 3, lr=0.1)
    # Velocities 2, 2 * 1.9 and 2 * 2.71.
    torch.testing.assert_close(end, start - 0.1 * 2 * (1 + 1.9 + 2.71))


def test_sgd_decays_weights(tmp_path: Path) -> None:
    start, end = steps_of_sgd(tmp_path, 1, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(end, start - 0.1 * (2 + 0.5 * start))


def one_run(folder: Path, **changes: Any) -> Run:
    torch.manual_seed(0)
    return Run(folder, "one", {}, nn.Linear(2, 2), loop(2, **changes), {"data": "d"}, resume=folder.exists())


def test_a_run_from_before_there_was_a_choice_resumes(tmp_path: Path) -> None:
    one_run(tmp_path / "r").save_state()
    path = tmp_path / "r" / "state.safetensors"
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"])
    for key in ("optimizer", "schedule", "decay_at"):
        del settings["loop"][key]
    save_file(weights(path), str(path), metadata={**metadata, "settings": json.dumps(settings)})
    assert one_run(tmp_path / "r").step == 0
    with pytest.raises(ArtifactError, match=r"other settings: loop optimizer was 'adamw', asked for 'sgd'$"):
        one_run(tmp_path / "r", optimizer="sgd")
    with pytest.raises(ArtifactError, match=r"loop decay_at was \[\], asked for \[0.5\]"):
        one_run(tmp_path / "r", schedule="step", decay_at=(0.5,))


def test_the_gradient_is_clipped_to_what_is_asked_for(tmp_path: Path) -> None:
    module = nn.Linear(4, 1, bias=False)
    start = module.weight.detach().clone()
    config = loop(1, optimizer="sgd", warmup=0, lr=1.0, ema=0.0, clip_norm=3.0)
    run = Run(tmp_path / "r", "one", {}, module, config, {})
    run.train(int, lambda step, batch: (50 * module.weight.sum(), {}), progress=False)
    moved = (start - module.weight.detach()).numpy()
    assert np.linalg.norm(moved) == pytest.approx(3.0, rel=1e-4)


def cpu(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """A CPU that has these, as torch sees it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True), raising=False)


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, "avx512_bf16")
    begun = one_run(tmp_path / "r", bf16=None)
    assert begun.bf16 is True
    assert begun.settings["loop"]["bf16"] is True
    begun.save_state()
    cpu(monkeypatch, "avx2")
    assert one_run(tmp_path / "new", bf16=None).bf16 is False
    resumed = one_run(tmp_path / "r", bf16=None)
    assert resumed.bf16 is True
    assert resumed.settings["loop"]["bf16"] is True
    with pytest.raises(ArtifactError, match="loop bf16 was True, asked for False"):
        one_run(tmp_path / "r", bf16=False)


def test_the_settled_precision_is_the_one_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, "amx_bf16")
    found = {}
    for bf16 in (None, True, False):
        out = tmp_path / str(bf16)
        train_codec("compact-codec", frames(2), out, CODEC, loop(2, bf16=bf16), options=TINY, progress=False)
        found[bf16] = weights(out / "model.safetensors")["compressor.transform.entry.weight"]
    assert torch.equal(found[None], found[True])
    assert not torch.equal(found[None], found[False])
