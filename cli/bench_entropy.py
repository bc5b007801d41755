"""Measure the entropy coders on symbols: bytes, encoding, and decoding into a float32 latent.

FILE is an .npy of uint8 symbols (C, h, w), or an .lseg stream, whose first key frame is taken with
the stream's bits and its tile or lanes. All arms have the same symbols, run in this process in
turn, round by round, and decode into the same buffer, int2float included; each is checked first
to give the symbols back.

  context            this package's default coder, the smallest of frames that stand alone
  huffman-channel    canonical Huffman codes, one a channel
  huffman-frame      the paper's coder: one Huffman code a frame
  zstd -1            the package zstandard, on the symbols as bytes
  zlib -1, zlib -9   Python's own
  constriction       the package of that name: ANS, one histogram a channel
  constriction diff  the same, of differences to neighbours in each channel where they take less

With --threads 1,2 the package's own coders decode once with each number; column x says by how
much faster than with the first. All else takes one thread.

JSON keys: benchmark schema date machine versions file shape bits coder, and of its arm
implementation tile lane_symbols threads zlib zstandard zstd constriction model symbols bytes
bits_per_symbol encode_msymbols_s (null: as with the first number of threads) decode_msymbols_s;
where a package is missing: not_installed (what to type)

examples:
  latentseg bench entropy latent.npy
  latentseg bench entropy clip.lseg --threads 1,2,4 --record entropy.jsonl
"""

from __future__ import annotations

import argparse
import sys
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from . import _common
from .bench import sizes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..benchmarks.entropy_arms import Setup
    from ..bitstream import Damage, StreamHeader

HELP = "measure the entropy coders beside zstd, zlib and constriction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help=".npy of uint8 symbols (C, h, w), .lseg, or '-' for stdin"
    )
    parser.add_argument(
        "--threads",
        type=sizes,
        default=[1],
        metavar="N,M",
        help="decode with each of these numbers of threads (default: 1)",
    )
    parser.add_argument(
        "--tile",
        type=_common.positive,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="lanes of the context coder (default: the stream's, else 14 32)",
    )
    parser.add_argument(
        "--lane-symbols",
        type=_common.positive,
        metavar="N",
        help="lanes of Huffman codes (default: the stream's, else 4096)",
    )
    parser.add_argument(
        "--repeats",
        type=_common.positive,
        default=100,
        metavar="N",
        help="rounds at most (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="of each arm and way at most, but for three repeats (default: %(default)s)",
    )
    parser.add_argument(
        "--implementation",
        choices=("auto", "native", "numpy"),
        default="auto",
        help="of the package's own coders (default: native where it was built)",
    )
    parser.add_argument("--record", metavar="FILE.jsonl", help="append the rows to this file")
    parser.add_argument("--json", action="store_true", help="the rows as JSON Lines on stdout instead of tables")
    parser.set_defaults(coder="context")  # whose tile it is


def run(args: argparse.Namespace) -> int:
    """Measure every file, print and record; returns the exit code."""
    if args.record is not None:
        _common.check_output(args.record, overwrite=True)  # rows are appended, never replaced
    _check_lanes(args)
    from ..benchmarks import entropy, report

    damages: list[Damage] = []
    work = [(path, *_load(path, args, damages)) for path in args.files]
    about = entropy.about()
    for number, (path, q, setup) in enumerate(work):
        with _common.progress(args, unit="round") as progress:
            measured = entropy.measure(q, setup, progress)
        name = {"file": Path(path).name, "shape": list(q.shape), "bits": setup.bits}
        rows = [{**name, **row, **about} for row in measured]
        if args.json:
            for row in rows:
                _common.emit(row)
        else:
            sys.stdout.write("\n" * (number > 0) + entropy.text(rows))
        if args.record is not None:
            for row in rows:
                report.append_row(Path(args.record), row)
    _common.raise_if_damaged(len(damages), sum(damage.lost for damage in damages))
    return 0


def _check_lanes(args: argparse.Namespace) -> None:
    """Raises UsageError for lanes that no stream can have."""
    from ..bitstream.header import MAX_LANE_SYMBOLS, MIN_LANE_SYMBOLS

    _common.tile(args)
    if args.lane_symbols is not None and not MIN_LANE_SYMBOLS <= args.lane_symbols <= MAX_LANE_SYMBOLS:
        raise UsageError(f"--lane-symbols {args.lane_symbols}: expected {MIN_LANE_SYMBOLS} to {MAX_LANE_SYMBOLS}")


def _load(path: str, args: argparse.Namespace, damages: list[Damage]) -> tuple[NDArray[np.uint8], Setup]:
    """The symbols of a file, uint8 (C, h, w), and how to measure them."""
    from ..benchmarks.entropy_arms import Setup
    from ..bitstream.header import DEFAULT_TILE, TILED_CODERS

    bits, tile, lane_symbols = 8, DEFAULT_TILE, 4096
    with _common.open_input(path) as file:
        if path.lower().endswith(".npy") or file.peek(16).startswith(b"\x93NUMPY"):
            q = _one_latent(file, path)
        else:
            q, header = _first_frame(file, path, args, damages)
            bits = header.bits
            if header.coder in TILED_CODERS:
                tile = header.tile
            else:
                lane_symbols = header.lane_symbols
    return q, Setup(
        bits=bits,
        tile=tuple(args.tile or tile),
        lane_symbols=args.lane_symbols or lane_symbols,
        implementation=args.implementation,
        threads=tuple(dict.fromkeys(args.threads)),
        repeats=args.repeats,
        seconds=args.seconds,
    )


def _one_latent(file: BufferedReader, name: str) -> NDArray[np.uint8]:
    import numpy as np

    from ._npy import read_latents

    latents = read_latents(file, name)
    q = next(latents)
    if q.dtype != np.uint8:
        raise InputError(f"{name} holds {q.dtype}, expected symbols as uint8", hint="q.astype(numpy.uint8)")
    if next(latents, None) is not None:
        raise InputError(f"{name} holds several latents, expected one (C, h, w)", hint="save one of them: stack[0]")
    return np.ascontiguousarray(q)


def _first_frame(
    file: BufferedReader, name: str, args: argparse.Namespace, damages: list[Damage]
) -> tuple[NDArray[np.uint8], StreamHeader]:
    from ..bitstream import Reader
    from ..kernels.entropy import decode_symbols
    from ..kernels.frames import is_key

    reader = Reader(file, on_damage=_common.damage_reporter(args))
    frame = next((frame for frame in reader if is_key(frame.payload, reader.header)), None)
    damages += reader.damages
    if frame is None:
        raise InputError(f"{name} has no frame that can be read")
    return decode_symbols(frame.payload, reader.header), reader.header
