"""What a GPU command says of each of its parts: ran, not available here, or failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BackendInactiveError, BackendMissingError, LatentsegError

RAN, ABSENT, FAILED = "ran", "not available here", "failed"
Row = dict[str, Any]
OnRow = Callable[[Row], None]


def judged(error: Exception) -> tuple[str, dict[str, Any]]:
    """(result, detail) of a part that raised this."""
    if isinstance(error, BackendInactiveError):  # a fall-back is no absence
        return FAILED, {"error": f"{type(error).__name__}: {error}", "hint": error.hint}
    if isinstance(error, BackendMissingError):
        return ABSENT, {"reason": str(error), "hint": error.hint}
    if isinstance(error, ModuleNotFoundError):
        ours = str(error.name).startswith("latentseg")
        return FAILED if ours else ABSENT, {"error" if ours else "reason": f"{error.name} is not installed"}
    if isinstance(error, LatentsegError):
        return FAILED, {"error": f"{type(error).__name__}: {error}", "hint": error.hint}
    return FAILED, {"error": f"{type(error).__name__}: {error}"}  # a library's own: the report must still come out


def run_part(name: str, body: Callable[[], dict[str, Any]]) -> Row:
    """One part's row: {part, result, detail, seconds}; whatever it raises costs the others nothing."""
    start = time.perf_counter()
    detail: dict[str, Any]
    try:
        result, detail = RAN, body()
    except Exception as error:
        result, detail = judged(error)
    return {"part": name, "result": result, "detail": detail, "seconds": round(time.perf_counter() - start, 3)}


def exit_code(rows: Sequence[Row]) -> int:
    """5 where a part failed, 6 where nothing ran (naming the GPU is no run), else 0."""
    results = {row["result"] for row in rows if row["result"] == FAILED or row["part"] != "gpu"}
    return 5 if FAILED in results else 0 if RAN in results else 6


def line(row: Row) -> str:
    """A part's row for people."""
    detail = row["detail"]
    said = detail.get("reason") or detail.get("error") or ", ".join(f"{key} {value}" for key, value in detail.items())
    return f"{row['part']:<24} {row['result']:<19} {row['seconds']:>8.2f} s  {said}"
