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

from ..errors import ArtifactError, InputError, UsageError
from ..models import registry
from ..models.complexity import count
from . import checkpoint
from .augment import random_view
from .data import IGNORE
from .loop import LoopConfig, Run, step_rng


@dataclass(frozen=True)
class SegmenterConfig:
    """A segmenter's training.

    size: canvas (height, width) of the augmented views; multiples of the codec's stride.
    class_weight_power: class weights are (median frequency / frequency) ** power, clipped to [0.3, 4].
    aux_weight: weight of the auxiliary head's loss where the network has one (0.4 in DGCNet).
    """

    size: tuple[int, int] = (360, 480)
    batch: int = 8
    scales: tuple[float, float] = (0.6, 1.9)
    jitter: float = 0.25
    class_weight_power: float = 0.5
    aux_weight: float = 0.4


def class_weights(labels: Sequence[NDArray[np.uint8]], classes: int, power: float) -> Tensor:
    """Loss weights, float32 (classes,), from the pixel frequencies in `labels` (uint8, `IGNORE` left out)."""
    counts = sum(np.bincount(label.ravel(), minlength=256)[:classes] for label in labels)
    frequency = np.maximum(np.asarray(counts, np.float64), 1.0)
    return torch.tensor(np.clip((np.median(frequency) / frequency) ** power, 0.3, 4.0), dtype=torch.float32)


class Encoder(nn.Module):
    """What a segmenter sees of an image: the image itself, or the dequantised latent of a frozen codec.

    The quantisation is the one of the stream (equations 2 and 4), so in float32 the segmenter sees exactly what
    decoding gives. Under bfloat16 autocast, as in training, the codec's own convolutions round too, and a symbol near a
    boundary may come out one level off.
    """

    def __init__(self, codec: nn.Module | None) -> None:
        super().__init__()
        self.codec = codec
        if codec is not None:
            codec.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1] to the segmenter's input."""
        if self.codec is None:
            return x
        z = self.codec.compress(x).float()  # type: ignore[operator]
        return requantise(z, self.codec.bits, self.codec.scaling)  # type: ignore[arg-type]


def requantise(z: Tensor, bits: int, scaling: tuple[Any, ...]) -> Tensor:
    """int2float(float2int(z)) in torch, float32 (N, C, h, w).

    scaling: what a codec's attribute of that name holds: mode, lo, hi, and with the mode "codebook" the centres.
    """
    mode, lo_fixed, hi_fixed, *codebook = scaling
    if mode == "codebook":
        centres = torch.tensor(codebook[0], dtype=torch.float32, device=z.device)
        midpoints = 0.5 * (centres[:-1] + centres[1:])
        return centres[torch.searchsorted(midpoints, z.contiguous())]
    if mode == "fixed":
        lo, hi = torch.tensor(lo_fixed), torch.tensor(hi_fixed)
    else:
        axes = (1, 2, 3) if mode == "tensor" else (2, 3)
        lo, hi = z.amin(axes, keepdim=True), z.amax(axes, keepdim=True)
    levels = 2**bits - 1
    span = hi - lo
    q = ((z - lo) * torch.where(span > 0, levels / span, torch.zeros_like(span))).round().clamp(0, levels)
    received: Tensor = q * (span / levels) + lo
    return received


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


def fill_from(module: nn.Module, path: Path, network: str, kind: str) -> str:
    """Start a network of `kind` from the weights in `path`, of the same network, and return their content id.

    A segmenter may also start from a classifier of the same input: it takes over that one's backbone. Raises
    ArtifactError where the weights do not fit.
    """
    trained_as = kind.replace("segmenter", "classifier")
    weights = checkpoint.load_weights(path, kinds=tuple(dict.fromkeys((kind, trained_as))))
    if registry.entry(weights.network).kind == kind:
        checkpoint.fill(module, weights.tensors, str(path), network)
        return weights.content_id
    backbone = getattr(module, "backbone", None)
    if backbone is None:
        raise ArtifactError(f"'{network}' has no backbone to take over from the classifier in {path}")
    prefix = "backbone."
    found = {k.removeprefix(prefix): v for k, v in weights.tensors.items() if k.startswith(prefix)}
    checkpoint.fill(backbone, found, str(path), network)
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
        return F.cross_entropy(full, target, weight=self.weight, ignore_index=IGNORE)


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
    init: Path | None = None,
    options: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    data_note: str = "",
) -> Path:
    """Train a segmenter with cross-entropy and return the path of its weights.

    images: RGB uint8 (H, W, 3); labels: uint8 (H, W), `IGNORE` where there is no class. codec: weights of the frozen
    codec, needed by a latent segmenter and refused by an RGB one. init: weights to start from, of the same network, or
    of a classifier with the same backbone. The augmentation acts on the image, before encoding.
    """
    kind = registry.entry(network).kind
    if kind not in {"rgb_segmenter", "latent_segmenter"}:
        raise UsageError(f"'{network}' is not a segmenter", hint=f"see: {', '.join(registry.names())}")
    if (kind == "latent_segmenter") != (codec is not None):
        raise UsageError(
            f"'{network}' is a {kind}: it {'needs' if codec is None else 'takes no'} codec",
            hint="--codec RUN goes with the latent segmenters, and only with them",
        )
    options = {"classes": classes, **(options or {})}
    codec_id = ""
    frozen = None
    if codec is not None:
        weights = checkpoint.load_weights(codec, kinds=("codec",))
        frozen, codec_id = weights.build(), weights.content_id
    stride = 8 if frozen is None else int(frozen.stride)  # type: ignore[arg-type]
    check_data(config.size, stride, labels)
    module = make_network(network, options, frozen, loop.seed)
    started = "" if init is None else fill_from(module, init, network, kind)
    encoder = Encoder(frozen)
    weight = class_weights(labels, classes, config.class_weight_power)
    objective = SegmentationLoss(module, weight, config.aux_weight)
    settings = {
        "segmenter": dict(vars(config)), "data": data_note, "codec": codec_id, "init": started,
    }  # fmt: skip
    run = Run(folder, network, options, module, loop, settings, resume=resume)

    def losses(step: int) -> tuple[Tensor, dict[str, float]]:
        x, target = views(images, labels, config, step_rng(loop.seed, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.bf16):
            out = module(encoder(x))
        return objective(out, target), {}

    run.train(losses, progress=progress)
    return run.save_weights()
