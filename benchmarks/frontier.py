"""Quality of labels against bits a pixel and multiply-accumulates: the latents' way beside every way that decodes.

    python -m latentseg.benchmarks.frontier --data CAMVID --record benchmarks/results/frontier.jsonl \\
        --arm latent:ours=runs/many-0/segmenter,runs/many-0/codec --arm original:rgb=runs/rgb \\
        --arm jpeg:rgb=runs/rgb --arm decoded:rgb=runs/rgb,runs/many-0/codec

An arm is WAY:NAME=RUN[,CODEC]. The ways: latent (a segmenter of CODEC's latents), original (an RGB segmenter on the
frames as they are), jpeg, webp, avif and decoded (an RGB segmenter on what comes out of such a file, or of CODEC's
bytes), codec (RUN is a codec: rate and distortion alone). An RGB segmenter may have learned from originals, JPEGs or
decoded frames: its checkpoint says so, and the rows repeat it. Arms of one way and name are seeds of one series. A name
of the registry in place of RUN (kakaiya-rgb) gives a row of costs alone.

Every rate is of real bytes: whole files, or frames' payloads with their framing and the stream header once. A codec's
step multiplies its quantisation step. Scores are from one confusion matrix over all frames at full resolution, PSNR and
SSIM means over frames.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bitstream.header import DEFAULT_CODER
from ..engine.backends.base import usable_cores
from ..engine.manifest import LONE_CODERS
from ..errors import UsageError, missing_extra
from . import frontier_plot, frontier_report, report
from .classification import data_name, spread
from .frontier_arms import PAPER_CODER, Arm, Loader, Source, costs, fixed_step, labeller, parse_arm, sources
from .gains_data import Data
from .machine import describe_origin

if TYPE_CHECKING:
    from ..bitstream import StreamHeader
    from ..engine.bundle import Bundle

SCHEMA = 1
RGB_BITS = 24
LEVELS: dict[str, tuple[float, ...]] = {
    "codec": (0.4, 0.6, 1.0, 1.6, 2.5),
    "jpeg": (4, 6, 10, 14, 20, 30, 50, 75, 95),
    "webp": (0, 2, 5, 10, 20, 40, 75),
    "avif": (5, 15, 25, 35, 45, 60),
}


class _Tally:
    """What is summed up of one source over all frames, and of each of its arms."""

    def __init__(self, source: Source, arms: Sequence[Arm], data: Data) -> None:
        from ..training.data import IGNORE
        from ..training.metrics import ConfusionMatrix

        self.source, self.arms = source, arms
        self.frames, self.pixels, self.bytes = 0, 0, dict[str, int]()
        self.psnr, self.ssim = list[float](), list[float]()
        self._headers: set[StreamHeader] = set()
        # What an arm looks at: the latent, or the picture.
        self._latent = [arm.spec.way == "latent" for arm in arms]
        self._labels = [
            None if arm.network is None else labeller(arm.network.net, not latent)
            for arm, latent in zip(arms, self._latent, strict=True)
        ]
        self._matrices = [ConfusionMatrix(len(data.classes), ignore=IGNORE) for _ in arms]
        self._classes = data.classes

    def add(self, frame: Any, truth: Any) -> None:
        """Send one frame, and score what each arm makes of it."""
        from ..training import metrics

        size = (frame.shape[0], frame.shape[1])
        coded = self.source.encode(frame)
        received = self.source.receive(coded)
        self.frames += 1
        self.pixels += size[0] * size[1]
        for coder, count in coded.sizes.items():
            self.bytes[coder] = self.bytes.get(coder, 0) + count
        if coded.header is not None:
            self._headers.add(coded.header)
        picture = None if all(self._latent) else self.source.picture(received, size)
        if picture is not None and picture is not frame:
            self.psnr.append(metrics.psnr(picture, frame))
            self.ssim.append(metrics.ssim(picture, frame))
        for latent, label, matrix in zip(self._latent, self._labels, self._matrices, strict=True):
            if label is not None:
                matrix.update(truth, label(received if latent else picture, size))

    def row(self, place: int) -> dict[str, Any]:
        """The measured part of the row of one of the arms."""
        coders = list(self.bytes)
        headers = sum(header.size for header in self._headers)
        rates = {coder: 8 * (count + headers) / self.pixels for coder, count in self.bytes.items()}
        scored, shown = self._labels[place] is not None, not self._latent[place] and bool(self.psnr)
        psnr = math.fsum(self.psnr) / self.frames if shown else math.inf
        return {
            "level": self.source.level,
            "coder": coders[0],
            "bpp": rates[coders[0]],
            "bpp_paper_coder": rates.get(PAPER_CODER),
            "compression_factor": RGB_BITS / rates[coders[0]],
            "psnr": psnr if math.isfinite(psnr) else None,
            "ssim": math.fsum(self.ssim) / self.frames if shown else None,
            "quality": self._matrices[place].to_dict(self._classes) if scored else None,
        }


_UNTRAINED = {
    "level": None, "coder": None, "bpp": None, "bpp_paper_coder": None, "compression_factor": None, "psnr": None,
    "ssim": None, "quality": None,
}  # fmt: skip


def run(
    arms: Sequence[Arm],
    data: Data,
    levels: Mapping[str, Sequence[float]],
    *,
    coder: str = DEFAULT_CODER,
    limit: int | None = None,
    timed: int = 0,
    threads: int = 1,
    bundles: Sequence[Bundle] = (),
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda places, text: places,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all arms, a source at a time, those without training first.

    levels: qualities by format, and under "codec" the steps. coder: of the learned codecs' streams. limit: frames,
    evenly spaced; None: all. timed: how many of the first frames are timed, 0 for none; threads: that torch has been
    told, and ONNX Runtime's. bundles: see `time_arms`. origin: what else each row says.
    """
    places = spread(data.total, limit)
    found = sources(arms, levels, coder)
    timings = _timings(found, data, places[:timed], levels, threads, bundles, note) if timed else {}
    sizes: set[tuple[int, int]] = {data.read(places[0])[0].shape[:2]}
    counted: dict[tuple[int, tuple[int, int]], dict[str, Any]] = {}

    def rows(made: Sequence[tuple[Arm, dict[str, Any]]], frames: int, source: Source | None) -> list[dict[str, Any]]:
        largest = max(sizes)
        for arm, _ in made:
            counted.setdefault((id(arm), largest), costs(arm, largest))
        return [
            {
                **(origin or {}),
                "data": data.name,
                "images": frames,
                "frame_size": list(largest),
                "way": arm.spec.way,
                "name": arm.spec.name,
                "network": None if arm.network is None else arm.network.described,
                "codec": None if arm.codec is None else arm.codec.described,
                **measured,
                **counted[id(arm), largest],
                "timing": timings.get((id(source), id(arm))),
            }
            for arm, measured in made
        ]

    untrained = [arm for arm in arms if not arm.trained]
    if untrained:
        yield rows([(arm, _UNTRAINED) for arm in untrained], 0, None)
    for number, (source, sharing) in enumerate(found, 1):
        tally = _Tally(source, sharing, data)
        spec = sharing[0].spec
        level = "" if source.level is None else f" {source.level:g}"
        for place in progress(places, f"{number}/{len(found)} {spec.way} {spec.name}{level}"):
            frame, truth = data.read(place)
            sizes.add(frame.shape[:2])
            tally.add(frame, truth)
        yield rows([(arm, tally.row(index)) for index, arm in enumerate(sharing)], tally.frames, source)


