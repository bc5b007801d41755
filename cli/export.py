"""Turn trained weights into ONNX files and a verified bundle.

    latentseg export --codec runs/codec --segmenter runs/latent --rgb-segmenter runs/rgb --layout camvid \\
        --frames CAMVID/val --name my-bundle -o my-bundle
    latentseg export --codec runs/codec --classifier runs/latent --rgb-classifier runs/rgb -o my-classifier

A bundle has segmenters or classifiers; of a codec alone, it can encode and decode. Every model is compared with torch
on ONNX Runtime at the smallest, the usual and a large shape before anything is written: symbols, labels,
probabilities, NaN.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError, UsageError, missing_extra
from . import _common

HELP = "turn checkpoints into ONNX files and a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codec", required=True, type=Path, metavar="RUN", help="a codec's run, or its model.safetensors"
    )
    parser.add_argument("--segmenter", type=Path, metavar="RUN", help="the latent segmenter trained on this codec")
    parser.add_argument("--rgb-segmenter", type=Path, metavar="RUN", help="the RGB segmenter to compare with")
    parser.add_argument("--classifier", type=Path, metavar="RUN", help="the latent classifier trained on this codec")
    parser.add_argument("--rgb-classifier", type=Path, metavar="RUN", help="the RGB classifier to compare with")
    parser.add_argument(
        "--layout", help="whose classes the segmenters have: camvid, cityscapes or voc (default: camvid)"
    )
    parser.add_argument("--frames", metavar="PATH", help="real frames to verify on (default: noise)")
    parser.add_argument(
        "--size", type=_common.positive, nargs=2, default=(360, 480), metavar=("H", "W"),
        help="the usual frame size, for verification (default: 360 480)",
    )  # fmt: skip
    parser.add_argument(
        "--largest", type=_common.positive, nargs=2, default=(1080, 1920), metavar=("H", "W"),
        help="the largest frame size to verify (default: 1080 1920)",
    )  # fmt: skip
    parser.add_argument("--scores", type=Path, metavar="FILE", help="JSON file of scores to put into the manifest")
    parser.add_argument(
        "--coder", choices=_common.LONE_CODERS, default=_common.LONE_CODERS[0],
        help="entropy coder of the bundle's streams (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=_common.positive, nargs=2, metavar=("ROWS", "COLS"),
        help="a lane of the context coder (default: 48 64 for a codec that was trained for rate, else 14 32)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=float, nargs=2, metavar=("LO", "HI"),
        help="quantisation steps that the bundle offers (default: those that all of its networks were trained for); "
        "measure before you offer more",
    )  # fmt: skip
    parser.add_argument(
        "--half-weights",
        action="store_true",
        help="store the weights as float16, but for the codec's: half the size, computed in float32 all the same",
    )
    parser.add_argument(
        "--programs",
        action="store_true",
        help="add the networks as exported PyTorch programs (.pt2), which --backend torch runs",
    )
    parser.add_argument("--name", help="the bundle's name (default: the folder's)")
    parser.add_argument("--description", default="", help="one line for people")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="the bundle's folder")
    _common.add_overwrite(parser)
    _common.add_json(parser, "the verification")


def run(args: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "export") from None
    import numpy as np

    from ..export.assemble import KINDS, export_bundle
    from ..training.checkpoint import load_weights
    from ..training.data import class_set, read_frames

    classifying, labelling = (args.classifier, args.rgb_classifier), (args.segmenter, args.rgb_segmenter)
    if args.layout is not None and any(classifying) and not any(labelling):
        raise UsageError(f"--layout {args.layout} with classifiers: these name their own classes", hint="drop --layout")
    _common.check_output(str(args.out), args.overwrite, folder=True)
    codec = load_weights(args.codec, kinds=("codec",))
    runs = {role: getattr(args, role) for role in KINDS}
    parts = {role: load_weights(run, kinds=(KINDS[role],)) for role, run in runs.items() if run is not None}
    scores = {}
    if args.scores:
        try:
            scores = json.loads(args.scores.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read scores from {args.scores}: {error}") from None
        if not isinstance(scores, dict):
            raise InputError(f"{args.scores} holds a JSON {type(scores).__name__}, expected an object of scores")
    frames = read_frames(Path(args.frames), limit=4) if args.frames else []
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"the first images under {args.frames} differ in size", hint="give frames of one size")
    classes = class_set(args.layout or "camvid") if any(labelling) else None
    bundle = export_bundle(
        args.out,
        args.name or args.out.resolve().name,
        codec,
        **parts,
        classes=classes,
        frames=np.stack(frames) if frames else None,
        size=tuple(args.size),
        largest=tuple(args.largest),
        scores=scores,
        description=args.description,
        coder=args.coder,
        tile=_common.tile(args) if args.tile else None,
        half_weights=args.half_weights,
        programs=args.programs,
        steps=None if args.steps is None else (args.steps[0], args.steps[1]),
        overwrite=args.overwrite,
    )
    if args.json:
        _common.emit({"bundle": str(bundle.path), "verification": bundle.manifest["verification"]})
    _common.note(args, f"wrote {bundle.path}: {', '.join(bundle.roles)}, verified")
    return 0
