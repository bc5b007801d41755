"""The compressive autoencoder of Torfason et al. (ICLR 2018), with scalar quantisation to learned centres.

The encoder is verified by its cost (3.557 G multiply-accumulates at 224x224 with 32 channels). The decoder mirrors it,
with kernel sizes that no source gives. There is no batch norm, which takes the brightness out of a batch: nothing says
that the paper has it, and with it training stays some decibels below. Quantisation is the soft-to-hard one of Agustsson
et al. (2017): the nearest of L learned centres forward, a softmax over the distances backward.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArtifactError, UsageError

STRIDE = 8
# Mean and standard deviation of ImageNet's pixels, RGB in [0, 1]: the fixed normalisation at both ends.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# Sharpness of the soft assignment, ours: with 1, as in the group's later code, 200 steps ended 2.4 dB lower.
SIGMA = 4.0


class CentreQuantiser(nn.Module):
    """L learned scalar centres that all channels share.

    Centres start evenly over [-2, 2]. sigma: sharpness of the soft assignment softmax(-sigma (z - c)^2), which gives
    the gradient alone and so stays as it is.
    """

    def __init__(self, centres: int, sigma: float = SIGMA) -> None:
        super().__init__()
        self.sigma = sigma
        self.centres = nn.Parameter(torch.linspace(-2.0, 2.0, centres))

    def assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What a latent (N, C, h, w) becomes, and which centres it takes.

        Returns the nearest centres' values, (N, C, h, w), and one-hot shares of each centre (in the order of
        `centres`), (N, C, h, w, L); the gradient of both is that of the soft assignment (straight-through).
        """
        distance = (z[..., None] - self.centres) ** 2
        shares = torch.softmax(-self.sigma * distance, -1)
        soft = (shares * self.centres).sum(-1)
        nearest = distance.argmin(-1)
        hard = self.centres[nearest]
        taken = F.one_hot(nearest, len(self.centres)).to(shares.dtype)
        return soft + (hard - soft).detach(), shares + (taken - shares).detach()

    @staticmethod
    def entropy(shares: Tensor) -> Tensor:
        """H(q) in bits a symbol, of the histogram over all symbols and channels. A scalar."""
        histogram = shares.reshape(-1, shares.shape[-1]).mean(0)
        return -(histogram * torch.log2(histogram.clamp_min(1e-6))).sum()


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(x))), both 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x))


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


def _up(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, output_padding=1)


class Encoder(nn.Module):
    """RGB (N, 3, H, W) in [0, 1] to a latent (N, C, H/8, W/8) around the centres."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(3, 1, 1))
        down = (_down(3, width // 2), nn.ReLU(), _down(width // 2, width), nn.ReLU())
        self.body = nn.Sequential(*down, *(ResidualUnit(width) for _ in range(3)), _down(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.body((x - self.mean) / self.deviation))


class Decoder(nn.Module):
    """Centres' values (N, C, h, w) to RGB (N, 3, 8h, 8w), clamped to [0, 1] outside training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(3, 1, 1))
        units = (ResidualUnit(width) for _ in range(3))
        up = (_up(width, width // 2, 5), nn.ReLU(), _up(width // 2, 3, 5))
        self.body = nn.Sequential(_up(channels, width, 3), nn.ReLU(), *units, *up)

    def forward(self, z: Tensor) -> Tensor:
        x = self.body(z) * self.deviation + self.mean
        # A clamp would kill the gradient of every value outside [0, 1] while training.
        return x if self.training else cast(Tensor, x.clamp(0.0, 1.0))


class TorfasonCodec(nn.Module):
    """The autoencoder with the attributes by which the rest of the system knows a codec.

    Attributes
    ----------
    stride: source pixels a latent position, per axis, 8.  channels: C of the latent, 8, 16 or 32 in the paper.
    bits: of a symbol, the fewest that hold L.
    tile: (rows, columns) of a lane of its streams: large, since its symbols have about one bit each.
    """

    stride = STRIDE
    tile = (48, 64)

    def __init__(self, channels: int, centres: int = 6, width: int = 128, sigma: float = SIGMA) -> None:
        super().__init__()
        if not 2 <= centres <= 256:
            raise UsageError(f"{centres} centres, expected 2 to 256", hint="the paper has 6")
        self.channels = channels
        self.bits = math.ceil(math.log2(centres))
        self.compressor = Encoder(channels, width)
        self.quantiser = CentreQuantiser(centres, sigma)
        self.decompressor = Decoder(channels, width)

    @property
    def scaling(self) -> tuple[str, float, float, tuple[float, ...]]:
        """("codebook", 0, 0, the centres, ascending). Raises ArtifactError for centres that are no codebook."""
        centres = self.quantiser.centres.detach().float().sort().values
        if not torch.isfinite(centres).all() or (centres.diff() <= 0).any():
            raise ArtifactError(
                f"the codec's centres are {[round(c, 6) for c in centres.tolist()]}, expected different finite numbers",
                hint="train it again, with a lower --lr",
            )
        return "codebook", 0.0, 0.0, tuple(centres.tolist())

    def compress(self, x: Tensor) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1], sides multiples of 8, to a float latent (N, C, H/8, W/8)."""
        return cast(Tensor, self.compressor(x))

    def decompress(self, z: Tensor) -> Tensor:
        """Centres' values (N, C, h, w) to RGB float32 (N, 3, 8h, 8w)."""
        return cast(Tensor, self.decompressor(z))

    def quantised(self, z: Tensor) -> Tensor:
        """The nearest centres' values, with the gradient of the soft assignment."""
        return self.quantiser.assign(z)[0]

    def forward(self, x: Tensor) -> Tensor:
        """What is trained: decompress(quantised(compress(x)))."""
        return self.decompress(self.quantised(self.compress(x)))


def torfason_codec(channels: int, centres: int = 6, width: int = 128, sigma: float = SIGMA) -> TorfasonCodec:
    """Factory of "torfason-codec-c8", "-c16" and "-c32"."""
    return TorfasonCodec(channels, centres, width, sigma)
