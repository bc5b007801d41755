"""Everything that runs on a GPU, checked against the CPU engine: the first command on a machine with one.

    python -m latentseg.benchmarks.gpu_suite --check --record benchmarks/results/gpu_check.jsonl

Each part ends as "ran" with what it found, as "not available here" with the reason, or as "failed"; none is passed over
in silence. Decoded floats must equal the CPU's bit for bit; labels may differ where two logits tie, and their agreement
is stated. Exit code 5 where a part failed, 6 where none could run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BackendInactiveError, BackendMissingError, LatentsegError, UsageError
from .gpu_checks import PARTS, Checks

RAN, ABSENT, FAILED = "ran", "not available here", "failed"


def run_part(name: str, body: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part's row: {part, result, detail, seconds}; whatever it raises costs the others nothing."""
    start = time.perf_counter()
    detail: dict[str, Any]
    try:
        detail, result = body(), RAN
    except BackendInactiveError as error:  # a fall-back is no absence
        detail, result = {"error": f"{type(error).__name__}: {error}", "hint": error.hint}, FAILED
    except BackendMissingError as error:
        detail, result = {"reason": str(error), "hint": error.hint}, ABSENT
    except ModuleNotFoundError as error:
        ours = str(error.name).startswith("latentseg")
        detail, result = {"error" if ours else "reason": f"{error.name} is not installed"}, FAILED if ours else ABSENT
    except LatentsegError as error:
        detail, result = {"error": f"{type(error).__name__}: {error}", "hint": error.hint}, FAILED
    except Exception as error:  # a library's own: the report must still come out
        detail, result = {"error": f"{type(error).__name__}: {error}"}, FAILED
    return {"part": name, "result": result, "detail": detail, "seconds": round(time.perf_counter() - start, 3)}


def check(bundle: str, names: Sequence[str], on_row: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Run the parts in order, each handed to `on_row` as it ends."""
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


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    detail = row["detail"]
    said = detail.get("reason") or detail.get("error") or ", ".join(f"{key} {value}" for key, value in detail.items())
    return f"{row['part']:<24} {row['result']:<19} {row['seconds']:>8.2f} s  {said}"


def exit_code(rows: Sequence[dict[str, Any]]) -> int:
    """5 where a part failed, 6 where nothing could be compared (naming the GPU compares nothing), else 0."""
    results = {row["result"] for row in rows if row["result"] == FAILED or row["part"] != "gpu"}
    return 5 if FAILED in results else 0 if RAN in results else 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latentseg.benchmarks.gpu_suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", required=True, help="compare with the CPU, time nothing")
    parser.add_argument("--bundle", default="camvid-compact", metavar="NAME|DIR", help="default: %(default)s")
    parser.add_argument("--parts", default="", metavar="A,B", help=f"only these of {', '.join(PARTS)}")
    parser.add_argument("--record", type=Path, metavar="FILE.jsonl", help="append the rows to this file")
    options = parser.parse_args(arguments)
    from .machine import describe_machine, describe_versions
    from .report import append_row

    about = {
        "benchmark": "gpu_suite", "schema": 1, "mode": "check", "bundle": options.bundle,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(), "versions": describe_versions(),
    }  # fmt: skip

    def show(row: dict[str, Any]) -> None:
        print(line(row), file=sys.stderr, flush=True)
        print(json.dumps({**row, **about}), flush=True)
        if options.record is not None:
            append_row(options.record, {**row, **about})

    try:
        if options.record is not None and not options.record.parent.is_dir():
            raise UsageError(f"--record {options.record}: no such folder", hint=f"mkdir -p {options.record.parent}")
        return exit_code(
            check(options.bundle, [part.strip() for part in options.parts.split(",") if part.strip()], show)
        )
    except LatentsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
