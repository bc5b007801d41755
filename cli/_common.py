"""What the verbs share: groups of options, output checks, JSON Lines, progress and sizes for people."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from ..errors import InputError, OutputError, PartialResultError, UsageError

if TYPE_CHECKING:
    from ..bitstream import Damage
    from ..engine.placement import Placement

T = TypeVar("T")
LONE_CODERS = ("context", "huffman-channel", "huffman-frame")  # bitstream.header has them too, but needs NumPy
CODERS = ("context", "inter", "huffman-channel", "huffman-frame")
DEFAULT_BUNDLE = "camvid-compact"
_MOST = (1 << 31) - 1  # what counts, sizes and threads can be in every library that is handed one


# --- groups of options ------------------------------------------------------------------------------------------------


def add_messages(parser: argparse.ArgumentParser) -> None:
    """What every verb has: `--quiet` and `--debug` (main() reads the latter out of argv, to have it early)."""
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument("--debug", action="store_true", help="show a traceback with an error")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """`--bundle`: a name or a directory."""
    parser.add_argument(
        "--bundle",
        default=DEFAULT_BUNDLE,
        metavar="NAME|DIR",
        help="the networks: a bundle's name (see latentseg bundles) or its directory (default: %(default)s)",
    )


def add_step(parser: argparse.ArgumentParser, more: str = "") -> None:
    """`--step`; the default is None, which means 1. more: what else is to be said of it."""
    parser.add_argument(
        "--step", type=step, metavar="S",
        help="quantisation step, in units of the codec's own: a larger one costs fewer bits and more distortion "
        f"(default: 1{more})",
    )  # fmt: skip


def add_key_interval(parser: argparse.ArgumentParser, default: int | None, more: str) -> None:
    """`--key-interval`. more: what it is by default."""
    parser.add_argument(
        "--key-interval", type=count, default=default, metavar="N",
        help="a key frame, which stands alone, at least every N frames; the others refer to the frame before; 0: only "
        f"the first one is ({more})",
    )  # fmt: skip


def add_backend(parser: argparse.ArgumentParser, precision: bool = True) -> None:
    """`--backend`, `--provider`, `--threads` and, for verbs that make labels, `--precision`: a Placement."""
    parser.add_argument(
        "--backend", default="onnxruntime", metavar="NAME",
        help="what runs the networks: onnxruntime, torch or tensorrt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--provider", metavar="NAME",
        help="what the backend runs on: cpu or cuda (default: cpu with onnxruntime, else cuda)",
    )  # fmt: skip
    if precision:
        parser.add_argument(
            "--precision", default="fp32", metavar="NAME",
            help="of the segmenters: fp32, fp16 or int8, as far as the bundle has them (default: %(default)s)",
        )  # fmt: skip
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of the networks; the coder takes one (default: all cores)",
    )


def placement(args: argparse.Namespace) -> Placement:
    """What `add_backend`'s options say. Raises UsageError for an unknown name."""
    from ..engine.placement import Placement

    return Placement(args.backend, args.threads, args.provider, getattr(args, "precision", "fp32"))


