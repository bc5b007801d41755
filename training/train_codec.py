"""Training of the codecs: ours for rate and distortion, the paper's for distortion alone, as it was."""

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

from ..engine.codec import ONE_STEP
from ..errors import InputError, UsageError
from ..models import registry
from . import checkpoint
from .augment import random_patch, recolour, to_float
from .device import autocast
from .loop import LoopConfig, Run, step_rng
from .received import check_levels, check_step_range, draw_levels
from .soft_to_hard import EVERY, EntropyDistortion, measured_frames


@dataclass(frozen=True)
class CodecConfig:
    """A codec's training.

    target_bpp: wanted rate, bits per pixel. Of a codec with a rate model: of that model, and the weight of the
        distortion is steered towards it. Of one with learned centres: of real bytes, and the target entropy is steered.
        None for networks that train on distortion alone (the driving paper's).
    beta: weight of the entropy above its target, for a codec with learned centres.
    patch, batch: side of the square crops and how many a step.
    scales: range of the random rescaling of the crops.
    saturation, hue: random changes of the crops' colours, see `augment.recolour`; ((1, 1) and 0: none).
    pca_patches: how many 8x8 patches the PCA start is fitted to.
    step_range: of the quantisation, for a codec with a rate model that is to serve many rates: see `RateDistortion`.
    """

    target_bpp: float | None = None
    patch: int = 256
    batch: int = 8
    scales: tuple[float, float] = (0.7, 1.2)
    saturation: tuple[float, float] = (1.0, 1.0)
    hue: float = 0.0
    pca_patches: int = 20_000
    beta: float = 600.0
    step_range: tuple[float, float] = ONE_STEP

    def __post_init__(self) -> None:
        check_levels(self.step_range, "the range of quantisation steps")
        if self.target_bpp is not None and not 0 < self.target_bpp < 24:
            raise UsageError(
                f"a target of {self.target_bpp} bpp, expected more than 0 and less than 24, the RGB image's"
            )
        if not 0 < self.saturation[0] <= self.saturation[1] < math.inf:
            lo, hi = self.saturation
            raise UsageError(f"saturation from {lo} to {hi}, expected 0 < LO <= HI, both finite", hint="give 0.7 2.5")
        if not 0 <= self.hue <= 180:
            raise UsageError(f"hues turned by up to {self.hue} degrees, expected 0 to 180")
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"beta is {self.beta}, expected a finite number not below 0")


def sample_patches(frames: Sequence[NDArray[np.uint8]], side: int, count: int, seed: int) -> Tensor:
    """Random square patches, float32 (count, 3, side, side) in [0, 1]."""
    small = next((frame.shape[:2] for frame in frames if min(frame.shape[:2]) < side), None)
    if small is not None:
        raise InputError(f"a frame of {small[0]}x{small[1]}, expected at least {side}x{side} to train on")
    rng = np.random.default_rng(seed)
    out = torch.empty(count, 3, side, side)
    for index in range(count):
        frame = frames[int(rng.integers(len(frames)))]
        top, left = rng.integers(frame.shape[0] - side + 1), rng.integers(frame.shape[1] - side + 1)
        out[index] = to_float(frame[top : top + side, left : left + side])
    return out


