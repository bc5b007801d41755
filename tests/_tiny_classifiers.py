"""A pair of classifiers of a few weights, registered for the tests of training: "tiny-rgb" and "tiny-latent"."""

from __future__ import annotations

from torch import Tensor, nn

from latentseg.models import registry


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


if "tiny-rgb" not in registry.names():
    registry.register("tiny-rgb", kind="rgb_classifier", description="for tests")(_rgb)  # type: ignore[arg-type]
    registry.register("tiny-latent", kind="latent_classifier", description="for tests")(_latent)  # type: ignore[arg-type]
