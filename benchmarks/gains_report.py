"""The rows of `gains.py` for people: a table a data set, and what its columns are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import report
from .machine import share_of

Row = dict[str, Any]
QUALITIES = {
    "segmentation": {"miou": "mIoU", "mean_dice": "Dice"},
    "classification": {"top1": "top-1", "top5": "top-5"},
}
INTRO = """\
Recorded by `python -m latentseg.benchmarks.gains`: each bundle three ways. rgb-original: its RGB network on the
original frames; rgb-decoded: the same network on frames that the bundle's codec sent as bytes and decoded; latent: its
network of latents on the same bytes. GMAC or MMAC: multiply-accumulates of the network on one frame, and with the
decoder before it; M param: likewise. Neither counts the sender's encoder, nor entropy coding; the times (p50 of a
frame, on the CPU, from bytes in memory) contain entropy decoding, and the columns behind them are the means of their
parts. Times compare between the ways of one bundle, which took turns; those of different bundles are of different
moments and loads of the machine (`load_before` in the rows).
"""
_CLASSIFIED = """\
Each image is a stream's frame of its own, whose framing is much of so small an image's bits: "sheet bpp" is that of
many images laid side by side in a frame.
"""


def latest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows to show, by data set: of each bundle (name and codec) its last recording, whole; bundles as they first
    came. A recording's rows have one date, and each way once."""
    found: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
        recordings = found.setdefault(row["data"], {})
        key, way = _key(row), row["way"]
        own = recordings.get(key, {})
        if way in own or any(other["date"] != row["date"] for other in own.values()):
            own = {}
        recordings[key] = {**own, way: row}
    return {data: [row for own in recordings.values() for row in own.values()] for data, recordings in found.items()}


def _key(row: Row) -> tuple[str, str]:
    return row["bundle"]["name"], row["bundle"]["codec_id"]


def labels(rows: Sequence[Row]) -> list[str]:
    """What to call the bundle of each row: its name; with the start of its codec's id where codecs share the name, and
    with the number of images where bundles were scored on different ones."""
    keys = {_key(row) for row in rows}
    shared = {name for name, _ in keys if sum(name == other for other, _ in keys) > 1}
    mixed = len({row["images"] for row in rows}) > 1
    found = [f"{name} ({codec[:8]})" if name in shared else name for name, codec in map(_key, rows)]
    if mixed:
        found = [f"{label}, {row['images']:,} images" for label, row in zip(found, rows, strict=True)]
    return found


def parts(rows: Sequence[Row]) -> Iterator[str]:
    """Heading and table of each data set, as plain text."""
    for data, own in latest(rows).items():
        yield f"{heading(data, own)}\n{table(own)}\n"


def heading(data: str, rows: Sequence[Row]) -> str:
    """One line: the data, how many images of which size, and the machine."""
    images = " or ".join(f"{count:,}" for count in sorted({row["images"] for row in rows}))
    first = rows[0]["frame_size"]
    size = f" of {first[1]}x{first[0]}" if first and all(row["frame_size"] == first for row in rows) else ""
    machines = " or ".join(dict.fromkeys(share_of(row["machine"], row["configuration"]["threads"]) for row in rows))
    return f"{data}: {images} images{size}; {machines}"


def table(rows: Sequence[Row]) -> str:
    """One line a bundle and way."""
    task = rows[0]["task"]
    classified = task == "classification"
    names = QUALITIES[task]
    header = ["bundle", "way", "network", "bpp", *(["sheet bpp"] if classified else []), *names.values()]
    scale, unit = report.macs_unit([row["macs_with_decoder"] for row in rows])
    digits = 3 if scale == 1e9 else 1
    header += [unit, "with decoder", "M param", "with decoder", "p50 ms", "entropy ms", "decode ms", "network ms"]
    cells = []
    for row, label in zip(rows, labels(rows), strict=True):
        stages = row["timing"]["stage_ms_per_frame"]
        cells.append(
            [
                label,
                row["way"],
                row["network"] or "-",
                report.number(row["bpp"], 3),
                *([report.number(row["sheet_bpp"], 3)] if classified else []),
                *(report.number(row["quality"][key], 4) for key in names),
                report.number(row["macs_per_frame"] / scale, digits),
                report.number(row["macs_with_decoder"] / scale, digits),
                report.number(row["parameters"] / 1e6, 2),
                report.number(row["parameters_with_decoder"] / 1e6, 2),
                report.number(row["timing"]["latency_ms"]["p50"], 2),
                *(report.number(stages[key] or None, 2) for key in ("entropy_decode", "decode")),
                report.number(stages["classify" if classified else "segment"], 2),
            ]
        )
    return report.table(header, cells)


def page_parts(rows: Sequence[Row]) -> Iterator[str]:
    """The section of docs/results.md; nothing where nothing was recorded."""
    if rows:
        yield f"## What not decoding gains\n\n{INTRO}"
    for data, own in latest(rows).items():
        note = _CLASSIFIED + "\n" if own[0]["task"] == "classification" else ""
        yield f"### {data}\n\n{note}```\n{heading(data, own)}\n\n{table(own)}\n```\n"
        yield f"![Quality over multiply-accumulates on {data}]({plot_name(data)})\n"


def plot_name(data: str) -> str:
    """The file of a data set's plot, beside the page."""
    return f"gains-{data}.png"
