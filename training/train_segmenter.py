"""Training of the segmenters: on RGB, or on the latents of a frozen codec, with one recipe for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.codec import ONE_STEP
from ..errors import ArtifactError, InputError, UsageError
from ..models import registry
from ..models.complexity import count
from . import checkpoint
from .augment import random_view
from .data import IGNORE
from .device import autocast
from .lend import lend_entry, lend_trunk
from .loop import LoopConfig, Run, step_rng
from .received import Encoder, JpegRoundTrip, RoundTrip, check_levels, check_step_range, draw_levels


@dataclass(frozen=True)
class SegmenterConfig:
    """A segmenter's training.

    size: canvas (height, width) of the augmented views; multiples of the codec's stride.
    class_weight_power: class weights are (median frequency / frequency) ** power, clipped to [0.3, 4].
    aux_weight: weight of the auxiliary head's loss where the network has one (0.4 in DGCNet).
    step_range: of the codec's quantisation, in units of its own step: half of a batch has the geometric mean, the rest
        is spread over the range. jpeg_quality: the same of JPEG, whose decoded views an RGB network then learns from.
    """

    size: tuple[int, int] = (360, 480)
    batch: int = 8
    scales: tuple[float, float] = (0.6, 1.9)
    jitter: float = 0.25
    class_weight_power: float = 0.5
    aux_weight: float = 0.4
    step_range: tuple[float, float] = ONE_STEP
    jpeg_quality: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_levels(self.step_range, "the range of quantisation steps")
        if self.jpeg_quality is not None:
            check_levels(self.jpeg_quality, "the range of JPEG qualities")
            if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
                raise UsageError(f"JPEG qualities {self.jpeg_quality}, expected 1 to 100")


def described(config: SegmenterConfig) -> dict[str, Any]:
    """A configuration as a run's settings have it: levels alone where there are any."""
    levels = {"step_range": config.step_range != ONE_STEP, "jpeg_quality": config.jpeg_quality is not None}
    return {k: v for k, v in vars(config).items() if levels.get(k, True)}


def class_weights(labels: Sequence[NDArray[np.uint8]], classes: int, power: float) -> Tensor:
    """Loss weights, float32 (classes,), from the pixel frequencies in `labels` (uint8, `IGNORE` left out)."""
    counts = sum(np.bincount(label.ravel(), minlength=256)[:classes] for label in labels)
    frequency = np.maximum(np.asarray(counts, np.float64), 1.0)
    return torch.tensor(np.clip((np.median(frequency) / frequency) ** power, 0.3, 4.0), dtype=torch.float32)


def check_fit(segmenter: nn.Module, codec: nn.Module, name: str) -> None:
    """Raise ArtifactError unless a latent segmenter takes this codec's latents: their stride and their channels."""
    found, expected = int(codec.stride), int(segmenter.stride_in)  # type: ignore[arg-type]
    if found != expected:
        raise ArtifactError(f"the codec's latents are at 1/{found} resolution, '{name}' expects 1/{expected}")
    try:
        count(segmenter, (1, int(codec.channels), 32, 32))  # type: ignore[arg-type]
    except RuntimeError:
        raise ArtifactError(f"'{name}' does not take latents of {codec.channels} channels") from None


def make_network(network: str, options: dict[str, Any], codec: nn.Module | None, seed: int) -> nn.Module:
    """A new network of the registry, seeded; for latents (codec) with the codec's channels, and checked to take them.

    options: gains the channels where the network has a choice.
    """
    if codec is not None and "channels" in registry.open_options(network):
        options.setdefault("channels", int(codec.channels))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    module = registry.create(network, **options)
    if codec is not None:
        check_fit(module, codec, network)
    return module


def fill_from(
    module: nn.Module,
    path: Path,
    network: str,
    kind: str,
    codec: nn.Module | None = None,
    frames: Sequence[NDArray[np.uint8]] = (),
) -> str:
    """Start a network of `kind` from the weights in `path`, of the same network, and return their content id.

    A segmenter may also start from a classifier of the same input, whose backbone it takes over; one of latents from
    one of RGB, whose trunk it takes over, and where it unpacks the latents of `codec` the entry (`lend`; frames: RGB
    uint8 (H, W, 3)). Raises ArtifactError where the weights do not fit.
    """
    kinds = [kind, kind.replace("segmenter", "classifier")]
    if kind == "latent_segmenter":
        kinds.append("rgb_segmenter")
    weights = checkpoint.load_weights(path, kinds=tuple(dict.fromkeys(kinds)))
    found = registry.entry(weights.network).kind
    if found == kind:
        checkpoint.fill(module, weights.tensors, str(path), network)
        return weights.content_id
    if found == "rgb_segmenter":
        giver = weights.build()
        lend_trunk(giver, module, f"the RGB segmenter in {path}", network)
        if codec is not None:
            lend_entry(giver, module, codec, frames)
        return weights.content_id
    backbone = getattr(module, "backbone", None)
    if backbone is None:
        raise ArtifactError(f"'{network}' has no backbone to take over from the classifier in {path}")
    prefix = "backbone."
    taken = {k.removeprefix(prefix): v for k, v in weights.tensors.items() if k.startswith(prefix)}
    checkpoint.fill(backbone, taken, str(path), network)
    return weights.content_id


