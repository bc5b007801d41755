"""Score trained weights.

    latentseg eval codec runs/codec --frames FOLDER
    latentseg eval segmenter runs/latent --codec runs/codec --step 1.6 --data CAMVID --split val
    latentseg eval segmenter runs/rgb --decoded-by runs/codec --data CAMVID --split val
    latentseg eval segmenter runs/rgb --jpeg-quality 30 --data CAMVID --split val
    latentseg eval classifier runs/names --codec runs/codec --data IMAGES --layout imagefolder

Codec: PSNR, SSIM, bpp of real bytes and compression factor against 24-bit RGB. Segmenter: mIoU, IoU and Dice of every
class, Dice averaged over classes (macro, from the pooled confusion matrix), pixel accuracy, and the bpp of what a codec
or JPEG sends. Classifier: top-1, top-5
(of all classes, where there are fewer), and with a codec the bpp of its real bytes: a frame an image, and (sheet_bpp)
many images laid side by side in a frame, where framing costs next to nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, VerificationError, missing_extra
from . import _common, _training

if TYPE_CHECKING:
    from ..training.checkpoint import Weights
    from ..training.image_sets import Image

HELP = "score a codec, a segmenter or a classifier on labelled data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="codec|segmenter|classifier")
    codec = sub.add_parser("codec", help="rate and distortion", allow_abbrev=False)
    codec.add_argument("weights", type=Path, metavar="RUN", help="a run's folder, or its model.safetensors")
    _training.add_codec_images(codec, "val, of idx test")
    codec.add_argument(
        "--coder", choices=_common.LONE_CODERS, default=_common.LONE_CODERS[0], help="default: %(default)s"
    )
    _common.add_step(codec)
    _common.add_json(codec, "the scores")

    segmenter = sub.add_parser("segmenter", help="mIoU, Dice, pixel accuracy", allow_abbrev=False)
    segmenter.add_argument("weights", type=Path, metavar="RUN", help="a run's folder, or its model.safetensors")
    segmenter.add_argument("--codec", type=Path, metavar="RUN", help="the codec of a latent segmenter")
    segmenter.add_argument(
        "--decoded-by", type=Path, metavar="RUN", help="send frames through this codec before an RGB segmenter"
    )
    segmenter.add_argument(
        "--jpeg-quality", type=_quality, metavar="Q",
        help="send frames through JPEG of this quality before an RGB segmenter (4:2:0, optimised Huffman tables)",
    )  # fmt: skip
    _common.add_step(segmenter)
    segmenter.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    segmenter.add_argument("--layout", default="camvid", help="camvid, cityscapes or voc (default: %(default)s)")
    segmenter.add_argument("--split", default="val", help="default: %(default)s")
    segmenter.add_argument("--floor", type=float, metavar="MIOU", help="exit with 5 if the mIoU is below this")
    _common.add_json(segmenter, "the scores")

    classifier = sub.add_parser("classifier", help="top-1, top-5", allow_abbrev=False)
    classifier.add_argument("weights", type=Path, metavar="RUN", help="a run's folder, or its model.safetensors")
    classifier.add_argument("--codec", type=Path, metavar="RUN", help="the codec of a latent classifier")
    classifier.add_argument(
        "--decoded-by", type=Path, metavar="RUN", help="send images through this codec before an RGB classifier"
    )
    classifier.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    _training.add_classified(classifier, "val, of idx test")
    classifier.add_argument("--size", type=_common.positive, help="side of the centres (default: that of its training)")
    classifier.add_argument(
        "--coder", choices=_common.LONE_CODERS, default=_common.LONE_CODERS[0], help="default: %(default)s"
    )
    classifier.add_argument("--floor", type=float, metavar="TOP1", help="exit with 5 if top-1 is below this")
    _common.add_json(classifier, "the scores")


def run(args: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    scores = {"codec": _codec, "segmenter": _segmenter, "classifier": _classifier}[args.what](args)
    if args.json:
        _common.emit(scores)
    else:
        print(_common.table(_rows(scores)))
    floor = getattr(args, "floor", None)
    name, key = ("mIoU", "miou") if args.what == "segmenter" else ("top-1", "top1")
    if floor is not None and not scores[key] >= floor:  # so that a floor of nan does not pass
        raise VerificationError(f"{name} is {scores[key]:.4f}, below the floor of {floor}")
    return 0


def _rows(scores: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in scores.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name} ")
        else:
            rows.append((prefix + name, f"{value:.4f}" if isinstance(value, float) else str(value)))
    return rows


def _codec(args: argparse.Namespace) -> dict[str, Any]:
    from ..training.checkpoint import load_weights
    from ..training.data import read_frames
    from ..training.evaluate import evaluate_codec
    from ..training.image_sets import CentreViews

    _training.check_frames(args)
    weights = load_weights(args.weights, kinds=("codec",))
    codec = weights.build()
    frames: Sequence[Image]
    if args.data is None:
        frames = read_frames(Path(args.frames), every=args.every or 1)
    else:
        images = _training.classified(args, None)
        frames = CentreViews(images, args.size) if args.size else images.images
    step = 1.0 if args.step is None else args.step
    _note_steps(args, step, weights, "codec")
    return evaluate_codec(codec, frames, coder=args.coder, step=step, progress=not args.quiet)


def _note_steps(args: argparse.Namespace, step: float, weights: Weights, what: str) -> None:
    from ..training.steps import trained_steps

    lowest, highest = trained_steps(weights.facts["settings"])
    if not lowest <= step <= highest:
        learned = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
        _common.note(args, f"note: step {step:g}, and the {what} was trained for {learned}")


def _codec_of(weights: Weights, path: Path | None, what: str) -> Weights | None:
    """The codec in `path`, if any, where it is the one whose latents the network learned."""
    from ..training.checkpoint import load_weights

    codec = load_weights(path, kinds=("codec",)) if path else None
    trained_on = weights.facts["settings"].get("codec")
    if codec is not None and codec.content_id != trained_on:
        raise UsageError(
            f"the {what} was trained on codec {trained_on[:16]}, found {codec.content_id[:16]}",
            hint="give the --codec of its training",
        )
    return codec


def _segmenter(args: argparse.Namespace) -> dict[str, Any]:
    from ..engine.sources.images import read_image
    from ..models import registry
    from ..training.checkpoint import load_weights
    from ..training.data import labelled, read_label
    from ..training.evaluate import coded_bytes, decoded_by, evaluate_segmenter

    weights = load_weights(args.weights, kinds=("rgb_segmenter", "latent_segmenter"))
    latent = registry.entry(weights.network).kind == "latent_segmenter"
    given = [flag for flag in ("codec", "decoded_by", "jpeg_quality") if getattr(args, flag) is not None]
    if latent != (args.codec is not None) or len(given) > 1:
        raise UsageError(
            f"'{weights.network}' is {'a latent' if latent else 'an RGB'} segmenter",
            hint="a latent segmenter needs --codec; an RGB one takes --decoded-by, --jpeg-quality, or neither",
        )
    if args.step is not None and given not in (["codec"], ["decoded_by"]):
        raise UsageError("--step without a codec", hint="it goes with --codec or --decoded-by")
    step = 1.0 if args.step is None else args.step
    classes, pairs = labelled(args.layout, args.data, args.split)
    if weights.options["classes"] != len(classes.names):
        raise UsageError(
            f"the segmenter has {weights.options['classes']} classes, layout '{args.layout}' {len(classes.names)}",
            hint="give the --layout of its training",
        )
    codec = _codec_of(weights, args.codec, "segmenter")
    if args.decoded_by:
        codec = load_weights(args.decoded_by, kinds=("codec",))
    network = codec.build() if codec else None
    setting: dict[str, Any] = {}
    before = sent = None
    if codec is not None and network is not None:
        setting = {"step": step}
        _note_steps(args, step, codec, "codec")
        if latent:
            _note_steps(args, step, weights, "segmenter")
        else:
            before = decoded_by(network, step)
        sent = coded_bytes(network, step=step)
    elif args.jpeg_quality is not None:
        setting = {"jpeg_quality": args.jpeg_quality}
        sent, before = _jpeg(args.jpeg_quality)
    samples = ((read_image(p.image), read_label(p.label, classes)) for p in pairs)
    scores = evaluate_segmenter(
        weights.build(), samples, classes, codec=network if latent else None, step=step, before=before, sent=sent,
        total=len(pairs), progress=not args.quiet,
    )  # fmt: skip
    return setting | scores


def _jpeg(quality: int) -> tuple[Callable[[Image], int], Callable[[Image], Image]]:
    """Functions that give the bytes of a frame as JPEG, and the frame as it is decoded."""
    from ..benchmarks import jpeg

    return lambda frame: len(jpeg.encode(frame, quality)), lambda frame: jpeg.decode(jpeg.encode(frame, quality))


def _quality(text: str) -> int:
    """An argparse type: 1 to 100."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected a quality from 1 to 100, found {text!r}")
    return int(text)


def _classifier(args: argparse.Namespace) -> dict[str, Any]:
    from ..training.checkpoint import load_weights
    from ..training.evaluate_classifier import evaluate_classifier
    from ..training.image_sets import check_names, settings_names
    from ..training.train_classifier import KINDS, check_input

    weights = load_weights(args.weights, kinds=KINDS)
    check_input(weights.network, codec=args.codec is not None, decoded_by=args.decoded_by is not None)
    codec = _codec_of(weights, args.codec, "classifier")
    if args.decoded_by:
        codec = load_weights(args.decoded_by, kinds=("codec",))
    settings = weights.facts["settings"]
    if args.decoded_by and settings.get("decoded_by") not in ("", None, codec.content_id if codec else None):
        _common.note(args, "note: the classifier was trained on images decoded by another codec")
    images = _training.classified(args, None)
    check_names(images.names, settings_names(settings), "the classifier")
    return evaluate_classifier(
        weights.build(), images, args.size or settings["classifier"]["size"], codec=codec.build() if codec else None,
        decoded=args.decoded_by is not None, coder=args.coder, progress=not args.quiet,
    )  # fmt: skip
