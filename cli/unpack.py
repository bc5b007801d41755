"""Get the latents of a .lseg stream back as one .npy stack (N, C, h, w): uint8 symbols, exactly.

--float writes the float32 latents that a segmenter would see (int2float) instead. Damaged frames
are reported and left out, and the exit code is then 7; with --json the lost index ranges
[first, last] are in "lost".

examples:
  latentseg unpack clip.lseg -o clip.npy
  latentseg unpack clip.lseg --float -o clip.npy --json
  producer | latentseg unpack - -o - > clip.npy
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from typing import Any, BinaryIO

from ..errors import InputError, PartialResultError
from . import _common

HELP = "get the latents of a .lseg stream back as .npy, exactly"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("input", metavar="IN.lseg", help="the stream, or '-' for stdin")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.npy", help="the stack, or '-' for stdout")
    parser.add_argument("--float", action="store_true", help="float32 latents (int2float) instead of uint8 symbols")
    _common.add_overwrite(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Unpack one stream into one stack; returns the exit code."""
    _common.require_free_stdout(args.json, args.output)
    with (
        _common.open_input(args.input) as source,
        _common.open_output_atomic(args.output, args.overwrite) as output,
    ):
        if output.seekable() and args.output != "-":
            record = _unpack(args, source, output)
        else:  # N comes first in the format and is known last, so a pipe has to wait for it
            with tempfile.TemporaryFile() as spool:
                record = _unpack(args, source, spool)
                spool.seek(0)
                shutil.copyfileobj(spool, output)
    if args.json:
        _common.emit(record)
    shape = "x".join(str(size) for size in (record["frames"], *record["latent_shape"]))
    _common.note(args, f"unpacked {record['frames']} latent(s): {shape} {record['dtype']}")
    if record["damages"]:
        raise PartialResultError(f"{record['damages']} damaged place(s) in the stream; every intact latent was written")
    return 0


def _unpack(args: argparse.Namespace, source: BinaryIO, output: BinaryIO) -> dict[str, Any]:
    import numpy as np

    from ..bitstream import Reader
    from ..kernels import entropy
    from ._npy import StackWriter

    reader = Reader(source, on_damage=lambda damage: _common.note(args, f"damage at byte {damage.offset}: {damage.reason}"))
    header = reader.header
    stack = StackWriter(output, header.latent_shape, np.dtype("<f4" if args.float else "u1"))
    indices: list[int] = []
    undecodable: list[int] = []
    for frame in _common.track(reader, args):
        try:
            decode = entropy.decode_latent if args.float else entropy.decode_symbols
            latent = decode(frame.payload, header)
        except InputError as error:  # its CRC holds, so it was written wrong, not damaged on the way
            undecodable.append(frame.index)
            _common.note(args, f"frame {frame.index}: {error}")
            continue
        stack.append(latent)
        indices.append(frame.index)
    stack.finish()
    return {
        "schema": 1,
        "type": "unpack",
        "frames": stack.count,
        "latent_shape": list(header.latent_shape),
        "dtype": "float32" if args.float else "uint8",
        "lost": _lost(indices, [damage.frame_index for damage in reader.damages]),
        "damages": len(reader.damages) + len(undecodable),
    }


def _lost(indices: list[int], damaged: list[int | None]) -> list[list[int]]:
    """Ranges [first, last] of frames that a later frame or their own damage announced, but that did not come out."""
    came = set(indices)
    seen = sorted(came | {index for index in damaged if index is not None})
    ranges: list[list[int]] = []
    expected = 0
    for index in seen:
        last = index - 1 if index in came else index
        if last >= expected:
            if ranges and ranges[-1][1] == expected - 1:
                ranges[-1][1] = last
            else:
                ranges.append([expected, last])
        expected = index + 1
    return ranges
