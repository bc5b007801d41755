"""What it gains not to decode, in multiply-accumulates: bundles scored three ways on one labelled data set.

    python -m latentseg.benchmarks.gains camvid-compact bundles/* --data CAMVID --layout camvid --split val \\
        --record benchmarks/results/gains.jsonl

For each bundle: its RGB network on the original frames (rgb-original), the same network on frames that the bundle's
codec encoded to bytes and decoded again (rgb-decoded), and its network of latents on the same bytes (latent). Every
number comes through the engine, one frame at a time: mIoU at the labels' full resolution, or top-1 and top-5; bits a
pixel of the real bytes with their framing; MACs and parameters of the network alone and with the decoder before it.
The times are of the first frames, the ways in turn, from bytes in memory (original frames: from pixels).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.backends.base import usable_cores
from ..engine.placement import Placement
from ..errors import ArtifactError, UsageError
from ..kernels.dispatch import native_available
from . import gains_report, report
from .arms import Answers, Arm, Compressed, LearnedDecode, answers, roles_of
from .classification import ClassScores, spread
from .costs import frame_macs
from .gains_data import Data, Frames, load_data
from .machine import describe_origin
from .measure import CLASSIFYING_STAGES, STAGES, StageClock, measure
from .sender import send_codec

if TYPE_CHECKING:
    from ..engine.bundle import Bundle
    from .arms import Rgb

Frame = NDArray[np.uint8]
SCHEMA = 1
RGB_BITS = 24
GROUP = 64  # frames of one size that are in memory at once


class Original(Arm):
    """Frames as they were, in memory -> RGB network: what there is to lose."""

    name = "rgb-original"
    description = "original frames, RGB segmenter"
    roles = ("rgb_segmenter",)

    def __init__(self, rgb: Rgb, frames: Sequence[Frame]) -> None:
        super().__init__([frame.nbytes for frame in frames], {})
        self._rgb, self._frames = rgb, frames

    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        return answers(self._rgb, clock, np.stack(self._frames[first:last]))


WAYS: dict[str, type[Arm]] = {"rgb-original": Original, "rgb-decoded": LearnedDecode, "latent": Compressed}


class Ways:
    """A bundle's networks, open, and the ways that it has. A context manager.

    `left_out` has the reason of each way that the bundle lacks a network for.
    """

    def __init__(self, bundle: Bundle, placement: Placement) -> None:
        from ..engine.roles import Classifier, Compressor, Decompressor, RgbClassifier, RgbSegmenter, Segmenter

        self.bundle, self._stack = bundle, ExitStack()
        needs = {way: roles_of(kind, bundle.classifies) for way, kind in WAYS.items()}
        missing = {way: [role for role in roles if role not in bundle.roles] for way, roles in needs.items()}
        self.left_out = {way: f"the bundle has no {' and no '.join(roles)}" for way, roles in missing.items() if roles}
        self.roles = {way: roles for way, roles in needs.items() if way not in self.left_out}
        if not self.roles:
            raise ArtifactError(
                f"bundle '{bundle.name}' has only {', '.join(bundle.roles)}, expected a segmenter or a classifier",
                hint="give a bundle with one: latentseg inspect shows what is in one",
            )
        self.stages = CLASSIFYING_STAGES if bundle.classifies else STAGES
        wanted = {Compressor.role, *(role for roles in self.roles.values() for role in roles)}
        self._networks: dict[str, Any] = {}
        try:
            for kind in (Compressor, Decompressor, Segmenter, RgbSegmenter, Classifier, RgbClassifier):
                if kind.role in wanted:
                    self._networks[kind.role] = self._stack.enter_context(kind(bundle, placement))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def provider(self) -> str:
        """Where the networks run, as a row says it."""
        found: str = self._networks["compressor"].backend.provider
        return found

    def arms(self, frames: Sequence[Frame]) -> dict[str, Arm]:
        """An arm a way over frames of one size, encoded here and now."""
        header = self.bundle.header(*frames[0].shape[:2])
        sent = send_codec(self._networks["compressor"], header, frames)
        arms: dict[str, Arm] = {}
        for way, roles in self.roles.items():
            network = self._networks[roles[-1]]
            if way == Original.name:
                arms[way] = Original(network, frames)
            elif len(roles) > 1:
                arms[way] = LearnedDecode(self._networks["decompressor"], network, header, sent)
            else:
                arms[way] = Compressed(network, header, sent)
        return arms

    def macs(self, way: str, size: tuple[int, int]) -> tuple[float, float]:
        """MACs a frame of `size` of a way's network, and of the decoder before it."""
        *before, last = self.roles[way]
        return frame_macs(self.bundle, (last,), size), frame_macs(self.bundle, before, size)

    def sheet_bpp(self, frames: Sequence[Frame]) -> float:
        """Bits a pixel of images of one size laid side by side, where framing costs next to nothing: the mean over
        training's sheets, as `eval classifier` has it."""
        from ..bitstream import Writer
        from ..training.evaluate import sheets
        from ..training.metrics import bpp

        rates = []
        for sheet in sheets(frames):
            header = self.bundle.header(*sheet.shape[:2])
            (payload,) = self._networks["compressor"].encode(sheet[None], header)
            rates.append(bpp(Writer(io.BytesIO(), header).write(payload), sheet.shape[0] * sheet.shape[1]))
        return float(np.mean(rates))


