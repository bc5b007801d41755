"""Bottlenecks, and the parts of a deep-stem, dilated ResNet-50 (output stride 8) as DGCNet and Kakaiya et al. use it.

A stage is a sequence of bottleneck blocks; the segmenters put the stages together, because the compressed-domain one
starts at layer3. The networks of Torfason et al. are built of the same blocks (`torfason_resnet.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 with dilation, 1x1 to 4 * mid channels, each with batch norm; plus the shortcut; ReLU.

    The stride is the 3x3's, or with `stride_first` the first 1x1's, as in the first ResNets (He et al. 2016).
    The shortcut is the input itself, or a 1x1 convolution with batch norm where `project` asks for one.
    """

    def __init__(
        self, inputs: int, mid: int, *, stride: int = 1, dilation: int = 1, project: bool = False,
        stride_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        outputs = EXPANSION * mid
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, mid, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if project:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return cast(Tensor, self.relu(y + (x if self.shortcut is None else self.shortcut(x))))


def stage(
    inputs: int, mid: int, dilations: Sequence[int], *, stride: int = 1, stride_first: bool = False
) -> nn.Sequential:
    """One bottleneck a dilation; the first takes the stride and projects its shortcut. `inputs` -> 4 * mid channels."""
    blocks = [Bottleneck(inputs, mid, stride=stride, dilation=dilations[0], project=True, stride_first=stride_first)]
    blocks += [Bottleneck(EXPANSION * mid, mid, dilation=dilation) for dilation in dilations[1:]]
    return nn.Sequential(*blocks)


def deep_stem() -> nn.Sequential:
    """Three 3x3 convolutions (stride 2, 1, 1) and a 3x3 max pool of stride 2: [N,3,H,W] -> [N,128,~H/4,~W/4].

    The pool rounds up (ceil mode), so 840 pixels give 211 positions and not 210.
    """

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
    return nn.Sequential(*block(3, 64, 2), *block(64, 64, 1), *block(64, 128, 1), pool)


def layer1() -> nn.Sequential:
    """128 -> 256 channels, 3 blocks."""
    return stage(128, 64, (1, 1, 1))


def layer2() -> nn.Sequential:
    """256 -> 512 channels, 4 blocks, stride 2."""
    return stage(256, 128, (1, 1, 1, 1), stride=2)


def layer3() -> nn.Sequential:
    """512 -> 1024 channels, 6 blocks of dilation 2, stride 1."""
    return stage(512, 256, (2,) * 6)


def layer4() -> nn.Sequential:
    """1024 -> 2048 channels, 3 blocks of dilation 4 times the grid (1, 2, 4), stride 1."""
    return stage(1024, 512, (4, 8, 16))


def he_init(module: nn.Module) -> None:
    """He's initialisation (fan out) of every convolution without bias in `module`: those that batch norm follows."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d) and part.bias is None:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
