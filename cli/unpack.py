"""Get the latents of a .lseg stream back as one .npy stack (N, C, h, w): uint8 symbols, exactly.

--float writes the float32 latents that a segmenter would see (int2float) instead. Damaged frames,
and those that cannot be decoded without them, are reported and left out; the exit code is then 7.

JSON keys: schema type frames latent_shape dtype lost lost_ranges (each [first, last], by frame
           index) damages

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

from ..errors import InputError
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
    _common.raise_if_damaged(record["damages"], record["lost"])
    return 0


def _unpack(args: argparse.Namespace, source: BinaryIO, output: BinaryIO) -> dict[str, Any]:
    import numpy as np

    from ..bitstream import Damage, Reader
    from ..engine.losses import Losses
    from ..kernels.frames import FrameDecoder
    from ._npy import StackWriter

    reader = Reader(source, on_damage=_common.damage_reporter(args))
    header = reader.header
    stack = StackWriter(output, header.latent_shape, np.dtype("<f4" if args.float else "u1"))
    decoder, undecodable = FrameDecoder(header), list[Damage]()
    losses = Losses(header, undecodable)
    decode = decoder.decode_latent if args.float else decoder.decode_symbols
    for frame in _common.track(reader, args):
        try:
            latent = decode(frame.payload, frame.index)
        except InputError as error:
            losses.add(frame.payload, frame.index, error)
            continue
        losses.decoded(frame.index)
        stack.append(latent)
    _common.note_damages(args, undecodable)
    damages = [*reader.damages, *undecodable]
    if stack.count == 0:
        lost = f"; {damages[0].reason}" if damages else ""
        raise InputError(f"{args.input}: a stream with no readable frame{lost}")
    stack.finish()
    ranges = [(d.frame_index, d.lost) for d in damages if d.frame_index is not None and d.lost]
    return {
        "schema": 1,
        "type": "unpack",
        "frames": stack.count,
        "latent_shape": list(header.latent_shape),
        "dtype": "float32" if args.float else "uint8",
        "lost": sum(damage.lost for damage in damages),
        "lost_ranges": sorted([first, first + count - 1] for first, count in ranges),
        "damages": len(damages),
    }