class _Tally:
    """What is summed up of one way over all frames."""

    def __init__(self, data: Data) -> None:
        from ..training.data import IGNORE
        from ..training.metrics import ConfusionMatrix

        self.frames, self.bytes, self.bpp, self.network, self.decoder = 0, 0, 0.0, 0.0, 0.0
        self._classes = data.classes
        self._kinds: list[int] | None = [] if data.task == "classification" else None
        self._matrix = ConfusionMatrix(len(data.classes), ignore=IGNORE)
        self._top = ClassScores(self._kinds, None)

    def add(self, truth: Any, answer: Answers) -> None:
        """The answer to one frame: labels like `truth`, or probabilities of which `truth` is the right one."""
        if self._kinds is None:
            self._matrix.update(truth, answer)
        else:
            self._kinds.append(int(truth))
            self._top.add(len(self._kinds) - 1, answer)

    def quality(self) -> dict[str, Any]:
        return self._top.quality() or self._matrix.to_dict(self._classes)

    def count(self, sizes: Sequence[int], pixels: int, macs: tuple[float, float]) -> None:
        """Rate and cost of frames of one size."""
        self.frames += len(sizes)
        self.bytes += sum(sizes)
        self.bpp += sum(8 * size / pixels for size in sizes)
        self.network += macs[0] * len(sizes)
        self.decoder += macs[1] * len(sizes)


