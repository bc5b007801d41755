"""List the bundles that have a name.

Those that come with the package, and those of LATENTSEG_BUNDLES: an environment variable that names
folders, separated as in PATH. Each folder in one of them that holds a manifest.json is a bundle of
that folder's name, and every verb's --bundle takes it. A name that is there twice is refused by
them: then give a folder.

`steps` are the quantisation steps that a bundle's networks are for, lowest and highest
(--step of encode, run and bench); 1 is the codec's own. `operating_points` are what the scores in
the manifest say of single steps. `bytes` are those of the model files. The exit code is 4 where a
bundle is broken, after the list.

JSON keys: schema type bundles
           name path shipped ambiguous (another bundle has this name) error
           codec codec_id task (segmentation, classification, codec) classes
           steps operating_points bytes

examples:
  latentseg bundles
  LATENTSEG_BUNDLES=$HOME/bundles latentseg bundles --json | jq '.bundles[].name'
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, LatentsegError
from . import _common

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

HELP = "list the bundles that have a name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    _common.add_json(parser, "the list")


def run(args: argparse.Namespace) -> int:
    """List the bundles; returns the exit code."""
    from ..engine.bundle import named_bundles, shipped_bundles

    shipped = shipped_bundles()
    entries = [
        _entry(name, path, shipped=shipped.get(name) == path, ambiguous=len(places) > 1)
        for name, places in named_bundles().items()
        for path in places
    ]
    if args.json:
        _common.emit({"schema": 1, "type": "bundles", "bundles": entries})
    else:
        print(_text(entries) if entries else "no bundle has a name")
    broken = [entry for entry in entries if entry["error"]]
    if broken:
        raise ArtifactError(
            f"{len(broken)} of {len(entries)} bundles cannot be used, the first: {broken[0]['error']}",
            hint="export it again, or remove its folder",
        )
    return 0


def _entry(name: str, path: Path, *, shipped: bool, ambiguous: bool) -> dict[str, Any]:
    from ..engine.bundle import load_bundle

    found = {"name": name, "path": str(path), "shipped": shipped, "ambiguous": ambiguous, "error": ""}
    try:
        return found | _facts(load_bundle(path))
    except LatentsegError as error:
        return found | {"error": str(error)}


def _facts(bundle: Bundle) -> dict[str, Any]:
    tasks = ("segmentation", "classification")
    return {
        "codec": bundle.codec.name,
        "codec_id": bundle.codec.id.hex(),
        "task": tasks[bundle.classifies] if bundle.classes else "codec",
        "classes": len(bundle.classes),
        "steps": list(bundle.codec.steps),
        "operating_points": _points(bundle),
        "bytes": bundle.model_bytes,
    }


def _points(bundle: Bundle) -> list[dict[str, float]]:
    """The manifest's scores of single steps: they are free-form, so that only numbers are taken from them."""
    points = bundle.manifest.get("scores", {}).get("operating_points")
    entries = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    return [{key: value for key, value in entry.items() if type(value) in (int, float)} for entry in entries]


def _text(entries: list[dict[str, Any]]) -> str:
    from ..benchmarks.report import table

    rows, below = [], []
    for entry in entries:
        where = "shipped" if entry["shipped"] else entry["path"]
        if entry["error"]:
            rows.append([entry["name"], "-", "-", "-", "-", f"{where} (broken)"])
            continue
        low, high = entry["steps"]
        steps = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        twice = " (the name is there twice)" if entry["ambiguous"] else ""
        size = f"{entry['bytes'] / 1e6:.1f}"
        rows.append([entry["name"], entry["task"], str(entry["classes"]), steps, size, where + twice])
        for point in entry["operating_points"]:
            below.append(f"{entry['name']}: " + ", ".join(f"{key} {value:.4g}" for key, value in point.items()))
    return "\n".join([table(["bundle", "task", "classes", "steps", "MB", "where"], rows), *below])
