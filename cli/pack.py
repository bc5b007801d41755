"""Put integer latents of any codec into a .lseg stream, losslessly.

INPUT is an .npy array (C, h, w), or a stack (N, C, h, w), of any integer type with values in
[0, 2^BITS); '-' reads arrays from stdin, and several inputs of one shape become one stream.
Float latents are refused unless --quantize says how to make integers of them (float2int).

--coder inter codes latents against the one before, all but the first and those of --key-interval:
for frames of a video, in order.

With --centres the integers are indices into a codebook, which is recorded in the stream; bits are
then as few as hold them.

JSON keys: schema type frames latent_shape bits symbols bytes bits_per_symbol

examples:
  latentseg pack latent.npy -o latent.lseg
  latentseg pack frame0.npy frame1.npy --bits 6 -o clip.lseg
  producer | latentseg pack - -o - | consumer
  latentseg pack float.npy --quantize channel -o clip.lseg --json
  latentseg pack float.npy --quantize codebook --centres=-1.5,-0.5,0,0.5,1.5 -o clip.lseg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from . import _common

if TYPE_CHECKING:
    import numpy as np

    from ..bitstream import Scaling, StreamHeader

HELP = "put integer latents (.npy) of any codec into a .lseg stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=".npy files, or '-' for stdin")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.lseg", help="the stream, or '-' for stdout")
    parser.add_argument(
        "--bits", type=int, choices=range(1, 9), metavar="N", help="bit length n, 1 to 8 (default: 8, or by --centres)"
    )
    parser.add_argument(
        "--coder", choices=_common.CODERS, default=_common.CODERS[0], help="entropy coder (default: %(default)s)"
    )
    parser.add_argument(
        "--tile", type=_common.positive, nargs=2, metavar=("ROWS", "COLS"),
        help="a lane of the coders context and inter; larger: fewer bytes, less parallel (default: 14 32)",
    )  # fmt: skip
    _common.add_key_interval(parser, None, "default, and only with --coder inter: 0")
    parser.add_argument(
        "--quantize",
        choices=("tensor", "channel", "fixed", "codebook"),
        help="for floats: float2int over the range of each latent, of each of its channels, or --lo to --hi, or to "
        "the nearest of --centres",
    )
    parser.add_argument(
        "--lo", type=float, metavar="X", help="what symbol 0 stands for, recorded in the stream (default: 0)"
    )
    parser.add_argument("--hi", type=float, metavar="X", help="what symbol 2^n - 1 stands for (default: 2^n - 1)")
    parser.add_argument(
        "--centres", metavar="A,B", help="the codebook: ascending numbers (--centres=-1,0,2), or an .npy file of them"
    )
    _common.add_overwrite(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Pack every latent of every input into one stream; returns the exit code."""
    from ..bitstream import Writer
    from ..kernels.frames import FrameEncoder

    _common.require_free_stdout(args.json, args.output)
    if args.key_interval is not None and args.coder != "inter":
        raise UsageError(f"--key-interval with --coder {args.coder}", hint="key frames belong to --coder inter")
    scaling, bits = _scaling(args)
    latents = _latents(args)
    first_name, first = next(latents)
    header = _header(args, first, scaling, bits)
    encoder = FrameEncoder(header, (args.key_interval or 0) if args.coder == "inter" else 1)
    symbols = 0
    with _common.open_output_atomic(args.output, args.overwrite) as file:
        writer = Writer(file, header)
        for name, latent in _common.track(_chain((first_name, first), latents), args):
            if latent.shape != header.latent_shape:
                raise InputError(f"{name}: shape {latent.shape}, but the stream began with {header.latent_shape}")
            if args.quantize:
                try:
                    payload = encoder.encode_latent(_float32(latent))
                except InputError as error:
                    raise InputError(f"{name}: {error}", hint=error.hint) from error
            else:
                payload = encoder.encode_symbols(_symbols(latent, header, name))
            writer.write(payload)
            symbols += latent.size
        frames, size = writer.frames, writer.bytes_written
    record = {
        "schema": 1,
        "type": "pack",
        "frames": frames,
        "latent_shape": list(header.latent_shape),
        "bits": header.bits,
        "symbols": symbols,
        "bytes": size,
        "bits_per_symbol": 8 * size / symbols,
    }
    if args.json:
        _common.emit(record)
    _common.note(
        args,
        f"packed {frames} latent(s) of {'x'.join(map(str, header.latent_shape))}: {_common.human_bytes(size)}, "
        f"{8 * size / symbols:.2f} of {header.bits} bits/symbol",
    )
    return 0


