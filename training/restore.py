"""A bundle's networks as checkpoints that training can go on from.

A bundle's ONNX files say what its networks compute, not all that training needs: batch norm is folded into the
convolutions, and the codec's rate model is not there at all. What is missing is measured on images: the statistics of
every batch norm, so that a step of training sees what evaluation sees, and the scales of the rate model, which are
fitted to the codec's symbols. What the networks compute stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..engine.bundle import Bundle
from ..engine.codec import ONE_STEP
from ..errors import InputError, UsageError
from .average import FILE, write_run
from .checkpoint import Weights
from .from_bundle import ENTRIES, Found, check_same, networks_of, normalised
from .loop import step_rng
from .received import draw_levels
from .train_codec import CodecConfig, RateDistortion, crops
from .train_segmenter import SegmenterConfig, views

MOST_IMAGES = 500  # more of them, spread over a data set, would say no more
_VIEW_BATCHES, _CROP_BATCHES, _FIT_STEPS, _FIT_LR, _SEED = 16, 8, 100, 0.01, 0
# Batch norm undoes a filter's norm, but the longer a filter, the less a step turns it: about what training leaves.
_FILTER_NORM = 1.5

Images = Sequence[NDArray[np.uint8]]


def restore_bundle(
    bundle: Bundle, images: Images, labels: Images, out: Path, *, progress: bool = True
) -> tuple[Path, ...]:
    """Write a bundle's networks to `out/codec`, `out/segmenter` and `out/rgb_segmenter`, and return the paths.

    images: RGB uint8 (H, W, 3), such as the networks learned from; labels: uint8 (H, W), which views are made with, no
    more. The codec has a new content id, since its rate model is a new one; streams of the bundle are not its own.

    Raises
    ------
    UsageError: `out` holds a run already, or is a file. InputError: images smaller than the codec's stride.
    ArtifactError: the bundle's networks are not compact ones, or do not come out the same. BackendMissingError: without
    onnx, or without ONNX Runtime, which they are compared on.
    """
    if any((out / part / FILE).exists() for part in ("", "codec", *ENTRIES)):
        raise UsageError(f"{out} already holds a run", hint="choose another --out")
    if any(path.is_file() for path in (out, *out.parents)):  # said now, and not behind minutes of work
        raise UsageError(f"{out} is a file, or lies in one, expected a folder", hint="choose another --out")
    spec = bundle.codec
    size = _fitting(SegmenterConfig().size, images, spec.stride)
    networks = networks_of(bundle)
    check_same(bundle, networks, images[0])
    codec = networks.pop("codec")
    settings = {"restored_from": bundle.name}
    steps = {} if spec.steps == ONE_STEP else {"step_range": list(spec.steps)}
    slope = _fit_rate_model(codec.module, images, spec.steps, progress)
    noted = bundle.manifest.get("training", {}).get("codec", {})
    state = noted.get("log_lambda") if isinstance(noted, Mapping) else None
    # Where training left it, if that is known: beside a task's loss it is not the slope.
    log_lambda = state if isinstance(state, float) else slope
    results = {"codec": _weights(codec, {"settings": {**settings, **steps}, "log_lambda": log_lambda})}
    for role, found in networks.items():
        latent = role == "segmenter"
        inputs = _inputs(codec.module if latent else None, images, labels, size, spec.steps)
        _unfold(found.module, tqdm(inputs, role, _VIEW_BATCHES, unit="batch", disable=not progress))
        more = {**steps, "codec": results["codec"].content_id} if latent else {"codec": ""}
        results[role] = _weights(found, {"settings": {**settings, **more}})
    return tuple(write_run(out / part, weights) for part, weights in results.items())


def _weights(found: Found, facts: dict[str, Any]) -> Weights:
    return Weights(found.network, found.options, found.module.state_dict(), facts)


def _fitting(size: tuple[int, int], images: Images, stride: int) -> tuple[int, int]:
    """(height, width), or the largest that every image has where that is less; multiples of the stride."""
    height, width = (min(image.shape[axis] for image in images) // stride * stride for axis in (0, 1))
    if not height or not width:
        raise InputError(f"an image smaller than {stride}x{stride}, expected at least that to measure on")
    return min(size[0], height), min(size[1], width)


@torch.no_grad()
def _inputs(
    codec: Any, images: Images, labels: Images, size: tuple[int, int], steps: tuple[float, float]
) -> Iterator[Tensor]:
    """What a segmenter learns from: batches of augmented views, or with a codec their latents at its steps."""
    for batch in range(_VIEW_BATCHES):
        rng = step_rng(_SEED, batch)
        x, _ = views(images, labels, SegmenterConfig(size=size), rng)
        yield x if codec is None else codec.quantised(codec.compress(x), draw_levels(steps, len(x), rng))


@torch.no_grad()
def _unfold(module: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Give batch norms that only add a bias the statistics of inputs, and weights that leave the function as it was.

    The statistics are what training would see of each input, averaged over them, as training averages.
    """
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for _, norm in normalised(module)}

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[norm].append(torch.stack(torch.var_mean(given[0], (0, 2, 3))).double())

    hooks = [norm.register_forward_pre_hook(look) for norm in seen]
    for x in inputs:
        module(x)
    for hook in hooks:
        hook.remove()
    for convolution, norm in normalised(module):
        variance, mean = torch.stack(seen[norm]).mean(0)
        # A filter of another length, and a norm that undoes it; a filter of zeros stays one.
        factor = _FILTER_NORM / convolution.weight.double().flatten(1).norm(dim=1).clamp_min(1e-3)
        convolution.weight.mul_(factor[:, None, None, None])
        scaled = variance * factor**2
        norm.weight.copy_((scaled + norm.eps).sqrt() / factor)
        norm.bias.add_(mean)
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean * factor, "running_var": scaled})


