"""A segmenter in another precision: its ONNX file rewritten to fp16 or int8, and judged on real frames against fp32.

TensorRT's networks are strongly typed, so precision is written into the ONNX file. A codec is never rewritten: its
symbols must be the ones it was trained with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.bundle import Bundle
from ...engine.manifest import LABELLING_ROLES
from ...errors import UsageError, missing_extra

__all__ = ["CALIBRATION", "PRECISIONS", "Rewritten", "most_frames", "rewrite"]

PRECISIONS = ("fp16", "int8")
CALIBRATION = 64  # frames; 16 gave the same agreement on CamVid
MAX_GATE = 100  # frames that judge; more of them take time and say the same

Images = Sequence[npt.NDArray[np.uint8]]
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Rewritten:
    """A rewritten model: its ONNX file, and plain JSON facts of how it was made and what it loses."""

    path: Path
    report: dict[str, Any]


def most_frames(calibration: int = CALIBRATION) -> int:
    """How many frames `rewrite` can make use of."""
    return calibration + MAX_GATE


def rewrite(
    bundle: Bundle,
    role: str,
    precision: str,
    folder: Path,
    frames: Images,
    labels: Images | None = None,
    calibration: int = CALIBRATION,
    on_progress: OnProgress | None = None,
) -> Rewritten:
    """Write `folder/ROLE-PRECISION.onnx`, and hold it to the limits of `gate.LIMITS`.

    role: "segmenter" or "rgb_segmenter".  precision: "fp16" or "int8".
    frames: real RGB frames uint8 (H, W, 3), for int8 all of one size.  labels: their classes uint8 (H, W), 255 where
    there is none.
    calibration: how many frames int8 is calibrated on, at most half of them; the others judge it. fp16 wants none.
    on_progress: called with (frames done, frames in all).

    Raises
    ------
    UsageError: no such role or precision, or too few frames. InputError: frames that differ in size, labels that fit
    neither the frames nor the classes. VerificationError: the model is worse than the limits, or cannot be told.
    ArtifactError: the bundle lacks the role. BackendMissingError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from None
    from . import gate, graph, half, int8
    from .inputs import model_inputs

    if role not in LABELLING_ROLES or precision not in PRECISIONS:
        raise UsageError(
            f"the {role} in {precision}: only segmenters are rewritten, as {' or '.join(PRECISIONS)}",
            hint="codecs (whose symbols must be the ones they were trained with) and classifiers run in fp32",
        )
    source = bundle.model_path(role)
    fitted, judged = split(len(frames), calibration if precision == "int8" else 0)
    if labels is not None and len(labels) != len(frames):
        raise UsageError(f"{len(frames)} frames and {len(labels)} labels, expected as many")
    step = _Steps(on_progress, 2 * len(fitted) + 2 * len(judged))
    model = graph.load(source)
    path = folder / f"{role}-{precision}.onnx"
    facts: dict[str, Any] = {
        "precision": precision,
        "made_from": hashlib.sha256(source.read_bytes()).hexdigest(),
        "onnxruntime": onnxruntime.__version__,
    }
    inputs = model_inputs(bundle, role, [frames[i] for i in judged], step)
    gate.check_finite(source, inputs)
    if precision == "fp16":
        made, kept = half.to_half(model), half.kept_float(model)
        onnx.save(made, path)
        candidate = folder / f"{role}-{precision}-rounded.onnx"
        onnx.save(half.rounded_twin(made), candidate)
        facts |= half.check_range(source, model, inputs, set(kept))
        facts["ran_as"] = half.RAN_AS
    else:
        fit = model_inputs(bundle, role, [frames[i] for i in fitted], step)
        kept = int8.kept_float(model)
        used = int8.to_int8(model, path, fit, set(kept), step)
        candidate = path
        facts["calibration"] = {"frames": used, "method": int8.METHOD}
        facts["ran_as"] = int8.RAN_AS
    facts["float32"] = kept
    facts["gate"] = gate.gate(
        bundle, role, precision, source, candidate, inputs,
        [frames[i].shape[:2] for i in judged], None if labels is None else [labels[i] for i in judged], step,
    )  # fmt: skip
    return Rewritten(path, facts)


def split(count: int, calibration: int) -> tuple[list[int], list[int]]:
    """Indices of the frames to calibrate on, and of those to judge on: disjoint, both spread over all `count`.

    Raises UsageError where there are too few: one to judge on, and as many again for a calibration.
    """
    least = 2 if calibration else 1
    if count < least:
        raise UsageError(
            f"{count} real frame(s), expected at least {least}", hint="give a folder of frames as the camera sees them"
        )
    fitted = _spread(count, min(calibration, count // 2))
    others = sorted(set(range(count)) - set(fitted))
    return fitted, [others[i] for i in _spread(len(others), min(MAX_GATE, len(others)))]


def _spread(count: int, wanted: int) -> list[int]:
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


class _Steps:
    """Counts what is done; called once a frame."""

    def __init__(self, report: OnProgress | None, total: int) -> None:
        self.report, self.total, self.done = report, total, 0

    def __call__(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)
