"""The rate term that the compact codec is trained under: what an adaptive coder that walks a row could spend."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Adam moves every parameter by about the learning rate a step. These few statistics must follow the latent at once, so
# each is stored divided by this, and so moves that many times faster than a weight does.
SPEED = 20.0


class LaplaceRateModel(nn.Module):
    """Ideal bits of an integer latent under a Laplace law whose mean and scale follow the symbols to the left.

    In each row of each channel c, with z[x] the symbol (0 outside the row) and F the Laplace CDF:

        mean[x]  = a_c z[x-1]                                 0 < a_c < 1
        e[x]     = z[x] - mean[x]
        scale[x] = s_c + p_c |e[x-1]| + q_c |e[x-2]|          s_c, p_c, q_c > 0
        bits[x]  = -log2( F((e[x] + 1/2) / scale[x]) - F((e[x] - 1/2) / scale[x]) )

    A decoder that walks the row knows everything on the right-hand side, so a context coder can reach this rate; the
    Huffman coder of bitstream version 1 does not. It is a training signal and an ideal figure, never a file size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean_logit = nn.Parameter(torch.zeros(channels, 1, 1))
        self.scale_floor = nn.Parameter(torch.full((channels, 1, 1), -1.0 / SPEED))
        self.weight1 = nn.Parameter(torch.full((channels, 1, 1), -1.5 / SPEED))
        self.weight2 = nn.Parameter(torch.full((channels, 1, 1), -1.5 / SPEED))

    def bits(self, z: Tensor) -> Tensor:
        """Bits of every symbol: float32 (N, C, h, w) of integers (straight-through in training), same shape out."""
        error = z - torch.sigmoid(SPEED * self.mean_logit) * F.pad(z, (1, 0))[..., :-1]
        # Both tails are written with the distance from the mean, so that nothing cancels far out.
        distance = error.abs()
        padded = F.pad(distance, (2, 0))
        scale = (
            F.softplus(SPEED * self.scale_floor)
            + F.softplus(SPEED * self.weight1) * padded[..., 1:-1]
            + F.softplus(SPEED * self.weight2) * padded[..., :-2]
        ).clamp_min(0.02)
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
