"""What a measurement of classifiers needs beside that of segmenters: images with their classes, and top-1 and top-5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .clips import Clip
from .quality import Scores

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

Probabilities = NDArray[np.float32]
TOP = 5


@dataclass
class ImageClip(Clip):
    """A clip of classified images: `kinds` has the class of each, int64 (n,), `names` the names of the classes."""

    kinds: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()


def spread(total: int, wanted: int | None) -> list[int]:
    """At most `wanted` of `total` places, evenly spaced: data sets are often in the order of their classes."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return [place * total // wanted for place in range(wanted)]


def data_name(root: Path, split: str) -> str:
    """A short name of a split for rows, without the folders of this machine."""
    return f"{root.resolve().name}-{split}"


def load_images(root: Path, layout: str, split: str | None, size: int, frames: int) -> ImageClip:
    """The centres, size x size, of at most `frames` images of a split, evenly spaced through it.

    layout, split: of `training.image_sets`. Raises as `image_set`.
    """
    from ..training.image_sets import TESTED, CentreViews, image_set

    images = image_set(layout, root, split)
    views = CentreViews(images, size)
    places = spread(len(views), frames)
    split = split or TESTED[layout]
    clip = ImageClip(
        data_name(root, split), [views[place] for place in places], labels_name=split, kinds=images.labels[places],
        names=images.names,
    )  # fmt: skip
    if len(places) < len(views):
        clip.notes.append(f"{len(places)} of {len(views)} images were used, evenly spaced (--frames)")
    return clip


def trained_size(bundle: Bundle) -> int:
    """The side of the views that the bundle's classifiers were trained on, as the manifest notes it.

    Raises UsageError where it does not, or notes two, and for a bundle of other networks.
    """
    check_classifies(bundle)
    found = set()
    for role in ("classifier", "rgb_classifier"):
        noted: Any = bundle.manifest.get("training", {})
        for key in (role, "settings", "classifier", "size"):
            noted = noted.get(key) if isinstance(noted, dict) else None
        if isinstance(noted, int) and noted > 0:
            found.add(noted)
    if len(found) != 1:
        what = " and ".join(map(str, sorted(found))) if found else "no size"
        raise UsageError(f"bundle '{bundle.name}' notes {what} of its training's images", hint="give --size SIDE")
    return found.pop()


def check_classifies(bundle: Bundle) -> None:
    """Raise UsageError for a bundle without classifiers, where the data are classified images."""
    if not bundle.classifies:
        raise UsageError(
            f"bundle '{bundle.name}' has no classifier, only {', '.join(bundle.roles)}; the data are classified images",
            hint="give a bundle of classifiers, or labelled frames",
        )


def check_clip(clip: Clip, bundle: Bundle) -> None:
    """Raise UsageError where a clip's truth is not what the bundle's networks answer."""
    if isinstance(clip, ImageClip):
        from ..training.image_sets import check_names

        check_classifies(bundle)
        check_names(clip.names, [info.name for info in bundle.classes], f"bundle '{bundle.name}'")
    elif bundle.classifies and clip.labels is not None:
        raise UsageError(
            f"bundle '{bundle.name}' classifies whole frames, the labels of {clip.name} are of pixels",
            hint="leave them out, or score it on classified images: --layout imagefolder or idx",
        )


class ClassScores:
    """Collects one arm's probabilities, frame by frame; the counterpart of `quality.Scores`.

    Parameters
    ----------
    truth: the class of each frame, or None. reference: the RGB network's probabilities `(classes,)` of the original
    frames, or None.
    """

    def __init__(self, truth: Sequence[int] | NDArray[np.int64] | None, reference: Sequence[Probabilities] | None):
        self._truth, self._reference = truth, reference
        self._agreed = self._first = self._within = self._count = 0

    def add(self, index: int, probabilities: Probabilities) -> None:
        """What the arm gave for frame `index`, `(classes,)`; of equal probabilities the lower class comes first."""
        order = np.argsort(-probabilities, kind="stable")[:TOP]
        self._count += 1
        if self._truth is not None:
            self._first += int(order[0] == self._truth[index])
            self._within += int(self._truth[index] in order)
        if self._reference is not None:
            self._agreed += int(order[0] == int(self._reference[index].argmax()))

    def agreement(self) -> float | None:
        """The share of the frames whose likeliest class is the reference's."""
        return None if self._reference is None else self._agreed / self._count

    def quality(self) -> dict[str, Any] | None:
        """`top1`, `top5` (of all classes, where there are fewer) and `images`, or None without truth."""
        if self._truth is None:
            return None
        return {"top1": self._first / self._count, "top5": self._within / self._count, "images": self._count}


def new_scores(bundle: Bundle, clip: Clip, reference: Sequence[NDArray[Any]] | None) -> Scores | ClassScores:
    """What collects the answers of an arm with this bundle; `reference`: the RGB network's own, or None."""
    if bundle.classifies:
        return ClassScores(clip.kinds if isinstance(clip, ImageClip) else None, reference)
    return Scores([info.name for info in bundle.classes], clip.labels, reference)


def agreement(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The share of equal labels; of probabilities `(N, classes)`, of frames with the same likeliest class."""
    if found.ndim == 2:
        found, expected = found.argmax(1), expected.argmax(1)
    return float(np.mean(found == expected))
