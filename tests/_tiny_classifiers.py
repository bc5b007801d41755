"""A pair of classifiers of a few weights, in the registry for the tests of training: "tiny-rgb" and "tiny-latent"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _registered import registered
from torch import Tensor, nn


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
