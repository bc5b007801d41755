"""What a segmenter of latents takes over from a trained RGB segmenter, so that it does not begin from nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ArtifactError
from ..models.compact import UnpackedEntry
from . import checkpoint
from .augment import to_float
from .received import pad_to, requantise

# Frames that the linear unpacking is fitted to; some thousand positions each, for at most a few hundred unknowns.
_FRAMES = 64


def lend_trunk(giver: nn.Module, student: nn.Module, who: str, network: str) -> None:
    """Copy the trunk of an RGB segmenter into a student's.

    who: the giver, for people. Raises ArtifactError where the two do not have the same trunk.
    """
    trunks = [getattr(module, "trunk", None) for module in (giver, student)]
    states = [{} if trunk is None else trunk.state_dict() for trunk in trunks]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ArtifactError(
            f"{who} and '{network}' do not share a trunk",
            hint="a compact-latent or compact-unpacked starts from a compact-rgb of the same width and classes",
        )
    checkpoint.fill(trunks[1], states[0], who, network)  # type: ignore[arg-type]


def lend_entry(giver: nn.Module, student: nn.Module, codec: nn.Module, frames: Sequence[NDArray[np.uint8]]) -> None:
    """Let a student whose entry unpacks latents start as the giver's entry on frames that are unpacked linearly.

    frames: RGB uint8 (H, W, 3), to which the unpacking is fitted. A student with another entry is left as it is. Raises
    ArtifactError where the student's entry is the wider one.
    """
    if not isinstance(student.entry, UnpackedEntry):
        return
    has, wanted = giver.entry[1][0].out_channels, student.entry.strided[1][0].out_channels  # type: ignore[index, union-attr]
    if wanted > has:
        raise ArtifactError(
            f"an entry of {wanted} first channels cannot start as one of {has}",
            hint=f"give --option root={has} or less",
        )
    chosen = [frames[len(frames) * k // _FRAMES] for k in range(_FRAMES)] if len(frames) > _FRAMES else list(frames)
    weight, bias = fit_unpacking(codec, chosen)
    with torch.no_grad():
        student.entry.unpack.weight.copy_(weight[:, :, None, None])
        student.entry.unpack.bias.copy_(bias)  # type: ignore[union-attr]
    student.entry.take_over(giver.entry)  # type: ignore[arg-type]


@torch.no_grad()
def fit_unpacking(codec: nn.Module, frames: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """The linear map from a position of a codec's received latent to its pixels, by least squares over frames.

    frames: RGB uint8 (H, W, 3). Returns weight float32 (3 s s, C), in the order of `pixel_shuffle`, for pixels in
    [0, 1], and bias float32 (3 s s,); s is the codec's stride.
    """
    stride = int(codec.stride)  # type: ignore[arg-type]
    channels = int(codec.channels)  # type: ignore[arg-type]
    square = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
    cross = torch.zeros(channels + 1, 3 * stride * stride, dtype=torch.float64)
    for frame in frames:
        x = pad_to(to_float(frame)[None], stride)
        z = requantise(codec.compress(x).float(), codec.bits, codec.scaling)  # type: ignore[operator, arg-type]
        z = z[0].double().flatten(1).T
        z = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
        square += z.T @ z
        cross += z.T @ nn.functional.pixel_unshuffle(x, stride)[0].double().flatten(1).T
    # A channel that is always the same would make the system singular.
    square += 1e-6 * square.diagonal().mean() * torch.eye(channels + 1, dtype=torch.float64)
    solution = torch.linalg.solve(square, cross).float()
    return solution[:-1].T.contiguous(), solution[-1].contiguous()
