"""The compact networks: a codec trained for rate, and a pair of segmenters that share trunk and head.

All of them work at 1/8 of the image's resolution, where a 480x360 frame has 2,700 positions, so that two CPU cores
run them in real time. The codec follows the driving paper's contract (compress, integer symbols, decompress), but is
trained with a rate term under `LaplaceRateModel`; the paper's own codec is in `kakaiya_codec.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from .rate_model import LaplaceRateModel

STRIDE = 8
PATCH_VALUES = 3 * STRIDE * STRIDE


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(x))), both 3x3; without normalisation, so that a codec's amplitudes survive."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.relu(self.conv1(x)))
        return y


class PatchTransform(nn.Module):
    """A linear 1x1 map plus a residual branch at the same resolution: y = linear(x) + branch(x).

    The linear part starts as the PCA (or its inverse) and runs in float32 even under autocast: bfloat16 has 8 bits of
    mantissa, and a symbol has 8 bits, so a rounded linear part would be noise of half a quantisation step.
    """

    def __init__(self, inputs: int, outputs: int, width: int, units: int, entry_kernel: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(inputs, outputs, 1)
        self.entry = nn.Conv2d(inputs, width, entry_kernel, padding=entry_kernel // 2)
        self.units = nn.Sequential(*(ResidualUnit(width) for _ in range(units)))
        self.exit = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        branch = self.exit(F.relu(self.units(F.relu(self.entry(x)))))
        # The meta device, on which costs are counted, knows no autocast.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            y: Tensor = self.linear(x.float()) + branch.float()
        return y


class Gain(nn.Module):
    """One factor a channel, exp(10 g): the rate follows it directly, so it must move ten times faster than weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_tenth = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.exp(10.0 * self.log_tenth)


