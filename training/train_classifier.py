"""Training of the classifiers: on RGB, on RGB that a codec has decoded, or on the latents of a frozen codec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..models import registry
from . import checkpoint
from .augment import to_float
from .device import autocast
from .image_sets import ImageSet, random_window
from .loop import LoopConfig, Run, step_rng
from .received import Encoder, RoundTrip
from .train_segmenter import fill_from, make_network

KINDS = ("rgb_classifier", "latent_classifier")


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's training.

    size: side of the square views; for latents a multiple of the codec's stride.  batch: views a step.
    area: range of a random window's share of its image; None: the layout's own.  flip: mirror half of the views.
    """

    size: int = 64
    batch: int = 64
    area: tuple[float, float] | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise UsageError(f"windows of {self.area[0]} to {self.area[1]} of an image, expected 0 < LO <= HI <= 1")
        if self.batch < 2:
            raise UsageError(
                f"a batch of {self.batch}, expected at least 2",
                hint="the last maps of a small view are one position, and batch norm needs two values",
            )


def classified_views(images: ImageSet, config: ClassifierConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One step's batch of augmented views: float32 (batch, 3, size, size) in [0, 1] and int64 (batch,)."""
    chosen = [int(rng.integers(len(images.images))) for _ in range(config.batch)]
    area = config.area or images.area
    batch = [to_float(random_window(images.images[i], config.size, area, config.flip, rng)) for i in chosen]
    return torch.stack(batch), torch.from_numpy(images.labels[chosen])


def describe(config: ClassifierConfig, images: ImageSet) -> dict[str, Any]:
    """A configuration as a run's settings have it: the windows' area as it is taken."""
    return {**vars(config), "area": list(config.area or images.area)}


def check_size(config: ClassifierConfig, codec: nn.Module) -> None:
    """Raise UsageError for views that the codec's stride does not divide."""
    if config.size % codec.stride:  # type: ignore[operator]
        raise UsageError(f"views of {config.size}, expected a multiple of the codec's stride, {codec.stride}")


def check_input(network: str, *, codec: bool, decoded_by: bool) -> str:
    """The kind of a classifier. Raises UsageError where it is none, or where its input is not the one that is given."""
    kind = registry.entry(network).kind
    if kind not in KINDS:
        known = [name for name in registry.names() if registry.entry(name).kind in KINDS]
        raise UsageError(f"'{network}' is not a classifier", hint=f"see: {', '.join(known)}")
    latent = kind == "latent_classifier"
    if latent != codec or (latent and decoded_by):
        raise UsageError(
            f"'{network}' is {'a latent' if latent else 'an RGB'} classifier",
            hint="a latent classifier needs --codec; an RGB one takes --decoded-by, or neither",
        )
    return kind


def train_classifier(
    network: str,
    images: ImageSet,
    folder: Path,
    config: ClassifierConfig,
    loop: LoopConfig,
    *,
    codec: Path | None = None,
    decoded_by: Path | None = None,
    init: Path | None = None,
    options: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    data_note: str = "",
) -> Path:
    """Train a classifier with cross-entropy and return the path of its weights.

    codec: weights of the frozen codec, needed by a classifier of latents and refused by an RGB one. decoded_by: weights
    of a codec whose decoded images an RGB classifier is to learn from. init: weights to start from, of the same
    network. The augmentation acts on the image, before encoding.
    """
    kind = check_input(network, codec=codec is not None, decoded_by=decoded_by is not None)
    options = {"classes": len(images.names), **(options or {})}
    path = codec or decoded_by
    weights = None if path is None else checkpoint.load_weights(path, kinds=("codec",))
    frozen = None if weights is None else weights.build()
    if frozen is not None and codec is not None:
        check_size(config, frozen)
    module = make_network(network, options, frozen if codec is not None else None, loop.seed)
    started = "" if init is None else fill_from(module, init, network, kind)
    encoder = Encoder(frozen) if decoded_by is None else RoundTrip(frozen)
    content_id = "" if weights is None else weights.content_id
    settings = {
        "classifier": describe(config, images), "data": data_note, "class_names": list(images.names),
        "codec": content_id if codec is not None else "", "decoded_by": content_id if codec is None else "",
        "init": started,
    }  # fmt: skip
    run = Run(folder, network, options, module, loop, settings, resume=resume)
    encoder.to(run.device)

    def batch(step: int) -> tuple[Tensor, ...]:
        return classified_views(images, config, step_rng(loop.seed, step))

    def losses(step: int, made: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, target = run.place(*made)
        with autocast(x, run.bf16):
            logits = module(encoder(x))
        return F.cross_entropy(logits.float(), target), {"top1": top1(logits, target)}

    run.train(batch, losses, progress=progress)
    return run.save_weights()


def top1(logits: Tensor, target: Tensor) -> float:
    """The share of a batch, logits (N, classes) and classes int64 (N,), whose largest logit is the right one."""
    return (logits.argmax(1) == target).float().mean().item()