def initialise(codec: nn.Module, frames: Sequence[NDArray[np.uint8]], config: CodecConfig, seed: int) -> None:
    """Data-dependent PCA start: of 8x8 patches for our codec, a hierarchy of 2x2 ones for the papers'.

    Of very many frames it takes 1,000 that are spread over them: each may be decoded anew whenever it is looked at.
    """
    if len(frames) > 1000:
        frames = [frames[len(frames) * k // 1000] for k in range(1000)]
    if hasattr(codec, "quantiser"):
        from ..models import torfason_init

        side = min(128, *(min(f.shape[:2]) // 8 * 8 for f in frames))
        torfason_init.pca_init(codec, sample_patches(frames, side, 64, seed))  # type: ignore[arg-type]
        return
    if config.target_bpp is not None:
        patches = sample_patches(frames, 8, config.pca_patches, seed)
        # The quantisation step that a transform code would use at this rate, within a factor of about two.
        codec.pca_init(F.pixel_unshuffle(patches, 8)[:, :, 0, 0], step=60.0 * (0.4 / config.target_bpp) ** 0.8)  # type: ignore[operator]
        side = min(64, *(min(f.shape[:2]) // 8 * 8 for f in frames))
        with torch.no_grad():
            z = codec.compress(sample_patches(frames, side, 64, seed))  # type: ignore[operator]
        codec.rate_model.choose(z.round())  # type: ignore[operator, union-attr]
        return
    from ..models.kakaiya_codec import pca_init

    side = min(128, *(min(f.shape[:2]) for f in frames))
    pca_init(codec, sample_patches(frames, side, 64, seed))  # type: ignore[arg-type]


def described(config: CodecConfig, *, centres: bool = False) -> dict[str, Any]:
    """A configuration as a run's settings have it: what means something to the codec, and what is not plain."""
    plain = CodecConfig()
    left_out = {k: vars(config)[k] == vars(plain)[k] for k in ("step_range", "saturation", "hue")}
    left_out["beta"] = not centres
    return {k: v for k, v in vars(config).items() if not left_out.get(k)}


def check_crops(config: CodecConfig, codec: nn.Module) -> None:
    """Raise UsageError for crops that the codec's stride does not divide."""
    if config.patch % codec.stride:  # type: ignore[operator]
        raise UsageError(f"crops of {config.patch}, expected a multiple of the codec's stride, {codec.stride}")


class RateDistortion:
    """The loss MSE * lambda + bpp of a codec with a rate model, lambda steered so that the bpp meets a target.

    MSE is in units of (1/255)^2, bpp is the rate model's. The controller's state lives in `state`, a run's `extra`.

    With a range of quantisation steps, half of a batch has the geometric mean of the range, the rest is spread over it.
    A crop of step s has its MSE multiplied by lambda (m / s)^2, with m that mean: at a high rate, where the error is
    s^2 / 12, the slope of the rate over the distortion goes as 1 / s^2. The target is the rate of the first half.
    """

    def __init__(
        self,
        codec: nn.Module,
        target_bpp: float,
        state: dict[str, float],
        step_range: tuple[float, float] = ONE_STEP,
    ) -> None:
        self.codec, self.target, self.state, self.step_range = codec, target_bpp, state, step_range

    @staticmethod
    def start(target_bpp: float, trained: dict[str, Any] | None = None) -> dict[str, float]:
        """The controller's state before the first step. trained: facts of the weights that training starts from."""
        return {"log_lambda": (trained or {}).get("log_lambda", math.log(0.003)), "smooth_bpp": target_bpp}

    def __call__(
        self, x: Tensor, rng: np.random.Generator, *, bf16: bool, steer: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of a batch of RGB crops, float32 (N, 3, H, W) in [0, 1]. steer: let lambda move."""
        step = draw_levels(self.step_range, len(x), rng).to(x.device)
        mean = math.sqrt(self.step_range[0] * self.step_range[1])
        with autocast(x, bf16):
            z = self.codec.quantised(self.codec.compress(x).float(), step)  # type: ignore[operator]
            decoded = self.codec.decompress(z)  # type: ignore[operator]
        errors = ((decoded.float() - x) ** 2).mean((1, 2, 3))
        bpps = self.codec.rate_model.bits(z / step).sum((1, 2, 3)) / (x.shape[2] * x.shape[3])  # type: ignore[operator, union-attr]
        named = (step == step[0]).flatten().float()
        mse, bpp = ((values.detach() * named).sum() / named.sum() for values in (errors, bpps))
        smooth = self.state["smooth_bpp"] = 0.98 * self.state["smooth_bpp"] + 0.02 * bpp.item()
        # An integral controller on log(lambda): above the target the distortion must count for less. It is slower than
        # the network (which answers within some 200 steps), and waits until the start is over, so that it settles.
        if steer:
            error = (self.target - smooth) / self.target
            self.state["log_lambda"] += 0.006 * max(-0.5, min(0.5, error))
        weight = math.exp(self.state["log_lambda"])
        loss = (errors * (mean / step.flatten()) ** 2).mean() * 255.0**2 * weight + bpps.mean()
        return loss, {"psnr": _psnr(mse), "bpp": bpp.item(), "lambda": weight}


def _psnr(mse: Tensor) -> float:
    return -10 * math.log10(max(mse.item(), 1e-10))


def crops(frames: Sequence[NDArray[np.uint8]], config: CodecConfig, rng: np.random.Generator) -> Tensor:
    """One step's batch of random crops, float32 (batch, 3, patch, patch) in [0, 1]."""
    coloured = config.saturation != (1.0, 1.0) or config.hue > 0
    out = []
    for _ in range(config.batch):
        patch = random_patch(frames[int(rng.integers(len(frames)))], config.patch, rng, config.scales)
        out.append(recolour(patch, rng, config.saturation, config.hue) if coloured else patch)
    return torch.stack(out)


def train_codec(
    network: str,
    frames: Sequence[NDArray[np.uint8]],
    folder: Path,
    config: CodecConfig,
    loop: LoopConfig,
    *,
    options: dict[str, Any] | None = None,
    init: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    data_note: str = "",
) -> Path:
    """Train a codec and return the path of its weights.

    network: a codec of the registry. frames: RGB uint8 (H, W, 3). init: weights to start from, instead of the PCA.

    Loss. With a rate model: MSE * lambda + bpp, MSE in units of (1/255)^2, lambda steered so that the bpp of
    `rate_model` meets the target. With learned centres: see `soft_to_hard`. Without a target rate: MSE on [0, 1], and
    no quantisation, as the driving paper trains.
    """
    if registry.entry(network).kind != "codec":
        raise UsageError(f"'{network}' is not a codec", hint=f"codecs: {', '.join(registry.names('codec'))}")
    options = dict(options or {})
    torch.manual_seed(loop.seed)
    codec = registry.create(network, **options)
    check_crops(config, codec)
    rated, centres = hasattr(codec, "rate_model"), hasattr(codec, "quantiser")
    if (rated or centres) != (config.target_bpp is not None):
        found = "is trained for a rate" if rated or centres else "has no rate to steer"
        raise UsageError(f"'{network}' {found}", hint="give --target-bpp for compact-codec and torfason-codec-*, only")
    started = None if init is None else checkpoint.load_weights(init, kinds=("codec",))
    if started is not None:
        checkpoint.fill(codec, started.tensors, str(init), network)
    elif not resume:
        initialise(codec, frames, config, loop.seed)
    check_step_range(codec, config.step_range)
    if config.step_range != ONE_STEP and not rated:
        raise UsageError(f"a range of quantisation steps for '{network}'", hint="it is for compact-codec, only")
    settings = {
        "codec": described(config, centres=centres),
        "data": data_note,
        "init": "pca" if started is None else started.content_id,
    }
    target = config.target_bpp
    extra: dict[str, float] = {}
    if target is not None:
        facts = None if started is None else started.facts
        extra = EntropyDistortion.start(codec, target, facts) if centres else RateDistortion.start(target)
    run = Run(folder, network, options, codec, loop, settings, resume=resume, extra=extra)
    objective: RateDistortion | EntropyDistortion | None = None
    if target is not None and centres:
        objective = EntropyDistortion(codec, measured_frames(frames), target, config.beta, run.extra)
    elif target is not None:
        objective = RateDistortion(codec, target, run.extra, config.step_range)
    every = EVERY if centres else 1

    def batch(step: int) -> tuple[Tensor, np.random.Generator]:
        rng = step_rng(loop.seed, step)
        return crops(frames, config, rng), rng

    def losses(step: int, made: tuple[Tensor, np.random.Generator]) -> tuple[Tensor, dict[str, float]]:
        (x,), rng = run.place(made[0]), made[1]
        steer = step % every == 0 and (centres or step >= loop.warmup)
        if isinstance(objective, RateDistortion):
            return objective(x, rng, bf16=run.bf16, steer=steer)
        if objective is not None:
            return objective(x, bf16=run.bf16, steer=steer)
        with autocast(x, run.bf16):
            decoded = codec.decompress(codec.compress(x))  # type: ignore[operator]
        mse = F.mse_loss(decoded.float(), x)
        return mse * 255.0, {"psnr": _psnr(mse)}

    run.train(batch, losses, progress=progress)
    return run.save_weights()
