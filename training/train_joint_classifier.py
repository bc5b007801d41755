"""Training of a codec with learned centres and the classifier of its latents together (Torfason et al., ICLR 2018).

The loss is gamma (MSE + beta max(H(q) - H_t, 0)) + cross-entropy, of one batch of views for all of it: encoder,
centres, decoder and classifier learn at once, each from a trained state. The paper's control needs no verb of its own:
`train codec --init` fine-tunes the codec alone to the same rate, and `train classifier --init` a classifier of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArtifactError, UsageError
from ..models import registry
from . import checkpoint
from .device import autocast
from .image_sets import CentreViews, ImageSet
from .loop import LoopConfig, Part, Run, step_rng
from .soft_to_hard import EVERY, EntropyDistortion, measured_frames
from .train_classifier import ClassifierConfig, check_size, classified_views, describe, top1
from .train_segmenter import fill_from, make_network


@dataclass(frozen=True)
class JointClassifierConfig:
    """What joint training adds to a classifier's.

    target_bpp: rate in real bytes, bits a pixel, to which H_t is steered.  gamma: weight of the codec's loss, whose MSE
    is in units of (1/255)^2, against the cross-entropy in nats.  beta: of the entropy above H_t, bits a symbol.
    codec_lr_share: the codec's learning rate as a share of the classifier's.
    """

    target_bpp: float
    gamma: float = 0.001
    beta: float = 600.0
    codec_lr_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.target_bpp < 24:
            raise UsageError(f"a target of {self.target_bpp} bpp, expected above 0 and below 24")
        for name in ("gamma", "beta", "codec_lr_share"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected a finite number not below 0")


def train_joint_classifier(
    network: str,
    images: ImageSet,
    folder: Path,
    classifier_config: ClassifierConfig,
    config: JointClassifierConfig,
    loop: LoopConfig,
    *,
    codec: Path,
    init: Path | None = None,
    options: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    data_note: str = "",
) -> tuple[Path, Path]:
    """Train a classifier of latents and, from the weights `codec`, its codec; return the paths of both results.

    init: weights of the classifier to start from, of the same network. The results are
    `folder/codec/model.safetensors` and `folder/classifier/model.safetensors`.
    """
    kind = registry.entry(network).kind
    if kind != "latent_classifier":
        raise UsageError(
            f"'{network}' is not a classifier of latents", hint=f"see: {', '.join(registry.names('latent_classifier'))}"
        )
    weights = checkpoint.load_weights(codec, kinds=("codec",))
    trained_codec = weights.build()
    if not hasattr(trained_codec, "quantiser"):
        raise ArtifactError(
            f"'{weights.network}' cannot be trained together with a classifier: it has no learned centres",
            hint="use a torfason-codec, or train the classifier alone: latentseg train classifier",
        )
    check_size(classifier_config, trained_codec)
    options = {"classes": len(images.names), **(options or {})}
    classifier = make_network(network, options, trained_codec, loop.seed)
    started = "" if init is None else fill_from(classifier, init, network, kind)
    both = nn.ModuleDict({"codec": trained_codec, "classifier": classifier})
    settings = {
        "classifier": describe(classifier_config, images), "joint": dict(vars(config)), "data": data_note,
        "class_names": list(images.names), "init": weights.content_id, "classifier_init": started,
    }  # fmt: skip
    run = Run(
        folder, network, options, both, loop, settings, resume=resume,
        extra=EntropyDistortion.start(trained_codec, config.target_bpp, weights.facts),
        parts=[Part(classifier, loop.weight_decay), Part(trained_codec, 0.0, config.codec_lr_share)],
    )  # fmt: skip
    measured = measured_frames(CentreViews(images, classifier_config.size))
    objective = EntropyDistortion(trained_codec, measured, config.target_bpp, config.beta, run.extra, config.gamma)

    def batch(step: int) -> tuple[Tensor, ...]:
        return classified_views(images, classifier_config, step_rng(loop.seed, step))

    def losses(step: int, made: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, target = run.place(*made)
        if step % EVERY == 0:
            objective.steer()
        received, shares = objective.encode(x, bf16=run.bf16)
        with autocast(x, run.bf16):
            logits = classifier(received)
        task = F.cross_entropy(logits.float(), target)
        codec_loss, figures = objective.loss(x, received, shares, bf16=run.bf16)
        return task + codec_loss, {"task": task.item(), "top1": top1(logits, target), **figures}

    run.train(batch, losses, progress=progress)
    codec_path = run.save_part("codec.", folder / "codec", weights.network, weights.options)
    codec_id = checkpoint.load_weights(codec_path).content_id
    return codec_path, run.save_part("classifier.", folder / "classifier", network, options, {"codec": codec_id})
