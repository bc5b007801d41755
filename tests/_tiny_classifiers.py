"""What the tests of trained classifiers share: "tiny-rgb" and "tiny-latent" in the registry, pictures, a codec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _registered import registered
from numpy.typing import NDArray
from torch import Tensor, nn

from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.image_sets import ImageSet
from latentseg.training.train_classifier import ClassifierConfig

NAMES = ("dark", "light", "red")
CONFIG = ClassifierConfig(size=16, batch=4)


class TinyClassifier(nn.Module):
    """One convolution, the mean over all positions, one linear layer."""

    def __init__(self, channels: int, stride_in: int, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.stride_in = classes, stride_in
        self.backbone = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits.float()


def _rgb(classes: int = 10, width: int = 8) -> TinyClassifier:
    return TinyClassifier(3, 1, classes, width)


def _latent(channels: int = 32, classes: int = 10, width: int = 8) -> TinyClassifier:
    return TinyClassifier(channels, 8, classes, width)


@pytest.fixture(scope="module", autouse=True)
def tiny_networks() -> Iterator[None]:
    """tiny-rgb and tiny-latent in the registry, for the tests of the module that imports this."""
    with registered(("tiny-rgb", "rgb_classifier", _rgb), ("tiny-latent", "latent_classifier", _latent)):
        yield


def pictures(count: int = 12) -> list[NDArray[np.uint8]]:
    """Noisy pictures of some sizes: dark, light and red ones in turn."""
    rng = np.random.default_rng(0)
    colours = np.array([(40, 40, 40), (210, 210, 210), (220, 30, 30)])
    sizes = [(17, 23), (40, 16), (9, 9), (24, 31)]
    return [np.clip(rng.normal(colours[i % 3], 15, (*sizes[i % 4], 3)), 0, 255).astype(np.uint8) for i in range(count)]


def image_set(images: Sequence[NDArray[np.uint8]] | None = None) -> ImageSet:
    found = pictures() if images is None else images
    return ImageSet(found, np.arange(len(found)) % 3, NAMES, (0.5, 1.0), 1.0)


def centred(path: Path, channels: int = 8, **options: Any) -> Path:
    """A codec with learned centres as it is made, but for a latent that uses them."""
    torch.manual_seed(0)
    name = f"torfason-codec-c{channels}"
    module = registry.create(name, width=8, **options)
    with torch.no_grad():
        module.compressor.body[-1].weight.mul_(20.0)  # type: ignore[union-attr, operator, index]
    checkpoint.save_weights(path, name, {"width": 8, **options}, module.state_dict(), {"settings": {}})
    return path
