"""The mean of runs' weights: against NumPy, part by part, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_classifiers import tiny_networks  # noqa: F401 - a fixture
from _tiny_runs import TINY

from latentseg.cli import main
from latentseg.errors import ArtifactError, InputError, LatentsegError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.average import average_runs

NARROW = {"channels": 4, "classes": 2}


def saved(folder: Path, network: str, options: dict[str, Any], seed: int, **facts: Any) -> checkpoint.Weights:
    """A network with random weights, as a run leaves it."""
    torch.manual_seed(seed)
    tensors = registry.create(network, **options).state_dict()
    folder.mkdir(parents=True)
    settings = facts.pop("settings", {})
    checkpoint.save_weights(folder / "model.safetensors", network, options, tensors, {"settings": settings, **facts})
    return checkpoint.load_weights(folder)


def joint_run(folder: Path, seed: int) -> Path:
    codec = saved(folder / "codec", "compact-codec", TINY, seed, log_lambda=-seed / 3)
    saved(folder / "segmenter", "compact-latent", NARROW, seed + 100, settings={"codec": codec.content_id})
    return folder


def assert_mean(found: checkpoint.Weights, parts: list[checkpoint.Weights]) -> None:
    for name, value in found.tensors.items():
        stack = np.stack([part.tensors[name].numpy() for part in parts])
        if value.dtype.is_floating_point:
            expected = stack.astype(np.float64).mean(0).astype(stack.dtype)
            np.testing.assert_array_equal(value.numpy(), expected, err_msg=name)
        else:
            np.testing.assert_array_equal(value.numpy(), stack[0], err_msg=name)


def test_one_network(tmp_path: Path) -> None:
    runs = [saved(tmp_path / str(seed), "compact-codec", TINY, seed) for seed in range(3)]
    (path,) = average_runs([tmp_path / str(seed) for seed in range(3)], tmp_path / "mean")
    assert path == tmp_path / "mean" / "model.safetensors"
    found = checkpoint.load_weights(tmp_path / "mean")
    assert (found.network, found.options) == ("compact-codec", TINY)
    assert_mean(found, runs)
    assert found.facts["settings"]["average_of"] == [run.content_id for run in runs]
    assert "log_lambda" not in found.facts
    found.build()


def test_joint_runs_with_classifiers_stay_pairs(tmp_path: Path) -> None:
    tiny, classes = {"width": 8}, {"channels": 8, "classes": 2}

    def run(seed: int, names: tuple[str, ...] = ("a", "b")) -> Path:
        folder = tmp_path / str(seed)
        codec = saved(folder / "codec", "torfason-codec-c8", tiny, seed, target_entropy=seed / 2)
        settings = {"codec": codec.content_id, "class_names": list(names), "classifier": {"size": 16}}
        saved(folder / "classifier", "tiny-latent", classes, seed + 100, settings=settings)
        return folder

    runs = [run(1), run(2)]
    paths = average_runs(runs, tmp_path / "mean")
    assert paths == tuple(tmp_path / "mean" / part / "model.safetensors" for part in ("codec", "classifier"))
    codec, classifier = (checkpoint.load_weights(path) for path in paths)
    for part, found in (("codec", codec), ("classifier", classifier)):
        assert_mean(found, [checkpoint.load_weights(folder / part) for folder in runs])
    assert codec.facts["target_entropy"] == 0.75
    settings = classifier.facts["settings"]
    assert (settings["codec"], settings["class_names"], settings["classifier"]) == (
        codec.content_id, ["a", "b"], {"size": 16},
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="learned other classes"):
        average_runs([runs[0], run(3, ("a", "c"))], tmp_path / "other")


def test_joint_runs_stay_pairs(tmp_path: Path) -> None:
    runs = [joint_run(tmp_path / "a", 1), joint_run(tmp_path / "b", 2)]
    assert main(["train", "average", *map(str, runs), "--out", str(tmp_path / "mean"), "-q"]) == 0
    codec, segmenter = (checkpoint.load_weights(tmp_path / "mean" / part) for part in ("codec", "segmenter"))
    assert_mean(codec, [checkpoint.load_weights(run / "codec") for run in runs])
    assert_mean(segmenter, [checkpoint.load_weights(run / "segmenter") for run in runs])
    # The pair belongs together, as `eval` and `export` check; training goes on with the mean of the controllers.
    assert segmenter.facts["settings"]["codec"] == codec.content_id
    assert codec.facts["log_lambda"] == pytest.approx(-0.5)


def test_what_is_refused(tmp_path: Path) -> None:
    a, b = joint_run(tmp_path / "a", 1), joint_run(tmp_path / "b", 2)
    stray = joint_run(tmp_path / "stray", 3)
    (stray / "codec" / "model.safetensors").write_bytes((a / "codec" / "model.safetensors").read_bytes())
    wide = saved(tmp_path / "wide", "compact-codec", {**TINY, "channels": 6}, 0)
    assert wide.options != TINY
    refused: list[tuple[list[Path], type[LatentsegError], str]] = [
        ([a], UsageError, r"average of 1 run\(s\), expected at least 2"),
        ([a, stray], ArtifactError, "did not learn on the codec beside it"),
        ([a / "segmenter", b / "segmenter"], ArtifactError, "latents of different codecs"),
        ([a / "codec", tmp_path / "wide"], ArtifactError, "wide holds 'compact-codec'"),
        ([a / "codec", a / "segmenter"], ArtifactError, "holds 'compact-latent'"),
        ([a, tmp_path / "none"], InputError, "no such checkpoint"),
    ]
    for number, (runs, error, message) in enumerate(refused):
        with pytest.raises(error, match=message):
            average_runs(runs, tmp_path / "out" / str(number))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="already holds a run"):
        average_runs([a, b], b)
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is a file, or lies in one"):
            average_runs([a, b], out)
