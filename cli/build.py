"""Build what a GPU runs of a bundle: its kernels, compiled ahead of time.

    latentseg build camvid-compact --target kernels -o kernels
    latentseg build my-bundle --target kernels --arch 86 90

The fused entropy decode + int2float, float2int and int2float for the streams of the bundle's
codec, as machine code for each compute capability. Compiling needs Triton (pip install
'latentseg[triton]') and no GPU; running what was compiled needs a GPU and `cuda-bindings` (pip
install 'latentseg[gpu]'), and neither Triton nor torch. A kernel that spills registers is refused
(exit 5).

JSON keys: schema type bundle target path triton bits tile images
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _common

HELP = "compile a bundle's GPU kernels ahead of time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or the name of a shipped one")
    parser.add_argument("--target", required=True, choices=["kernels"], help="what to build")
    parser.add_argument(
        "--arch", type=_common.positive, nargs="+", metavar="CC",
        help="compute capabilities, major and minor in one number (default: 80 86 89 90 120)",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="where to (default: BUNDLE/kernels)")
    _common.add_overwrite(parser)
    _common.add_json(parser, "what was built")


def run(args: argparse.Namespace) -> int:
    """Build; returns the exit code."""
    from ..engine import load_bundle
    from ..kernels.gpu.batch import check_gpu_stream
    from ..kernels.gpu.images import save_kernels
    from ..kernels.triton.compile import ARCHS, compile_kernels

    bundle = load_bundle(args.bundle)
    codec = bundle.codec
    check_gpu_stream(bundle.header(1, 1))
    folder = args.out or bundle.path / "kernels"
    _common.check_output(str(folder), args.overwrite, folder=True)
    kernels = compile_kernels(codec.bits, codec.tile, args.arch or ARCHS)
    save_kernels(kernels, folder, overwrite=args.overwrite)
    images = [
        {"kernel": i.kernel, "floats": i.variant, "arch": i.arch, "registers": i.registers, "bytes": len(i.cubin)}
        for i in kernels.images
    ]
    report = {
        "schema": 1, "type": "build", "bundle": bundle.name, "target": args.target, "path": str(folder),
        "triton": kernels.triton, "bits": kernels.bits, "tile": list(kernels.tile), "images": images,
    }  # fmt: skip
    if args.json:
        _common.emit(report)
    else:
        for kernel in dict.fromkeys((i.kernel, i.variant) for i in kernels.images):
            registers = [f"sm{i.arch} {i.registers}" for i in kernels.images if (i.kernel, i.variant) == kernel]
            print(f"{kernel[0]:<15} {kernel[1]:<8}  registers: {', '.join(registers)}")
    _common.note(args, f"wrote {len(images)} kernels to {folder}")
    return 0
