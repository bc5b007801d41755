"""The mean of several runs' weights: one network at one network's cost (Wortsman et al., "Model soups", ICML 2022).

It helps where the runs lie in one valley of the loss: where each went on from another, or from the same start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, OutputError, UsageError
from . import checkpoint
from .checkpoint import Weights
from .steps import common_steps, trained_steps

FILE = "model.safetensors"
_HEADS = {"segmenter": "latent_segmenter", "classifier": "latent_classifier"}
# What evaluation and export read of a classifier's training.
_KEPT = ("classifier", "class_names", "decoded_by")


def average_runs(runs: Sequence[Path], out: Path) -> tuple[Path, ...]:
    """Average finished runs of one network, or joint runs (both their parts), into the folder `out`.

    Returns the paths of what was written: `out/model.safetensors`, or `out/codec/...` and `out/segmenter/...` (or
    `out/classifier/...`).

    Raises
    ------
    UsageError: fewer than two runs, or `out` holds one already. InputError: a run is not there, or not finished.
    ArtifactError: the runs are of different networks or classes, or learned on the latents of different codecs.
    """
    if len(runs) < 2:
        raise UsageError(f"an average of {len(runs)} run(s), expected at least 2")
    if any((out / part / FILE).exists() for part in ("", "codec", *_HEADS)):
        raise UsageError(f"{out} already holds a run", hint="choose another --out")
    for part, kind in _HEADS.items():
        if not all((run / part / FILE).is_file() for run in runs):
            continue
        codecs = [checkpoint.load_weights(run / "codec", kinds=("codec",)) for run in runs]
        heads = [checkpoint.load_weights(run / part, kinds=(kind,)) for run in runs]
        for run, codec, head in zip(runs, codecs, heads, strict=True):
            if head.facts["settings"].get("codec") != codec.content_id:
                raise ArtifactError(f"the {part} in {run} did not learn on the codec beside it")
        codec = _mean(codecs, runs)
        head = _mean(heads, runs)
        head.facts["settings"]["codec"] = codec.content_id
        return write_run(out / "codec", codec), write_run(out / part, head)
    whole = [checkpoint.load_weights(run) for run in runs]
    mean = _mean(whole, runs)
    # Of a codec's own run "codec" is its configuration.
    codecs_of = [weights.facts["settings"].get("codec", "") for weights in whole]
    trained_on = {codec if isinstance(codec, str) else "" for codec in codecs_of}
    if len(trained_on) > 1:
        raise ArtifactError(
            "the runs' networks learned on the latents of different codecs",
            hint="average joint runs as a whole: give their folders, which hold codec/ and what learned with it",
        )
    mean.facts["settings"]["codec"] = trained_on.pop()
    return (write_run(out, mean),)


def _mean(found: Sequence[Weights], runs: Sequence[Path]) -> Weights:
    first = found[0]
    for run, weights in zip(runs[1:], found[1:], strict=True):
        if (weights.network, weights.options) != (first.network, first.options):
            raise ArtifactError(
                f"{run} holds '{weights.network}' {weights.options}, expected '{first.network}' {first.options} as in "
                f"{runs[0]}",
                hint="average runs of one network",
            )
        learned, expected = (w.facts["settings"].get("class_names") for w in (weights, first))
        if learned != expected:
            raise ArtifactError(f"{run} learned other classes than {runs[0]}", hint="average runs of one data set")
        if _input(weights) != _input(first):
            raise ArtifactError(f"{run} learned from other images than {runs[0]}: decoded ones, or JPEGs, in one alone")
    tensors = {}
    for name, value in first.tensors.items():
        stack = [weights.tensors[name] for weights in found]
        if value.dtype.is_floating_point:
            tensors[name] = torch.stack([tensor.double() for tensor in stack]).mean(0).to(value.dtype)
        else:
            tensors[name] = value
    kept = {key: value for key, value in first.facts["settings"].items() if key in _KEPT}
    if _input(first)[1]:
        kept["segmenter"] = {"jpeg_quality": _input(first)[1]}
    steps = common_steps(trained_steps(weights.facts["settings"]) for weights in found)
    if steps[0] < steps[1]:
        kept["step_range"] = list(steps)
    facts: dict[str, Any] = {"settings": {"average_of": [weights.content_id for weights in found], **kept}}
    # What a training that goes on from here begins with.
    for key in ("log_lambda", "target_entropy"):
        scalars = [weights.facts[key] for weights in found if key in weights.facts]
        if len(scalars) == len(found):
            facts[key] = math.fsum(scalars) / len(scalars)
    return Weights(first.network, first.options, tensors, facts)


def _input(weights: Weights) -> tuple[Any, Any]:
    """What an RGB network learned from in place of originals: the codec that decoded them, and the JPEGs' qualities."""
    settings = weights.facts["settings"]
    return settings.get("decoded_by") or None, settings.get("segmenter", {}).get("jpeg_quality")


def write_run(folder: Path, weights: Weights) -> Path:
    """Write weights into a folder, made if missing, as a run leaves them; return the path. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"{folder} is a file, or lies in one, expected a folder", hint="choose another --out"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    path = folder / FILE
    checkpoint.save_weights(path, weights.network, weights.options, weights.tensors, weights.facts)
    return path