class PatchCompressor(nn.Module):
    """RGB in [0, 1], float32 (N, 3, H, W), to a float latent (N, C, H/8, W/8) whose quantisation step is 1."""

    def __init__(self, channels: int, width: int, units: int) -> None:
        super().__init__()
        self.transform = PatchTransform(PATCH_VALUES, channels, width, units, entry_kernel=1)
        self.gain = Gain(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gain(self.transform(F.pixel_unshuffle(x - 0.5, STRIDE)))
        return y


class PatchDecompressor(nn.Module):
    """A dequantised latent, float32 (N, C, h, w), to RGB (N, 3, 8h, 8w), clamped to [0, 1] outside training."""

    def __init__(self, channels: int, width: int, units: int) -> None:
        super().__init__()
        self.gain = Gain(channels)
        self.transform = PatchTransform(channels, PATCH_VALUES, width, units, entry_kernel=3)

    def forward(self, z: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.transform(self.gain(z)), STRIDE) + 0.5
        # A clamp would kill the gradient of every value outside [0, 1] while training.
        return x if self.training else x.clamp(0.0, 1.0)


class CompactCodec(nn.Module):
    """A codec at stride 8 whose latent is rounded to integers of `bits` bits: a fixed range that belongs to the codec.

    Attributes
    ----------
    stride: source pixels per latent position, per axis.  channels: of the latent.  bits: of one symbol.
    tile: (rows, columns) of a lane of its streams: large, since its symbols have less than two bits each.
    scaling: ("fixed", lo, hi) with hi - lo = 2**bits - 1, so that equation 2 of the driving paper is plain rounding.
    """

    stride = STRIDE
    tile = (48, 64)

    def __init__(
        self, channels: int = 32, width: int = 128, encoder_units: int = 2, decoder_units: int = 3, bits: int = 8
    ) -> None:
        super().__init__()
        self.channels = channels
        self.bits = bits
        self.scaling = ("fixed", -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1))
        self.compressor = PatchCompressor(channels, width, encoder_units)
        self.decompressor = PatchDecompressor(channels, width, decoder_units)
        self.rate_model = LaplaceRateModel(channels)

    def compress(self, x: Tensor) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1], sides multiples of 8, to a float latent (N, C, H/8, W/8)."""
        z: Tensor = self.compressor(x)
        return z

    def decompress(self, z: Tensor) -> Tensor:
        """A dequantised latent (N, C, h, w) to RGB float32 (N, 3, 8h, 8w)."""
        x: Tensor = self.decompressor(z)
        return x

    def quantised(self, z: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """int2float(float2int(z)), with the gradient of the identity (straight-through).

        step: what the fixed range is multiplied by, and with it the quantisation step; a number, or one a sample of
        shape (N, 1, 1, 1). A larger one costs fewer bits and more distortion.
        """
        _, lo, hi = self.scaling
        return z + ((z / step).round().clamp(lo, hi) * step - z).detach()

    @torch.no_grad()
    def pca_init(self, patches: Tensor, step: float = 24.0) -> None:
        """Start as the PCA of 8x8 RGB patches, quantised with `step` (in units of 1/255 per orthonormal coefficient).

        patches: float32 (M, 192) in [0, 1], in the channel order of `pixel_unshuffle`. M >= 192.
        """
        centred = patches.double() - 0.5
        mean = centred.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((centred - mean).T))
        basis = vectors.flip(1)[:, : self.channels].T  # (C, 192), largest variance first
        gain = 255.0 / step
        linear, inverse = self.compressor.transform.linear, self.decompressor.transform.linear
        linear.weight.copy_((basis * gain)[:, :, None, None])
        linear.bias.copy_(-(basis @ mean) * gain)  # type: ignore[union-attr]
        inverse.weight.copy_((basis.T / gain)[:, :, None, None])
        inverse.bias.copy_(mean)  # type: ignore[union-attr]


class ConvBnRelu(nn.Sequential):
    """conv (no bias), batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class DilatedUnit(nn.Module):
    """A basic residual block whose two 3x3 convolutions share one dilation."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = ConvBnRelu(width, width, dilation=dilation)
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(self.first(x))))


def strided_entry(root: int, width: int) -> nn.Sequential:
    """Normalisation of three channels, and three strided convolutions to 1/8: root, width / 2 and width channels."""
    return nn.Sequential(
        nn.BatchNorm2d(3, affine=False),
        ConvBnRelu(3, root, stride=2),
        ConvBnRelu(root, width // 2, stride=2),
        ConvBnRelu(width // 2, width, stride=2),
    )


class UnpackedEntry(nn.Module):
    """A 1x1 convolution that gives every position of a latent its stride x stride x 3 values; then a strided entry.

    Few channels at 1/8 resolution do not let two convolutions there find what strided ones find among the pixels: thin
    things above all. Unpacked linearly, at 1/150 of what the codec's decompressor costs, they are found the same way.
    """

    def __init__(self, channels: int, stride: int, width: int, root: int) -> None:
        super().__init__()
        self.stride = stride
        self.unpack = nn.Conv2d(channels, 3 * stride * stride, 1)
        self.strided = strided_entry(root, width)

    def forward(self, z: Tensor) -> Tensor:
        # In float32 under autocast too: symbols have 8 bits, as many as the mantissa of bfloat16.
        with torch.autocast("cpu" if z.is_meta else z.device.type, enabled=False):
            x = F.pixel_shuffle(self.unpack(z.float()), self.stride)
        y: Tensor = self.strided(x)
        return y

    @torch.no_grad()
    def take_over(self, strided: nn.Sequential) -> None:
        """Start as the strided entry of a trained "compact-rgb", with those of its first channels that weigh most.

        A channel's weight is that of its batch norm times the norm of what the second convolution makes of it.
        """
        state = {name: value.clone() for name, value in strided.state_dict().items()}
        weight = state["1.1.weight"].abs() * state["2.0.weight"].square().sum((0, 2, 3)).sqrt()
        root = self.strided[1][0].out_channels  # type: ignore[index]
        kept = weight.topk(root).indices.sort().values
        for name in ("1.0.weight", "1.1.weight", "1.1.bias", "1.1.running_mean", "1.1.running_var"):
            state[name] = state[name][kept]
        state["2.0.weight"] = state["2.0.weight"][:, kept]
        self.strided.load_state_dict(state)


class CompactTrunk(nn.Module):
    """Residual blocks of growing dilation at 1/8 resolution, a global branch, and a sub-pixel head.

    Input (N, width, h, w); logits (N, classes, detail h, detail w): the last 1x1 convolution makes detail x detail
    logits a position, by default 4x4, since poles and signs are thinner than the eight pixels that a position covers.
    """

    def __init__(self, classes: int, width: int, dilations: Sequence[int], detail: int) -> None:
        super().__init__()
        self.detail = detail
        self.blocks = nn.Sequential(*(DilatedUnit(width, d) for d in dilations))
        self.context = nn.Conv2d(width, width, 1)
        self.fuse = ConvBnRelu(width, width)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes * detail**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        x = x + F.relu(self.context(x.mean((2, 3), keepdim=True)))
        return F.pixel_shuffle(self.classifier(self.dropout(self.fuse(x))), self.detail)


class CompactSegmenter(nn.Module):
    """An entry to 1/8 resolution followed by the shared trunk.

    Attributes
    ----------
    classes: number of classes.  stride_in: source pixels per input position (1 for RGB, 8 for a latent).
    logit_stride: source pixels per logit, 8 / detail.  align_corners: of the final bilinear upsampling to pixels.
    """

    align_corners = False

    def __init__(
        self, entry: nn.Module, stride_in: int, classes: int, width: int, dilations: Sequence[int], detail: int
    ) -> None:
        super().__init__()
        if detail < 1 or STRIDE % detail:
            raise UsageError(f"detail {detail}, expected 1, 2, 4 or 8 logits a position and axis")
        self.classes = classes
        self.logit_stride = STRIDE // detail
        self.stride_in = stride_in
        self.entry = entry
        self.trunk = CompactTrunk(classes, width, dilations, detail)

    def forward(self, x: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in [0, 1] or a dequantised latent (N, C, H/8, W/8) to logits (N, classes, H/s, W/s).

        s is `logit_stride`.
        """
        logits: Tensor = self.trunk(self.entry(x))
        return logits


