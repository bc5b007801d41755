"""What the trainings' command lines share: groups of options, presets, and the data of a classifier."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import Parser, _common

if TYPE_CHECKING:
    from ..training.image_sets import ImageSet
    from ..training.loop import LoopConfig


class PresetParser(Parser):
    """A parser whose `--config` stands for the flags in a preset; what is on the command line itself comes behind."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(args or ())
        specs = [b for a, b in pairwise(words) if a == "--config"]
        specs += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        if specs and "--config" in self.options():
            from ..training.presets import preset_words, read_preset

            spec = specs[-1]
            what, preset = self.prog.split()[-1], read_preset(spec)
            words = preset_words(preset, spec, what, self.options(), self.switches()) + words
        return super().parse_known_args(words, namespace)


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`."""
    parser.add_argument(
        "--config", metavar="NAME|FILE",
        help="a shipped preset, or a TOML file of flags and their values; flags given here come before it",
    )  # fmt: skip


def add_network(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """`--network` and its `--option`s."""
    parser.add_argument("--network", default=default, help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="KEY=VALUE",
        help="a number that the network lets one choose, such as width=64; may be given again",
    )  # fmt: skip


def _option(text: str) -> tuple[str, int | float]:
    key, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(f"expected KEY=NUMBER, found {text!r}")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What `--option` says; of a key given again, the last value. Raises UsageError for a number that does not fit."""
    from ..models import registry

    found = dict(args.option)
    known = registry.open_options(args.network)
    for key, value in found.items():
        if key == "classes":
            raise UsageError("--option classes: they are those of the data", hint="leave it out")
        kinds = (int, float) if isinstance(known.get(key), float) else int
        if key in known and not (isinstance(known[key], int | float) and isinstance(value, kinds)):
            raise UsageError(
                f"--option {key}={value}: '{args.network}' has {known[key]!r}",
                hint="numbers alone can be given, whole ones for whole ones",
            )
    return found


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Data of a segmenter."""
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="root of the data set")
    parser.add_argument("--layout", default="camvid", help="camvid, cityscapes or voc (default: %(default)s)")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--size", type=_common.positive, nargs=2, default=(360, 480), metavar=("H", "W"),
        help="canvas of the augmented views (default: 360 480)",
    )  # fmt: skip


def add_classified(parser: argparse.ArgumentParser, split: str) -> None:
    """`--layout`, `--split` and `--limit-per-class` of classified images."""
    parser.add_argument("--layout", help="imagefolder or idx (default: imagefolder)")
    parser.add_argument("--split", help=f"default: {split}")
    parser.add_argument(
        "--limit-per-class", type=_common.positive, metavar="N", help="the first N images of each class only"
    )


def add_codec_images(parser: argparse.ArgumentParser, split: str) -> None:
    """Where a codec's images come from: `--frames`, or `--data` and what goes with it; see `check_frames`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--frames", metavar="PATH", help="folder of images or videos, or a video file")
    source.add_argument(
        "--data", type=Path, metavar="DIR",
        help="root of a classified data set: its images, as they are or, with --size, their centres",
    )  # fmt: skip
    add_classified(parser, split)
    parser.add_argument("--size", type=_common.positive, metavar="SIDE", help="side of the images' centres")
    parser.add_argument("--every", type=_common.positive, metavar="N", help="take every n-th frame (default: 1)")


def classified(args: argparse.Namespace, split: str | None) -> ImageSet:
    """The image set that `--data`, `--layout`, `--split` and `--limit-per-class` say; split: where none is given."""
    from ..training.image_sets import image_set

    args.layout = args.layout or "imagefolder"
    return image_set(args.layout, args.data, args.split or split, limit_per_class=args.limit_per_class)


def check_frames(args: argparse.Namespace) -> None:
    """Raise UsageError for what `--frames` takes and was given beside `--data`, or the other way round."""
    source, other = ("frames", "data") if args.data is None else ("data", "frames")
    for name in ("layout", "split", "limit_per_class", "size") if source == "frames" else ("every",):
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} means nothing beside --{source}", hint=f"leave {flag} out, or give --{other}")


def add_views(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--area` and `--no-flip`: how a classifier's images are augmented."""
    parser.add_argument(
        "--area", type=float, nargs=2, metavar=("LO", "HI"),
        help="range of a random window's share of its image (default: 0.25 1, of idx 0.8 1)",
    )  # fmt: skip
    parser.add_argument("--no-flip", action="store_true", default=None, help="no mirrored views, as for digits")


def add_step_range(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--step-range`."""
    parser.add_argument(
        "--step-range", type=float, nargs=2, metavar=("LO", "HI"),
        help="learn for many rates: the codec's quantisation step is multiplied by the geometric mean of LO and HI in "
        "half of a batch, and by anything between them in the rest (default: 1 1)",
    )  # fmt: skip


def step_range(args: argparse.Namespace) -> tuple[float, float]:
    """What `--step-range` says."""
    lo, hi = args.step_range or (1.0, 1.0)
    return lo, hi


def add_loop(parser: argparse.ArgumentParser, lr: float, weight_decay: float, batch: int = 8) -> None:
    """What every training has."""
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--steps", required=True, type=_common.positive)
    parser.add_argument("--batch", type=_common.positive, default=batch, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=lr, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=weight_decay, help="default: %(default)s")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up (default: %(default)s)")
    parser.add_argument("--optimizer", default="adamw", help="adamw, or sgd with momentum 0.9 (default: %(default)s)")
    parser.add_argument(
        "--schedule", default="cosine", help="of the learning rate: cosine, step or poly (default: %(default)s)"
    )
    parser.add_argument(
        "--decay-at", type=float, nargs="*", default=(), metavar="SHARE",
        help="shares of the run at which --schedule step takes the learning rate to a tenth",
    )  # fmt: skip
    parser.add_argument(
        "--clip-norm", type=float, default=1.0, metavar="NORM", help="longest gradient (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--interval",
        type=_common.positive,
        default=200,
        metavar="N",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument("--threads", type=_common.positive, default=0, help="of the CPU (default: all cores)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="threads that make batches ahead (default: with a GPU up to 8, on the CPU none)",
    )  # fmt: skip
    # No exclusive group: what is given on the command line comes after a preset's, and must win over it.
    parser.add_argument(
        "--bf16", action="store_true", default=None, help="bfloat16 autocast (default: where the device has it)"
    )
    parser.add_argument("--fp32", dest="bf16", action="store_false", default=None, help="no bfloat16 autocast")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")


def loop_config(args: argparse.Namespace) -> LoopConfig:
    """What `add_loop`'s options say."""
    from ..training.device import check_device
    from ..training.loop import LoopConfig

    return LoopConfig(
        steps=args.steps, seed=args.seed, lr=args.lr, weight_decay=args.weight_decay, warmup=args.warmup,
        clip_norm=args.clip_norm, interval=args.interval, bf16=args.bf16, threads=args.threads,
        device=check_device(args.device), workers=args.workers,
        optimizer=args.optimizer, schedule=args.schedule, decay_at=tuple(args.decay_at),
    )  # fmt: skip


def refuse(args: argparse.Namespace, names: Sequence[str], network: str, kind: str) -> None:
    """Raise UsageError for flags that were given and mean nothing to a network of this kind."""
    for name in names:
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} means nothing to '{network}', a {kind}", hint=f"leave {flag} out")
