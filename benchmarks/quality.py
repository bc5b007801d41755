"""What an arm's labels are worth: scores against ground truth, and agreement with the RGB network's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
IGNORED = 255


class Scores:
    """Collects one arm's labels, frame by frame.

    Parameters
    ----------
    classes: names in label order. truth: ground truth `(H, W)` uint8 per frame, or None; values at or above the number
    of classes are not scored. reference: the RGB network's labels of the original frames, or None.
    """

    def __init__(
        self, classes: Sequence[str], truth: Sequence[Labels] | None, reference: Sequence[Labels] | None
    ) -> None:
        from ..training.metrics import ConfusionMatrix

        self.classes = list(classes)
        self._truth = truth
        self._reference = reference
        self._matrix = ConfusionMatrix(len(classes), ignore=IGNORED)
        self._agreement: list[float] = []

    def add(self, index: int, labels: Labels) -> None:
        """The labels `(H, W)` uint8 that the arm gave for frame `index`."""
        if self._truth is not None:
            truth = self._truth[index]
            self._matrix.update(np.where(truth < len(self.classes), truth, np.uint8(IGNORED)), labels)
        if self._reference is not None:
            self._agreement.append(float(np.mean(labels == self._reference[index])))

    def agreement(self) -> float | None:
        """Mean over frames of the fraction of pixels labelled as the reference labels them."""
        return sum(self._agreement) / len(self._agreement) if self._agreement else None

    def quality(self) -> dict[str, Any] | None:
        """Scores against the truth (`ConfusionMatrix.to_dict`, pooled over all frames), or None without one."""
        return None if self._truth is None else self._matrix.to_dict(self.classes)