def _fit_rate_model(codec: Any, images: Images, steps: tuple[float, float], progress: bool) -> float:
    """Fit the rate model to the codec's symbols of random crops, and return the logarithm of lambda.

    steps: range of the quantisation's, from which `RateDistortion` draws too. Lambda is what that weighs distortion
    with: where nothing else is learned, the slope of the rate over it, here about step 1.
    """
    config = CodecConfig(patch=min(_fitting((256, 256), images, codec.stride)))
    with torch.no_grad():
        x = [crops(images, config, step_rng(_SEED, batch)) for batch in range(_CROP_BATCHES)]
        z = [codec.compress(batch) for batch in tqdm(x, "codec", unit="batch", disable=not progress)]
        codec.rate_model.choose(torch.cat(z).round())
    optimizer = torch.optim.Adam(codec.rate_model.parameters(), lr=_FIT_LR)
    for step in tqdm(range(_FIT_STEPS), "rate model", unit="step", disable=not progress):
        optimizer.param_groups[0]["lr"] = _FIT_LR * (1.0 - step / _FIT_STEPS)
        latent = z[step % len(z)]
        level = draw_levels(steps, len(latent), step_rng(_SEED, step))
        optimizer.zero_grad()
        codec.rate_model.bits(codec.quantised(latent, level) / level).mean().backward()
        optimizer.step()

    @torch.no_grad()
    def cost(step: float) -> tuple[float, float]:
        """Bits a pixel, and mean squared error in units of (1/255)^2."""
        received = [codec.quantised(latent, step) for latent in z]
        bits = math.fsum(codec.rate_model(part / step).item() for part in received)
        errors = [F.mse_loss(codec.decompress(part), batch).item() for part, batch in zip(received, x, strict=True)]
        return bits / sum(batch[:, 0].numel() for batch in x), 255.0**2 * math.fsum(errors) / len(errors)

    (rate, error), (lower, larger) = cost(0.8), cost(1.25)
    if rate > lower and larger > error:
        return math.log((rate - lower) / (larger - error))
    return RateDistortion.start(rate)["log_lambda"]  # of a codec that gains nothing by bits no slope can be told
