"""The driving paper's networks as a bundle with random weights: their speed can be measured, their labels mean nothing.

    python -m latentseg.benchmarks.gpu_networks DIR

On any machine with torch and onnx. The codec is `kakaiya-codec-d2` started as a PCA, so that its latents are those of
pictures; the segmenters are `kakaiya-latent-d2` and `kakaiya-rgb` with their batch norms set on the frames they are
exported with, so that activations keep the size that they have in a trained network and fp16 holds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.bundle import Bundle
from ..errors import LatentsegError, missing_extra

if TYPE_CHECKING:
    from torch import nn

    from ..training.checkpoint import Weights

Network = tuple[str, dict[str, Any]]  # a name of the registry, and options
CODEC: Network = ("kakaiya-codec-d2", {})
SEGMENTERS: dict[str, Network] = {"segmenter": ("kakaiya-latent-d2", {}), "rgb_segmenter": ("kakaiya-rgb", {})}
SIZE = (256, 512)  # of the frames that weights are set and checked on; the networks take any
LARGEST = (512, 1024)
NAME = "kakaiya-d2-random"


def write_networks(
    out: Path, *, codec: Network = CODEC, segmenters: Mapping[str, Network] = SEGMENTERS,
    size: tuple[int, int] = SIZE, largest: tuple[int, int] = LARGEST, overwrite: bool = False,
) -> Bundle:  # fmt: skip
    """Write the bundle, checked against torch as every export.

    segmenters: by role.  size, largest: (H, W) of the frames of the check.
    Raises BackendMissingError without torch or onnx, VerificationError where a model disagrees with torch, OutputError.
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "export") from None
    from ..export.assemble import export_bundle
    from ..models import registry
    from ..models.kakaiya_codec import KakaiyaCodec, pca_init
    from ..training.data import class_set

    frames = noise_frames(4, *size)
    classes = class_set("cityscapes")
    torch.manual_seed(0)
    name, given = codec
    coder = registry.create(name, **given)
    images = _float(frames)
    if isinstance(coder, KakaiyaCodec):
        pca_init(coder, images)
    coder.eval()
    codec_weights = _weights(name, given, coder, {"weights": "random"})
    with torch.no_grad():
        latents = coder.compressor(images)  # type: ignore[operator]
    parts = {}
    for role, (name, own) in segmenters.items():
        given = {"classes": len(classes.names), **own}
        module = registry.create(name, **given)
        settle(module, latents if role == "segmenter" else images)
        facts = {"weights": "random", "settings": {"codec": codec_weights.content_id}}
        parts[role] = _weights(name, given, module, facts)
    return export_bundle(
        out, NAME, codec_weights, segmenter=parts["segmenter"], rgb_segmenter=parts["rgb_segmenter"],
        classes=classes, frames=frames, size=size, largest=largest,
        description="the driving paper's networks with random weights, for speed alone", overwrite=overwrite,
    )  # fmt: skip


def noise_frames(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Frames uint8 (N, H, W, 3) of smooth noise in many scales, as pictures have; every machine makes the same."""
    rng = np.random.default_rng(0)
    total = np.zeros((count, height, width, 3))
    for step in (1, 4, 16, 64):
        coarse = rng.normal(size=(count, -(-height // step), -(-width // step), 3)) * step**0.5
        total += coarse.repeat(step, axis=1).repeat(step, axis=2)[:, :height, :width]
    scaled = 128 + 48 * total / total.std()
    frames: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return frames


def settle(module: nn.Module, source: Any) -> None:
    """Set every batch norm's mean and variance on what reaches it from `source`, a batch of inputs."""
    import torch
    from torch import nn

    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches seen: here the one
    module.train()
    with torch.no_grad():
        module(source)
    module.eval()


def _float(frames: NDArray[np.uint8]) -> Any:
    import torch

    from ..export.graphs import frames_to_float

    return frames_to_float(torch.from_numpy(frames))


def _weights(network: str, options: dict[str, Any], module: nn.Module, facts: dict[str, Any]) -> Weights:
    from ..training.checkpoint import Weights

    return Weights(network, options, dict(module.state_dict()), facts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gpu_networks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path, metavar="DIR", help="the bundle's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    options = parser.parse_args(arguments)
    try:
        bundle = write_networks(options.out, overwrite=options.overwrite)
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {bundle.path}: {', '.join(bundle.roles)}, random weights", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
