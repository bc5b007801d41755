"""Scores of a classifier: top-1 and top-5 accuracy, and the rate where a codec stands before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..bitstream.header import DEFAULT_CODER
from . import metrics
from .augment import to_float
from .evaluate import coded_bpp, coded_latent, sheets, to_frame
from .image_sets import CentreViews, ImageSet
from .received import pad_to, requantise

BATCH = 32


@torch.no_grad()
def evaluate_classifier(
    classifier: nn.Module,
    images: ImageSet,
    size: int,
    *,
    codec: nn.Module | None = None,
    decoded: bool = False,
    coder: str = DEFAULT_CODER,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy of a classifier over the centre views of a set, size x size.

    codec: the one whose latents the classifier takes, or with `decoded` whose decoded 8-bit images.

    Returns the number of images, top1, top5 (of all classes where there are fewer), and with a codec two rates in real
    bytes: `bpp`, each image being a frame of its own with its framing, and `sheet_bpp`, many images laid together in
    one frame, as training measures small ones.
    """
    classifier.eval()
    views = CentreViews(images, size)
    top = min(5, len(images.names))
    first = within = 0
    rates: list[float] = []
    for start in tqdm(range(0, len(views), BATCH), unit="batch", disable=not progress):
        x = torch.stack([to_float(view) for view in views[start : start + BATCH]])
        target = torch.from_numpy(images.labels[start : start + BATCH])
        if codec is not None:
            z = codec.eval().compress(pad_to(x, codec.stride)).float()  # type: ignore[operator, arg-type]
            rates += [metrics.bpp(coded_latent(codec, one, (size, size), coder)[2], size * size) for one in z]
            x = requantise(z, codec.bits, codec.scaling)  # type: ignore[arg-type]
            x = torch.cat(list(_decoded(codec, x, size))) if decoded else x
        found = classifier(x).topk(top, 1).indices
        first += int((found[:, 0] == target).sum())
        within += int((found == target[:, None]).sum())
    scores = {"images": len(views), "top1": first / len(views), "top5": within / len(views)}
    if codec is None:
        return scores
    return {
        **scores, "coder": coder, "bpp": float(np.mean(rates)),
        "sheet_bpp": coded_bpp(codec, list(sheets(views)), coder),
    }  # fmt: skip


def _decoded(codec: nn.Module, received: Tensor, size: int) -> Iterator[Tensor]:
    for rgb in codec.decompress(received):  # type: ignore[operator]
        yield to_float(to_frame(rgb[None], size, size))[None]
