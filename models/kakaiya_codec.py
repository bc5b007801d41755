"""The codec of Kakaiya et al. (ICME 2023): net_C and net_D for d = 1, 2, 3 digest units, and an initialisation by PCA.

net_C maps RGB in [0, 1] to 16 channels in [0, 1] at 1/2^(d+1) resolution; net_D maps them back. All convolutions are
3x3, padding 1, with bias; no normalisation, no pooling; width 64. Training sees no quantisation: float2int (eq. 2 of
the paper, per-tensor minimum and maximum) acts between the two networks at inference only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError

WIDTH = 64
CHANNELS = 16


class Compressor(nn.Sequential):
    """net_C: float32 [N,3,H,W] in [0,1] -> latent [N,16,ceil(H/s),ceil(W/s)] in [0,1], with s = 2^(d+1)."""

    def __init__(self, d: int) -> None:
        layers: list[nn.Module] = [_conv(3, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH, stride=2), nn.ReLU()]
        for _ in range(d):
            layers += [_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH, stride=2), nn.ReLU()]
        super().__init__(*layers, _conv(WIDTH, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        # The clamp passes no gradient outside [0, 1], so a channel that leaves the range stays dead: see pca_init.
        return cast(Tensor, super().forward(x)).clamp(0.0, 1.0)


class Decompressor(nn.Sequential):
    """net_D: latent [N,16,h,w] -> float32 [N,3,h*s,w*s] in [0,1]."""

    def __init__(self, d: int) -> None:
        layers: list[nn.Module] = [_conv(CHANNELS, WIDTH), nn.ReLU()]
        for _ in range(d):
            layers += [_conv(WIDTH, 4 * WIDTH), nn.ReLU(), nn.PixelShuffle(2)]
        super().__init__(*layers, _conv(WIDTH, 12), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().forward(x)).clamp(0.0, 1.0)


class KakaiyaCodec(nn.Module):
    """net_C and net_D with the attributes by which the rest of the system knows a codec.

    Attributes: `d` digest units; `stride` source pixels a latent sample (2^(d+1)); `channels` 16; `bits` n of
    float2int at inference; `scaling` = (mode, lo, hi) of float2int: ("tensor", 0, 0), the minimum and maximum of each
    latent, which travel with it.
    """

    def __init__(self, d: int, bits: int = 8) -> None:
        super().__init__()
        if d not in (1, 2, 3):
            raise UsageError(f"the paper's codec has 1, 2 or 3 digest units, not {d}")
        if not 1 <= bits <= 8:
            raise UsageError(f"bits per symbol must lie in 1..8, not {bits}")
        self.d = d
        self.stride = 2 ** (d + 1)
        self.tile = (14, 32)  # of a lane of its streams: some 3.3 bits a symbol
        self.channels = CHANNELS
        self.bits = bits
        self.scaling: tuple[str, float, float] = ("tensor", 0.0, 0.0)
        self.compressor = Compressor(d)
        self.decompressor = Decompressor(d)

    def compress(self, x: Tensor) -> Tensor:
        """RGB [N,3,H,W] in [0,1] -> float latent [N,16,ceil(H/s),ceil(W/s)] in [0,1]."""
        return cast(Tensor, self.compressor(x))

    def decompress(self, z: Tensor) -> Tensor:
        """Float latent [N,16,h,w] -> RGB [N,3,h*s,w*s] in [0,1]."""
        return cast(Tensor, self.decompressor(z))

    def forward(self, x: Tensor) -> Tensor:
        """The plain autoencoder that is trained: decompress(compress(x)), without float2int."""
        return self.decompress(self.compress(x))


def kakaiya_codec(d: int, bits: int = 8) -> KakaiyaCodec:
    """Factory of "kakaiya-codec-d1", "-d2" and "-d3"."""
    return KakaiyaCodec(d, bits)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


# --- initialisation by PCA --------------------------------------------------------------------------------------------


@torch.no_grad()
def pca_init(codec: KakaiyaCodec, images: Tensor, *, gain: float = 1.0) -> None:
    """Make `codec` start as a (hierarchical) linear PCA autoencoder of `images`, in place. Ours, not the paper's.

    A plain start leaves latent channels outside [0, 1], where the clamp kills their gradient for good. Here every
    ReLU and clamp is transparent on the data at first, so that training starts from the reconstruction of a PCA with
    16 components a block of s x s pixels, and all 16 channels live.

    How: a 3x3 kernel of stride 2 whose taps are deltas at offsets 0 and 1 is space-to-depth by 2. While the samples of
    a block fit into 64 channels they are carried as they are (RGB is never negative); beyond that they are projected
    to their 64 principal components, shifted to be positive. The last convolution projects to 16 components, each
    scaled into about [0.05, 0.95]. net_D carries the latent through its first layer and then undoes one level with each
    pixel-shuffle. Channels not needed for this get zero-mean random kernels and are not read yet, so they are free to
    learn.

    images: float32 [N,3,H,W] in [0,1], a few dozen that represent the training data; H and W are cropped to multiples
    of the stride. At least as many blocks as a block has samples are needed, else UsageError.
    gain scales the random kernels against He's initialisation.

    Train on with warm-up, at most 3e-4 for Adam, and decay to zero: all activations are positive, so that one step
    moves every output by the sum of some 600 aligned changes, and 1e-3 first loses several dB.
    """
    s = codec.stride
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"pca_init wants images [N,3,H,W], found shape {tuple(images.shape)}")
    images = images[:, :, : images.shape[2] // s * s, : images.shape[3] // s * s]
    blocks = images.shape[0] * (images.shape[2] // s) * (images.shape[3] // s)
    if blocks < 3 * s * s:
        raise UsageError(f"pca_init wants at least {3 * s * s} blocks of {s}x{s} pixels, found {blocks}")

    # Level l holds blocks of 2^l x 2^l pixels: levels[l - 1] projects four blocks of the level below to one.
    levels: list[_Projection] = []

    def coordinates(x: Tensor) -> Tensor:
        x = x[None].double()
        for level in levels:
            x = level(F.pixel_unshuffle(x, 2))
        return x

    for _ in range(codec.d + 1):
        below = levels[-1] if levels else _Projection.identity(3)
        if 4 * below.outputs <= WIDTH:
            levels.append(_Projection.identity(4 * below.outputs))
        else:
            levels.append(_principal(lambda: (F.pixel_unshuffle(coordinates(x), 2) for x in images), WIDTH))
    last = _principal(lambda: (coordinates(x) for x in images), CHANNELS)

    # net_C: first layer (RGB), level 1; then for each digest unit a pass-through and the next level; then `last`.
    convs = [layer for layer in codec.compressor if isinstance(layer, nn.Conv2d)]
    below = _Projection.identity(3)
    for carry, project, level in zip(convs[0:-1:2], convs[1:-1:2], levels, strict=True):
        _write(carry, torch.eye(below.outputs), torch.zeros(below.outputs), gain=gain)
        _write(project, *level.forth(below.four()), unshuffle=True, gain=gain)
        below = level
    _write(convs[-1], *last.forth(below), gain=gain)

    # net_D: the latent itself, then level d from the latent, level d-1 from level d, ..., RGB from level 1.
    convs = [layer for layer in codec.decompressor if isinstance(layer, nn.Conv2d)]
    _write(convs[0], torch.eye(CHANNELS), torch.zeros(CHANNELS), gain=gain)
    belows = [_Projection.identity(3), *levels]
    for conv, level, below in zip(convs[:0:-1], levels, belows, strict=False):
        matrix, bias = level.back(below.four())
        if conv is convs[1]:
            top_matrix, top_bias = last.back(level)
            matrix, bias = matrix @ top_matrix, matrix @ top_bias + bias
        _write(conv, matrix, bias, gain=gain)


@dataclass(frozen=True)
class _Projection:
    """Coordinates c = vectors^T (x - mean) over the channels, carried by the network as c * scale + offset.

    vectors [inputs, outputs] with orthonormal columns; mean [inputs]; scale and offset [outputs]. All float64. The next
    projection is found on c itself, so that the scales of the network do not enter it.
    """

    vectors: Tensor
    mean: Tensor
    scale: Tensor
    offset: Tensor

    @classmethod
    def identity(cls, size: int) -> _Projection:
        zeros, ones = torch.zeros(size).double(), torch.ones(size).double()
        return cls(torch.eye(size).double(), zeros, ones, zeros)

    @property
    def outputs(self) -> int:
        return self.vectors.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x - self.mean[:, None, None], self.vectors.T[:, :, None, None])

    def four(self) -> _Projection:
        """Scale and offset as pixel_unshuffle(x, 2) orders the channels: each one four times."""
        return replace(self, scale=self.scale.repeat_interleave(4), offset=self.offset.repeat_interleave(4))

    def forth(self, below: _Projection) -> tuple[Tensor, Tensor]:
        """Matrix and bias from what the network carries of `below` to what it carries of this."""
        matrix = self.scale[:, None] * self.vectors.T / below.scale
        return matrix, self.offset - self.scale * (self.vectors.T @ self.mean) - matrix @ below.offset

    def back(self, below: _Projection) -> tuple[Tensor, Tensor]:
        """Matrix and bias of the least-squares way back."""
        matrix = below.scale[:, None] * self.vectors / self.scale
        return matrix, below.offset + below.scale * self.mean - matrix @ self.offset


def _principal(batches: Callable[[], Iterator[Tensor]], components: int) -> _Projection:
    """The first principal components, each scaled and shifted so that the data lie in [0.05, 0.95].

    batches: called for each pass over the data; yields float64 [1,C,h,w].
    """
    count, total, outer = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for x in batches():
        rows = x[0].flatten(1)
        count += rows.shape[1]
        total, outer = total + rows.sum(1), outer + rows @ rows.T
    mean = total / count
    vectors = torch.linalg.eigh(outer / count - torch.outer(mean, mean)).eigenvectors.flip(1)[:, :components]
    # Eigenvectors have no sign of their own; fix it so that the same images always give the same codec.
    vectors = torch.where(vectors.sum(0) < 0, -vectors, vectors)

    low = torch.full((components,), torch.inf).double()
    high = -low
    for x in batches():
        rows = vectors.T @ (x[0].flatten(1) - mean[:, None])
        low, high = torch.minimum(low, rows.amin(1)), torch.maximum(high, rows.amax(1))
    scale = 0.9 / (high - low).clamp_min(1e-6)
    return _Projection(vectors, mean, scale, 0.05 - scale * low)


def _write(conv: nn.Conv2d, matrix: Tensor, bias: Tensor, *, unshuffle: bool = False, gain: float = 1.0) -> None:
    """Put matrix [outputs, inputs] into the first rows and columns of conv; other rows get zero-mean random kernels.

    unshuffle: the inputs are those of pixel_unshuffle(x, 2), read by the taps at offsets 0 and 1.
    """
    assert conv.bias is not None
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    # All activations are positive: with a mean, a random kernel would mostly see that, and half of them would be dead.
    conv.weight.sub_(conv.weight.mean(dim=(1, 2, 3), keepdim=True)).mul_(gain)
    conv.bias.zero_()
    rows = matrix.shape[0]
    conv.weight[:rows] = 0.0
    if unshuffle:
        conv.weight[:rows, : matrix.shape[1] // 4, 1:, 1:] = matrix.reshape(rows, -1, 2, 2).to(conv.weight)
    else:
        conv.weight[:rows, : matrix.shape[1], 1, 1] = matrix.to(conv.weight)
    conv.bias[:rows] = bias.to(conv.bias)
