"""The loss of Torfason et al. (ICLR 2018): distortion, and the entropy of the symbols where it is above a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..bitstream.header import DEFAULT_CODER
from .device import autocast
from .evaluate import coded_latent, latent, sheets

# Steps between two measurements of the real rate, how many frames they take, and how much of the rate's error (its
# logarithm) moves the target entropy at once. Above H_t the loss has one slope wherever H_t is, so a codec may take its
# time: H_t stays near what the symbols have, else it would have far to come back.
EVERY = 50
MEASURED = 4
GAIN = 0.3
NEAR = 0.1


class EntropyDistortion:
    """MSE + beta max(H(q) - H_t, 0) + 0.05 sum c^2, with H_t steered so that real bytes meet a rate.

    MSE is in units of (1/255)^2, H(q) the entropy in bits a symbol of the batch's histogram, c the centres (their
    L2 term, with half of 0.1, is that of the same group's later code). The coder spends less than H(q), since it sees
    neighbours and channels; how much less is found by coding `frames`: before the first step, which sets H_t, and every
    `EVERY` steps. The controller's state lives in `state`, a run's `extra`.

    frames: a few whole frames, RGB uint8 (H, W, 3), whose coded size is measured.
    scale: what the loss is multiplied by; as it is by default, it comes to the order of 1, which clipping expects.
    """

    def __init__(
        self,
        codec: nn.Module,
        frames: Sequence[NDArray[np.uint8]],
        target_bpp: float,
        beta: float,
        state: dict[str, float],
        scale: float = 0.01,
    ) -> None:
        self.codec, self.frames, self.target, self.beta, self.state = codec, frames, target_bpp, beta, state
        self.scale = scale

    @staticmethod
    def start(codec: nn.Module, target_bpp: float, trained: dict[str, Any] | None = None) -> dict[str, float]:
        """The controller's state before the first step. trained: facts of the weights that training starts from."""
        target = (trained or {}).get("target_entropy", 0.0)
        return {"target_entropy": target, "smooth_entropy": 0.0, "measured_bpp": target_bpp}

    def __call__(self, x: Tensor, *, bf16: bool, steer: bool) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of a batch of RGB crops, float32 (N, 3, H, W) in [0, 1]. steer: measure and let H_t move."""
        if steer:
            self.steer()
        return self.loss(x, *self.encode(x, bf16=bf16), bf16=bf16)

    def encode(self, x: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
        """What the quantiser's `assign` makes of a batch: the received latent, and the shares of the centres."""
        with autocast(x, bf16):
            z = self.codec.compress(x)  # type: ignore[operator]
        assigned: tuple[Tensor, Tensor] = self.codec.quantiser.assign(z.float())  # type: ignore[operator, union-attr]
        return assigned

    def loss(self, x: Tensor, received: Tensor, shares: Tensor, *, bf16: bool) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of a batch that `encode` has encoded."""
        quantiser = self.codec.quantiser
        with autocast(x, bf16):
            decoded = self.codec.decompress(received)  # type: ignore[operator]
        mse = F.mse_loss(decoded.float(), x)
        entropy = quantiser.entropy(shares)  # type: ignore[operator, union-attr]
        smooth = self.state["smooth_entropy"] or entropy.item()
        self.state["smooth_entropy"] = 0.9 * smooth + 0.1 * entropy.item()
        excess = F.relu(entropy - self.state["target_entropy"])
        centres: Tensor = quantiser.centres  # type: ignore[assignment, union-attr]
        loss = mse * 255.0**2 + self.beta * excess + 0.05 * (centres**2).sum()
        figures = {
            "psnr": -10 * math.log10(max(mse.item(), 1e-10)),
            "entropy": entropy.item(),
            "target_entropy": self.state["target_entropy"],
            "measured_bpp": self.state["measured_bpp"],
        }
        return loss * self.scale, figures

    def steer(self) -> None:
        """Measure the rate in real bytes, and move H_t by what it misses."""
        self.codec.eval()
        measured, entropy = measure_rate(self.codec, self.frames)
        self.codec.train()
        most = math.log2(len(self.codec.quantiser.centres))  # type: ignore[arg-type, union-attr]
        before = self.state["target_entropy"] or entropy
        # The batches' entropy is what H_t works on; that of whole frames may be another.
        near = self.state["smooth_entropy"] or entropy
        moved = min(max(before, (1 - NEAR) * near), (1 + NEAR) * near) * (self.target / measured) ** GAIN
        self.state |= {"target_entropy": min(max(moved, 0.05), most), "measured_bpp": measured}


@torch.no_grad()
def measure_rate(codec: nn.Module, frames: Sequence[NDArray[np.uint8]]) -> tuple[float, float]:
    """Mean bits a pixel of frames RGB uint8 (H, W, 3), in real bytes, and H(q) over all of them, bits a symbol."""
    quantiser: Any = codec.quantiser
    counts, rates = torch.zeros_like(quantiser.centres), []
    for frame in frames:
        z = latent(codec, frame, quantiser.centres.device)
        counts += quantiser.assign(z)[1].sum((0, 1, 2, 3))
        height, width = frame.shape[:2]
        rates.append(8 * coded_latent(codec, z[0].cpu(), (height, width), DEFAULT_CODER)[2] / (height * width))
    return float(np.mean(rates)), float(quantiser.entropy(counts[None] / counts.sum()))


def measured_frames(frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The frames that a rate is measured on: some that are spread over the data, small ones laid together in sheets."""

    def spread(count: int) -> list[NDArray[np.uint8]]:
        return [frames[i] for i in sorted({len(frames) * k // count for k in range(count)})]

    few = spread(MEASURED)
    height, width = few[0].shape[:2]
    if any(frame.shape != few[0].shape for frame in few):
        return few
    chosen = spread(MEASURED * max(1, 512 // height) * max(1, 512 // width))
    same = [frame for frame in chosen if frame.shape == few[0].shape]
    return list(sheets(same))
