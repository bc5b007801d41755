"""Turn a .lseg stream back into pictures with the bundle's decompressor: a video, or a folder of PNGs.

An OUT that ends in .mp4, .m4v, .mov, .mkv or .avi is written as a video (H.264, which loses a
little on top of the codec); an OUT without a suffix is a folder of PNGs, 000000.png and so on by
frame index, exactly what the decompressor gave. Damaged frames are reported and passed over, and
the exit code is then 7.

JSON keys: schema type bundle source size frames lost dropped damages seconds frames_per_s

examples:
  latentseg decode drive.lseg -o drive.mp4
  latentseg decode - -o frames/ --limit 10
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from . import _common

if TYPE_CHECKING:
    from ..engine.result import Result
    from ..engine.sinks import Sink

HELP = "turn a .lseg stream back into a video or a folder of PNGs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("input", metavar="IN.lseg", help="the stream, or '-' for stdin")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a video's name, or a folder for PNGs")
    _common.add_bundle(parser)
    _common.add_limit(parser)
    _common.add_backend(parser, precision=False)
    _common.add_overwrite(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Decode one stream; returns the exit code."""
    import numpy as np

    from ..engine import Engine
    from ..engine.result import Result
    from ..engine.sinks import refuse_source
    from ..engine.sinks.overlay import SUFFIXES

    if args.output == "-":
        raise UsageError("pictures cannot be written to stdout", hint="give -o OUT.mp4 or -o FOLDER")
    is_video = Path(args.output).suffix.lower() in SUFFIXES
    _common.check_output(args.output, args.overwrite, folder=not is_video)
    refuse_source(args.input, args.output)
    with (
        Engine(args.bundle, args.backend, args.threads, provider=args.provider) as engine,
        engine.decode(args.input, limit=args.limit) as frames,
        _open_sink(args, frames.frame_rate) as sink,
        _common.progress(args) as update,
    ):
        nothing = np.zeros(frames.size, np.uint8)
        for frame in frames:
            sink.write(Result(frame.index, frame.timestamp_us, nothing, rgb=frame.rgb))
            update(frames.frames, frames.length)
        summary, damages, lost = frames.summary(), frames.damages, frames.lost
    if args.json:
        _common.emit({"schema": 1, "type": "decode", "bundle": engine.bundle.name, **summary})
    height, width = summary["size"]
    _common.note(args, f"{summary['frames']} frames of {width}x{height}, {summary['frames_per_s']:.1f} frames/s")
    _common.note_damages(args, damages)
    _common.raise_if_damaged(len(damages), lost)
    return 0


def _open_sink(args: argparse.Namespace, frame_rate: tuple[int, int]) -> Sink[Result]:
    from ..engine.sinks import FramePngSink, OverlaySink
    from ..engine.sinks.overlay import SUFFIXES

    suffix = Path(args.output).suffix.lower()
    if suffix in SUFFIXES:
        # An overlay of weight 0 is the frame itself, whatever the classes are.
        return OverlaySink(args.output, (), frame_rate, alpha=0.0, overwrite=args.overwrite)
    if suffix and not Path(args.output).is_dir():
        raise UsageError(
            f"cannot write {suffix} files: {args.output}",
            hint=f"a video ({', '.join(SUFFIXES)}), or a folder for PNGs (a name without a suffix)",
        )
    return FramePngSink(args.output, args.overwrite)
