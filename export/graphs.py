"""The networks as they are deployed: bytes' integers in, uint8 or probabilities out, all in between inside the graph.

Normalisation, layout change, upsampling, argmax, softmax and rounding are part of the graph, so that no host copies
full-size floats and no user can get the pre-processing wrong. The interfaces are the ones of a bundle (docs/design.md):

    compressor     frames uint8 (N, H, W, 3)    -> latent float32 (N, C, H/s, W/s)
    decompressor   latent float32 (N, C, h, w)  -> frames uint8 (N, hs, ws, 3)
    segmenter      latent float32 (N, C, h, w)  -> labels uint8 (N, hs, ws)
    rgb_segmenter  frames uint8 (N, H, W, 3)    -> labels uint8 (N, H, W)
    classifier     latent float32 (N, C, h, w)  -> probabilities float32 (N, classes)
    rgb_classifier frames uint8 (N, H, W, 3)    -> probabilities float32 (N, classes)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def frames_to_float(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() * (1.0 / 255.0)


class CompressorGraph(nn.Module):
    """Frames to the float latent; float2int and the entropy coder come after it, outside the graph."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.compressor = codec.compressor

    def forward(self, frames: Tensor) -> Tensor:
        latent: Tensor = self.compressor(frames_to_float(frames))  # type: ignore[operator]
        return latent


class DecompressorGraph(nn.Module):
    """A dequantised latent to frames, rounded half up (values are in [0, 1], so nothing wraps)."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.decompressor = codec.decompressor

    def forward(self, latent: Tensor) -> Tensor:
        rgb = self.decompressor(latent).clamp(0.0, 1.0)  # type: ignore[operator]
        frames: Tensor = (rgb * 255.0 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
        return frames


class LabelsGraph(nn.Module):
    """A segmenter to its label map: logits, upsampled to pixels, arg-maximised, as uint8.

    `rgb` says which input: frames uint8 (N, H, W, 3), or a dequantised latent float32 (N, C, h, w). The upsampling
    factor is the network's logit stride, so labels have the padded frame's size.
    """

    def __init__(self, segmenter: nn.Module, rgb: bool) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.rgb = rgb

    def forward(self, x: Tensor) -> Tensor:
        stride: int = self.segmenter.stride_in  # type: ignore[assignment]
        size = (x.shape[1], x.shape[2]) if self.rgb else (x.shape[2] * stride, x.shape[3] * stride)
        logits = self.segmenter(frames_to_float(x) if self.rgb else x)  # type: ignore[operator]
        full = F.interpolate(logits, size=size, mode="bilinear", align_corners=bool(self.segmenter.align_corners))
        return full.argmax(1).to(torch.uint8)


class ProbabilitiesGraph(nn.Module):
    """A classifier to the probability of each class: the softmax of its logits, float32, whose rows sum to 1.

    `rgb` says which input, as of `LabelsGraph`.
    """

    def __init__(self, classifier: nn.Module, rgb: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.rgb = rgb

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(frames_to_float(x) if self.rgb else x)  # type: ignore[operator]
        return torch.softmax(logits.float(), 1)
