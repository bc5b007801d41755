"""Measure from bytes in memory to label maps or classes, with and without decoding pixels first.

SOURCE is a video, a folder of images of one size, or a text file of "IMAGE LABEL" lines. Its frames
are encoded first; then the arms take turns, round by round, on the same frames in this process:

  compressed      bytes -> entropy decode -> segmenter
  learned-decode  the same bytes -> entropy decode -> decompressor -> RGB segmenter
  jpeg            JPEG of the codec's size -> decode -> RGB segmenter
  jpeg-q95        JPEG of quality 95 -> decode -> RGB segmenter
  h264            the video's own packets -> decode -> RGB segmenter (H.264 files only)

A bundle of classifiers has the same arms, each with a classifier at its end, and as quality the
share of frames whose likeliest class is the RGB classifier's on the original frames; on classified
images (--data in place of SOURCE) top-1 and top-5 as well.

`latentseg bench entropy FILE...` measures the entropy coders alone, and has a help of its own; a
source that is called "entropy" is written ./entropy here.

examples:
  latentseg bench clip.mp4
  latentseg bench camvid/val.txt --rounds 7 --plot bench.png --record bench.jsonl
  latentseg bench frames/ --labels labels/ --arms compressed,jpeg --batch 1 --json
  latentseg bench --bundle classifiers/ --data IMAGENET --layout imagefolder --split val --size 224
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import _common

if TYPE_CHECKING:
    from ..benchmarks.clips import Clip
    from ..engine.bundle import Bundle

HELP = "measure bytes-to-labels against decoding first, arms interleaved"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a video, an image folder, or a file of pairs")
    parser.add_argument(
        "--labels", metavar="DIR|FILE", help="ground truth: PNGs named as the images, or a file of pairs"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="root of classified images, in place of SOURCE")
    parser.add_argument("--layout", metavar="NAME", help="of --data: imagefolder (default) or idx")
    parser.add_argument("--split", metavar="NAME", help="of --data (default: val, of idx test)")
    parser.add_argument(
        "--size",
        type=_common.positive,
        metavar="SIDE",
        help="of --data: side of the images' centres (default: that of the classifiers' training)",
    )
    _common.add_bundle(parser)
    _common.add_step(parser)
    _common.add_backend(parser)
    parser.add_argument("--arms", type=_names, metavar="A,B", help="only these arms (default: all that apply)")
    parser.add_argument(
        "--frames",
        type=_common.positive,
        default=128,
        metavar="N",
        help="use the first N frames, of --data N evenly spaced (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_common.positive,
        default=5,
        metavar="R",
        help="timed passes of every arm (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=_common.count,
        default=3,
        metavar="W",
        help="untimed batches before them (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=sizes, default=[1, 8], metavar="N,M", help="frames a batch, each size timed (default: 1,8)"
    )
    parser.add_argument("--seed", type=_common.count, default=0, metavar="N", help="of the arms' order (default: 0)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw stage times, and quality over bits per pixel")
    parser.add_argument("--record", metavar="FILE.jsonl", help="append the result to this file as one line")
    _common.add_overwrite(parser)
    _common.add_json(parser, "the result")


def run(args: argparse.Namespace) -> int:
    """Measure, then print, record and draw; returns the exit code."""
    _common.check_output(args.plot, args.overwrite)
    if args.record is not None:
        _common.check_output(args.record, overwrite=True)  # rows are appended, never replaced
    if args.plot is not None:
        from ..benchmarks import plots

        plots.new_figure(1, 1, 1)  # a missing package shows before minutes of measuring, not after them
    from ..benchmarks import report, segmentation
    from ..engine import load_bundle

    segmentation.check_arms(args.arms)
    _check_source(args)
    bundle = load_bundle(args.bundle)
    bundle.codec.scaling_at(1.0 if args.step is None else args.step)  # refused before the source is read
    clip = _clip(args, bundle)
    result = segmentation.run(
        clip,
        bundle,
        arms=args.arms,
        batches=args.batch,
        rounds=args.rounds,
        warmup=args.warmup,
        placement=_common.placement(args),
        seed=args.seed,
        step=1.0 if args.step is None else args.step,
        progress=_progress(args),
    )
    try:
        if args.record is not None:
            report.append_row(Path(args.record), result)
    finally:  # a record that cannot be written does not lose what took minutes to measure
        if args.json:
            _common.emit(result)
        else:
            sys.stdout.write(report.text(result))
    if args.plot is not None:
        plots.plot_bench(result, Path(args.plot))
    return 0


def _check_source(args: argparse.Namespace) -> None:
    """One source, and only the options that belong to it."""
    if (args.source is None) == (args.data is None):
        raise UsageError(
            f"{'neither' if args.data is None else 'both'} SOURCE and --data, expected one of them",
            hint="SOURCE is a video, frames or pairs; --data the root of classified images",
        )
    strangers = ("layout", "split", "size") if args.data is None else ("labels",)
    for name in strangers:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} belongs to {'--data' if args.data is None else 'SOURCE'}", hint="leave it out")


def _clip(args: argparse.Namespace, bundle: Bundle) -> Clip:
    """The frames to measure on."""
    if args.data is None:
        from ..benchmarks.clips import load_clip

        return load_clip(args.source, args.labels, args.frames)
    from ..benchmarks.classification import load_images, trained_size

    size = args.size or trained_size(bundle)
    return load_images(args.data, args.layout or "imagefolder", args.split, size, args.frames)


def _progress(args: argparse.Namespace) -> Callable[[str, int, int], None]:
    """A bar for each step of the work, on a terminal."""
    if args.quiet or not sys.stderr.isatty():
        return lambda what, done, total: None
    from tqdm import tqdm

    bar: Any = tqdm(delay=1.0, leave=False, unit="pass")

    def show(what: str, done: int, total: int) -> None:
        bar.set_description(what, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()
        if done == total and what.startswith("batch"):
            bar.clear()

    return show


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def sizes(text: str) -> list[int]:
    """An argparse type: integers of at least 1, separated by commas."""
    return [_common.positive(part.strip()) for part in text.split(",")]