def _timings(
    found: Sequence[tuple[Source, list[Arm]]],
    data: Data,
    places: Sequence[int],
    levels: Mapping[str, Sequence[float]],
    threads: int,
    bundles: Sequence[Bundle],
    note: Callable[[str], None],
) -> dict[tuple[int, int], dict[str, Any]]:
    """The time of the first arm of each series, at the step nearest to 1 or the quality in the middle."""
    from .frontier_timing import time_arms

    chosen: dict[tuple[str, str], tuple[Source, Arm]] = {}
    for source, arms in found:
        for arm in arms:
            key = (arm.spec.way, arm.spec.name)
            if arm.network is None or (key in chosen and chosen[key][1] is not arm):
                continue
            if key not in chosen or source.level == _middle(arm, levels):
                chosen[key] = (source, arm)
    frames = [data.read(place)[0] for place in places]
    frames = [frame for frame in frames if frame.shape == frames[0].shape]
    timed = time_arms(list(chosen.values()), frames, threads=threads, bundles=bundles, note=note) if chosen else []
    return {(id(source), id(arm)): row for (source, arm), row in zip(chosen.values(), timed, strict=True)}


def _middle(arm: Arm, levels: Mapping[str, Sequence[float]]) -> float | None:
    if arm.codec is not None:
        steps = levels["codec"] if fixed_step(arm.codec.net) else (1.0,)
        return min(steps, key=lambda step: abs(math.log(step)))
    qualities = levels.get(arm.spec.way)
    return None if qualities is None else sorted(qualities)[len(qualities) // 2]


def load_data(root: Path, layout: str, split: str) -> Data:
    """A labelled split. Raises as `training.data.labelled`."""
    from ..engine.sources.images import read_image
    from ..training.data import labelled, read_label

    classes, pairs = labelled(layout, root, split)
    return Data(
        data_name(root, split), "segmentation", classes.names, len(pairs),
        lambda index: (read_image(pairs[index].image), read_label(pairs[index].label, classes)),
    )  # fmt: skip


def portable(argv: Sequence[str], benchmark: str = "frontier") -> str:
    """The command line as rows have it: of paths that lead out of the working folder the last part alone."""
    words = [re.sub(r"(^|[=,])(?:~|\.\.)?/(?:[^/,=]*/)*", r"\1", word) for word in argv]
    shown = [f"'{word}'" if re.search(r"\s", word) else word for word in words]
    return " ".join([f"python -m latentseg.benchmarks.{benchmark}", *shown])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.frontier", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--arm", action="append", required=True, metavar="WAY:NAME=RUN[,CODEC]", help="may be given again; see above"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="root of the data set")
    parser.add_argument("--layout", default="camvid", help="camvid, cityscapes or voc (default: %(default)s)")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    shown = {what: " ".join(f"{level:g}" for level in levels) for what, levels in LEVELS.items()}
    parser.add_argument(
        "--steps", type=float, nargs="+", default=LEVELS["codec"], metavar="S",
        help=f"of codecs whose step can be chosen (default: {shown['codec']})",
    )  # fmt: skip
    for what in ("jpeg", "webp", "avif"):
        name = "--qualities" if what == "jpeg" else f"--{what}-qualities"
        parser.add_argument(
            name, type=int, nargs="+", default=LEVELS[what], metavar="Q", dest=what,
            help=f"of {what} (default: {shown[what]})",
        )  # fmt: skip
    parser.add_argument(
        "--coder", choices=LONE_CODERS, default=DEFAULT_CODER, help="of the codecs' streams (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="N frames, evenly spaced (default: all)")
    parser.add_argument(
        "--timing", type=int, default=0, metavar="N",
        help="time each series on N frames, at the step nearest to 1 or the quality in the middle (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--bundle", action="append", default=[], help="time through ONNX Runtime what this bundle has, else torch"
    )
    parser.add_argument("--threads", type=int, help="threads of the networks (default: all cores)")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="mIoU over bpp, and over multiply-accumulates")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    return report.exit_code("frontier", lambda: _run(args, words))


