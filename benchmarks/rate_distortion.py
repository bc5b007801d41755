"""Rate and distortion of learned codecs beside JPEG and WebP, on folders of images.

    python -m latentseg.benchmarks.rate_distortion --codec ours=bundle/ --images kodak=images/ --plot rd.png

Rates are real bytes: for a learned codec the frame's payload and its framing in the `.lseg` stream (the stream header,
200 bytes once, is not a frame's), for the others the whole file. PSNR and SSIM are means over the images. Each learned
codec is measured with the context coder and with one Huffman code a frame, as the paper has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bitstream.header import Coder, StreamHeader, tile_for
from ..errors import InputError, UsageError, missing_extra
from . import jpeg, report
from .machine import describe_origin

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

Frame = NDArray[np.uint8]
Coded = tuple[int, Frame]  # bytes, and the frame that comes out of them
CODERS: tuple[Coder, ...] = ("context", "huffman-frame")
SCHEMA = 2
RGB_BITS = 24
JPEG_QUALITIES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 95)
WEBP_QUALITIES = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclasses.dataclass(frozen=True)
class Point:
    """One codec at one setting: `code` takes a frame through it."""

    codec: str
    kind: Literal["learned", "jpeg", "webp"]
    setting: dict[str, Any]
    code: Callable[[Frame], Coded]


def learned_points(
    name: str, bundle: Bundle, stack: ExitStack, threads: int | None = None, steps: Sequence[float] = (1.0,)
) -> Iterator[Point]:
    """A bundle's codec with each of CODERS at step 1, and with the first of them at the other `steps` that it knows.

    Its networks stay open as long as `stack`.
    """
    from ..bitstream import Writer
    from ..engine.placement import Placement
    from ..engine.roles import Compressor, Decompressor

    compressor = stack.enter_context(Compressor(bundle, Placement(threads=threads)))
    decompressor = stack.enter_context(Decompressor(bundle, Placement(threads=threads)))

    def under(coder: Coder, step: float) -> Callable[[Frame], Coded]:
        def code(frame: Frame) -> Coded:
            size = (frame.shape[0], frame.shape[1])
            own = bundle.header(*size, step=step)
            # (0, 0), of a bundle with another coder, means the context coder's default.
            tile, lane = tile_for(coder, own.tile), StreamHeader.lane_symbols
            header = dataclasses.replace(own, coder=coder, tile=tile, lane_symbols=lane)
            (payload,) = compressor.encode(frame[None], header)
            framed = Writer(io.BytesIO(), header).write(payload)
            return framed, decompressor.frames(decompressor.entropy_decode([payload], header), size)[0]

        return code

    scores = bundle.manifest.get("scores", {})
    lowest, highest = bundle.codec.steps
    others = [(CODERS[0], step) for step in steps if step != 1 and lowest <= step <= highest]
    for coder, step in [*((coder, 1.0) for coder in CODERS), *others]:
        setting = {
            "bundle": bundle.name,
            "codec": bundle.codec.name,
            "codec_id": bundle.codec.id.hex(),
            "coder": coder,
            "step": step,
            "rate_model_bpp": scores.get("rate_model_bpp") if step == 1 else None,
        }
        yield Point(name, "learned", setting, under(coder, step))


def jpeg_points(qualities: Iterable[int] = JPEG_QUALITIES) -> Iterator[Point]:
    """JPEG with optimised Huffman tables, 4:2:0 and 4:4:4."""

    def coder(subsampling: str, quality: int) -> Callable[[Frame], Coded]:
        def code(frame: Frame) -> Coded:
            data = jpeg.encode(frame, quality, subsampling=subsampling)
            return len(data), jpeg.decode(data)

        return code

    listed = list(qualities)
    for subsampling in ("4:2:0", "4:4:4"):
        for quality in listed:
            yield Point(f"JPEG {subsampling}", "jpeg", {"quality": quality}, coder(subsampling, quality))


def webp_points(qualities: Iterable[int] = WEBP_QUALITIES) -> Iterator[Point]:
    """Lossy WebP at its slowest method, which gives the smallest files."""
    try:
        from PIL import Image, features
    except ImportError:
        raise missing_extra("pillow", "video") from None
    if not features.check("webp"):
        raise UsageError("this Pillow was built without WebP", hint="leave out --webp")

    def coder(quality: int) -> Callable[[Frame], Coded]:
        def code(frame: Frame) -> Coded:
            target = io.BytesIO()
            Image.fromarray(frame).save(target, "WEBP", quality=quality, method=6)
            return len(target.getvalue()), jpeg.decode(target.getvalue())

        return code

    for quality in qualities:
        yield Point("WebP", "webp", {"quality": quality, "method": 6}, coder(quality))


def measure_points(points: Sequence[Point], images: Iterable[Frame]) -> list[dict[str, Any]]:
    """Each point over all images `(H, W, 3)` uint8, of any sizes, which are held one at a time.

    Returns one dict a point: codec, kind, setting, `images`, and the means over images of `bpp`, `psnr` (dB; null where
    some image came out without error) and `ssim`, with `compression_factor` = 24 / bpp.
    """
    from ..training import metrics

    measured: list[list[tuple[float, float, float]]] = [[] for _ in points]
    for image in images:
        for point, values in zip(points, measured, strict=True):
            size, decoded = point.code(image)
            bpp = metrics.bpp(size, image.shape[0] * image.shape[1])
            values.append((bpp, metrics.psnr(decoded, image), metrics.ssim(decoded, image)))
    rows = []
    for point, values in zip(points, measured, strict=True):
        if not values:
            raise InputError("no images to measure on")
        bpp, psnr, ssim = (math.fsum(column) / len(values) for column in zip(*values, strict=True))
        rows.append(
            {
                "codec": point.codec,
                "kind": point.kind,
                "setting": point.setting,
                "images": len(values),
                "bpp": bpp,
                "compression_factor": RGB_BITS / bpp,
                "psnr": psnr if math.isfinite(psnr) else None,
                "ssim": ssim,
            }
        )
    return rows


def read_folder(folder: Path, progress: Callable[[Sequence[Path]], Iterable[Path]] = iter) -> Iterator[Frame]:
    """The images of a folder in natural order, one at a time; unlike a source's, they may differ in size."""
    from ..engine.sources.images import SUFFIXES, natural_key, read_image

    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}", hint="--images NAME=FOLDER, a folder of images")
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{folder} holds no images", hint="--images NAME=FOLDER, a folder of images")
    for file in progress(sorted(files, key=lambda path: natural_key(path.name))):
        yield read_image(file)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one data set as a table, by codec and rate."""
    cells = []
    for row in sorted(rows, key=lambda row: (row["kind"] != "learned", row["codec"], row["bpp"])):
        setting = row["setting"]
        shown = (
            f"{setting['bundle']}, {setting['coder']}, step {setting['step']:g}"
            if row["kind"] == "learned"
            else f"q {setting['quality']}"
        )
        numbers = [report.number(row[key], digits) for key, digits in (("psnr", 2), ("ssim", 4))]
        rate = [report.number(row["bpp"], 3), report.number(row["compression_factor"], 1)]
        cells.append([row["codec"], shown, *rate, *numbers])
    return report.table(["codec", "setting", "bpp", "factor", "PSNR dB", "SSIM"], cells)


def run(
    codecs: Sequence[tuple[str, Bundle]],
    data: Sequence[tuple[str, Path]],
    *,
    webp: bool = False,
    threads: int | None = None,
    steps: Sequence[float] = (1.0,),
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> list[dict[str, Any]]:
    """Measure every codec, JPEG and (if asked for) WebP on every data set: one row for each set and setting."""
    origin = {
        **describe_origin("rate-distortion", SCHEMA),
    }
    with ExitStack() as stack:
        points = [point for name, bundle in codecs for point in learned_points(name, bundle, stack, threads, steps)]
        points += jpeg_points()
        points += webp_points() if webp else ()
        return [
            {**origin, "data": name, **row}
            for name, folder in data
            for row in measure_points(points, read_folder(folder, progress))
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.rate_distortion", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--codec", action="append", default=[], metavar="NAME=BUNDLE", help="a bundle; one NAME may have several rates"
    )
    parser.add_argument(
        "--steps", type=float, nargs="+", default=[1.0], metavar="S",
        help="quantisation steps; each bundle is measured at those that it is for, and at 1",
    )  # fmt: skip
    parser.add_argument("--images", action="append", required=True, metavar="[NAME=]FOLDER", help="a data set")
    parser.add_argument("--webp", action="store_true", help="measure WebP too")
    parser.add_argument("--threads", type=int, help="threads of the networks (default: all cores)")
    parser.add_argument("--record", metavar="FILE.jsonl", help="append the rows to this file")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="PSNR and SSIM over bpp; with several data sets, one file each"
    )
    args = parser.parse_args(argv)
    return report.exit_code("rate_distortion", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..engine import load_bundle
    from . import plots

    codecs = [(name, load_bundle(path)) for name, path in map(_named, args.codec)]
    data = [(name, Path(path)) for name, path in map(_named, args.images)]
    rows = run(
        codecs, data, webp=args.webp, threads=args.threads, steps=args.steps,
        progress=lambda files: tqdm(files, unit="image", delay=1.0),
    )  # fmt: skip
    for name, _ in data:
        chosen = [row for row in rows if row["data"] == name]
        print(f"{name}: {chosen[0]['images']} images\n{text(chosen)}\n")
        if args.plot is not None:
            path = Path(args.plot)
            path = path if len(data) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
            plots.plot_rate_distortion(chosen, path, f"{name}: means over {chosen[0]['images']} images")
    if args.record is not None:
        for row in rows:
            report.append_row(Path(args.record), row)


def _named(text: str) -> tuple[str, str]:
    """`name=path`, or a path, whose last part is the name."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).resolve().name, text)


if __name__ == "__main__":
    sys.exit(main())
