"""Train a codec, a segmenter, or both together.

    latentseg train codec --frames FOLDER --target-bpp 0.4 --steps 6000 --out runs/codec
    latentseg train segmenter --network compact-latent --codec runs/codec --data CAMVID --steps 3000 --out runs/latent
    latentseg train joint --codec runs/codec --target-bpp 0.4 --data CAMVID --steps 3000 --out runs/joint
    latentseg train average runs/joint runs/joint-2 --out runs/mean

`joint` goes on with a trained codec while a segmenter of its latents learns, so that bits go where classes need them;
its results are RUN/codec and RUN/segmenter. A run's folder holds `log.jsonl` (a line an interval), `state.safetensors`
(for --resume after a kill) and, at the end, `model.safetensors` (averaged weights), which `eval` and `export` take.
`average` takes the mean of finished runs' weights, which helps where one went on from the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, missing_extra
from . import _common

if TYPE_CHECKING:
    from ..training.loop import LoopConfig

HELP = "train a codec, a segmenter, or both together"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="codec|segmenter|joint|average")
    codec = sub.add_parser("codec", help="a codec, on any folder of images or videos", allow_abbrev=False)
    codec.add_argument("--network", default="compact-codec", help="registry name (default: %(default)s)")
    codec.add_argument("--frames", required=True, metavar="PATH", help="folder of images or videos, or a video file")
    codec.add_argument(
        "--every", type=_common.positive, default=1, metavar="N", help="take every n-th frame (default: 1)"
    )
    codec.add_argument(
        "--target-bpp", type=float, metavar="BPP",
        help="rate that training steers to: compact-codec's own rate model, averaged over the training crops",
    )  # fmt: skip
    codec.add_argument(
        "--channels", type=_common.positive, metavar="C", help="latent channels of compact-codec (default: 32)"
    )
    codec.add_argument("--patch", type=_common.positive, default=256, help="side of the crops (default: %(default)s)")
    codec.add_argument(
        "--scales", type=float, nargs=2, default=(0.7, 1.2), metavar=("LO", "HI"),
        help="range of the crops' random rescaling (default: 0.7 1.2)",
    )  # fmt: skip
    codec.add_argument("--init", type=Path, metavar="RUN", help="start from these weights instead of the PCA")
    _add_loop(codec, lr=6e-4, weight_decay=0.0)

    segmenter = sub.add_parser("segmenter", help="a segmenter, on a labelled data set", allow_abbrev=False)
    segmenter.add_argument("--network", default="compact-latent", help="registry name (default: %(default)s)")
    segmenter.add_argument("--codec", type=Path, metavar="RUN", help="the frozen codec of a latent segmenter")
    segmenter.add_argument("--init", type=Path, metavar="RUN", help="start from these weights instead of random ones")
    _add_labelled(segmenter)
    _add_loop(segmenter, lr=1e-3, weight_decay=0.02)

    joint = sub.add_parser("joint", help="a segmenter of latents and its codec, together", allow_abbrev=False)
    joint.add_argument("--network", default="compact-latent", help="the segmenter (default: %(default)s)")
    joint.add_argument("--codec", required=True, type=Path, metavar="RUN", help="the trained codec to go on with")
    joint.add_argument(
        "--target-bpp", required=True, type=float, metavar="BPP", help="rate that training holds the codec to"
    )
    joint.add_argument(
        "--task-weight", type=float, default=2.0, metavar="W",
        help="weight of the segmentation loss against rate and distortion (default: %(default)s)",
    )  # fmt: skip
    joint.add_argument(
        "--teacher", type=Path, metavar="RUN", help="an RGB segmenter whose probabilities to learn as well"
    )
    joint.add_argument(
        "--init", type=Path, metavar="RUN", help="start with the segmenter of this joint run instead of a fresh one"
    )
    joint.add_argument(
        "--hint-steps", type=int, default=0, metavar="N",
        help="start with the teacher's trunk, and for the first N of the steps let the entry alone learn its features",
    )  # fmt: skip
    _add_labelled(joint)
    _add_loop(joint, lr=1e-3, weight_decay=0.02)

    average = sub.add_parser("average", help="the mean of finished runs' weights", allow_abbrev=False)
    average.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs of one network, or joint runs")
    average.add_argument("--out", required=True, type=Path, metavar="RUN", help="the folder of the result")


def _add_labelled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    parser.add_argument("--layout", default="camvid", help="camvid or cityscapes (default: %(default)s)")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--size", type=_common.positive, nargs=2, default=(360, 480), metavar=("H", "W"),
        help="canvas of the augmented views (default: 360 480)",
    )  # fmt: skip


def _add_loop(parser: argparse.ArgumentParser, lr: float, weight_decay: float) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--steps", required=True, type=_common.positive)
    parser.add_argument("--batch", type=_common.positive, default=8, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=lr, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=weight_decay, help="default: %(default)s")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--interval",
        type=_common.positive,
        default=200,
        metavar="N",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument("--threads", type=_common.positive, default=0, help="default: all cores")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast (slower where the CPU has bfloat16)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")


def run(args: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    if args.what == "average":
        from ..training.average import average_runs

        paths = average_runs(args.runs, args.out)
    else:
        paths = _train(args)
    _common.note(args, f"wrote {' and '.join(str(path) for path in paths)}")
    return 0


def _train(args: argparse.Namespace) -> tuple[Path, ...]:
    from ..training.loop import LoopConfig

    loop = LoopConfig(
        steps=args.steps, seed=args.seed, lr=args.lr, weight_decay=args.weight_decay, warmup=args.warmup,
        interval=args.interval, bf16=not args.fp32, threads=args.threads,
    )  # fmt: skip
    return {"codec": _codec, "segmenter": _segmenter, "joint": _joint}[args.what](args, loop)


def _codec(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..training.data import read_frames
    from ..training.train_codec import CodecConfig, train_codec

    lo, hi = args.scales
    if not 0 < lo <= hi:
        raise UsageError(f"--scales wants 0 < LO <= HI, found {lo} {hi}")
    config = CodecConfig(target_bpp=args.target_bpp, patch=args.patch, batch=args.batch, scales=(lo, hi))
    frames = read_frames(Path(args.frames), every=args.every)
    options = {} if args.channels is None else {"channels": args.channels}
    path = train_codec(
        args.network, frames, args.out, config, loop, options=options, init=args.init, resume=args.resume,
        progress=not args.quiet, data_note=f"{len(frames)} frames of {Path(args.frames).name}",
    )  # fmt: skip
    return (path,)


def _segmenter(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..training.data import labelled, read_pairs
    from ..training.train_segmenter import SegmenterConfig, train_segmenter

    classes, pairs = labelled(args.layout, args.data, args.split)
    images, labels = read_pairs(pairs, classes)
    config = SegmenterConfig(size=tuple(args.size), batch=args.batch)
    path = train_segmenter(
        args.network, images, labels, len(classes.names), args.out, config, loop, codec=args.codec, init=args.init,
        resume=args.resume, progress=not args.quiet, data_note=f"{args.layout} {args.split}, {len(pairs)} pairs",
    )  # fmt: skip
    return (path,)


def _joint(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..training.data import labelled, read_pairs
    from ..training.train_codec import CodecConfig
    from ..training.train_joint import JointConfig, train_joint
    from ..training.train_segmenter import SegmenterConfig

    segmenter_config = SegmenterConfig(size=tuple(args.size), batch=args.batch)
    codec_config = CodecConfig(target_bpp=args.target_bpp, batch=max(1, args.batch // 2))
    config = JointConfig(task_weight=args.task_weight, hint_steps=args.hint_steps)
    classes, pairs = labelled(args.layout, args.data, args.split)
    images, labels = read_pairs(pairs, classes)
    return train_joint(
        args.network, images, labels, len(classes.names), args.out, segmenter_config, codec_config, config, loop,
        codec=args.codec, teacher=args.teacher, init=args.init, resume=args.resume, progress=not args.quiet,
        data_note=f"{args.layout} {args.split}, {len(pairs)} pairs",
    )  # fmt: skip
