"""Build what a machine runs of a bundle; only --target onnxruntime changes the bundle itself.

    latentseg build camvid-compact --target tensorrt-rtx --precision fp16 --frames FOLDER
    latentseg build my-bundle --target tensorrt --profile 1x360x480:8x360x480:32x1080x1920
    latentseg build my-bundle --target tensorrt --one-file --size 360x480 --batch 16
    latentseg build my-bundle --target kernels --arch 86 90
    latentseg build my-bundle --target onnxruntime --precision int8 --data CAMVID

kernels: the fused entropy decode + int2float, float2int and int2float for the streams of the
bundle's codec, as machine code. Compiling wants Triton and no GPU. A kernel that spills registers
is refused (exit 5).
tensorrt, tensorrt-rtx: a model as an engine, BUNDLE/engines/ROLE-PRECISION-TARGET.engine, with a
sidecar that says what it is. Full TensorRT builds on the GPU that is to run it; TensorRT-RTX for
any of its compute capabilities, without one. --one-file (full TensorRT only): one engine from
compressed bytes to labels, the entropy decode in it as a plugin, for frames of one size:
BUNDLE/engines/segmenter-PRECISION-tensorrt-HxW.one-file.engine. Your own program feeds it.
onnxruntime: an int8 ONNX file, put into the bundle as its own choice.

fp16 and int8 are made with real frames, and judged on them against fp32: agreement of labels, and
mIoU where there are labels. A loss above the limit fails the build (exit 5). The codec's own models
stay in fp32.

JSON keys: schema type bundle target path; kernels: triton bits tile images; engines: engines
(role precision version archs profile frames input output network model_sha256 onnx_sha256 source
engine_sha256 bytes verification created_by path seconds warnings; with --one-file: one_file in
place of profile, input and output); onnxruntime: variants
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UsageError
from . import _common

HELP = "build GPU kernels, TensorRT engines or an int8 model of a bundle"
TARGETS = ("kernels", "onnxruntime", "tensorrt", "tensorrt-rtx")
_ENGINES = ("tensorrt", "tensorrt-rtx")
_PRECISE = ("onnxruntime", *_ENGINES)
# Which targets an option goes with.
OPTIONS: dict[str, tuple[str, ...]] = {
    "precision": _PRECISE,
    "role": _PRECISE,
    "frames": _PRECISE,
    "data": _PRECISE,
    "layout": _PRECISE,
    "split": _PRECISE,
    "calibration": _PRECISE,
    "profile": _ENGINES,
    "workspace": _ENGINES,
    "one_file": ("tensorrt",),
    "size": ("tensorrt",),
    "batch": ("tensorrt",),
    "arch": ("kernels", "tensorrt-rtx"),
    "out": ("kernels", *_ENGINES),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or the name of a shipped one")
    parser.add_argument("--target", required=True, choices=TARGETS, help="what to build")
    parser.add_argument(
        "--arch", type=_arch, nargs="+", metavar="CC",
        help="compute capabilities, major and minor in one number, or current: this machine's GPU "
        "(default: 80 86 89 120, and 90 for kernels)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="where to (default: BUNDLE/kernels, BUNDLE/engines)"
    )
    _common.add_overwrite(parser)
    _common.add_json(parser, "what was built")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--role", nargs="+", choices=("segmenter", "rgb_segmenter", "compressor", "decompressor"), metavar="ROLE",
        help="segmenter, rgb_segmenter, compressor, decompressor (default: segmenter)",
    )  # fmt: skip
    models.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="default for an engine: fp32")
    models.add_argument(
        "--profile", metavar="MIN:OPT:MAX",
        help="batch and frame sizes that the engine takes, each NxHxW (default: 1x8x8:8x360x480:16x1080x1920)",
    )  # fmt: skip
    models.add_argument(
        "--workspace", type=_common.positive, metavar="MIB",
        help="device memory that an engine's tactics may take (default: all)",
    )  # fmt: skip
    one_file = parser.add_argument_group("one file from bytes to labels, for full TensorRT")
    one_file.add_argument(
        "--one-file", action="store_true", default=None, help="the segmenter with the entropy decode before it"
    )
    one_file.add_argument("--size", type=_size, metavar="HxW", help="of the frames; it takes no other")
    one_file.add_argument(
        "--batch", type=_common.positive, metavar="N", help="frames a batch, at most; tuned for so many (default: 8)"
    )
    frames = parser.add_argument_group("real frames, for fp16 and int8")
    frames.add_argument("--frames", type=Path, metavar="PATH", help="a folder of images or videos, or a video")
    frames.add_argument("--data", type=Path, metavar="DIR", help="or a labelled data set, which gives an mIoU too")
    frames.add_argument("--layout", metavar="NAME", help="of --data: camvid, cityscapes or voc (default: camvid)")
    frames.add_argument("--split", metavar="NAME", help="of --data (default: train)")
    frames.add_argument(
        "--calibration", type=_common.positive, metavar="N", help="frames that int8 is calibrated on (default: 64)"
    )


def run(args: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    import importlib

    _check_options(args)
    module = importlib.import_module(f"._build_{args.target.removesuffix('-rtx')}", __package__)
    return int(module.build(args))


def _check_options(args: argparse.Namespace) -> None:
    for name, targets in OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        if getattr(args, name) is not None and args.target not in targets:
            raise UsageError(
                f"{option} does not go with --target {args.target}", hint=f"{option} is for {', '.join(targets)}"
            )
    _check_one_file(args)
    if args.frames is not None and args.data is not None:
        raise UsageError("--frames and --data are both given", hint="give one: folder of frames, or labelled data set")
    if args.data is None and (args.layout is not None or args.split is not None):
        raise UsageError("--layout and --split belong to --data", hint="--data DIR")
    if args.calibration is not None and args.precision != "int8":
        raise UsageError("--calibration is for int8", hint="--precision int8")


def _check_one_file(args: argparse.Namespace) -> None:
    if not args.one_file:
        for name in ("size", "batch"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name} is for --one-file", hint="other engines take --profile MIN:OPT:MAX")
        return
    if args.size is None:
        raise UsageError("--one-file wants the size of the frames", hint="--size HxW, such as --size 360x480")
    if args.profile is not None:
        raise UsageError("--profile does not go with --one-file", hint="--size HxW and --batch N")
    if args.role is not None and set(args.role) != {"segmenter"}:
        raise UsageError(
            f"--one-file with --role {' '.join(args.role)}: it is the segmenter that labels come from",
            hint="leave out --role",
        )


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"expected height and width as HxW, such as 360x480, found {text!r}")
    height, width = map(_common.positive, sides)
    return height, width


def _arch(text: str) -> int | str:
    return text if text == "current" else _common.positive(text)
