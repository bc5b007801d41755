"""The rows of `frontier.py` for people: quality at every rate, quality at equal bytes, and classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import report
from .machine import share_of

Row = dict[str, Any]
Series = tuple[str, str]  # way and name
INTRO = """\
Recorded by `python -m latentseg.benchmarks.frontier`, whose help says what the ways are. A codec's step multiplies its
quantisation step: one codec, many rates. Every bpp is of real bytes, the stream header counted once; JPEG is 4:2:0 with
optimised Huffman tables, WebP at method 6, AVIF at speed 8, all as whole files. PSNR and SSIM are of the picture that a
network is given; the latents' way has none. Several seeds: mean (smallest to largest). GMAC: multiply-accumulates of a
frame, of the segmenter and with the decoder before it; decoding JPEG, WebP and AVIF counts as none, and the sender's
encoder is in the rows alone. ms: median from bytes in memory to labels on the CPU, one frame at a time, of one level of
each series, the series in turn.
"""
_AT_EQUAL = """\
mIoU of the ways that decode at the rate of the latents' way: each seed's curve is linear in the logarithm of the bpp
between the levels measured, and ends where they end (-).
"""


def latest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows to show, by data set: the last one of each network, way and level; series as they first came."""
    found: dict[str, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        found.setdefault(row["data"], {})[(*series_of(row), *run_of(row), row["level"])] = row
    shown = {}
    for data, own in found.items():
        order = list(dict.fromkeys(series_of(row) for row in own.values()))
        shown[data] = sorted(own.values(), key=lambda row: order.index(series_of(row)))
    return shown


def series_of(row: Row) -> Series:
    """What its seeds share: way and name."""
    return row["way"], row["name"]


def run_of(row: Row) -> tuple[str | None, str | None]:
    """Which networks a row is of: one seed's."""
    network, codec = (part and (part["id"] or part["name"]) for part in (row["network"], row["codec"]))
    return network, codec


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """The rows by a key, in the order of its first appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None where nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def spread(values: Sequence[float | None], digits: int) -> str:
    """`0.71`, or of several `0.71 (0.70 to 0.72)`; a dash where some are not there."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return report.number(None, digits)
    middle = report.number(math.fsum(known) / len(known), digits)
    return middle if len(known) == 1 else f"{middle} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def quality(row: Row, key: str) -> float | None:
    """A score of a row; None where nothing was segmented."""
    found: float | None = row["quality"] and row["quality"][key]
    return found


def level_text(row: Row) -> str:
    """The level of a row, with what it is."""
    if row["level"] is None:
        return "-"
    return f"step {row['level']:g}" if row["codec"] is not None else f"q {row['level']:g}"


def total_macs(row: Row) -> float:
    """Multiply-accumulates of the receiver's networks on a frame."""
    return float(sum(row["macs"].get(part, 0) for part in ("segmenter", "decoder")))


def rate_table(rows: Sequence[Row]) -> str:
    """One line for each series and level."""
    header = ["arm", "level", "seeds", "bpp", "factor", "PSNR dB", "SSIM", "mIoU", "Dice", "pixel acc."]
    header += ["GMAC", "with decoder", "M param", "ms"]
    cells = []
    for (series, _), own in grouped(rows, lambda row: (series_of(row), row["level"])).items():
        first = own[0]
        times = [row["timing"]["latency_ms"]["p50"] for row in own if row["timing"]]
        segmenter = first["macs"].get("segmenter")
        cells.append(
            [
                " ".join(series),
                level_text(first),
                str(len(own)),
                report.number(mean([row["bpp"] for row in own]), 3),
                report.number(mean([row["compression_factor"] for row in own]), 1),
                report.number(mean([row["psnr"] for row in own]), 2),
                report.number(mean([row["ssim"] for row in own]), 3),
                spread([quality(row, "miou") for row in own], 4),
                report.number(mean([quality(row, "mean_dice") for row in own]), 4),
                report.number(mean([quality(row, "pixel_accuracy") for row in own]), 4),
                report.number(None if segmenter is None else segmenter / 1e9, 2),
                report.number(total_macs(first) / 1e9, 2),
                report.number(sum(v for k, v in first["parameters"].items() if k != "encoder") / 1e6, 2),
                report.number(times[0] if times else None, 1),
            ]
        )
    return report.table(header, cells)


def at_rate(points: Sequence[tuple[float, float]], bpp: float) -> float | None:
    """A curve of (bpp, value) at a rate: linear in the logarithm of the rate, None outside of what was measured."""
    ordered = sorted(points)
    if not ordered or not ordered[0][0] <= bpp <= ordered[-1][0]:
        return None
    return float(np.interp(np.log(bpp), np.log([rate for rate, _ in ordered]), [value for _, value in ordered]))


def equal_bytes_table(rows: Sequence[Row]) -> str:
    """mIoU of every series that has a rate to choose, at the rate of each of the latents' points; "" without either."""
    scored = [row for row in rows if row["quality"] is not None]
    latents = [row for row in scored if row["way"] == "latent"]
    others = grouped([row for row in scored if row["way"] not in ("latent", "original")], series_of)
    if not latents or not others:
        return ""
    cells = []
    for (series, _), own in grouped(latents, lambda row: (series_of(row), row["level"])).items():
        bpp = mean([row["bpp"] for row in own])
        assert bpp is not None
        line = [f"{' '.join(series)}, {level_text(own[0])}", f"{bpp:.3f}"]
        line.append(spread([quality(row, "miou") for row in own], 4))
        for other in others.values():
            curves = grouped(other, run_of).values()
            line.append(
                spread([at_rate([(r["bpp"], r["quality"]["miou"]) for r in curve], bpp) for curve in curves], 4)
            )
        cells.append(line)
    return report.table(["at the rate of", "bpp", "latent", *(" ".join(series) for series in others)], cells)


def class_table(rows: Sequence[Row]) -> str:
    """IoU of every class for every series, at the level whose rate is nearest to the latents' at step 1; "" without."""
    scored = [row for row in rows if row["quality"] is not None]
    latents = [row for row in scored if row["way"] == "latent"]
    if not latents:
        return ""
    target = min(latents, key=lambda row: abs(math.log(row["level"])))["bpp"]
    heads, columns = [], []
    for series, own in grouped(scored, series_of).items():
        near = min(own, key=lambda row: abs(math.log(row["bpp"] / target)))
        same = [row for row in own if row["level"] == near["level"]]
        rate = mean([row["bpp"] for row in same])
        heads.append(f"{' '.join(series)}, {rate:.3f} bpp")
        columns.append([row["quality"]["iou"] for row in same])
    names = list(columns[0][0])
    cells = [[n, *(report.number(mean([iou[n] for iou in column]), 3) for column in columns)] for n in names]
    return report.table(["IoU", *heads], cells)


def heading(data: str, rows: Sequence[Row]) -> str:
    """Two lines: the data, how many frames of which size, the machine, and what the times are of."""
    images = " or ".join(f"{count:,}" for count in sorted({row["images"] for row in rows if row["images"]}))
    height, width = rows[0]["frame_size"]
    machines = dict.fromkeys(share_of(r["machine"], r["threads"]) for r in rows)
    backends = dict.fromkeys(row["timing"]["backend"] for row in rows if row["timing"])
    times = f"; ms through {' and '.join(backends)}" if backends else ""
    return f"{data}: {images or 'no'} frames of {width}x{height}\n{' or '.join(machines)}{times}"


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The tables of one data set, each with what stands above it; those that there is something for."""
    shown = [row for row in rows if row["images"]]
    if not shown:
        return
    yield "", rate_table(shown)
    equal, classes = equal_bytes_table(shown), class_table(shown)
    if equal:
        yield _AT_EQUAL, equal
    if classes:
        yield "", classes


def parts(rows: Sequence[Row]) -> Iterator[str]:
    """Heading and tables of each data set, as plain text."""
    for data, own in latest(rows).items():
        tables = [f"{above}\n{table}" if above else table for above, table in sections(own)]
        yield "\n\n".join([heading(data, own), *tables]) + "\n"


def page_parts(rows: Sequence[Row]) -> Iterator[str]:
    """The section of docs/results.md; nothing where nothing was recorded."""
    if rows:
        yield f"## Labels against bytes and multiply-accumulates\n\n{INTRO}"
    for data, own in latest(rows).items():
        yield f"### {data}\n\n```\n{heading(data, own)}\n```\n"
        for above, table in sections(own):
            yield f"{above}\n```\n{table}\n```\n" if above else f"```\n{table}\n```\n"
        yield f"![mIoU over bits per pixel, and over multiply-accumulates, on {data}]({plot_name(data)})\n"


def plot_name(data: str) -> str:
    """The file of a data set's plot, beside the page."""
    return f"frontier-{data.replace(':', '-')}.png"