class SegmentationLoss:
    """Weighted cross-entropy at full resolution; with an auxiliary head, that one's loss times `aux_weight` on top."""

    def __init__(self, segmenter: nn.Module, weight: Tensor, aux_weight: float) -> None:
        self.segmenter, self.weight, self.aux_weight = segmenter, weight, aux_weight

    def __call__(self, out: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """out: the segmenter's logits, or (logits, auxiliary logits). target: int64 (N, H, W)."""
        if isinstance(out, tuple):
            return self._one(out[0], target) + self.aux_weight * self._one(out[1], target)
        return self._one(out, target)

    def _one(self, logits: Tensor, target: Tensor) -> Tensor:
        full = F.interpolate(
            logits.float(), size=target.shape[1:], mode="bilinear", align_corners=bool(self.segmenter.align_corners)
        )
        return F.cross_entropy(full, target, weight=self.weight.to(full.device), ignore_index=IGNORE)


def views(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.uint8]],
    config: SegmenterConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """One step's batch of augmented views: float32 (batch, 3, h, w) in [0, 1] and int64 (batch, h, w)."""
    batch = []
    for _ in range(config.batch):
        index = int(rng.integers(len(images)))
        batch.append(random_view(images[index], labels[index], config.size, rng, config.scales, config.jitter))
    return torch.stack([view for view, _ in batch]), torch.stack([label for _, label in batch])


def check_data(size: tuple[int, int], stride: int, labels: Sequence[NDArray[np.uint8]]) -> None:
    """Raise UsageError for a canvas that the stride does not divide, InputError for labels without any class."""
    if any(side % stride for side in size):
        raise UsageError(f"a canvas of {size[0]}x{size[1]}, expected multiples of {stride}")
    if all((label == IGNORE).all() for label in labels):
        raise InputError("no pixel of any label has a class", hint="check the labels, and --layout")


def train_segmenter(
    network: str,
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.uint8]],
    classes: int,
    folder: Path,
    config: SegmenterConfig,
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
    """Train a segmenter with cross-entropy and return the path of its weights.

    images: RGB uint8 (H, W, 3); labels: uint8 (H, W), `IGNORE` where there is no class. codec: weights of the frozen
    codec, needed by a latent segmenter and refused by an RGB one. decoded_by: weights of a codec whose decoded views an
    RGB segmenter is to learn from. init: weights to start from, of the same network, of a classifier with the same
    backbone or, for latents, of an RGB segmenter with the same trunk. The augmentation acts on the image, before
    encoding.
    """
    kind = registry.entry(network).kind
    if kind not in {"rgb_segmenter", "latent_segmenter"}:
        raise UsageError(f"'{network}' is not a segmenter", hint=f"see: {', '.join(registry.names())}")
    if (kind == "latent_segmenter") != (codec is not None):
        raise UsageError(
            f"'{network}' is a {kind}: it {'needs' if codec is None else 'takes no'} codec",
            hint="--codec RUN goes with the latent segmenters, and only with them",
        )
    lossy = [name for name, given in (("--codec", codec), ("--decoded-by", decoded_by),
                                      ("--jpeg-quality", config.jpeg_quality)) if given is not None]  # fmt: skip
    if len(lossy) > 1:
        raise UsageError(f"{' and '.join(lossy)}: a network learns from one kind of input", hint="give one of them")
    path = codec or decoded_by
    if path is None and config.step_range != ONE_STEP:
        raise UsageError("a range of quantisation steps, found no codec", hint="give --codec or --decoded-by as well")
    options = {"classes": classes, **(options or {})}
    content_id = ""
    frozen = None
    if path is not None:
        weights = checkpoint.load_weights(path, kinds=("codec",))
        frozen, content_id = weights.build(), weights.content_id
        check_step_range(frozen, config.step_range)
    stride = 8 if frozen is None else int(frozen.stride)  # type: ignore[arg-type]
    check_data(config.size, stride, labels)
    module = make_network(network, options, frozen if codec is not None else None, loop.seed)
    started = "" if init is None else fill_from(module, init, network, kind, frozen, images)
    received = Encoder(frozen) if decoded_by is None else RoundTrip(frozen)
    jpeg = JpegRoundTrip() if config.jpeg_quality else None
    levels = config.jpeg_quality or config.step_range
    weight = class_weights(labels, classes, config.class_weight_power)
    objective = SegmentationLoss(module, weight, config.aux_weight)
    settings = {
        "segmenter": described(config), "data": data_note, "codec": content_id if codec is not None else "",
        "init": started,
    }  # fmt: skip
    if decoded_by is not None:
        settings["decoded_by"] = content_id
    run = Run(folder, network, options, module, loop, settings, resume=resume)
    received.to(run.device)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng = step_rng(loop.seed, step)
        x, target = views(images, labels, config, rng)
        level = draw_levels(levels, len(x), rng)
        return (x if jpeg is None else jpeg(x, level)), target, level

    def losses(step: int, made: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
        x, target, level = run.place(*made)
        with autocast(x, run.bf16):
            out = module(received(x, level))
        return objective(out, target), {}

    run.train(batch, losses, progress=progress)
    return run.save_weights()