def measure_bundle(
    ways: Ways,
    data: Data,
    places: Sequence[int],
    *,
    rounds: int = 3,
    timed: int = 32,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """A row a way, in the order of WAYS: quality over the samples at `places`, rate, cost and time.

    rounds: passes over the frames that are timed, the ways in turn. timed: how many those are at most; the first ones.
    """
    bundle = ways.bundle
    tallies = {way: _Tally(data) for way in ways.roles}
    sizes: set[tuple[int, int]] = set()
    timings: dict[str, dict[str, Any]] = {}
    for frames, truths in _groups(data, progress(places)):
        height, width = frames[0].shape[:2]
        sizes.add((height, width))
        arms = ways.arms(frames)
        if not timings:
            count = min(timed, len(frames))
            found = measure(arms, count, batch=1, rounds=rounds, warmup=2, seed=0, stages=ways.stages)
            timings = {way: timing.summary() for way, timing in found.items()}
        for way, arm in arms.items():
            tallies[way].count(arm.sizes, height * width, ways.macs(way, (height, width)))
            for index, truth in enumerate(truths):
                tallies[way].add(truth, arm.run(index, index + 1, StageClock(ways.stages))[0])
    sheet_bpp = ways.sheet_bpp(Frames(data, places)) if bundle.classifies else None
    rows = []
    for way, tally in tallies.items():
        parameters = [bundle.parameters(role) for role in ways.roles[way]]
        rows.append(
            {
                "way": way,
                "network": _network_name(bundle, ways.roles[way][-1]),
                "images": tally.frames,
                "frame_size": list(min(sizes)) if len(sizes) == 1 else None,
                "quality": tally.quality(),
                "bytes_per_frame": tally.bytes / tally.frames,
                "bpp": tally.bpp / tally.frames,
                "sheet_bpp": None if way == Original.name else sheet_bpp,
                "macs_per_frame": tally.network / tally.frames,
                "macs_with_decoder": (tally.network + tally.decoder) / tally.frames,
                "parameters": parameters[-1],
                "parameters_with_decoder": sum(parameters),
                "timing": timings[way],
            }
        )
    return rows


def _groups(data: Data, places: Iterable[int]) -> Iterator[tuple[list[Frame], list[Any]]]:
    """The samples in runs of one size, GROUP at most."""
    frames: list[Frame] = []
    truths: list[Any] = []
    for place in places:
        frame, truth = data.read(place)
        if frames and (len(frames) == GROUP or frame.shape != frames[0].shape):
            yield frames, truths
            frames, truths = [], []
        frames.append(frame)
        truths.append(truth)
    yield frames, truths


def _network_name(bundle: Bundle, role: str) -> str | None:
    """What the manifest notes of a role's training; free-form, so that it may be anything."""
    noted = bundle.manifest.get("training", {}).get(role)
    name = noted.get("network") if isinstance(noted, dict) else None
    return name if isinstance(name, str) else None


def run(
    measured: Sequence[tuple[Bundle, Data]],
    placement: Placement,
    *,
    limit: int | None = None,
    rounds: int = 3,
    timed: int = 32,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each bundle on its data, a bundle at a time. limit: samples, evenly spaced; None: all.

    note: called with what a reader should know, such as a way that a bundle has no network for.
    """
    for bundle, data in measured:
        origin = {
            **describe_origin("gains", SCHEMA),
            "data": data.name,
            "task": data.task,
            "bundle": {"name": bundle.name, "codec": bundle.codec.name, "codec_id": bundle.codec.id.hex()},
        }
        with Ways(bundle, placement) as ways:
            for way, reason in ways.left_out.items():
                note(f"{bundle.name}: {way} left out: {reason}")
            configuration = {
                "threads": placement.threads,
                "backend": placement.backend,
                "provider": ways.provider,
                "coder": "native" if native_available() else "numpy",
                "time": "from bytes in memory (rgb-original: from frames) to labels or class probabilities, batch 1",
            }
            places = spread(data.total, limit)
            rows = measure_bundle(ways, data, places, rounds=rounds, timed=timed, progress=progress)
        yield [{**origin, "configuration": configuration, **row} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gains", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="a shipped bundle's name, or a bundle's folder")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="root of the data set")
    parser.add_argument("--layout", required=True, help="camvid, cityscapes or voc; imagefolder or idx")
    parser.add_argument("--split", help="default: val, of idx test")
    parser.add_argument("--size", type=int, metavar="SIDE", help="of classified images (default: of the training)")
    parser.add_argument("--limit", type=int, metavar="N", help="score N samples, evenly spaced (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of every way (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=32, metavar="N", help="frames timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the networks (default: all cores)")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    args = parser.parse_args(argv)
    return report.exit_code("gains", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..engine import load_bundle

    for name in ("size", "limit", "rounds", "timed", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(
                f"--{name} {getattr(args, name)}, expected at least 1", hint=f"leave --{name} out for the default"
            )
    if args.record is not None and not args.record.parent.is_dir():
        raise UsageError(f"--record {args.record}: no such folder", hint=f"mkdir -p {args.record.parent}")
    if args.record is not None and args.record.is_dir():
        raise UsageError(f"--record {args.record} is a folder, expected a file", hint="name a file in it")
    placement = Placement(threads=usable_cores() if args.threads is None else args.threads)
    # All of them before any is measured: a mistake shows at once, not after minutes.
    bundles = [load_bundle(spec) for spec in args.bundles]
    _check_names([bundle.name for bundle in bundles])
    measured = [(bundle, load_data(bundle, args.data, args.layout, args.split, args.size)) for bundle in bundles]
    found = run(
        measured, placement, limit=args.limit, rounds=args.rounds, timed=args.timed,
        progress=lambda places: tqdm(places, unit="frame", delay=1.0),
        note=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    report.gather(found, args.record, gains_report.parts)


def _check_names(names: Sequence[str]) -> None:
    """Raise UsageError where two bundles have one name: their rows could not be told apart."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{names.count(twice)} of the bundles are named '{twice}', expected a name for each",
            hint="give each once; name one anew with: latentseg export --name NAME",
        )


if __name__ == "__main__":
    sys.exit(main())