def _scaling(args: argparse.Namespace) -> tuple[Scaling, int]:
    """The stream's scaling, and its bits."""
    from ..bitstream import Scaling

    if args.centres is not None or args.quantize == "codebook":
        return _codebook(args)
    bits = args.bits or 8
    if args.quantize in ("tensor", "channel"):
        if args.lo is not None or args.hi is not None:
            raise UsageError(
                f"--quantize {args.quantize} takes the range from the latents, but --lo or --hi is given",
                hint="use --quantize fixed --lo X --hi Y",
            )
        return Scaling(args.quantize), bits
    if args.quantize == "fixed" and (args.lo is None or args.hi is None):
        raise UsageError("--quantize fixed needs --lo and --hi")
    lo = 0.0 if args.lo is None else args.lo
    hi = float(2**bits - 1) if args.hi is None else args.hi
    if not lo < hi:
        raise UsageError(f"--lo must lie below --hi, found {lo:g} and {hi:g}")
    return Scaling("fixed", lo, hi), bits


def _codebook(args: argparse.Namespace) -> tuple[Scaling, int]:
    from ..bitstream import Scaling
    from ..bitstream.header import codebook_bits

    if args.centres is None:
        raise UsageError("--quantize codebook needs --centres")
    if args.quantize not in (None, "codebook"):
        raise UsageError(
            f"--centres with --quantize {args.quantize}, expected a codebook",
            hint="use --quantize codebook, or leave --quantize out for integers",
        )
    if args.lo is not None or args.hi is not None:
        raise UsageError("--centres with --lo or --hi, but a codebook has no range", hint="drop --lo and --hi")
    try:
        scaling = Scaling("codebook", centres=_centres(args.centres))
    except InputError as error:
        raise type(error)(f"--centres {args.centres:.60}: {error}", hint=error.hint) from error
    bits = codebook_bits(len(scaling.centres))
    if args.bits not in (None, bits):
        raise UsageError(
            f"--bits {args.bits} with {len(scaling.centres)} centres, expected {bits}", hint="leave --bits out"
        )
    return scaling, bits


def _centres(text: str) -> tuple[float, ...]:
    """The numbers in the text, or in the .npy file that it names."""
    import numpy as np

    from ..bitstream.header import MAX_CENTRES

    if not text.endswith(".npy"):
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise UsageError(
                f"--centres {text!r}, expected numbers such as --centres=-1,0,1.5, or an .npy file"
            ) from None
    try:
        found = np.load(text, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"not an .npy array: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise InputError(f"an array of {found.dtype} {found.shape}, expected numbers (L,)")
    if len(found) > MAX_CENTRES:
        raise InputError(f"{len(found)} numbers, expected at most {MAX_CENTRES}")
    return tuple(found.tolist())


def _latents(args: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    from ._npy import read_latents

    for path in args.inputs:
        name = "stdin" if path == "-" else path
        with _common.open_input(path) as file:
            for index, latent in enumerate(read_latents(file, name)):
                is_float = latent.dtype.kind == "f"
                if is_float and not args.quantize:
                    raise InputError(
                        f"{name} holds {latent.dtype}, expected integers",
                        hint="add --quantize tensor (or channel) to turn floats into integers first",
                    )
                if args.quantize and not is_float:
                    raise InputError(
                        f"{name} holds {latent.dtype} already, but --quantize expects floats", hint="drop --quantize"
                    )
                yield f"{name}, latent {index}", latent


def _chain(first: tuple[str, np.ndarray], rest: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    yield first
    yield from rest


def _header(args: argparse.Namespace, latent: np.ndarray, scaling: Scaling, bits: int) -> StreamHeader:
    from ..bitstream import StreamHeader

    channels, height, width = latent.shape
    return StreamHeader(
        codec_id=bytes(32),  # unnamed: the codec is somebody else's
        latent_shape=(channels, height, width),
        bits=bits,
        scaling=scaling,
        coder=args.coder,
        tile=_common.tile(args),
    )


def _float32(latent: np.ndarray) -> np.ndarray:
    import numpy as np

    with np.errstate(over="ignore"):  # what overflows becomes infinite, and that is refused with the place it lies at
        return np.ascontiguousarray(latent, dtype=np.float32)


def _symbols(latent: np.ndarray, header: StreamHeader, name: str) -> np.ndarray:
    import numpy as np

    low, high, top = int(latent.min()), int(latent.max()), header.levels - 1
    if low < 0 or high > top:
        needed = max(high, 1).bit_length()
        centres = len(header.scaling.centres)
        what, hint = f"--bits {header.bits}", "shift or rescale the latent into that range first"
        if centres:
            what, hint = f"{centres} centres", "give the codebook that the symbols were made with"
        elif low >= 0 and needed <= 8:
            hint = f"--bits {needed}"
        raise InputError(f"{name}: values from {low} to {high}, expected 0 to {top} ({what})", hint=hint)
    return np.ascontiguousarray(latent, dtype=np.uint8)
