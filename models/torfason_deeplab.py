"""The segmenters of Torfason et al. (ICLR 2018): DeepLab-v2 (Chen et al. 2018) on the classifiers' backbones.

conv4 and conv5 are dilated in place of strided, and atrous spatial pyramid pooling stands for the classification layer,
so that logits have 1/8 of the image's resolution: the latent's own. RGB and latent networks give the same grid.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ..errors import UsageError
from .torfason_codec import STRIDE
from .torfason_resnet import Backbone, ImageNetNormalise, paper_sizes

PAPER_CLASSES = 21
"""PASCAL VOC's 20 classes and the background."""

RATES = (6, 12, 18, 24)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the sum of parallel 3x3 convolutions straight to the classes, one a dilation."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, classes, 3, padding=r, dilation=r) for r in RATES)
        for branch in self.branches:
            nn.init.normal_(cast(Tensor, branch.weight), std=0.01)
            nn.init.zeros_(cast(Tensor, branch.bias))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        logits: Tensor = first(x)
        for branch in others:
            logits = logits + branch(x)
        return logits


class DeepLab(nn.Module):
    """A dilated backbone and the pyramid.

    Attributes
    ----------
    classes: number of classes.  stride_in: source pixels per input position (1 for RGB, 8 for a latent).
    logit_stride: source pixels per logit.  align_corners: of the final bilinear upsampling to pixels.
    """

    logit_stride = STRIDE
    align_corners = False

    def __init__(self, backbone: Backbone, stride_in: int, classes: int, features: int) -> None:
        super().__init__()
        if classes < 1:
            raise UsageError(f"a segmenter needs at least one class, not {classes}")
        self.classes = classes
        self.stride_in = stride_in
        self.backbone = backbone
        self.head = Pyramid(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] or a dequantised latent (N, C, H/8, W/8) to logits (N, classes, H/8, W/8)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits.contiguous()  # training's channels-last layout would slow the upsampling of a few channels down


def torfason_deeplab_rgb(depth: int, classes: int = PAPER_CLASSES) -> DeepLab:
    """Factory of "torfason-deeplab-resnet50" and "-resnet71"."""
    sizes = paper_sizes(depth, latent=False)
    return DeepLab(Backbone(ImageNetNormalise(), None, sizes, dilated=True), 1, classes, sizes.outputs)


def torfason_deeplab_latent(depth: int, channels: int = 32, classes: int = PAPER_CLASSES) -> DeepLab:
    """Factory of "torfason-deeplab-cresnet39", "-cresnet51" and "-cresnet72"."""
    sizes = paper_sizes(depth, latent=True)
    backbone = Backbone(nn.BatchNorm2d(channels, affine=False), channels, sizes, dilated=True)
    return DeepLab(backbone, STRIDE, classes, sizes.outputs)
