"""A start for the compressive autoencoder from the data: ours, not the paper's.

Every layer carries pixels at first: the autoencoder starts as a linear transform of 8x8 blocks and its inverse.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .torfason_codec import ResidualUnit, TorfasonCodec

# Carried values, some -2 to 2.6, are moved up by this, so that ReLU lets them pass.
OFFSET = 3.0


@torch.no_grad()
def pca_init(codec: TorfasonCodec, images: Tensor) -> None:
    """Make `codec` start as a PCA of 8x8 blocks, turned by a Hadamard matrix, in place.

    The turn shares the components' variance evenly, since all channels have the same few centres: the mean of a block
    alone would need more than six levels. Residual units start as the identity; channels that carry nothing start
    random, and are not read yet.

    images: float32 (N, 3, H, W) in [0, 1], sides multiples of 8, together at least 192 blocks. Raises UsageError for
    fewer, for a number of channels that is no power of two up to 64, or for a codec of fewer than 48 values inside.
    """
    channels, width = codec.channels, _convolutions(codec.compressor)[1].out_channels
    if channels & (channels - 1) or not 1 <= channels <= 64 or width < 48:
        raise UsageError(
            f"a PCA start for {channels} channels and width {width}, expected a power of two up to 64, and at least 48",
            hint="start from trained weights (--init), or change --option width and channels",
        )
    blocks = _blocks((images - codec.compressor.mean) / codec.compressor.deviation)
    if len(blocks) < blocks.shape[1]:
        raise UsageError(f"{len(blocks)} blocks of 8x8 pixels, expected at least {blocks.shape[1]}")
    mean = blocks.mean(0)
    _, vectors = torch.linalg.eigh(torch.cov(blocks.T.double()))
    basis = _hadamard(channels) @ vectors.flip(1)[:, :channels].T.float()  # (C, 192), orthonormal rows
    gain = 1.0 / ((blocks - mean) @ basis.T).std()

    for part in (codec.compressor, codec.decompressor):
        for module in part.modules():
            if isinstance(module, ResidualUnit):
                nn.init.zeros_(module.body[-1].weight)  # type: ignore[arg-type]
                nn.init.zeros_(module.body[-1].bias)  # type: ignore[arg-type]

    first, second, last = _convolutions(codec.compressor)
    for conv, carried, offset in ((first, 3, OFFSET), (second, 12, 0.0)):
        conv.weight[: 4 * carried] = 0.0
        _bias(conv)[: 4 * carried] = offset
        for phase, (dy, dx) in enumerate(_PHASES):
            for value in range(carried):
                conv.weight[phase * carried + value, value, 2 + dy, 2 + dx] = 1.0
    last.weight.zero_()
    for phase, (dy, dx) in enumerate(_PHASES):
        last.weight[:, :48, 2 + dy, 2 + dx] = gain * basis[:, 48 * phase : 48 * phase + 48]
    _bias(last).copy_(-OFFSET * last.weight.sum((1, 2, 3)) - gain * (basis @ mean))

    first, second, last = _convolutions(codec.decompressor)
    first.weight[:, :48] = 0.0
    _bias(first)[:48] = OFFSET + mean.reshape(4, 48).mean(0)
    for phase, (dy, dx) in enumerate(_PHASES):
        first.weight[:, :48, 1 + dy, 1 + dx] = basis[:, 48 * phase : 48 * phase + 48] / gain
    for conv, carried, offset in ((second, 12, 0.0), (last, 3, -OFFSET)):
        conv.weight[:, :carried] = 0.0
        _bias(conv)[:carried] = offset
        for phase, (dy, dx) in enumerate(_PHASES):
            for value in range(carried):
                conv.weight[phase * carried + value, value, 2 + dy, 2 + dx] = 1.0


# (row, column) of the four pixels of a 2x2 block, in the order in which they are stacked as channels.
_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def _blocks(x: Tensor) -> Tensor:
    """(M, 192) blocks of 8x8 pixels in the order in which three levels of 2x2 stacking leave them."""
    for _ in range(3):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _hadamard(n: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(n)


def _convolutions(part: nn.Module) -> list[nn.Conv2d]:
    """The three strided convolutions of an encoder or decoder, in order."""
    body = cast(nn.Sequential, part.body)
    return [cast(nn.Conv2d, module) for module in body if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def _bias(conv: nn.Conv2d) -> Tensor:
    return cast(Tensor, conv.bias)
