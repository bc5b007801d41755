"""The accuracy gate: a rewritten model against fp32 on real frames. What misses a limit is not built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.backends import open_backend
from ...engine.bundle import Bundle
from ...engine.geometry import crop
from ...errors import InputError, VerificationError
from ...training.data import IGNORE
from ...training.metrics import ConfusionMatrix

_FINITE_FRAMES = 4  # whose logits are looked at; a broken model breaks on the first

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """agreement: least share of pixels with fp32's label.  miou_loss: most that the mIoU may fall, of 1."""

    agreement: float
    miou_loss: float


# Several times what the shipped networks lose (docs/precision.md), and less than a wrong calibration or a constant that
# fell out of range costs. The loss of mIoU leaves room for thin classes, which a few frames judge badly.
LIMITS = {"fp16": Limits(0.995, 0.005), "int8": Limits(0.97, 0.02)}


def gate(
    bundle: Bundle,
    role: str,
    precision: str,
    reference: Path,
    candidate: Path,
    inputs: Sequence[npt.NDArray[Any]],
    sizes: Sequence[tuple[int, ...]],
    labels: Sequence[Labels] | None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run both models on every input, and compare as `compare` does.

    reference, candidate: ONNX files.  inputs: of batch 1, as the fp32 model takes them.  sizes: (H, W) of each frame.
    labels: uint8 (H, W) of each frame, or None.  step: called once an input.
    """
    check_finite(candidate, inputs)
    before, after = [], []
    with open_backend(reference) as fp32, open_backend(candidate) as made:
        for x, size in zip(inputs, sizes, strict=True):
            before.append(crop(fp32.run(x), (size[0], size[1]))[0])
            after.append(crop(made.run(x.astype(made.input.dtype)), (size[0], size[1]))[0])
            step()
    names = [c.name for c in bundle.classes]
    return compare(before, after, labels, names, LIMITS[precision], f"the {role} in {precision}")


def compare(
    before: Sequence[Labels],
    after: Sequence[Labels],
    labels: Sequence[Labels] | None,
    classes: Sequence[str],
    limits: Limits,
    what: str,
) -> dict[str, Any]:
    """Label agreement of two models, and the mIoU of both where there are labels; all pooled over the frames.

    before, after: what fp32 and the rewritten model said, uint8 (H, W) a frame.  labels: the truth, 255 for none.
    what: named in the errors.

    Raises
    ------
    VerificationError: a limit is missed, `after` has one class everywhere while `before` has not, or neither tells
    anything because fp32 itself has one class everywhere. InputError: labels that fit neither frames nor classes.
    """
    if len(set(np.concatenate([np.unique(x) for x in before]))) < 2:
        raise VerificationError(
            f"fp32 finds one class alone in all {len(before)} frame(s), so that nothing can be said about {what}",
            hint="give frames as the camera sees them; or the fp32 model is broken: latentseg verify BUNDLE",
        )
    found = set(np.concatenate([np.unique(x) for x in after]))
    if len(found) < 2:
        raise VerificationError(f"{what} finds class {found.pop()} alone in all {len(after)} frame(s), fp32 more")
    pixels = sum(x.size for x in before)
    agreement = sum(int(np.count_nonzero(x == y)) for x, y in zip(before, after, strict=True)) / pixels
    report: dict[str, Any] = {
        "frames": len(before),
        "label_agreement": agreement,
        "least_agreement": limits.agreement,
    }
    if labels is not None:
        report |= _scores(before, after, labels, classes) | {"most_miou_loss": limits.miou_loss}
    if agreement < limits.agreement:
        raise VerificationError(
            f"{what}: {agreement:.2%} of the labels agree with fp32 on {len(before)} frame(s), "
            f"expected at least {limits.agreement:.2%}",
            hint="calibrate on more frames, and on such as the model was trained for",
        )
    if "miou_loss" in report and report["miou_loss"] > limits.miou_loss:
        raise VerificationError(
            f"{what}: mIoU {report['miou']:.4f} against {report['miou_fp32']:.4f} of fp32, "
            f"expected at most {limits.miou_loss:g} less",
            hint="calibrate on more frames, and on such as the model was trained for",
        )
    return report


def _scores(
    before: Sequence[Labels], after: Sequence[Labels], labels: Sequence[Labels], classes: Sequence[str]
) -> dict[str, Any]:
    matrices = [ConfusionMatrix(len(classes), ignore=IGNORE) for _ in range(2)]
    for matrix, predictions in zip(matrices, (before, after), strict=True):
        for truth, prediction in zip(labels, predictions, strict=True):
            matrix.update(truth, prediction)
    whole, made = (matrix.to_dict(classes) for matrix in matrices)
    if whole["miou"] is None:
        raise InputError("no pixel of any label has a class", hint="check the labels, and --layout")
    loss = {
        name: None if None in (whole["iou"][name], made["iou"][name]) else whole["iou"][name] - made["iou"][name]
        for name in classes
    }
    return {
        "miou_fp32": whole["miou"],
        "miou": made["miou"],
        "miou_loss": whole["miou"] - made["miou"],
        "iou_loss": loss,
    }


def check_finite(model: Path, inputs: Sequence[npt.NDArray[Any]]) -> None:
    """Look at what a label model arg-maximises, on the first inputs: labels cannot be NaN. Raises VerificationError."""
    import onnx
    import onnxruntime
    from onnx import TensorProto

    proto = onnx.load(model)
    logits = [name for node in proto.graph.node if node.op_type == "ArgMax" for name in node.input[:1]]
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    for name in logits:
        if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16):
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source, *_ = session.get_inputs()
    dtype = np.float16 if source.type == "tensor(float16)" else None
    for x in inputs[:_FINITE_FRAMES]:
        for logit in session.run(None, {source.name: x if dtype is None else x.astype(dtype)})[1:]:
            broken = int(np.count_nonzero(~np.isfinite(logit)))
            if broken:
                raise VerificationError(f"{model.name}: {broken} of {logit.size} logits are NaN or infinite")
