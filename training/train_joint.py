"""Training of a codec and the segmenter on its latents together: task loss + rate + distortion.

The segmenter learns as in `train_segmenter`, from the same views, for as many steps; but the codec is not frozen. The
views' gradient reaches its compressor through the straight-through rounding, so that bits go where classes need them,
while crops of the same images hold it to its rate and to a picture that a person can still look at.

A segmenter of the original RGB may teach: the student then also learns the class probabilities that the teacher gives
the same view. Where both have the same trunk, the student may take over the teacher's, and begin with some steps in
which its entry alone learns, to give that trunk the features that the teacher's entry gives it (the hints of Romero et
al., "FitNets", ICLR 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArtifactError, UsageError
from ..models import registry
from . import checkpoint
from .data import IGNORE
from .device import autocast
from .lend import lend_entry, lend_trunk
from .loop import LoopConfig, Part, Run, step_rng
from .received import check_step_range, draw_levels
from .train_codec import CodecConfig, RateDistortion, check_crops, crops
from .train_codec import described as described_crops
from .train_segmenter import (
    SegmentationLoss,
    SegmenterConfig,
    check_data,
    class_weights,
    described,
    make_network,
    views,
)


@dataclass(frozen=True)
class JointConfig:
    """What joint training adds to the two trainings.

    task_weight: of the segmentation loss (nats a pixel) against rate (bits a pixel) and distortion.
    ramp: steps over which the task's gradient into the codec grows from nothing; a fresh segmenter's says little.
    codec_lr_share: the codec's learning rate as a share of the segmenter's; it is trained already.
    teacher_weight: of the divergence from the teacher's probabilities (nats a pixel) against the cross-entropy.
    hint_steps: the first of the run's steps, in which the entry alone learns what the teacher's entry gives, before
        a trunk that starts as the teacher's; 0: no hints, and a trunk of its own.
    """

    task_weight: float = 2.0
    ramp: int = 500
    codec_lr_share: float = 0.5
    teacher_weight: float = 1.0
    hint_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.task_weight < math.inf:
            raise UsageError(f"a task weight of {self.task_weight}, expected a finite number above 0")
        for name in ("ramp", "codec_lr_share", "teacher_weight", "hint_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected a finite number not below 0")


class Pair(nn.Module):
    """A codec and a segmenter as one module, so that one run trains, averages and resumes both."""

    def __init__(self, codec: nn.Module, segmenter: nn.Module) -> None:
        super().__init__()
        self.codec, self.segmenter = codec, segmenter


class Teacher:
    """A trained RGB segmenter, whose class probabilities a student learns (Hinton et al. 2015, at temperature 1)."""

    def __init__(self, path: Path, classes: int) -> None:
        weights = checkpoint.load_weights(path, kinds=("rgb_segmenter",))
        self.module, self.content_id = weights.build().requires_grad_(False), weights.content_id
        found = int(self.module.classes)  # type: ignore[arg-type]
        if found != classes:
            raise ArtifactError(f"the teacher in {path} knows {found} classes, expected the data's {classes}")

    def hint(self, x: Tensor, features: Tensor) -> Tensor:
        """How far a student's features (N, width, h, w) of views x lie from the teacher's.

        The mean squared difference, a channel's in units of its own variance in the batch: 1 for a constant guess.
        """
        with torch.no_grad():
            wanted: Tensor = self.module.entry(x).float()  # type: ignore[operator]
        spread = wanted.var((0, 2, 3), keepdim=True) + 1e-4
        distance: Tensor = ((features.float() - wanted) ** 2 / spread).mean()
        return distance

    def divergence(self, x: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """KL(teacher || student), mean over the logits of x (N, 3, H, W) in [0, 1] that lie under labelled pixels."""
        with torch.no_grad():
            found = _logits(self.module(x)).float()
        size = logits.shape[2:]
        if found.shape != logits.shape:
            corners = bool(self.module.align_corners)
            found = F.interpolate(found, size=size, mode="bilinear", align_corners=corners)
        counted = (F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0] != IGNORE).float()
        student, taught = F.log_softmax(logits.float(), 1), F.log_softmax(found, 1)
        divergence = F.kl_div(student, taught, reduction="none", log_target=True).sum(1)
        return (divergence * counted).sum() / counted.sum().clamp_min(1.0)


def _parts(segmenter: nn.Module, codec: nn.Module, config: JointConfig, weight_decay: float) -> list[Part]:
    """The pair's paces: under hints, what lies behind the entry waits until they are over."""
    if not config.hint_steps:
        return [Part(segmenter, weight_decay), Part(codec, 0.0, config.codec_lr_share)]
    entry, trunk = segmenter.entry, segmenter.trunk
    return [
        Part(entry, weight_decay),  # type: ignore[arg-type]
        Part(trunk, weight_decay, start=config.hint_steps),  # type: ignore[arg-type]
        Part(codec, 0.0, config.codec_lr_share, start=config.hint_steps),
    ]


