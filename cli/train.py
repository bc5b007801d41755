"""Train a codec, a segmenter, a classifier, or a codec together with one of them.

    latentseg train codec --frames FOLDER --target-bpp 0.4 --steps 6000 --out runs/codec
    latentseg train segmenter --network compact-latent --codec runs/codec --data CAMVID --steps 3000 --out runs/latent
    latentseg train classifier --network compact-cresnet --codec runs/codec --data IMAGES --steps 3000 --out runs/names
    latentseg train joint --codec runs/codec --target-bpp 0.4 --data CAMVID --steps 3000 --out runs/joint
    latentseg train average runs/joint runs/joint-2 --out runs/mean
    latentseg train restore camvid-compact --data CAMVID --out runs/restored
    latentseg train classifier --config torfason-resnet50 --data IMAGENET --out runs/resnet50

`joint` goes on with a trained codec while a segmenter or classifier of its latents learns, so that bits go where
classes need them; its results are RUN/codec and RUN/segmenter or RUN/classifier. A run's folder holds `log.jsonl` (a
line an interval), `state.safetensors` (for --resume after a kill) and, at the end, `model.safetensors` (averaged
weights), which `eval` and `export` take. `average` takes the mean of finished runs' weights, which helps where one went
on from the other. `restore` makes runs of a bundle's networks, so that training can go on from one that was shipped.
`--config` takes flags from a file; training/configs/ has those of Torfason et al.'s full networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, missing_extra
from . import _common, _training

if TYPE_CHECKING:
    from ..training.image_sets import Image, ImageSet
    from ..training.loop import LoopConfig
    from ..training.train_classifier import ClassifierConfig

_JOINT = ("task_weight", "teacher_weight", "codec_lr_share", "hint_steps")  # what a segmenter's joint training sets

HELP = "train a codec, a segmenter or a classifier, or a codec together with one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(
        dest="what", required=True, metavar="codec|segmenter|classifier|joint|average|restore",
        parser_class=_training.PresetParser,
    )  # fmt: skip
    codec = sub.add_parser("codec", help="a codec, on any images", allow_abbrev=False)
    _training.add_network(codec, "compact-codec", "registry name")
    _training.add_codec_images(codec, "train")
    codec.add_argument(
        "--target-bpp", type=float, metavar="BPP",
        help="rate that training steers to: compact-codec's own rate model, averaged over the training crops; with "
        "learned centres, real bytes",
    )  # fmt: skip
    codec.add_argument(
        "--beta", type=float, help="weight of the entropy above its target, with learned centres (default: 600)"
    )
    codec.add_argument("--patch", type=_common.positive, default=256, help="side of the crops (default: %(default)s)")
    codec.add_argument(
        "--scales", type=float, nargs=2, default=(0.7, 1.2), metavar=("LO", "HI"),
        help="range of the crops' random rescaling (default: 0.7 1.2)",
    )  # fmt: skip
    codec.add_argument(
        "--saturation", type=float, nargs=2, default=(1.0, 1.0), metavar=("LO", "HI"),
        help="range of a random factor on the crops' colours, for images more colourful than those to train on "
        "(default: 1 1)",
    )  # fmt: skip
    codec.add_argument(
        "--hue", type=float, default=0.0, metavar="DEG",
        help="turn the crops' colours by a random angle up to this (default: 0)",
    )  # fmt: skip
    _training.add_step_range(codec)
    codec.add_argument("--init", type=Path, metavar="RUN", help="start from these weights instead of the PCA")
    _training.add_loop(codec, lr=6e-4, weight_decay=0.0)

    segmenter = sub.add_parser("segmenter", help="a segmenter, on a labelled data set", allow_abbrev=False)
    _training.add_network(segmenter, "compact-latent", "registry name")
    segmenter.add_argument("--codec", type=Path, metavar="RUN", help="the frozen codec of a latent segmenter")
    segmenter.add_argument(
        "--decoded-by", type=Path, metavar="RUN", help="a codec whose decoded views an RGB segmenter learns from"
    )
    segmenter.add_argument(
        "--jpeg-quality", type=int, nargs=2, metavar=("LO", "HI"),
        help="let an RGB segmenter learn from JPEGs (4:2:0): half of a batch of quality sqrt(LO HI), the rest of any "
        "between them",
    )  # fmt: skip
    _training.add_step_range(segmenter)
    segmenter.add_argument(
        "--init", type=Path, metavar="RUN",
        help="start from these weights instead of random ones: of the network, of a classifier with its backbone, or "
        "of an RGB segmenter with its trunk",
    )  # fmt: skip
    _training.add_labelled(segmenter)
    _training.add_loop(segmenter, lr=1e-3, weight_decay=0.02)

    classifier = sub.add_parser("classifier", help="a classifier, on classified images", allow_abbrev=False)
    _training.add_network(classifier, "compact-cresnet", "registry name")
    classifier.add_argument("--codec", type=Path, metavar="RUN", help="the frozen codec of a latent classifier")
    classifier.add_argument(
        "--decoded-by", type=Path, metavar="RUN", help="a codec whose decoded images an RGB classifier learns from"
    )
    classifier.add_argument("--init", type=Path, metavar="RUN", help="start from these weights instead of random ones")
    classifier.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    _training.add_classified(classifier, "train")
    classifier.add_argument(
        "--size", type=_common.positive, default=64, help="side of the views (default: %(default)s)"
    )
    _training.add_views(classifier)
    _training.add_loop(classifier, lr=1e-3, weight_decay=0.02, batch=64)

    joint = sub.add_parser("joint", help="a segmenter or classifier of latents and its codec", allow_abbrev=False)
    _training.add_network(joint, "compact-latent", "the segmenter or classifier")
    joint.add_argument("--codec", required=True, type=Path, metavar="RUN", help="the trained codec to go on with")
    joint.add_argument(
        "--target-bpp", required=True, type=float, metavar="BPP", help="rate that training holds the codec to"
    )
    joint.add_argument(
        "--init", type=Path, metavar="RUN", help="start with this segmenter or classifier, not a fresh one"
    )
    _training.add_step_range(joint)
    joint.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    joint.add_argument(
        "--layout", help="camvid, cityscapes or voc; of classifiers imagefolder or idx (default: the first)"
    )
    joint.add_argument("--split", help="default: train")
    joint.add_argument(
        "--size", type=_common.positive, nargs="+", metavar="SIDE",
        help="of the augmented views: height and width; of classifiers one side (default: 360 480, or 64)",
    )  # fmt: skip
    task = joint.add_argument_group("segmenters")
    task.add_argument(
        "--task-weight", type=float, metavar="W",
        help="weight of the segmentation loss against rate and distortion (default: 2)",
    )  # fmt: skip
    task.add_argument(
        "--teacher", type=Path, metavar="RUN", help="an RGB segmenter whose probabilities to learn as well"
    )
    task.add_argument(
        "--teacher-weight", type=float, metavar="W",
        help="weight of the divergence from the teacher against the cross-entropy (default: 1)",
    )  # fmt: skip
    task.add_argument(
        "--codec-lr-share", type=float, metavar="X",
        help="the codec's learning rate as a share of the segmenter's; 0 leaves the codec as it is (default: 0.5)",
    )  # fmt: skip
    task.add_argument(
        "--hint-steps", type=int, metavar="N",
        help="start with the teacher's trunk, and for the first N of the steps let the entry alone learn its features",
    )  # fmt: skip
    task = joint.add_argument_group("classifiers")
    task.add_argument(
        "--gamma", type=float, help="weight of the codec's loss against the cross-entropy (default: 0.001)"
    )
    task.add_argument("--beta", type=float, help="weight of the entropy above its target (default: 600)")
    task.add_argument(
        "--limit-per-class", type=_common.positive, metavar="N", help="the first N images of each class only"
    )
    _training.add_views(task)
    _training.add_loop(joint, lr=1e-3, weight_decay=0.02)

    average = sub.add_parser("average", help="the mean of finished runs' weights", allow_abbrev=False)
    average.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs of one network, or joint runs")
    average.add_argument("--out", required=True, type=Path, metavar="RUN", help="the folder of the result")

    restore = sub.add_parser("restore", help="a bundle's networks as runs to go on from", allow_abbrev=False)
    restore.add_argument("bundle", metavar="BUNDLE", help="name or directory of a bundle of compact segmenters")
    restore.add_argument(
        "--data", required=True, type=Path, metavar="DIR",
        help="root of a data set like the one that they learned from: what bundles lack is measured on its images",
    )  # fmt: skip
    restore.add_argument("--layout", default="camvid", help="camvid, cityscapes or voc (default: %(default)s)")
    restore.add_argument("--split", default="train", help="default: %(default)s")
    restore.add_argument("--out", required=True, type=Path, metavar="RUN", help="the folder of the results")
    for leaf in (codec, segmenter, classifier, joint):
        _training.add_config(leaf)


def run(args: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    if args.what == "average":
        from ..training.average import average_runs

        paths = average_runs(args.runs, args.out)
    elif args.what == "restore":
        paths = _restore(args)
    else:
        trainings = {"codec": _codec, "segmenter": _segmenter, "classifier": _classifier, "joint": _joint}
        paths = trainings[args.what](args, _training.loop_config(args))
    _common.note(args, f"wrote {' and '.join(str(path) for path in paths)}")
    return 0


def _restore(args: argparse.Namespace) -> tuple[Path, ...]:
    from ..engine.bundle import load_bundle
    from ..training.data import labelled, read_pairs
    from ..training.restore import MOST_IMAGES, restore_bundle

    bundle = load_bundle(args.bundle)
    classes, pairs = labelled(args.layout, args.data, args.split)
    images, labels = read_pairs(pairs[:: -(-len(pairs) // MOST_IMAGES)], classes)
    return restore_bundle(bundle, images, labels, args.out, progress=not args.quiet)


def _codec(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..models import registry
    from ..training.data import read_frames
    from ..training.image_sets import CentreViews
    from ..training.train_codec import CodecConfig, train_codec

    _training.check_frames(args)
    lo, hi = args.scales
    if not 0 < lo <= hi:
        raise UsageError(f"--scales wants 0 < LO <= HI, found {lo} {hi}")
    if "centres" not in registry.open_options(args.network):
        _training.refuse(args, ["beta"], args.network, "codec without learned centres")
    config = CodecConfig(
        target_bpp=args.target_bpp,
        patch=args.patch,
        batch=args.batch,
        scales=(lo, hi),
        saturation=(args.saturation[0], args.saturation[1]),
        hue=args.hue,
        step_range=_training.step_range(args),
    )
    if args.beta is not None:
        config = CodecConfig(**{**vars(config), "beta": args.beta})
    frames: Sequence[Image]
    if args.data is None:
        frames, source = read_frames(Path(args.frames), every=args.every or 1), Path(args.frames)
    else:
        images = _training.classified(args, "train")
        frames, source = CentreViews(images, args.size) if args.size else images.images, args.data
    path = train_codec(
        args.network, frames, args.out, config, loop, options=_training.options(args), init=args.init,
        resume=args.resume, progress=not args.quiet, data_note=f"{len(frames)} frames of {source.name}",
    )  # fmt: skip
    return (path,)


def _segmenter(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..training.data import labelled, read_pairs
    from ..training.train_segmenter import SegmenterConfig, train_segmenter

    classes, pairs = labelled(args.layout, args.data, args.split)
    images, labels = read_pairs(pairs, classes)
    quality = None if args.jpeg_quality is None else tuple(args.jpeg_quality)
    config = SegmenterConfig(
        size=tuple(args.size), batch=args.batch, step_range=_training.step_range(args), jpeg_quality=quality
    )
    path = train_segmenter(
        args.network, images, labels, len(classes.names), args.out, config, loop, codec=args.codec,
        decoded_by=args.decoded_by, init=args.init, options=_training.options(args), resume=args.resume,
        progress=not args.quiet, data_note=f"{args.layout} {args.split}, {len(pairs)} pairs",
    )  # fmt: skip
    return (path,)


def _classified(args: argparse.Namespace, size: int) -> tuple[ImageSet, ClassifierConfig, str]:
    """A classifier's data, what is done with them, and the note of them."""
    from ..training.train_classifier import ClassifierConfig

    area = None if args.area is None else (args.area[0], args.area[1])
    config = ClassifierConfig(size=size, batch=args.batch, area=area, flip=not args.no_flip)
    images = _training.classified(args, "train")
    return images, config, f"{args.layout} {args.split or 'train'}, {len(images.images)} images"


