"""Everything that runs on a GPU, checked against the CPU engine, then measured: the command for a machine with one.

    python -m latentseg.benchmarks.gpu_suite --check --record benchmarks/results/gpu_check.jsonl
    python -m latentseg.benchmarks.gpu_suite --check --measure --record benchmarks/results/gpu.jsonl --full DIR

Each part ends as "ran" with what it found, as "not available here" with the reason, or as "failed"; none is passed over
in silence. Decoded floats must equal the CPU's bit for bit; labels may differ where two logits tie, and their agreement
is stated. With both, the check comes first, and what failed in it is not measured. Exit code 5 where a part failed, 6
where none could run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..engine.placement import PRECISIONS
from ..errors import LatentsegError, UsageError
from .gpu_checks import PARTS, Checks
from .gpu_parts import OnRow, Row, exit_code, line, run_part

__all__ = ["check", "exit_code", "line", "main", "run_part"]


def check(bundle: str, names: Sequence[str], on_row: OnRow) -> list[Row]:
    """Run the parts of the check in order, each handed to `on_row` as it ends."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UsageError(f"no part '{unknown[0]}'", hint=f"parts: {', '.join(PARTS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(bundle, Path(folder))
        for name in names or PARTS:
            row = run_part(name, lambda name=name: PARTS[name](checks))  # type: ignore[misc]
            rows.append(row)
            on_row(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not (options.check or options.measure):
        _parser().error("give --check, --measure, or both")
    from .machine import describe_machine, describe_versions
    from .report import append_row

    about: dict[str, Any] = {
        "benchmark": "gpu_suite", "schema": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(), "versions": describe_versions(),
    }  # fmt: skip

    def show(row: Row, mode: str) -> None:
        whole = {"bundle": options.bundle, **row, "mode": mode, **about}
        if row.get("kind", "part") == "part":
            print(line(row), file=sys.stderr, flush=True)
        else:
            print(f"  {_measured(row)}", file=sys.stderr, flush=True)
        print(json.dumps(whole), flush=True)
        if options.record is not None:
            append_row(options.record, whole)

    try:
        if options.record is not None and not options.record.parent.is_dir():
            raise UsageError(f"--record {options.record}: no such folder", hint=f"mkdir -p {options.record.parent}")
        checks, measures = _chosen(options)
        rows: list[Row] = []
        if options.check:
            rows += check(options.bundle, checks, lambda row: show(row, "check"))
        if options.measure:
            rows += _measure(options, measures, rows, lambda row: show(row, "measure"))
        return exit_code(rows)
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    from .gpu_measure import PARTS as MEASURED
    from .gpu_measure import Plan

    plan = Plan("camvid-compact")
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gpu_suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="compare with the CPU, time nothing")
    parser.add_argument("--measure", action="store_true", help="time all arms, and the sender")
    parser.add_argument("--bundle", default=plan.bundle, metavar="NAME|DIR", help="default: %(default)s")
    parser.add_argument(
        "--parts", default="", metavar="A,B",
        help=f"only these; of the check: {', '.join(PARTS)}; of the measurement: {', '.join(MEASURED)}",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    measured = parser.add_argument_group("with --measure")
    measured.add_argument("--clip", default="", metavar="PATH", help="a video or a folder (default: synthetic frames)")
    measured.add_argument(
        "--full", type=Path, metavar="DIR", help="the paper's networks, as gpu_networks writes them, at 1024x2048"
    )
    measured.add_argument(
        "--precision", type=_precisions, default=plan.precisions, metavar="A,B",
        help=f"of the segmenters, of {', '.join(PRECISIONS)} (default: {','.join(plan.precisions)})",
    )  # fmt: skip
    measured.add_argument(
        "--batches", type=_sizes, default=plan.batches, metavar="N,N",
        help=f"frames a batch (default: {','.join(map(str, plan.batches))})",
    )  # fmt: skip
    measured.add_argument(
        "--rounds", type=_positive, default=plan.rounds, metavar="N", help="interleaved rounds (default: %(default)s)"
    )
    return parser


def _chosen(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(parts of the check, parts of the measurement) that were asked for; none: all of them."""
    from .gpu_measure import PARTS as MEASURED

    names = [part.strip() for part in options.parts.split(",") if part.strip()]
    known = {**(PARTS if options.check else {}), **(MEASURED if options.measure else {})}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no part '{unknown[0]}'", hint=f"parts: {', '.join(known)}")
    found = [name for name in names if name in PARTS], [name for name in names if name in MEASURED]
    if names and options.check and not found[0]:
        raise UsageError("--check, and no part of it among --parts", hint="leave out --check, or name what to check")
    if names and options.measure and not found[1]:
        raise UsageError("--measure, and no part of it among --parts", hint="leave out --measure, or name a part of it")
    return found


def _measure(options: argparse.Namespace, names: Sequence[str], checked: Sequence[Row], on_row: OnRow) -> list[Row]:
    from .gpu_measure import Plan, measure
    from .gpu_report import text

    plan = Plan(
        options.bundle, options.clip, options.full, options.precision, options.batches, options.rounds
    )  # fmt: skip
    rows = measure(plan, names, {row["part"]: row["result"] for row in checked}, on_row)
    print(f"\n{text(rows)}", file=sys.stderr, flush=True)
    return rows


def _measured(row: Row) -> str:
    """A measurement's row for people, while it goes on."""
    what = " ".join(str(row[key]) for key in ("arm", "kind", "precision") if key in row and row[key] != "arm")
    rate = row.get("frames_per_second")
    detail = row.get("detail", {})
    said = f"{rate['median']:,.1f} frames/s" if rate else detail.get("reason") or detail.get("error") or ""
    return f"{what}, batch {row['batch']}: {row['result']} {said}".rstrip()


def _positive(text: str) -> int:
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part) for part in text.split(",")))


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"no precision {name!r}, expected some of {', '.join(PRECISIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
