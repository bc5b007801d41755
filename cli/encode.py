"""Compress a video, an image folder, a camera or a stream URL into a .lseg stream.

SOURCE is a video file, an image, a folder of images, a URL that FFmpeg reads, 'camera:0', or '-'
for a video on stdin. Frames that cannot be read are reported and passed over, and the exit code is
then 7. However it ends (Ctrl-C, full disk), what was written is readable up to its last whole
frame. With --backend tensorrt --threads are the coder's.

--step chooses the rate, within what the bundle's networks are for (latentseg bundles).

--key-interval N makes smaller streams of frames that are like the ones before them: all but the
key frames are coded against the frame before. A lost frame then costs what follows it up to the
next key frame, too, and the backend tensorrt neither writes nor reads such streams.

JSON keys: schema type bundle step key_interval frames lost dropped bytes payload_bytes size seconds
           bpp compression_factor (against 24-bit RGB) frames_per_s

examples:
  latentseg encode drive.mp4 -o drive.lseg
  latentseg encode frames/ -o drive.lseg --bundle my-bundle/ --json
  latentseg encode drive.mp4 -o small.lseg --bundle my-bundle/ --step 1.6
  latentseg encode drive.mp4 -o drive.lseg --key-interval 30
  latentseg encode rtsp://camera/stream -o - | ssh server latentseg run -
"""

from __future__ import annotations

import argparse

from . import _common

HELP = "compress a video, image folder, camera or stream into a .lseg stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("source", metavar="SOURCE", help="what to compress, '-' for a video on stdin")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.lseg", help="the stream, or '-' for stdout")
    _common.add_bundle(parser)
    _common.add_step(parser)
    _common.add_key_interval(parser, 1, "default: 1, every frame stands alone")
    _common.add_limit(parser)
    _common.add_kind(parser, ("video", "images", "dali", "dali-gpu"))
    _common.add_backend(parser, precision=False)
    parser.add_argument(
        "--batch", type=_common.positive, metavar="N",
        help="frames that --backend tensorrt compresses at once (default: 8; 1 of a live source)",
    )  # fmt: skip
    _common.add_overwrite(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Encode one source; returns the exit code."""
    from ..engine import Engine

    _common.require_free_stdout(args.json, args.output)
    if args.output == "-":
        _common.binary_stdout()  # refuses a terminal before any work is done
    _common.check_output(args.output, args.overwrite)
    step = 1.0 if args.step is None else args.step
    with (
        Engine(args.bundle, args.backend, args.threads, provider=args.provider, batch=args.batch) as engine,
        _common.progress(args) as update,
    ):
        summary = engine.encode(
            args.source,
            args.output,
            kind=args.kind,
            overwrite=args.overwrite,
            limit=args.limit,
            step=step,
            key_interval=args.key_interval,
            on_frame=lambda run: update(run.frames, run.length),
        )
        damages = engine.damages
    if args.json:
        _common.emit(
            {
                "schema": 1,
                "type": "encode",
                "bundle": engine.bundle.name,
                "step": step,
                "key_interval": args.key_interval,
                **summary.as_dict(),
                "frames_per_s": summary.frames / summary.seconds,
            }
        )
    height, width = summary.size
    _common.note(
        args,
        f"{summary.frames} frames of {width}x{height}: {_common.human_bytes(summary.bytes)}, {summary.bpp:.4f} bpp, "
        f"{summary.factor:.1f} times smaller than 24-bit RGB, {summary.frames / summary.seconds:.1f} frames/s",
    )
    if summary.dropped:
        _common.note(args, f"{summary.dropped} live frames came too fast and were dropped")
    _common.note_damages(args, damages)
    _common.raise_if_damaged(len(damages), summary.lost)
    return 0