def tile(args: argparse.Namespace) -> tuple[int, int]:
    """`--tile`, or (0, 0) for the coder's own. Raises UsageError for a coder that has none, or no size of a tile."""
    if args.tile is None:
        return 0, 0
    from ..bitstream.header import MAX_LANE_SYMBOLS, MIN_LANE_SYMBOLS, TILED_CODERS, is_tile

    if args.coder not in TILED_CODERS:
        raise UsageError(
            f"--tile with --coder {args.coder}", hint=f"tiles belong to --coder {' and '.join(TILED_CODERS)}"
        )

    rows, columns = args.tile
    if not is_tile(rows, columns):
        raise UsageError(
            f"--tile {rows} {columns}: expected sides up to 65535, and {MIN_LANE_SYMBOLS} to {MAX_LANE_SYMBOLS} symbols"
        )
    return rows, columns


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """`--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")


def add_json(parser: argparse.ArgumentParser, what: str = "the summary") -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help=f"{what} as one JSON line on stdout")


def add_kind(parser: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
    """`--kind`."""
    parser.add_argument("--kind", choices=kinds, help="what the source is, where it is guessed wrong from its content")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """`--limit`."""
    parser.add_argument("--limit", type=positive, metavar="N", help="stop after N frames")


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    if value > _MOST:
        raise argparse.ArgumentTypeError(f"expected an integer of at most {_MOST}, found {text!r}")
    return value


def count(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    if not text.isdecimal() or int(text) > _MOST:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, at most {_MOST}, found {text!r}")
    return int(text)


def step(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def stdout_taken(*outputs: str | None) -> bool:
    """Whether one of the outputs is `-`, so that stdout is not free for a summary."""
    return "-" in outputs


def require_free_stdout(want_json: bool, *outputs: str | None) -> None:
    """`--json` and `-o -` exclude each other."""
    if want_json and stdout_taken(*outputs):
        raise UsageError(
            "--json and an output of '-' both want stdout", hint="write the output to a file, or drop --json"
        )


def check_output(path: str | None, overwrite: bool, folder: bool = False) -> None:
    """Refuse an output that exists (a file, or a folder with something in it), unless `overwrite`; touches nothing.

    For before the slow part of the work. `-`, and what only looks like a file (/dev/full, a FIFO), always pass. A file
    (not `folder`) needs the folder that it goes to.
    """
    if path is None or path == "-":
        return
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not folder and not target.absolute().parent.is_dir():
            raise UsageError(
                f"the folder of the output does not exist: {target.parent}", hint=f"mkdir -p {target.parent}"
            ) from None
        return
    except NotADirectoryError:
        raise UsageError(f"the output lies below something that is not a folder: {path}") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if folder and stat.S_ISREG(mode):
        raise UsageError(f"the output is a file, expected a folder: {path}")
    taken = stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and any(target.iterdir()))
    if taken and not overwrite:
        raise UsageError(f"the output exists: {path}", hint="choose another name, or add --overwrite")
    if not folder and stat.S_ISDIR(mode):
        raise UsageError(f"the output is a folder, expected a file: {path}")


def binary_stdout() -> BinaryIO:
    """stdout for bytes; a terminal is refused, since it would only garble."""
    if sys.stdout.isatty():
        raise UsageError(
            "this would write binary data to the terminal", hint="give -o FILE, or pipe into another program"
        )
    return sys.stdout.buffer


@contextmanager
def open_input(path: str) -> Iterator[BufferedReader]:
    """A file or `-` (stdin) for reading bytes; a missing or unreadable file is an InputError."""
    if path == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed, expected something on it", hint="pipe something in, or name a file")
        if sys.stdin.isatty():
            raise UsageError(
                "the input is '-' (stdin), but stdin is a terminal", hint="pipe something in, or name a file"
            )
        yield cast("BufferedReader", sys.stdin.buffer)
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - the error of opening is told apart from those of reading
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def open_output_atomic(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it was written; `-` and devices are written directly.

    For outputs that are worthless in part. A failure removes the temporary file and leaves an older one as it was.
    """
    check_output(path, overwrite)
    if path == "-":
        yield binary_stdout()
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part_file: BinaryIO = open(part, "w+b")  # noqa: SIM115 - its error is told apart from those of the work inside
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with part_file:
            yield part_file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


# --- for machines (stdout) and for people (stderr) --------------------------------------------------------------------


def emit(record: dict[str, Any]) -> None:
    """One JSON line on stdout, delivered at once, so that a pipe's reader is never a buffer behind."""
    sys.stdout.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    sys.stdout.flush()


def note(args: argparse.Namespace, message: str) -> None:
    """One line for people on stderr, unless `--quiet`."""
    if not args.quiet:
        sys.stderr.write(f"{message}\n")


def track(
    items: Iterable[T], args: argparse.Namespace, *, total: int | None = None, unit: str = "frame"
) -> Iterable[T]:
    """`items`, with a progress bar on stderr once the work has lasted a second, on a terminal, without `--quiet`."""
    if args.quiet or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, total=total, unit=unit, delay=1.0, file=sys.stderr, leave=False)
    return bar


def damage_reporter(args: argparse.Namespace) -> Callable[[Damage], None]:
    """What a Reader is to call for each damage: one line on stderr."""
    return lambda damage: note(args, f"damage at byte {damage.offset}: {damage.reason}")


def raise_if_damaged(damages: int, lost: int) -> None:
    """End with exit code 7 when a stream was damaged, after everything that could be saved has been written."""
    if damages:
        what = f"{lost} frame(s) lost" if lost else "no frame lost"
        raise PartialResultError(f"the stream is damaged in {damages} place(s), {what}; everything else was written")


@contextmanager
def progress(args: argparse.Namespace, unit: str = "frame") -> Iterator[Callable[[int, int | None], None]]:
    """The same bar for work that reports how far it is: call what this yields with (done, total or None)."""
    if args.quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(unit=unit, delay=1.0, file=sys.stderr, leave=False) as bar:

        def update(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def note_damages(args: argparse.Namespace, damages: Sequence[Damage], most: int = 10) -> None:
    """The first damages of a source, one line each on stderr."""
    for damage in damages[:most]:
        place = f" at byte {damage.offset}" if damage.offset >= 0 else ""
        note(args, f"damage{place}: {damage.reason}")
    if len(damages) > most:
        note(args, f"and {len(damages) - most} more")


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest cell."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in listed)
