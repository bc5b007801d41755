"""Segment or classify a .lseg stream straight from its bytes: entropy decode, network, result.

The bundle says which: with a segmenter it gives labels, with a classifier the classes of each
frame. Any other SOURCE (video, image folder, camera, URL) is compressed to bytes first, frame by
frame. Results go to stdout as JSON Lines: one object of type "frame" for each frame, one of type
"summary" at the end. --labels and --overlay write the label maps themselves; for an overlay of a
.lseg stream the decompressor makes the pictures that the labels are laid over.

Damaged frames are reported and passed over, and the exit code is then 7. Ctrl-C leaves everything
that was written readable (and no summary).

JSON keys of a frame: schema type index timestamp_us size payload_bytes timings_ms, and
           classes (each class's share of the pixels), or of a classified frame
           top5 (the five likeliest, each with class, index and probability)
JSON keys of the summary: schema type source size frames lost dropped damages seconds frames_per_s

examples:
  latentseg run drive.lseg
  latentseg run drive.lseg --labels labels/ --overlay drive.mp4 --jsonl drive.jsonl
  latentseg encode drive.mp4 -o - | latentseg run - | jq .classes.road
  latentseg run photos/ --bundle my-classifier | jq '.top5[0].class'
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import _common

if TYPE_CHECKING:
    from ..engine import Run
    from ..engine.sinks import Sink

HELP = "segment or classify a .lseg stream straight from its bytes (or any source, encoded first)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("source", metavar="SOURCE", help="a .lseg file, '-' for stdin, or any source that encode takes")
    parser.add_argument("--jsonl", default="-", metavar="FILE", help="results as JSON Lines (default: '-', stdout)")
    parser.add_argument("--labels", metavar="DIR", help="label maps as PNGs: a pixel's value is its class")
    parser.add_argument("--overlay", metavar="FILE.mp4", help="video of the labels over the frames")
    _common.add_bundle(parser)
    _common.add_step(parser, "; a .lseg stream has its own")
    _common.add_limit(parser)
    _common.add_kind(parser, ("lseg", "video", "images", "dali", "dali-gpu"))
    _common.add_backend(parser)
    parser.add_argument(
        "--batch", type=_common.positive, metavar="N",
        help="frames that --backend tensorrt segments at once (default: 8; 1 of a live source)",
    )  # fmt: skip
    _common.add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Segment or classify one source; returns the exit code."""
    from ..engine import Engine
    from ..engine.sinks import JsonLinesSink, LabelPngSink, OverlaySink, refuse_source
    from ..engine.sources import Source, StreamSource, open_source

    for path in (args.jsonl, args.overlay):
        _common.check_output(path, args.overwrite)
    _common.check_output(args.labels, args.overwrite, folder=True)
    refuse_source(args.source, args.jsonl, args.overlay, args.labels)
    with ExitStack() as stack:
        engine = stack.enter_context(
            Engine(
                args.bundle,
                args.backend,
                args.threads,
                provider=args.provider,
                precision=args.precision,
                batch=args.batch,
            )
        )
        bundle = engine.bundle
        if bundle.classifies and (args.labels is not None or args.overlay is not None):
            raise UsageError(
                f"--{'overlay' if args.labels is None else 'labels'} with bundle '{bundle.name}', which classifies "
                "frames and has no label maps",
                hint="--jsonl FILE, or a bundle with a segmenter",
            )
        # What the bundle does not have, or cannot do, is refused before a pipe is waited for.
        bundle.codec.scaling_at(1.0 if args.step is None else args.step)
        engine.placement.model_file(bundle, "classifier" if bundle.classifies else "segmenter")
        # Closed by segment(), in the thread that reads it, and not here: a silent pipe hangs who closes it elsewhere.
        source: Source[Any] = open_source(args.source, args.kind)
        is_stream = isinstance(source, StreamSource)
        if not is_stream:
            _common.note(
                args, f"{args.source} is no .lseg stream: compressing it to bytes first, then "
                f"{'classifying' if bundle.classifies else 'segmenting'} those",
            )  # fmt: skip
        with_frames = args.overlay is not None
        if with_frames and is_stream and "decompressor" not in bundle.roles:
            _common.note(args, f"bundle '{bundle.name}' has no decompressor: the overlay shows labels alone")
            with_frames = False
        results: Run[Any] = stack.enter_context(
            engine.classify(source, limit=args.limit, step=args.step)
            if bundle.classifies
            else engine.segment(source, with_frames=with_frames, limit=args.limit, step=args.step)
        )
        classes = bundle.classes
        jsonl = stack.enter_context(JsonLinesSink(args.jsonl, classes, args.overwrite))
        sinks: list[Sink[Any]] = [jsonl]
        if args.labels is not None:
            sinks.append(stack.enter_context(LabelPngSink(args.labels, classes, args.overwrite)))
        if args.overlay is not None:
            sinks.append(
                stack.enter_context(OverlaySink(args.overlay, classes, results.frame_rate, overwrite=args.overwrite))
            )
        update = stack.enter_context(_common.progress(args))
        likeliest: Counter[str] = Counter()
        for result in results:
            for sink in sinks:
                sink.write(result)
            if bundle.classifies:
                top = [(classes[index].name, probability) for index, probability in result.top()]
                likeliest[top[0][0]] += 1
            update(results.frames, results.length)
        summary, damages, lost, dropped = results.summary(), results.damages, results.lost, results.dropped
        jsonl.summary(summary)
    height, width = summary["size"]
    _common.note(args, f"{summary['frames']} frames of {width}x{height}, {summary['frames_per_s']:.1f} frames/s")
    if sum(likeliest.values()) == 1:
        _common.note(args, "likeliest: " + ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in top))
    elif likeliest:
        counted = ", ".join(f"{name} ({count} frames)" for name, count in likeliest.most_common(5))
        _common.note(args, f"likeliest: {counted}{', ...' if len(likeliest) > 5 else ''}")
    if dropped:
        _common.note(args, f"{dropped} live frames came too fast and were dropped")
    _common.note_damages(args, damages)
    _common.raise_if_damaged(len(damages), lost)
    return 0
