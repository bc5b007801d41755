"""A result for people, as plain text tables, and for machines, as one line of a file of rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import LatentsegError, OutputError
from .machine import share_of

_STAGES = {
    "entropy_decode": "entropy", "decode": "decode", "segment": "segment", "classify": "classify", "rest": "rest",
}  # fmt: skip
_ABSENT = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right, with a rule below the header."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    """A fixed-point number, or a dash where there is none."""
    return _ABSENT if value is None else f"{value:,.{digits}f}"


def macs_unit(values: Sequence[float | None]) -> tuple[float, str]:
    """What to divide multiply-accumulates by, and the unit: GMAC, or MMAC where all are below 1 GMAC."""
    known = [value for value in values if value is not None]
    return (1e6, "MMAC") if known and max(known) < 1e9 else (1e9, "GMAC")


def share(value: float) -> str:
    """A fraction as percent; a dash where the stage does not exist, and below 1 % one more digit."""
    if value == 0.0:
        return _ABSENT
    return f"{100 * value:.1f} %" if abs(value) < 0.0995 else f"{100 * value:.0f} %"


def classifies(result: dict[str, Any]) -> bool:
    """Whether a result of `segmentation.run` is of classifiers; rows from before there were any do not say."""
    return bool(result["configuration"].get("task") == "classification")


def ratio(entry: dict[str, Any] | None) -> str:
    """`1.23 (1.20 to 1.26)`: median and range over the rounds."""
    if entry is None:
        return _ABSENT
    return f"{entry['median']:.2f} ({entry['min']:.2f} to {entry['max']:.2f})"


def speed_table(result: dict[str, Any], batch: int) -> str:
    """Rate, latency, stages and the paired ratio of every arm at one batch size."""
    other = "segment" if classifies(result) else "classify"
    stages = {name: label for name, label in _STAGES.items() if name != other}
    header = ["arm", "frames/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "n", *stages.values()]
    rows = []
    for arm in result["arms"]:
        for timing in arm["timings"]:
            if timing["batch"] != batch:
                continue
            latency = timing["latency_ms"]
            rows.append(
                [
                    arm["name"],
                    number(timing["frames_per_second"], 2),
                    *(number(latency[key], 1) for key in ("p50", "p90", "p99", "max")),
                    str(timing["n"]),
                    *(share(timing["stage_share"][key]) for key in stages),
                    ratio(timing["time_over_compressed"]),
                ]
            )
    return table([*header, "time / compressed"], rows)


def quality_table(result: dict[str, Any]) -> str:
    """Rate, cost and quality of every arm, and of the RGB segmenter on the original frames."""
    scored = result["configuration"]["labels"] is not None
    arms = [*result["arms"], *filter(None, [result["ceiling"]])]
    scale, unit = macs_unit([arm["macs_per_frame"] for arm in arms])
    header = ["arm", "bytes/frame", "bpp", "factor", f"{unit}/frame", "M param", "agreement"]
    keys = {"miou": "mIoU", "mean_dice": "Dice", "pixel_accuracy": "pixel acc."}
    if classifies(result):
        keys = {"top1": "top-1", "top5": "top-5"}
    if scored:
        header += keys.values()
    rows = []
    for arm in arms:
        macs, parameters = arm["macs_per_frame"], arm["parameters"]
        row = [
            arm["name"],
            number(arm["bytes_per_frame"], 0),
            number(arm["bpp"], 3),
            number(arm["compression_factor"], 1),
            number(None if macs is None else macs / scale, 2),
            number(None if parameters is None else parameters / 1e6, 2),
            number(arm["agreement"], 4),
        ]
        if scored:
            row += [number(arm["quality"][key], 4) for key in keys]
        rows.append(row)
    return table(header, rows)


def class_table(result: dict[str, Any]) -> str:
    """IoU of every class (rows) for every arm (columns); empty where there are no labels."""
    arms = [arm for arm in [*result["arms"], *filter(None, [result["ceiling"]])] if arm["quality"] is not None]
    if not arms or classifies(result):
        return ""
    names = list(arms[0]["quality"]["iou"])
    rows = [[name, *(number(arm["quality"]["iou"][name], 3) for arm in arms)] for name in names]
    return table(["IoU", *(arm["name"] for arm in arms)], rows)


def sender_table(result: dict[str, Any]) -> str:
    """The sender's cost, which no arm's time contains."""
    rows = []
    for sender in result["sender"]:
        parts = [f"{name[:-3].replace('_', ' ')} {cost['mean']:.1f}" for name, cost in sender["cost"].items()]
        total = sum(cost["mean"] for cost in sender["cost"].values())
        rows.append([sender["name"], number(total, 1), " + ".join(parts)])
    return table(["sender", "ms/frame", "of which"], rows)


def title(result: dict[str, Any]) -> str:
    """Two lines: what ran, and on what."""
    setup, machine, versions = result["configuration"], result["machine"], result["versions"]
    height, width = setup["frame_size"]
    runtime = versions.get(setup["backend"], "")
    precision = setup.get("precision", "fp32")  # rows from before there was a choice
    return (
        f"{setup['source']}: {setup['frames']} frames of {width}x{height}, bundle {setup['bundle']['name']}, "
        f"{setup['rounds']} interleaved rounds\n"
        f"{share_of(machine, setup['threads'])}, {setup['backend']} {runtime}".rstrip()
        + ("" if precision == "fp32" else f", segmenters in {precision}")
    )


def text(result: dict[str, Any]) -> str:
    """The whole report."""
    parts = [title(result)]
    answers = "class probabilities" if classifies(result) else "uint8 labels"
    for batch in result["configuration"]["batches"]:
        kind = "latency of one frame" if batch == 1 else f"throughput; latency is of a batch of {batch}"
        heading = f"Batch {batch} ({kind}), from bytes in memory to {answers}; shares of the time by stage:"
        parts.append(f"{heading}\n{speed_table(result, batch)}")
    parts.append(
        "Rate, cost and quality; factor: against 24-bit RGB; agreement: with the RGB network on the original frames:\n"
        f"{quality_table(result)}"
    )
    classes = class_table(result)
    if classes:
        parts.append(classes)
    parts.append(f"Encoding, before the timing:\n{sender_table(result)}")
    remarks = [f"left out: {entry['name']}: {entry['reason']}" for entry in result["left_out"]] + result["notes"]
    if remarks:
        parts.append("\n".join(remarks))
    return "\n\n".join(parts) + "\n"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a result to a file as one JSON line (OutputError where that fails)."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot append to {path}: {error.strerror or error}") from error


def gather(
    found: Iterable[Sequence[dict[str, Any]]],
    record: Path | None,
    parts: Callable[[Sequence[dict[str, Any]]], Iterable[str]],
) -> list[dict[str, Any]]:
    """All rows of a measurement that takes minutes: each appended to `record` as it comes, the tables printed last.

    found: rows as they are measured. parts: the tables of rows, as text. A failure loses nothing: what was measured
    before it is recorded and printed.
    """
    rows: list[dict[str, Any]] = []
    try:
        for some in found:
            rows += some
            if record is not None:
                for row in some:
                    append_row(record, row)
    finally:
        for part in parts(rows):
            print(part)
    return rows


def exit_code(program: str, work: Callable[[], None]) -> int:
    """The exit code of a benchmark's own command line; errors of its work go to stderr, with their hints."""
    try:
        work()
    except LatentsegError as error:
        sys.stderr.write(f"{program}: error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0