def _check(args: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("threads", 1), ("timing", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}, expected at least {least}", hint=f"leave --{name} out for the default")
    for step in args.steps:
        if not 0 < step < math.inf:
            raise UsageError(f"--steps {step}, expected finite numbers above 0")
    for name, lowest in (("jpeg", 1), ("webp", 0), ("avif", 0)):
        for quality in getattr(args, name):
            if not lowest <= quality <= 100:
                raise UsageError(f"quality {quality} of {name}, expected {lowest} to 100")
    if args.bundle and not args.timing:
        raise UsageError("--bundle without --timing", hint="a bundle is timed, not scored: add --timing N")
    for path in filter(None, (args.record, args.plot)):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: no such folder", hint=f"mkdir -p {path.parent}")
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file", hint="name a file in it")


def _load(args: argparse.Namespace, data: Data) -> list[Arm]:
    """The arms of the command line. Raises UsageError where those of one series are the same, or other networks."""
    loader = Loader(len(data.classes))
    series: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    arms = []
    for text in args.arm:
        arm = loader.arm(parse_arm(text))
        described = [None if part is None else part.described for part in (arm.network, arm.codec)]
        key = tuple(part and (part["name"], part["id"]) for part in described)
        seeds = series.setdefault((arm.spec.way, arm.spec.name), [])
        if key in seeds:
            raise UsageError(f"--arm {text}: the same networks twice in one series", hint="give each seed once")
        seeds.append(key)
        names, expected = (" and ".join(part[0] for part in parts if part) for parts in (key, seeds[0]))
        if names != expected:
            raise UsageError(
                f"--arm {text}: {names}, expected {expected} as of the first arm of this way and name",
                hint="give it another NAME: arms of one way and name are seeds of one network",
            )
        arms.append(arm)
    return arms


def _run(args: argparse.Namespace, words: Sequence[str]) -> None:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "train") from None
    from tqdm import tqdm

    from ..engine import load_bundle

    _check(args)
    threads = usable_cores() if args.threads is None else args.threads
    torch.set_num_threads(threads)
    # All networks before any is measured: a mistake shows at once, not after minutes.
    data = load_data(args.data, args.layout, args.split)
    arms = _load(args, data)
    bundles = [load_bundle(spec) for spec in args.bundle]

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    for arm in arms:
        for text in notes(arm):
            note(text)
    origin = {
        **describe_origin("frontier", SCHEMA),
        "threads": threads,
        "command": portable(words),
    }
    levels = {"codec": args.steps, **{name: getattr(args, name) for name in ("jpeg", "webp", "avif")}}
    found = run(
        arms, data, {name: tuple(dict.fromkeys(map(float, values))) for name, values in levels.items()},
        coder=args.coder, limit=args.limit, timed=args.timing, threads=threads, bundles=bundles, origin=origin,
        progress=lambda places, text: tqdm(places, desc=text, unit="frame", delay=1.0), note=note,
    )  # fmt: skip
    rows = report.gather(found, args.record, frontier_report.parts)
    if args.plot is not None:
        frontier_plot.plot_frontier(rows, args.plot)


def notes(arm: Arm) -> Iterator[str]:
    """What a reader should know of an arm before it is measured."""
    what = f"{arm.spec.way} {arm.spec.name}"
    if not arm.trained:
        yield f"{what}: {arm.spec.run} is not trained: costs alone"
        return
    if arm.spec.way == "decoded" and arm.network is not None and arm.codec is not None:
        learned = arm.network.described["input"]
        if learned["kind"] == "decoded" and learned["codec"] != arm.codec.id:
            yield f"{what}: the network learned from frames that another codec decoded ({learned['codec'][:16]})"


if __name__ == "__main__":
    sys.exit(main())
