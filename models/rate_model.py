"""The rate term that the compact codec is trained under: what the context coder spends, in a form with a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Adam moves every parameter by about the learning rate a step. These few statistics must follow the latent at once, so
# each is stored divided by this, and so moves that many times faster than a weight does.
SPEED = 20.0


def neighbours(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W, WW, N, NW, NE of every position of (N, C, h, w), each of that shape.

    In the first column N stands for what would be to the left, in the first row W for what would be above, in the last
    column N for NE; the first symbol of all has zeros about it.
    """
    west, north = F.pad(z, (1, 0))[..., :-1], F.pad(z, (0, 0, 1, 0))[:, :, :-1]
    west = torch.cat([north[..., :1], west[..., 1:]], 3)
    north = torch.cat([west[:, :, :1], north[:, :, 1:]], 2)
    west2 = torch.cat([west[..., :1], west[..., :-1]], 3)
    north_west = torch.cat([north[..., :1], north[..., :-1]], 3)
    north_east = torch.cat([north[..., 1:], north[..., -1:]], 3)
    # The first row's "north" is the row itself, one step back: of it only W is known.
    north_west = torch.cat([west[:, :, :1], north_west[:, :, 1:]], 2)
    north_east = torch.cat([west[:, :, :1], north_east[:, :, 1:]], 2)
    return west, west2, north, north_west, north_east


def median_prediction(west: Tensor, north: Tensor, north_west: Tensor) -> Tensor:
    """The median of W, N and W + N - NW, as in LOCO-I (Weinberger et al. 2000)."""
    low, high = torch.minimum(west, north), torch.maximum(west, north)
    return torch.minimum(torch.maximum(west + north - north_west, low), high)


class LaplaceRateModel(nn.Module):
    """Ideal bits of an integer latent under a Laplace law whose scale follows the neighbours' errors.

    In each channel c, with z the symbol, W, WW, N, NW, NE its neighbours to the left and above, and F the Laplace CDF:

        e     = z - p_c median(W, N, W + N - NW)              p_c: 0 or 1, set by `choose`
        s     = 2 |e_W| + |e_WW| + 2 |e_N| + |e_NE|
        scale = f_c + g_c s                                   f_c, g_c > 0
        bits  = -log2( F((e + 1/2) / scale) - F((e - 1/2) / scale) )

    Prediction and s are those of the stream's context coder, which has a table of its choice for each level of s where
    this has a straight line. It is a training signal and an ideal figure, never a file size.
    """

    predicted: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_floor = nn.Parameter(torch.full((channels, 1, 1), -1.0 / SPEED))
        self.slope = nn.Parameter(torch.full((channels, 1, 1), -3.0 / SPEED))
        self.register_buffer("predicted", torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def choose(self, z: Tensor) -> None:
        """Set which channels are predicted: those whose errors, float32 (N, C, h, w), are then smaller on average."""
        west, _, north, north_west, _ = neighbours(z)
        gain = (z.abs() - (z - median_prediction(west, north, north_west)).abs()).mean((0, 2, 3))
        self.predicted.copy_((gain > 0).float()[:, None, None])

    def bits(self, z: Tensor) -> Tensor:
        """Bits of every symbol: float32 (N, C, h, w) of integers (straight-through in training), same shape out."""
        west, _, north, north_west, _ = neighbours(z)
        error = z - self.predicted * median_prediction(west, north, north_west)
        # Both tails are written with the distance from the mean, so that nothing cancels far out.
        distance = error.abs()
        west, west2, north, _, north_east = neighbours(distance)
        activity = 2.0 * west + west2 + 2.0 * north + north_east
        scale = (F.softplus(SPEED * self.scale_floor) + F.softplus(SPEED * self.slope) * activity).clamp_min(0.02)
        inner, outer = (distance - 0.5) / scale, (distance + 0.5) / scale
        tail = 0.5 * torch.exp(-inner.clamp_min(0.0)) * -torch.expm1(-1.0 / scale)
        centre = 1.0 - 0.5 * (torch.exp(inner.clamp_max(0.0)) + torch.exp(-outer))
        probability = torch.where(inner > 0, tail, centre)
        # Far out the tail underflows; its logarithm is linear there, and known.
        log_tail = -inner.clamp_min(0.0) + torch.log(0.5 * -torch.expm1(-1.0 / scale))
        log_probability = torch.where(inner > 20.0, log_tail, torch.log(probability.clamp_min(1e-12)))
        return -log_probability / math.log(2.0)

    def forward(self, z: Tensor) -> Tensor:
        """Total bits of a batch, a scalar."""
        return self.bits(z).sum()