def _classifier(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..training.train_classifier import train_classifier

    images, config, note = _classified(args, args.size)
    path = train_classifier(
        args.network, images, args.out, config, loop, codec=args.codec, decoded_by=args.decoded_by, init=args.init,
        options=_training.options(args), resume=args.resume, progress=not args.quiet, data_note=note,
    )  # fmt: skip
    return (path,)


def _joint(args: argparse.Namespace, loop: LoopConfig) -> tuple[Path, ...]:
    from ..models import registry

    kind = registry.entry(args.network).kind
    classifies = kind in {"latent_classifier", "rgb_classifier"}
    others = ["teacher", *_JOINT, "step_range"] if classifies else [
        "gamma", "beta", "limit_per_class", "area", "no_flip"
    ]  # fmt: skip
    _training.refuse(args, others, args.network, kind)
    if args.teacher_weight is not None and args.teacher is None:
        raise UsageError("--teacher-weight without a teacher", hint="give --teacher RUN, or leave it out")
    expected = 1 if classifies else 2
    size: list[int] = args.size or ([64] if classifies else [360, 480])
    if len(size) != expected:
        raise UsageError(f"--size of {len(size)} side(s), expected {expected} for '{args.network}', a {kind}")
    return _joint_classifier(args, loop, size[0]) if classifies else _joint_segmenter(args, loop, (size[0], size[1]))


def _joint_classifier(args: argparse.Namespace, loop: LoopConfig, size: int) -> tuple[Path, ...]:
    from ..training.train_joint_classifier import JointClassifierConfig, train_joint_classifier

    chosen = {name: getattr(args, name) for name in ("gamma", "beta") if getattr(args, name) is not None}
    config = JointClassifierConfig(args.target_bpp, **chosen)
    images, classifier_config, note = _classified(args, size)
    return train_joint_classifier(
        args.network, images, args.out, classifier_config, config, loop, codec=args.codec, init=args.init,
        options=_training.options(args), resume=args.resume, progress=not args.quiet, data_note=note,
    )  # fmt: skip


def _joint_segmenter(args: argparse.Namespace, loop: LoopConfig, size: tuple[int, int]) -> tuple[Path, ...]:
    from ..training.data import labelled, read_pairs
    from ..training.train_codec import CodecConfig
    from ..training.train_joint import JointConfig, train_joint
    from ..training.train_segmenter import SegmenterConfig

    segmenter_config = SegmenterConfig(size=size, batch=args.batch)
    codec_config = CodecConfig(
        target_bpp=args.target_bpp, batch=max(1, args.batch // 2), step_range=_training.step_range(args)
    )
    chosen = {name: getattr(args, name) for name in _JOINT if getattr(args, name) is not None}
    config = JointConfig(**chosen)
    layout, split = args.layout or "camvid", args.split or "train"
    classes, pairs = labelled(layout, args.data, split)
    images, labels = read_pairs(pairs, classes)
    return train_joint(
        args.network, images, labels, len(classes.names), args.out, segmenter_config, codec_config, config, loop,
        codec=args.codec, teacher=args.teacher, init=args.init, options=_training.options(args), resume=args.resume,
        progress=not args.quiet, data_note=f"{layout} {split}, {len(pairs)} pairs",
    )  # fmt: skip
