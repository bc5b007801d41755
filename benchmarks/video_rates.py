"""What a learned codec's streams of a clip cost beside H.264 and AV1, at the labels that networks make of them.

    python -m latentseg.benchmarks.video_rates --labelled val=CAMVID --clip bikes=bikes.mp4 --codec ours=runs/codec \\
        --latent latent=runs/latent --rgb rgb=runs/rgb --record benchmarks/results/video_rates.jsonl

Every codec at every setting, three ways: every frame alone, a key frame every 15 frames, and the first frame alone a
key frame. Networks of latents work on what entropy decoding gives, RGB networks on the frames that a codec decodes, the
learned one's too. Rates are real bytes: the packets' of H.264 and AV1, the whole stream's of the learned codec.
Where a clip has labels its rows have mIoU; every row has its agreement: the share of pixels with the label that the
same network gives the original frame (of a network of latents: the latent that is not rounded).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..engine.backends.base import usable_cores
from ..errors import InputError, UsageError, missing_extra
from . import report, video_report
from .clips import Clip, load_clip
from .frontier import portable
from .frontier_arms import Arm, Loader, Spec
from .machine import describe_origin
from .video_codecs import AV1, H264
from .video_measure import Grid, measure_clip

SCHEMA = 1
STEPS = (0.4, 0.6, 1.0, 1.6, 2.5)
CRFS = {H264: (20.0, 25.0, 30.0, 35.0, 40.0, 45.0), AV1: (22.0, 32.0, 42.0, 50.0, 57.0, 63.0)}
KEY_INTERVALS = (1, 15, 0)  # 0: the first frame alone
_ALL = sys.maxsize


def load_labelled(name: str, root: Path, layout: str, split: str, rate: int, limit: int | None) -> Clip:
    """The first `limit` frames of a labelled split as a clip. Raises InputError where they differ in size."""
    from ..training.data import labelled, read_pairs

    classes, pairs = labelled(layout, root, split)
    images, labels = read_pairs(pairs[:limit], classes)
    clip = Clip(name, images, (rate, 1), labels, f"{layout} {split}")
    for pair, image in zip(pairs, images, strict=False):
        if image.shape != images[0].shape:
            found, expected = (f"{side[1]}x{side[0]}" for side in (image.shape, clip.size))
            raise InputError(f"{pair.image} is {found}, expected {expected} as the first: a clip has one size")
    return clip


def load_video(name: str, path: str, rate: int, limit: int | None) -> Clip:
    """The first `limit` frames of a video, or of a folder of images, which are `rate` a second."""
    clip = load_clip(path, frames=limit or _ALL)
    clip.name = name
    if clip.frame_rate[0] == 0:
        clip.frame_rate = (rate, 1)
    return clip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.video_rates", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--clip", action="append", default=[], metavar="NAME=PATH", help="a video, or a folder of images")
    add("--labelled", action="append", default=[], metavar="NAME=DIR", help="a labelled data set, in order a clip")
    add("--layout", default="camvid", help="camvid, cityscapes or voc; says the classes, too (default: %(default)s)")
    add("--split", default="val", help="of --labelled (default: %(default)s)")
    add("--frame-rate", type=int, default=15, metavar="HZ", help="of images (default: %(default)s)")
    add("--codec", required=True, metavar="NAME=RUN", help="a trained codec")
    add("--latent", action="append", default=[], metavar="NAME=RUN", help="a segmenter of its latents")
    add("--rgb", action="append", required=True, metavar="NAME=RUN", help="a segmenter of frames")
    shown = {codec: " ".join(f"{crf:g}" for crf in crfs) for codec, crfs in CRFS.items()}
    steps = " ".join(f"{step:g}" for step in STEPS)
    add("--steps", type=float, nargs="*", default=STEPS, metavar="S", help=f"of the codec (default: {steps})")
    add("--crf", type=float, nargs="*", default=CRFS[H264], help=f"of H.264; none leaves it out ({shown[H264]})")
    add("--av1-crf", type=float, nargs="*", default=CRFS[AV1], help=f"of AV1; none leaves it out ({shown[AV1]})")
    add("--key-intervals", type=int, nargs="+", default=KEY_INTERVALS, metavar="N",
        help="frames from key frame to key frame; 0: the first frame alone (default: 1 15 0)")  # fmt: skip
    add("--limit", type=int, metavar="N", help="the first N frames of each clip (default: all)")
    add("--threads", type=int, help="of networks, encoders and decoders (default: all cores)")
    add("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    add("--plot", type=Path, metavar="FILE.png", help="quality over bits a pixel, a panel a clip")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    return report.exit_code("video_rates", lambda: _run(args, words))


def _check(args: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("threads", 1), ("frame_rate", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} {value}, expected at least {least}", hint=f"leave {flag} out for the default")
    if not args.clip and not args.labelled:
        raise UsageError("no clip to measure on", hint="give --clip NAME=PATH or --labelled NAME=DIR")
    for step in args.steps:
        if not 0 < step < math.inf:
            raise UsageError(f"--steps {step}, expected finite numbers above 0")
    for flag, crfs in (("--crf", args.crf), ("--av1-crf", args.av1_crf)):
        highest = 51 if flag == "--crf" else 63
        if not all(0 <= crf <= highest for crf in crfs):
            raise UsageError(f"{flag} {' '.join(f'{crf:g}' for crf in crfs)}, expected 0 to {highest}")
    if min(args.key_intervals) < 0:
        raise UsageError(f"--key-intervals {min(args.key_intervals)}, expected 0 or more")
    for path in filter(None, (args.record, args.plot)):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: no such folder", hint=f"mkdir -p {path.parent}")
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file", hint="name a file in it")


def _check_clips(clips: Sequence[tuple[str, str, str]]) -> None:
    """Raise for a clip that is not there, and for two of one name: their rows could not be told apart."""
    names = [name for _, name, _ in clips]
    for flag, name, path in clips:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} clips are named '{name}', expected a name for each")
        if not Path(path).exists():
            raise InputError(f"--{flag} {name}: no such file or folder: {path}")


def named(flag: str, text: str) -> tuple[str, str]:
    """NAME and what it names, of `NAME=PATH`. Raises UsageError for another form."""
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise UsageError(f"{flag} {text}, expected NAME=PATH")
    return name, path


def load_networks(args: argparse.Namespace, classes: Sequence[str]) -> tuple[Arm, list[Arm]]:
    """The codec and the segmenters. Raises UsageError for a name that is there twice, or has no training."""
    loader = Loader(len(classes))
    name, run = named("--codec", args.codec)
    codec = loader.arm(Spec("codec", name, run, run))
    specs = [Spec("latent", *named("--latent", text), run) for text in args.latent]
    specs += [Spec("original", *named("--rgb", text), None) for text in args.rgb]
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{names.count(twice)} networks are named '{twice}', expected a name for each")
    arms = [loader.arm(spec) for spec in specs]
    for arm in (codec, *arms):
        if not arm.trained:
            raise UsageError(f"{arm.spec.run} is a network's name, expected a run", hint="latentseg train")
    return codec, arms


def _run(args: argparse.Namespace, words: Sequence[str]) -> None:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "train") from None
    from tqdm import tqdm

    from ..training.data import class_set

    _check(args)
    threads = usable_cores() if args.threads is None else args.threads
    torch.set_num_threads(threads)
    # All that is read before anything is measured: a mistake shows at once, not after minutes.
    classes = class_set(args.layout).names
    codec, networks = load_networks(args, classes)
    clips = [(flag, *named(f"--{flag}", text)) for flag in ("labelled", "clip") for text in getattr(args, flag)]
    _check_clips(clips)
    intervals = tuple(dict.fromkeys(interval or None for interval in args.key_intervals))
    grid = Grid(args.steps, {H264: args.crf, AV1: args.av1_crf}, intervals, threads)
    origin = {
        **describe_origin("video-rates", SCHEMA),
        "threads": threads,
        "command": portable(words, "video_rates"),
    }

    def measured() -> Iterator[list[dict[str, Any]]]:
        for flag, name, path in clips:
            if flag == "clip":
                clip = load_video(name, path, args.frame_rate, args.limit)
            else:
                clip = load_labelled(name, Path(path), args.layout, args.split, args.frame_rate, args.limit)
            for text in clip.notes:
                print(f"{name}: {text}", file=sys.stderr)
            with tqdm(total=grid.streams, unit="stream", delay=1.0) as progress:
                for found in measure_clip(clip, codec, networks, classes, grid, progress.set_description):
                    progress.update()
                    yield [{**origin, **row} for row in found]

    rows = report.gather(measured(), args.record, video_report.parts)
    if args.plot is not None:
        video_report.plot_video(rows, args.plot)


if __name__ == "__main__":
    sys.exit(main())
