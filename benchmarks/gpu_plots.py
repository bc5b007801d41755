"""Throughput on a GPU by batch size and arm, drawn of recorded rows.

python -m latentseg.benchmarks.gpu_plots benchmarks/results/gpu.jsonl docs/gpu-throughput.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, LatentsegError
from .gpu_material import ROLES
from .gpu_parts import RAN, Row
from .plots import CURVE_COLOURS, new_figure, save


def plot_throughput(rows: Sequence[Row], path: Path) -> None:
    """A panel for each set of networks and precision: frames/s over batch size, a line an arm, bars from the slowest
    round to the fastest. Raises InputError where no arm ran, OutputError."""
    ran = [row for row in rows if row.get("kind") == "arm" and row["result"] == RAN]
    panels = list(dict.fromkeys((row["part"], row["bundle"], row["precision"]) for row in ran))
    if not panels:
        raise InputError("no row of an arm that ran", hint="measure first: gpu_suite --measure --record FILE.jsonl")
    figure, axes = new_figure(max(6.0, 4.6 * len(panels)), 4.6, len(panels))
    for place, (part, bundle, precision) in zip(axes, panels, strict=True):
        own = [row for row in ran if (row["part"], row["bundle"], row["precision"]) == (part, bundle, precision)]
        batches = sorted({row["batch"] for row in own})
        for index, arm in enumerate(ROLES):
            points = {row["batch"]: row["frames_per_second"] for row in own if row["arm"] == arm}
            if not points:
                continue
            xs = [batches.index(batch) for batch in sorted(points)]
            found = [points[batch] for batch in sorted(points)]
            middle = [rate["median"] for rate in found]
            bars = [
                [rate["median"] - rate["min"] for rate in found],
                [rate["max"] - rate["median"] for rate in found],
            ]
            place.errorbar(
                xs, middle, yerr=bars, color=CURVE_COLOURS[index], marker="o^sD"[index % 4], capsize=3, label=arm
            )
        place.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        place.set_xlabel("frames a batch")
        place.set_ylim(bottom=0)
        height, width = own[0]["frame_size"]
        place.set_title(f"{bundle}, {width}x{height}, {precision}\n{own[0]['provider']}", fontsize=9)
        place.grid(alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("frames/s, bytes to labels")
    axes[0].legend(fontsize=8)
    save(figure, path)


def _read(path: Path) -> list[Row]:
    """Recorded rows. Raises InputError where the file cannot be read, or a line is no row."""
    hint = "a file that gpu_suite --measure --record wrote"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint=hint) from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}", hint=hint) from None
        if not isinstance(row, dict) or "result" not in row:
            raise InputError(f"{path}, line {number}: expected an object with a 'result'", hint=hint)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gpu_plots", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", type=Path, metavar="FILE.jsonl", help="what gpu_suite --measure --record wrote")
    parser.add_argument("plot", type=Path, metavar="FILE.png", help="the picture")
    options = parser.parse_args(arguments)
    try:
        plot_throughput(_read(options.rows), options.plot)
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
