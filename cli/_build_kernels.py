"""`latentseg build --target kernels`: the GPU kernels of a bundle's streams, compiled ahead of time."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from . import _common


def build(args: argparse.Namespace) -> int:
    """Compile and write; returns the exit code."""
    from ..engine import load_bundle
    from ..kernels.gpu.batch import check_gpu_stream
    from ..kernels.gpu.images import save_kernels
    from ..kernels.triton.compile import ARCHS, compile_kernels

    if args.arch and "current" in args.arch:
        raise UsageError("--arch current with --target kernels", hint="give numbers, such as --arch 89")
    bundle = load_bundle(args.bundle)
    codec = bundle.codec
    check_gpu_stream(bundle.header(1, 1))
    folder = args.out or bundle.path / "kernels"
    _common.check_output(str(folder), args.overwrite, folder=True)
    codebook = codec.scaling.mode == "codebook"
    kernels = compile_kernels(codec.bits, codec.tile, args.arch or ARCHS, codebook=codebook)
    save_kernels(kernels, folder, overwrite=args.overwrite)
    images = [
        {"kernel": i.kernel, "floats": i.variant, "arch": i.arch, "registers": i.registers, "bytes": len(i.cubin)}
        for i in kernels.images
    ]
    report = {
        "schema": 1, "type": "build", "target": args.target, "bundle": bundle.name, "path": str(folder),
        "triton": kernels.triton, "bits": kernels.bits, "tile": list(kernels.tile), "images": images,
    }  # fmt: skip
    if args.json:
        _common.emit(report)
    else:
        print(_text(images))
    _common.note(args, f"wrote {len(images)} kernels to {folder}")
    return 0


def _text(images: list[dict[str, Any]]) -> str:
    """For people: one line a kernel."""
    lines = []
    for kernel in dict.fromkeys((i["kernel"], i["floats"]) for i in images):
        registers = ", ".join(f"sm{i['arch']} {i['registers']}" for i in images if (i["kernel"], i["floats"]) == kernel)
        lines.append(f"{kernel[0]:<15} {kernel[1]:<8}  registers: {registers}")
    return "\n".join(lines)
