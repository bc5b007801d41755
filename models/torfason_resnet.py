"""The classifiers of Torfason et al. (ICLR 2018): ResNets on RGB, and cResNets on a codec's quantised latents.

They are ResNets of bottleneck blocks whose stride lies on the first 1x1 (He et al. 2016). A cResNet has neither root
nor conv2: conv3's first block takes the latent's channels as they are, at stride 1, so that from conv3 on both kinds
work at the same resolutions. Its name counts convolutions, 3 a block; ResNet-50 and -71 count the last layer too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .resnet import EXPANSION, Bottleneck, he_init, stage
from .torfason_codec import DEVIATION, MEAN, STRIDE

PAPER_CLASSES = 1000
"""ImageNet's classes, on which the paper's classifiers were trained and counted."""


@dataclass(frozen=True)
class Sizes:
    """Widths (of the 3x3s; blocks give four times as many channels) and numbers of blocks, of conv2 to conv5.

    The root has the width of conv2. A backbone for latents uses conv3 to conv5 alone.
    """

    widths: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]

    @property
    def outputs(self) -> int:
        """Channels that conv5 gives."""
        return EXPANSION * self.widths[-1]


_CONV4 = {True: {39: 6, 51: 10, 72: 17}, False: {50: 6, 71: 13}}


def paper_sizes(depth: int, *, latent: bool) -> Sizes:
    """The sizes of ResNet-50 and -71, or with `latent` of cResNet-39, -51 and -72: they differ in conv4's blocks.

    conv5's blocks of cResNet-39 are not in the source; 3 reproduce its cost. Raises UsageError for another depth.
    """
    known = _CONV4[latent]
    if depth not in known:
        raise UsageError(f"a depth of {depth}, expected one of {', '.join(map(str, known))}")
    return Sizes((64, 128, 256, 512), (3, 4, known[depth], 3))


class ImageNetNormalise(nn.Module):
    """RGB in [0, 1], less ImageNet's mean, over its deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Backbone(nn.Module):
    """conv3 to conv5, behind root and conv2 for RGB: (N, 3, H, W) or (N, C, h, w) to (N, sizes.outputs, h', w').

    channels: C of the latent at 1/8 resolution, or None for RGB. normalise: what the input goes through first.
    dilated: DeepLab's layout: conv4 and conv5 keep conv3's 1/8 with dilations 2 and 4, in place of 1/16 and 1/32.
    """

    def __init__(self, normalise: nn.Module, channels: int | None, sizes: Sizes, *, dilated: bool = False) -> None:
        super().__init__()
        widths, blocks = sizes.widths, sizes.blocks
        self.normalise = normalise
        self.root: nn.Module | None = None
        self.conv2: nn.Module | None = None
        if channels is None:
            root = widths[0]
            self.root = nn.Sequential(
                nn.Conv2d(3, root, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(root), nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            )  # fmt: skip
            self.conv2 = stage(root, widths[0], (1,) * blocks[0])
        entering, stride = (EXPANSION * widths[0], 2) if channels is None else (channels, 1)
        step = 1 if dilated else 2
        rates = (2, 4) if dilated else (1, 1)
        self.conv3 = stage(entering, widths[1], (1,) * blocks[1], stride=stride, stride_first=True)
        self.conv4 = stage(EXPANSION * widths[1], widths[2], (rates[0],) * blocks[2], stride=step, stride_first=True)
        self.conv5 = stage(EXPANSION * widths[2], widths[3], (rates[1],) * blocks[3], stride=step, stride_first=True)
        he_init(self)
        # Every block starts as its shortcut.
        for part in self.modules():
            if isinstance(part, Bottleneck):
                nn.init.zeros_(part.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        if self.training:
            # Most convolutions are 1x1 over wide features: a CPU trains them faster with the channels last.
            x = x.contiguous(memory_format=torch.channels_last)
        if self.root is not None and self.conv2 is not None:
            x = self.conv2(self.root(x))
        return cast(Tensor, self.conv5(self.conv4(self.conv3(x))))


class Classifier(nn.Module):
    """A backbone, the mean over all positions, and a linear layer: logits float32 (N, classes), from any input size.

    Attributes
    ----------
    classes: number of classes.  stride_in: source pixels per input position (1 for RGB, 8 for a latent).
    """

    def __init__(self, backbone: Backbone, stride_in: int, classes: int, features: int) -> None:
        super().__init__()
        if classes < 1:
            raise UsageError(f"a classifier needs at least one class, not {classes}")
        self.classes = classes
        self.stride_in = stride_in
        self.backbone = backbone
        self.head = nn.Linear(features, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] or a dequantised latent (N, C, H/8, W/8) to logits (N, classes)."""
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits.float()


def torfason_resnet(depth: int, classes: int = PAPER_CLASSES) -> Classifier:
    """Factory of "torfason-resnet50" and "-resnet71"."""
    sizes = paper_sizes(depth, latent=False)
    return Classifier(Backbone(ImageNetNormalise(), None, sizes), 1, classes, sizes.outputs)


def torfason_cresnet(depth: int, channels: int = 32, classes: int = PAPER_CLASSES) -> Classifier:
    """Factory of "torfason-cresnet39", "-cresnet51" and "-cresnet72"."""
    sizes = paper_sizes(depth, latent=True)
    backbone = Backbone(nn.BatchNorm2d(channels, affine=False), channels, sizes)
    return Classifier(backbone, STRIDE, classes, sizes.outputs)