def _logits(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def train_joint(
    network: str,
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.uint8]],
    classes: int,
    folder: Path,
    segmenter_config: SegmenterConfig,
    codec_config: CodecConfig,
    config: JointConfig,
    loop: LoopConfig,
    *,
    codec: Path,
    teacher: Path | None = None,
    init: Path | None = None,
    options: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    data_note: str = "",
) -> tuple[Path, Path]:
    """Train a latent segmenter and, from the weights `codec`, its codec; return the paths of both results.

    images: RGB uint8 (H, W, 3); labels: uint8 (H, W), `IGNORE` where there is no class. teacher: weights of an RGB
    segmenter of the same classes, if one is to teach. init: weights of the segmenter to start from, of the same
    network, as an earlier joint training left them; not with hints, which bring a start of their own. The results are
    `folder/codec/model.safetensors` and `folder/segmenter/model.safetensors`.
    """
    if registry.entry(network).kind != "latent_segmenter":
        raise UsageError(
            f"'{network}' is not a segmenter of latents",
            hint=f"see: {', '.join(registry.names('latent_segmenter'))}",
        )
    if codec_config.target_bpp is None:
        raise UsageError("joint training holds the codec to a rate, found none", hint="give a target_bpp")
    weights = checkpoint.load_weights(codec, kinds=("codec",))
    trained_codec = weights.build()
    if not hasattr(trained_codec, "rate_model"):
        raise ArtifactError(
            f"'{weights.network}' cannot be trained together with a segmenter: it has no rate model",
            hint="use a compact-codec, or train the segmenter alone: latentseg train segmenter",
        )
    check_data(segmenter_config.size, int(trained_codec.stride), labels)  # type: ignore[arg-type]
    check_crops(codec_config, trained_codec)
    check_step_range(trained_codec, codec_config.step_range)
    options = {"classes": classes, **(options or {})}
    segmenter = make_network(network, options, trained_codec, loop.seed)
    teaching = None if teacher is None else Teacher(teacher, classes)
    started = None if init is None else checkpoint.load_weights(init, kinds=("latent_segmenter",))
    if started is not None:
        checkpoint.fill(segmenter, started.tensors, str(init), network)
    if config.hint_steps:
        if started is not None:
            raise UsageError(
                "hints start a segmenter with its teacher's trunk, found one that has learned already",
                hint="give --init or --hint-steps, not both",
            )
        if config.hint_steps > loop.steps:
            raise UsageError(f"{config.hint_steps} steps of hints, expected at most the run's {loop.steps}")
        if teaching is None:
            raise UsageError("hints come from a teacher, found none", hint="give --teacher RUN, or no --hint-steps")
        lend_trunk(teaching.module, segmenter, "the teacher", network)
        if not resume:
            lend_entry(teaching.module, segmenter, trained_codec, images)
    pair = Pair(trained_codec, segmenter)
    task = SegmentationLoss(
        segmenter, class_weights(labels, classes, segmenter_config.class_weight_power), segmenter_config.aux_weight
    )
    settings = {
        "segmenter": described(segmenter_config), "crops": described_crops(codec_config),
        "joint": dict(vars(config)),
        "data": data_note, "init": weights.content_id, "teacher": "" if teaching is None else teaching.content_id,
        "segmenter_init": "" if started is None else started.content_id,
    }  # fmt: skip
    run = Run(
        folder, network, options, pair, loop, settings, resume=resume,
        extra=RateDistortion.start(codec_config.target_bpp, weights.facts),
        parts=_parts(segmenter, trained_codec, config, loop.weight_decay),
    )  # fmt: skip
    rate_distortion = RateDistortion(trained_codec, codec_config.target_bpp, run.extra, codec_config.step_range)

    if teaching is not None:
        teaching.module.to(run.device)

    def batch(step: int) -> tuple[list[Tensor], np.random.Generator]:
        # The first draws are the ones that `train_segmenter` makes: both trainings see the same views.
        rng = step_rng(loop.seed, step)
        x, target = views(images, labels, segmenter_config, rng)
        made = [x, target, draw_levels(codec_config.step_range, len(x), rng)]
        return (made if step < config.hint_steps else [*made, crops(images, codec_config, rng)]), rng

    def losses(step: int, made: tuple[list[Tensor], np.random.Generator]) -> tuple[Tensor, dict[str, float]]:
        (x, target, level, *cropped), rng = run.place(*made[0]), made[1]
        hinting = step < config.hint_steps
        with autocast(x, run.bf16):
            with torch.set_grad_enabled(not hinting):
                z = trained_codec.quantised(trained_codec.compress(x).float(), level)  # type: ignore[operator]
            if teaching is not None and hinting:
                hint = teaching.hint(x, segmenter.entry(z))  # type: ignore[operator]
                return hint, {"hint": hint.item()}
            share = min(1.0, (step - config.hint_steps) / config.ramp) if config.ramp else 1.0
            out = segmenter(share * z + (1.0 - share) * z.detach())
            taught = x.new_zeros(()) if teaching is None else teaching.divergence(x, _logits(out), target)
        task_loss = task(out, target)
        codec_loss, figures = rate_distortion(cropped[0], rng, bf16=run.bf16, steer=step >= loop.warmup)
        loss = config.task_weight * (task_loss + config.teacher_weight * taught) + codec_loss
        return loss, {"task": task_loss.item(), "taught": taught.item(), **figures}

    run.train(batch, losses, progress=progress)
    codec_path = run.save_part("codec.", folder / "codec", weights.network, weights.options)
    codec_id = checkpoint.load_weights(codec_path).content_id
    return codec_path, run.save_part("segmenter.", folder / "segmenter", network, options, {"codec": codec_id})
