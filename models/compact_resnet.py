"""Small twins of Torfason et al.'s networks, for two CPU cores: fewer blocks, narrower, the same build.

The latent ones have neither root nor conv2; the RGB ones have both in front of the same conv3 to conv5 and head. Both
normalise their input by its own statistics, gathered while training.
"""

from __future__ import annotations

from torch import nn

from ..errors import UsageError
from .torfason_codec import STRIDE
from .torfason_deeplab import DeepLab
from .torfason_resnet import Backbone, Classifier, Sizes


def _backbone(channels: int | None, sizes: Sizes, *, dilated: bool) -> Backbone:
    normalise = nn.BatchNorm2d(3 if channels is None else channels, affine=False)
    return Backbone(normalise, channels, sizes, dilated=dilated)


def _multiple_of_4(width: int) -> int:
    if width < 4 or width % 4:
        raise UsageError(f"a width of {width}, expected a multiple of 4")
    return width


def classifier_sizes(width: int) -> Sizes:
    """What the compact classifiers share, made for images of 64x64 (latents of 8x8): each stage doubles the width."""
    width = _multiple_of_4(width)
    return Sizes((width // 2, width, 2 * width, 4 * width), (2, 3, 4, 2))


def segmenter_sizes(width: int) -> Sizes:
    """What the compact segmenters share: conv3 to conv5 work at 1/8 alike, so that their widths grow slowly."""
    width = _multiple_of_4(width)
    return Sizes((width // 4, 3 * width // 4, width, 3 * width // 2), (2, 2, 4, 2))


def compact_resnet(classes: int = 10, width: int = 64) -> Classifier:
    """The registry's "compact-resnet". width: of conv3, a multiple of 4."""
    sizes = classifier_sizes(width)
    return Classifier(_backbone(None, sizes, dilated=False), 1, classes, sizes.outputs)


def compact_cresnet(classes: int = 10, channels: int = 32, width: int = 64) -> Classifier:
    """The registry's "compact-cresnet". width: of conv3, a multiple of 4."""
    sizes = classifier_sizes(width)
    return Classifier(_backbone(channels, sizes, dilated=False), STRIDE, classes, sizes.outputs)


def compact_deeplab(classes: int = 11, width: int = 64) -> DeepLab:
    """The registry's "compact-deeplab". width: of conv4, a multiple of 4."""
    sizes = segmenter_sizes(width)
    return DeepLab(_backbone(None, sizes, dilated=True), 1, classes, sizes.outputs)


def compact_cdeeplab(classes: int = 11, channels: int = 32, width: int = 64) -> DeepLab:
    """The registry's "compact-cdeeplab". width: of conv4, a multiple of 4."""
    sizes = segmenter_sizes(width)
    return DeepLab(_backbone(channels, sizes, dilated=True), STRIDE, classes, sizes.outputs)
