"""`latentseg build --target onnxruntime`: int8 files of a bundle's segmenters, put into the bundle."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import _common
from ._frames import real_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..engine.bundle import Bundle

    Images = list[npt.NDArray[np.uint8]]


def build(args: argparse.Namespace) -> int:
    """Rewrite every segmenter, and add what passes its gate to the bundle; returns the exit code."""
    from ..engine import load_bundle
    from ..engine.bundle import add_variant
    from ..export.precision import CALIBRATION, most_frames, rewrite

    if args.precision != "int8":
        asked = f"--precision {args.precision}" if args.precision else "no --precision"
        raise UsageError(
            f"--target onnxruntime makes int8, found {asked}: the bundle's own files are its fp32, and fp16 gains "
            "nothing on a CPU, where it is computed in float32",
            hint="--precision int8; fp16 is for --target tensorrt or tensorrt-rtx",
        )
    if args.frames is None and args.data is None:
        raise UsageError(
            "int8 without frames: it is calibrated and judged on real ones",
            hint="--frames FOLDER, or with labels --data DIR --layout NAME --split NAME",
        )
    bundle = load_bundle(args.bundle)
    roles = _roles(args, bundle)
    calibration = args.calibration or CALIBRATION
    images, labels = real_frames(args, most_frames(calibration))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for role in roles:
            _common.note(args, f"calibrating and judging the {role} in int8")
            with _common.progress(args) as update:
                made = rewrite(bundle, role, "int8", Path(folder), images, labels, calibration, update)
            bundle = add_variant(bundle, role, "int8", made.path, made.report)
            rows[role] = bundle.manifest["variants"][role]["int8"]
    if args.json:
        head = {"schema": 1, "type": "build", "target": args.target, "bundle": bundle.name, "path": str(bundle.path)}
        _common.emit({**head, "variants": {role: {"int8": row} for role, row in rows.items()}})
    else:
        print(_common.table((row["path"], _text(row)) for row in rows.values()))
    _common.note(args, f"added {len(rows)} int8 model(s) to {bundle.path}")
    return 0


def _roles(args: argparse.Namespace, bundle: Bundle) -> list[str]:
    """`--role`, or every segmenter that the bundle has. Raises UsageError for a codec's, and for one that is there."""
    from ..engine.manifest import LABELLING_ROLES

    roles = list(dict.fromkeys(args.role or [role for role in bundle.roles if role in LABELLING_ROLES]))
    if not roles:
        raise UsageError(f"bundle '{bundle.name}' has no segmenter, only {', '.join(bundle.roles)}")
    for role in roles:
        if role not in LABELLING_ROLES:
            raise UsageError(
                f"the {role} in int8: a codec stays in fp32, its symbols must be the ones it was trained with",
                hint="--role segmenter rgb_segmenter",
            )
        bundle.model_path(role)
        if "int8" in bundle.variants(role) and not args.overwrite:
            raise UsageError(f"the bundle has an int8 {role}", hint="add --overwrite to make it again")
    return roles


def _text(row: dict[str, Any]) -> str:
    """For people: size and loss."""
    gate = row["report"]["gate"]
    loss = f", mIoU {gate['miou']:.4f} against {gate['miou_fp32']:.4f}" if "miou" in gate else ""
    return (
        f"{_common.human_bytes(row['bytes'])}, {gate['label_agreement']:.2%} of labels as in fp32{loss} "
        f"({gate['frames']} frames)"
    )
