"""What a receiver gets of an image: the image itself, what a codec's symbols give, or what a JPEG gives.

Every way that loses something has a level: of a codec the quantisation step, in units of the step that it was made
with, of JPEG the quality. A network that is to serve many rates learns from many levels (`draw_levels`).
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.codec import MAX_STEP, ONE_STEP
from ..errors import UsageError, missing_extra


def check_levels(levels: tuple[float, float], what: str) -> None:
    """Raise UsageError unless 0 < lowest <= highest, both finite."""
    if not 0 < levels[0] <= levels[1] < math.inf:
        raise UsageError(f"{what} wants 0 < LO <= HI, found {levels[0]} {levels[1]}")


def check_steps(codec: nn.Module, levels: tuple[float, float]) -> None:
    """Raise UsageError for quantisation steps that a codec cannot take: one without a fixed range has its own."""
    check_levels(levels, "the range of quantisation steps")
    mode = codec.scaling[0]  # type: ignore[index]
    if levels != ONE_STEP and mode != "fixed":
        raise UsageError(
            f"quantisation steps from {levels[0]} to {levels[1]} for a codec of scaling '{mode}'",
            hint="only codecs of scaling 'fixed' (compact-codec) have a step to choose",
        )
    if not 1 / MAX_STEP <= levels[0] <= levels[1] <= MAX_STEP:
        raise UsageError(
            f"quantisation steps from {levels[0]:g} to {levels[1]:g}, expected {1 / MAX_STEP:g} to {MAX_STEP:g}",
            hint="1 is the codec's own step",
        )


def check_step_range(codec: nn.Module, levels: tuple[float, float]) -> None:
    """Raise UsageError for steps that no network should learn from: as `check_steps`, and a range without 1."""
    check_steps(codec, levels)
    if not levels[0] <= 1 <= levels[1]:
        raise UsageError(
            f"quantisation steps from {levels[0]:g} to {levels[1]:g}, expected a range with 1 in it",
            hint="1 is the codec's own step, which every bundle must know",
        )


def draw_levels(levels: tuple[float, float], count: int, rng: np.random.Generator) -> Tensor:
    """The levels of a batch, float32 (count, 1, 1, 1): half of them the range's geometric mean, the rest drawn.

    The rest are uniform in the logarithm. Of a range of one level nothing is drawn.
    """
    lowest, highest = levels
    if lowest == highest:
        return torch.full((count, 1, 1, 1), lowest)
    drawn = np.full(count, math.sqrt(lowest * highest))
    spread = count // 2
    drawn[count - spread :] = np.exp(rng.uniform(math.log(lowest), math.log(highest), spread))
    return torch.tensor(drawn, dtype=torch.float32)[:, None, None, None]


def requantise(z: Tensor, bits: int, scaling: tuple[Any, ...], step: Tensor | float = 1.0) -> Tensor:
    """int2float(float2int(z)) in torch, float32 (N, C, h, w).

    scaling: what a codec's attribute of that name holds: mode, lo, hi, and with the mode "codebook" the centres.
    step: of a fixed range, what lo and hi are multiplied by: a number, or one a sample (N, 1, 1, 1).
    """
    mode, lo_fixed, hi_fixed, *codebook = scaling
    if mode == "codebook":
        centres = torch.tensor(codebook[0], dtype=torch.float32, device=z.device)
        midpoints = 0.5 * (centres[:-1] + centres[1:])
        return centres[torch.searchsorted(midpoints, z.contiguous())]
    if mode == "fixed":
        lo, hi = torch.as_tensor(lo_fixed * step), torch.as_tensor(hi_fixed * step)
    else:
        axes = (1, 2, 3) if mode == "tensor" else (2, 3)
        lo, hi = z.amin(axes, keepdim=True), z.amax(axes, keepdim=True)
    levels = 2**bits - 1
    span = hi - lo
    q = ((z - lo) * torch.where(span > 0, levels / span, torch.zeros_like(span))).round().clamp(0, levels)
    received: Tensor = q * (span / levels) + lo
    return received


class Encoder(nn.Module):
    """What a segmenter sees of an image: the image itself, or the dequantised latent of a frozen codec.

    The quantisation is the one of the stream (equations 2 and 4), so in float32 the segmenter sees exactly what
    decoding gives. Under bfloat16 autocast, as in training, the codec's own convolutions round too, and a symbol near a
    boundary may come out one level off.
    """

    def __init__(self, codec: nn.Module | None) -> None:
        super().__init__()
        self.codec = codec
        if codec is not None:
            codec.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1] to the segmenter's input. step: of the codec, one or (N, 1, 1, 1)."""
        if self.codec is None:
            return x
        z = self.codec.compress(x).float()  # type: ignore[operator]
        return requantise(z, self.codec.bits, self.codec.scaling, step)  # type: ignore[arg-type]


class RoundTrip(Encoder):
    """What an RGB network sees behind a codec: the image as it is decoded, rounded to 8 bits."""

    @torch.no_grad()
    def forward(self, x: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1] to the same. step: of the codec, one or (N, 1, 1, 1)."""
        assert self.codec is not None
        received = super().forward(pad_to(x, self.codec.stride), step)  # type: ignore[arg-type]
        decoded: Tensor = self.codec.decompress(received)  # type: ignore[operator]
        decoded = decoded.float()[..., : x.shape[2], : x.shape[3]].clamp(0, 1)
        return (decoded * 255.0 + 0.5).floor() / 255.0


class JpegRoundTrip(nn.Module):
    """What an RGB network sees behind JPEG: baseline, 4:2:0, libjpeg's tables scaled by the quality."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from PIL import Image
        except ImportError:
            raise missing_extra("pillow", "video") from None
        self._image = Image

    @torch.no_grad()
    def forward(self, x: Tensor, quality: Tensor | float) -> Tensor:
        """RGB float32 (N, 3, H, W) in [0, 1] to the same. quality: 1 to 100, rounded, one or (N, 1, 1, 1)."""
        frames = (x.clamp(0, 1) * 255.0 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        qualities = torch.as_tensor(quality, dtype=torch.float32).flatten().expand(len(x)).round().int().tolist()
        out = np.empty_like(frames)
        for index, (frame, q) in enumerate(zip(frames, qualities, strict=True)):
            data = io.BytesIO()
            self._image.fromarray(frame).save(data, "JPEG", quality=q, subsampling="4:2:0")
            out[index] = np.asarray(self._image.open(data))
        return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255.0)


def pad_to(x: Tensor, stride: int) -> Tensor:
    """(N, 3, H, W) padded at the bottom and right by edge replication to multiples of `stride`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % stride, 0, -height % stride), mode="replicate")
