"""The labelled data that `gains.py` scores a bundle on: pixels for segmenters, images for classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .classification import data_name, trained_size

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Data:
    """A labelled split. name: for rows. classes: names, in order. read: the sample of an index, a frame RGB uint8
    (H, W, 3) and its truth (labels uint8 (H, W), or a class), of `total`."""

    name: str
    task: str
    classes: tuple[str, ...]
    total: int
    read: Callable[[int], tuple[Frame, Any]]


class Frames(Sequence[Frame]):
    """The frames of the samples at `places`, read when asked for: not all of them are in memory."""

    def __init__(self, data: Data, places: Sequence[int]) -> None:
        self._read, self._places = data.read, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self._read(place)[0] for place in self._places[index]]
        return self._read(self._places[index])[0]


def load_data(bundle: Bundle, root: Path, layout: str, split: str | None, size: int | None) -> Data:
    """A labelled split whose classes are the bundle's, one for one.

    layout: of `training.data` for segmenters, of `training.image_sets` for classifiers. size: side of the classified
    images' centres; None: that of the classifiers' training.

    Raises UsageError where the classes differ or the layout is of the other kind; else as the layouts' readers.
    """
    from ..engine.sources.images import read_image
    from ..training import data, image_sets

    known = [*data.LAYOUTS, *image_sets.LAYOUTS]
    if layout not in known:
        raise UsageError(f"unknown layout '{layout}'", hint=f"use one of: {', '.join(known)}")
    task = "classification" if bundle.classifies else "segmentation"
    if (layout in image_sets.LAYOUTS) != bundle.classifies:
        fitting = image_sets.LAYOUTS if bundle.classifies else data.LAYOUTS
        raise UsageError(
            f"bundle '{bundle.name}' is for {task}, the layout '{layout}' is not",
            hint=f"layouts for {task}: {', '.join(fitting)}",
        )
    expected = [info.name for info in bundle.classes]
    if bundle.classifies:
        images = image_sets.image_set(layout, root, split)
        image_sets.check_names(images.names, expected, f"bundle '{bundle.name}'")
        size = size or trained_size(bundle)
        views = image_sets.CentreViews(images, size)
        name = f"{data_name(root, split or image_sets.TESTED[layout])}-{size}"
        return Data(name, task, images.names, len(views), lambda index: (views[index], images.labels[index]))
    if size is not None:
        raise UsageError("--size belongs to classified images", hint="leave it out")
    split = split or "val"
    classes, pairs = data.labelled(layout, root, split)
    image_sets.check_names(classes.names, expected, f"bundle '{bundle.name}'")
    return Data(
        data_name(root, split), task, classes.names, len(pairs),
        lambda index: (read_image(pairs[index].image), data.read_label(pairs[index].label, classes)),
    )  # fmt: skip
