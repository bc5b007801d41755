"""Which steps weights know: read from settings, over averages, and what lies in all of several ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny_runs import TINY

from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.average import average_runs
from latentseg.training.steps import common_steps, trained_steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 1)),
        ({"codec": {"patch": 96}}, (1, 1)),
        ({"codec": {"step_range": [0.4, 2.5]}}, (0.4, 2.5)),
        ({"codec": "ab" * 32, "segmenter": {"step_range": [0.5, 2]}}, (0.5, 2)),
        ({"crops": {"step_range": [0.25, 4]}, "segmenter": {"size": [24, 32]}, "codec": "ab"}, (0.25, 4)),
        ({"crops": {}, "segmenter": {"size": [24, 32]}}, (1, 1)),
        ({"average_of": ["a", "b"], "step_range": [0.5, 2]}, (0.5, 2)),
    ],
)
def test_steps_of_settings(settings: dict[str, Any], expected: tuple[float, float]) -> None:
    assert trained_steps(settings) == expected


def test_what_lies_in_all_ranges() -> None:
    assert common_steps([(0.4, 2.5)]) == (0.4, 2.5)
    assert common_steps(iter([(0.4, 2), (0.5, 2.5), (0.1, 9)])) == (0.5, 2)
    low, high = common_steps([(0.4, 0.6), (1, 1)])
    assert low > high


def test_an_average_knows_what_all_of_its_runs_know(tmp_path: Path) -> None:
    tensors = registry.create("compact-codec", **TINY).state_dict()
    for name, steps in (("a", [0.4, 2.5]), ("b", [0.5, 4.0]), ("c", None)):
        (tmp_path / name).mkdir()
        section = {} if steps is None else {"step_range": steps}
        facts = {"settings": {"codec": {"patch": 96, **section}}}
        moved = {key: value + 0.01 * torch.ones_like(value) for key, value in tensors.items()}
        checkpoint.save_weights(tmp_path / name / "model.safetensors", "compact-codec", TINY, moved, facts)
    for runs, expected in (("ab", (0.5, 2.5)), ("ac", (1, 1))):
        (path,) = average_runs([tmp_path / name for name in runs], tmp_path / runs)
        assert trained_steps(checkpoint.load_weights(path).facts["settings"]) == expected