DILATIONS = (1, 2, 4, 8, 4)


def compact_codec(
    channels: int = 32, width: int = 128, encoder_units: int = 2, decoder_units: int = 3, bits: int = 8
) -> CompactCodec:
    """The registry's "compact-codec"."""
    return CompactCodec(channels, width, encoder_units, decoder_units, bits)


def compact_rgb_segmenter(
    classes: int = 11, width: int = 128, dilations: Sequence[int] = DILATIONS, detail: int = 4
) -> CompactSegmenter:
    """The registry's "compact-rgb": three strided convolutions bring RGB to 1/8, then the shared trunk."""
    return CompactSegmenter(strided_entry(width // 4, width), 1, classes, width, dilations, detail)


def compact_latent_segmenter(
    classes: int = 11, channels: int = 32, width: int = 128, dilations: Sequence[int] = DILATIONS, detail: int = 4
) -> CompactSegmenter:
    """The registry's "compact-latent": two 3x3 convolutions from the latent's channels, then the shared trunk."""
    # The latent's channels differ in scale a hundredfold (DC against the highest frequency): normalise them first.
    # The entry costs a little less than that of "compact-rgb", so that the pair's costs differ by the decoding alone.
    entry = nn.Sequential(
        nn.BatchNorm2d(channels, affine=False),
        ConvBnRelu(channels, 3 * width // 4),
        ConvBnRelu(3 * width // 4, width),
    )
    return CompactSegmenter(entry, STRIDE, classes, width, dilations, detail)


def compact_unpacked_segmenter(
    classes: int = 11,
    channels: int = 32,
    width: int = 128,
    dilations: Sequence[int] = DILATIONS,
    detail: int = 4,
    stride_in: int = STRIDE,
    root: int = 0,
) -> CompactSegmenter:
    """The registry's "compact-unpacked": a latent's positions are unpacked linearly, then as "compact-rgb".

    stride_in: of the codec.  root: channels of the first strided convolution; 0: 7/8 of what "compact-rgb" has, which
    saves what the unpacking costs.
    """
    if root < 0 or stride_in < 1:
        raise UsageError(f"root {root} and stride_in {stride_in}, expected at least 0 and 1")
    entry = UnpackedEntry(channels, stride_in, width, root or 7 * width // 32)
    return CompactSegmenter(entry, stride_in, classes, width, dilations, detail)
