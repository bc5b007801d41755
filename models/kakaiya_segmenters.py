"""The two segmenters of Kakaiya et al. (ICME 2023): DGCNet on RGB, and ResNet-sm with the same head on latents.

Contract of every segmenter: forward(x) gives logits [N,classes,h',w']; while training with an auxiliary head, the pair
(logits, auxiliary logits). `classes`; `stride_in`, the source pixels one input sample stands for (1 for RGB);
`logit_stride`, the source pixels one logit stands for; `align_corners` of the bilinear upsampling to label size, which
is left to the caller.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import resnet
from .dualgraph import DualGraphHead
from .kakaiya_codec import CHANNELS

PAPER_CLASSES = 21
"""Classes of every count in the paper's Table I (the original constructor's default; Cityscapes itself has 19)."""


def auxiliary_head(inputs: int, classes: int, width: int = 512) -> nn.Sequential:
    """Logits from layer3, for a second loss while training. As in the original there is no ReLU in it."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1)
    )


class _Segmenter(nn.Module):
    """What both have in common: layer3, layer4, the head, and the auxiliary head on layer3's output."""

    align_corners = True
    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, aux: bool, mean: list[float], std: list[float]) -> None:
        super().__init__()
        if classes < 1:
            raise UsageError(f"a segmenter needs at least one class, not {classes}")
        self.classes = classes
        self.layer3 = resnet.layer3()
        self.layer4 = resnet.layer4()
        self.head = DualGraphHead(2048, classes)
        self.aux = auxiliary_head(1024, classes) if aux else None
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def entry(self, x: Tensor) -> Tensor:
        """Normalised input to the 512 channels that layer3 takes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = self.layer3(self.entry((x - self.mean) / self.std))
        logits = cast(Tensor, self.head(self.layer4(middle)))
        if self.aux is not None and self.training:
            return logits, cast(Tensor, self.aux(middle))
        return logits


class KakaiyaRgbSegmenter(_Segmenter):
    """RGB float32 [N,3,H,W] in [0,1] -> logits at 1/8 resolution (ceil mode: 840 pixels give 106)."""

    stride_in = 1
    logit_stride = 8

    def __init__(self, classes: int = PAPER_CLASSES, aux: bool = False) -> None:
        # The usual ImageNet statistics; the paper is silent.
        super().__init__(classes, aux, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.stem = resnet.deep_stem()
        self.layer1 = resnet.layer1()
        self.layer2 = resnet.layer2()
        resnet.he_init(self)

    def entry(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer2(self.layer1(self.stem(x))))


class KakaiyaLatentSegmenter(_Segmenter):
    """Dequantised latent float32 [N,16,h,w] in [0,1] of the codec with `d` digest units -> logits [N,classes,h,w].

    The network is the same for every d; only `stride_in` and `logit_stride` (2^(d+1)) differ. The 1x1 entry has a bias
    and neither batch norm nor ReLU. The auxiliary head is for training.
    """

    def __init__(self, d: int = 2, classes: int = PAPER_CLASSES, aux: bool = False) -> None:
        if d not in (1, 2, 3):
            raise UsageError(f"the paper's codec has 1, 2 or 3 digest units, not {d}")
        # The authors' code normalises all 16 channels by ImageNet's numbers for red.
        super().__init__(classes, aux, [0.485] * CHANNELS, [0.229] * CHANNELS)
        self.stride_in = self.logit_stride = 2 ** (d + 1)
        self.widen = nn.Conv2d(CHANNELS, 512, 1)
        resnet.he_init(self)

    def entry(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.widen(x))


def unused_in_the_paper() -> dict[str, int]:
    """Parameters of the parts that the original latent network builds and never runs, by name.

    The paper's 53.41 M for net_seg,D' is what training uses plus these.
    """
    parts: dict[str, nn.Module] = {"layer1": resnet.layer1(), "layer2": resnet.layer2(), "bn": nn.BatchNorm2d(128)}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def kakaiya_rgb_segmenter(classes: int = PAPER_CLASSES, aux: bool = False) -> KakaiyaRgbSegmenter:
    """Factory of "kakaiya-rgb"."""
    return KakaiyaRgbSegmenter(classes, aux)


def kakaiya_latent_segmenter(d: int, classes: int = PAPER_CLASSES, aux: bool = False) -> KakaiyaLatentSegmenter:
    """Factory of "kakaiya-latent-d1", "-d2" and "-d3"."""
    return KakaiyaLatentSegmenter(d, classes, aux)
