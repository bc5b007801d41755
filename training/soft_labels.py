"""What a trained segmenter thinks of whole training images, worked out once, for students to learn from.

A segmenter of RGB is better averaged over an image's mirror images and enlargements than on the image alone, but so
many passes in every step would cost more than the training. So the averages are made beforehand, kept in a file, and
cut out beside the augmented views: a student learns from the better segmenter, in less time than with the plain one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import ArtifactError, OutputError, UsageError
from . import checkpoint
from .augment import Placement, to_float
from .data import IGNORE

FILE = "soft_labels.safetensors"
STRIDE = 2  # of the maps: the compact segmenters' own logits are as fine
_MULTIPLE = 8  # sides that every segmenter takes without padding
_MOST = 4.0  # the largest enlargement


class SoftLabels:
    """Class probabilities of a list of images.

    maps: one an image, uint8 (classes, H / 2, W / 2), probability 1 is 255. content_id: names teacher, scales, images.
    """

    def __init__(self, maps: Sequence[Tensor], content_id: str) -> None:
        self.maps, self.content_id = maps, content_id

    def view(self, index: int, placement: Placement, size: tuple[int, int]) -> Tensor:
        """An augmented view's probabilities, float32 (classes, h / 2, w / 2) for a canvas (h, w).

        What lies outside the image repeats its edge; labels say where that is.
        """
        top, left, window_h, window_w = placement.window
        y, x, out_h, out_w = placement.place
        height, width = placement.source
        rows = (torch.arange(size[0] // STRIDE) + 0.5) * STRIDE
        columns = (torch.arange(size[1] // STRIDE) + 0.5) * STRIDE
        if placement.flipped:
            columns = size[1] - columns
        rows = (top + (rows - y) * window_h / out_h) * 2 / height - 1
        columns = (left + (columns - x) * window_w / out_w) * 2 / width - 1
        grid = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), 2)[None]
        found = self.maps[index][None].float()
        view = F.grid_sample(found, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        return view / view.sum(0, keepdim=True).clamp_min(1.0)


def divergence(wanted: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """KL(wanted || student), nats, mean over the logits that lie under labelled pixels.

    wanted: probabilities, logits: of the student, (N, classes, h, w) and of any size; target: int64 (N, H, W).
    weight: of the classes, (classes,); the mean is weighted then, as that of a cross-entropy with class weights is.
    """
    size = logits.shape[2:]
    if wanted.shape[2:] != size:
        wanted = F.interpolate(wanted, size=size, mode="bilinear", align_corners=False)
    counted = (F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0] != IGNORE).float()
    found = F.kl_div(F.log_softmax(logits.float(), 1), wanted, reduction="none")
    total = counted
    if weight is not None:
        found = found * weight[:, None, None]
        total = counted * (wanted * weight[:, None, None]).sum(1)
    return (found.sum(1) * counted).sum() / total.sum().clamp_min(1e-6)


@torch.no_grad()
def probabilities(teacher: torch.nn.Module, image: NDArray[np.uint8], scales: Sequence[float]) -> Tensor:
    """A segmenter's class probabilities, averaged over an image and its mirror image at several scales.

    image: RGB uint8 (H, W, 3). Returns float32 (classes, H / 2, W / 2), rounded up.
    """
    x = to_float(image)[None]
    size = [math.ceil(side / STRIDE) for side in image.shape[:2]]
    found = []
    for scale in scales:
        sides = [max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in image.shape[:2]]
        scaled = x
        if tuple(sides) != image.shape[:2]:
            scaled = F.interpolate(x, size=sides, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        for mirrored in (False, True):
            out = teacher(scaled.flip(3) if mirrored else scaled).float().softmax(1)
            out = F.interpolate(out.flip(3) if mirrored else out, size=size, mode="bilinear", antialias=True)
            found.append(out[0])
    return torch.stack(found).mean(0)


def make_soft_labels(
    teacher: Path,
    images: Sequence[NDArray[np.uint8]],
    folder: Path,
    scales: Sequence[float],
    *,
    threads: int = 0,
    progress: bool = True,
) -> Path:
    """Write the soft labels of images, RGB uint8 (H, W, 3), and return their file's path.

    teacher: a run of an RGB segmenter. scales: of the images it looks at, each also mirrored.
    Raises UsageError for scales that are not in (0, 4], or a folder that has soft labels already.
    """
    if not scales or not all(0 < scale <= _MOST for scale in scales):
        raise UsageError(
            f"scales {list(scales)}, expected one or more above 0 and up to {_MOST:g}", hint="give 1 1.5 2"
        )
    path = folder / FILE
    if path.exists():
        raise UsageError(f"{folder} already holds soft labels", hint="choose another --out")
    weights = checkpoint.load_weights(teacher, kinds=("rgb_segmenter",))
    module = weights.build()
    if threads:
        torch.set_num_threads(threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    maps = {}
    for index, image in enumerate(tqdm(images, disable=not progress, unit="image", mininterval=2.0)):
        maps[str(index)] = (probabilities(module, image, scales) * 255.0).round().to(torch.uint8)
    facts = {"teacher": weights.content_id, "scales": list(scales), "images": _digest(images)}
    checkpoint.save(path, maps, {"soft_labels": facts, "classes": int(module.classes)})  # type: ignore[arg-type]
    return path


def load_soft_labels(path: Path, images: Sequence[NDArray[np.uint8]], classes: int) -> SoftLabels:
    """Read soft labels from a file or its folder. Raises ArtifactError unless they are of these images and classes."""
    path = path / FILE if path.is_dir() else path
    tensors, metadata = checkpoint.load(path)
    if "soft_labels" not in metadata:
        raise ArtifactError(f"{path} holds no soft labels", hint="make some: latentseg train soft-labels --help")
    if metadata["classes"] != classes:
        raise ArtifactError(f"the soft labels in {path} know {metadata['classes']} classes, expected {classes}")
    facts = metadata["soft_labels"]
    if facts["images"] != _digest(images):
        raise ArtifactError(
            f"the soft labels in {path} are of {len(tensors)} other images than the {len(images)} to learn from",
            hint="make them of the same --data, --layout and --split",
        )
    content_id = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return SoftLabels([tensors[str(index)] for index in range(len(images))], content_id)


def _digest(images: Sequence[NDArray[np.uint8]]) -> str:
    """SHA-256 (hex) over images, their sizes and their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
