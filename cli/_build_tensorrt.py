"""`latentseg build --target tensorrt|tensorrt-rtx`: engines of a bundle's models."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import _common
from ._frames import real_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..engine.bundle import Bundle
    from ..engine.tensorrt.sidecar import AnyEngine, Profile

    Images = list[npt.NDArray[np.uint8]]

_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})")
_MIB = 1 << 20


def build(args: argparse.Namespace) -> int:
    """Build and write every engine that was asked for; returns the exit code."""
    from ..engine import load_bundle
    from ..engine.tensorrt.sidecar import ENGINE_FOLDER

    bundle = load_bundle(args.bundle)
    folder = args.out or bundle.path / ENGINE_FOLDER
    _common.check_output(str(folder), overwrite=True, folder=True)
    engines = (_one_file if args.one_file else _models)(args, bundle, folder)
    if args.json:
        head = {"schema": 1, "type": "build", "target": args.target, "bundle": bundle.name, "path": str(folder)}
        _common.emit({**head, "engines": engines})
    else:
        print(_text(engines))
    _common.note(args, f"wrote {len(engines)} engine(s) to {folder}")
    return 0


def _models(args: argparse.Namespace, bundle: Bundle, folder: Path) -> list[dict[str, Any]]:
    """An engine of each role; the JSON rows."""
    from ..engine.tensorrt.sidecar import engine_name
    from ..export.tensorrt import build_role, check_request

    precision, roles = args.precision or "fp32", list(dict.fromkeys(args.role or ["segmenter"]))
    frames = parse_profile(args.profile) if args.profile else None
    with_frames = args.frames is not None or args.data is not None
    for role in roles:  # everything that can be refused is refused before the first of them is built
        check_request(bundle, role, precision, args.target, archs(args), with_frames)
        if folder.is_dir():
            _common.check_output(str(folder / engine_name(role, precision, args.target)), args.overwrite)
    material = _material(args, with_frames)
    engines = []
    for role in roles:
        start = time.perf_counter()
        _common.note(args, f"building the {role} in {precision}")
        with _common.progress(args, "step") as update:
            path, file, built = build_role(
                bundle, role, precision, args.target, frames, archs(args), folder, on_progress=update, **material
            )
        engines.append(_row(args, path, file, built.warnings, start))
    return engines


def _one_file(args: argparse.Namespace, bundle: Bundle, folder: Path) -> list[dict[str, Any]]:
    """The one-file engine; its JSON row."""
    from ..engine.tensorrt.sidecar import one_file_name
    from ..export.tensorrt_one_file import BATCH, build_one_file, check_one_file

    precision, batch = args.precision or "fp32", args.batch or BATCH
    with_frames = args.frames is not None or args.data is not None
    check_one_file(bundle, precision, args.size, batch, with_frames)
    if folder.is_dir():
        _common.check_output(str(folder / one_file_name(precision, args.target, args.size)), args.overwrite)
    material = _material(args, with_frames)
    start = time.perf_counter()
    _common.note(args, f"building the decoder and the segmenter in {precision}, as one file")
    with _common.progress(args, "step") as update:
        path, file, warnings = build_one_file(
            bundle, precision, args.size, batch, folder, on_progress=update, **material
        )
    return [_row(args, path, file, warnings, start)]


def _material(args: argparse.Namespace, with_frames: bool) -> dict[str, Any]:
    """What both kinds of build take alike."""
    images, labels = real_frames(args) if with_frames else (None, None)
    return {
        "images": images, "labels": labels, "calibration": args.calibration or 64,
        "workspace": args.workspace * _MIB if args.workspace else None, "overwrite": args.overwrite,
    }  # fmt: skip


def _row(
    args: argparse.Namespace, path: Path, file: AnyEngine, warnings: Sequence[str], start: float
) -> dict[str, Any]:
    from ..engine.tensorrt.sidecar import sidecar_json

    for warning in warnings:
        _common.note(args, f"{args.target} warns: {warning}")
    row = {key: value for key, value in sidecar_json(file).items() if key not in ("schema", "bundle", "flavour")}
    return {**row, "path": str(path), "seconds": round(time.perf_counter() - start, 3), "warnings": list(warnings)}


def _text(engines: list[dict[str, Any]]) -> str:
    """For people: what each engine is for."""
    from ..engine.tensorrt.api import dotted

    lines = []
    for engine in engines:
        frames = " to ".join(
            f"{n} of {w}x{h}" for n, h, w in (engine["frames"]["minimum"], engine["frames"]["maximum"])
        )
        lines.append(
            f"{Path(engine['path']).name}  {_common.human_bytes(engine['bytes'])}, compute capability "
            f"{dotted(engine['archs'])}, frames {frames}, {engine['network']['layers']} layers, "
            f"built by {engine['version']} in {engine['seconds']:.1f} s"
        )
    return "\n".join(lines)


def archs(args: argparse.Namespace) -> Sequence[int] | None:
    """`--arch`: None where it is not given, () for this machine's GPU."""
    if args.arch is None or args.arch == ["current"]:
        return None if args.arch is None else ()
    if "current" in args.arch:
        raise UsageError("--arch current goes with no other", hint="build for this machine's GPU, or for a list")
    found: list[int] = args.arch
    return found


def parse_profile(text: str) -> Profile:
    """`--profile`: NxHxW:NxHxW:NxHxW, or one NxHxW for all three. Raises UsageError."""
    from ..engine.tensorrt.sidecar import Profile

    found = [_SIZE.fullmatch(part) for part in text.split(":")]
    sizes = [tuple(map(int, match.groups())) for match in found if match]
    if len(sizes) != len(found) or len(sizes) not in (1, 3):
        raise UsageError(
            f"--profile {text}: expected the least, the best and the most batch and frame size as NxHxW:NxHxW:NxHxW",
            hint="for example --profile 1x360x480:8x360x480:32x1080x1920",
        )
    least, best, most = sizes * 3 if len(sizes) == 1 else sizes
    if not all(low <= middle <= high for low, middle, high in zip(least, best, most, strict=True)):
        raise UsageError(f"--profile {text}: the best does not lie between the least and the most")
    return Profile(least, best, most)
