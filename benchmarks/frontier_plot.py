"""The picture of the frontier's rows: mIoU over bits a pixel, and over the receiver's multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .frontier_report import Row, Series, grouped, latest, run_of, series_of, total_macs
from .plots import CURVE_COLOURS, log_x, new_figure, save

MARKERS = {"latent": "o", "jpeg": "s", "webp": "D", "avif": "v", "decoded": "^", "original": "*"}


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Two panels of the last data set in `rows`: a series is a line through the means of its seeds, with a band from
    the lowest to the highest and a small marker a seed; RGB on originals is a horizontal line."""
    data, own = list(latest(rows).items())[-1]
    shown = [row for row in own if row["quality"] is not None]
    figure, (left, right) = new_figure(14.5, 6.4, 2)
    series = grouped(shown, series_of)
    colours = {key: CURVE_COLOURS[index % len(CURVE_COLOURS)] for index, key in enumerate(series)}
    for key, points in series.items():
        _draw_rate(left, key, points, colours[key])
    _draw_cost(right, series, colours)
    log_x(left)
    left.set_xlabel("bits per pixel (real bytes, log scale)")
    right.set_xlabel("GMAC a frame: decoder and segmenter (small numbers: bpp)")
    for axes, title in (
        (left, "Quality against rate"),
        (right, "Quality against the receiver's cost (columns of nearly equal cost moved apart: see the legend)"),
    ):
        axes.set_ylabel("mIoU")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    if shown:
        height, width = shown[0]["frame_size"]
        counts = " or ".join(str(count) for count in sorted({row["images"] for row in shown}))
        figure.suptitle(f"{data}: {counts} frames of {width}x{height}, every rate of real bytes", fontsize=10)
    save(figure, path)


def _label(key: Series, rows: Sequence[Row]) -> str:
    seeds = max(len(level) for level in grouped(rows, lambda row: row["level"]).values())
    return f"{' '.join(key)}: {total_macs(rows[0]) / 1e9:.2f} GMAC" + (f", {seeds} seeds" if seeds > 1 else "")


def _draw_rate(axes: Any, key: Series, rows: Sequence[Row], colour: str) -> None:
    scores = [row["quality"]["miou"] for row in rows]
    if key[0] == "original":
        axes.axhline(fmean(scores), color=colour, linestyle="--", linewidth=1.2, label=_label(key, rows))
        axes.axhspan(min(scores), max(scores), color=colour, alpha=0.12, linewidth=0)
        return
    levels = sorted(grouped(rows, lambda row: row["level"]).values(), key=_rate)
    x = [_rate(own) for own in levels]
    found = [[row["quality"]["miou"] for row in own] for own in levels]
    axes.plot(
        x, [fmean(own) for own in found], MARKERS[key[0]] + "-", color=colour, linewidth=1.4, markersize=6,
        label=_label(key, rows),
    )  # fmt: skip
    lowest, highest = [min(own) for own in found], [max(own) for own in found]
    axes.fill_between(x, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    _draw_seeds(axes, rows, [row["bpp"] for row in rows], colour)


def _draw_seeds(axes: Any, rows: Sequence[Row], x: Sequence[float], colour: str) -> None:
    """A small marker a seed, where there are several."""
    if len({run_of(row) for row in rows}) > 1:
        scores = [row["quality"]["miou"] for row in rows]
        axes.plot(x, scores, MARKERS[rows[0]["way"]], color=colour, markersize=3, alpha=0.6)


def _rate(rows: Sequence[Row]) -> float:
    return fmean([row["bpp"] for row in rows])


def _draw_cost(axes: Any, series: dict[Series, list[Row]], colours: dict[Series, str]) -> None:
    """A column of points for each series, a point a level, with the rates at its ends."""
    places = side_by_side({key: total_macs(rows[0]) / 1e9 for key, rows in series.items()})
    for key, rows in series.items():
        x, colour = places[key], colours[key]
        levels = grouped(rows, lambda row: row["level"]).values()
        points = sorted((fmean([row["quality"]["miou"] for row in own]), _rate(own)) for own in levels)
        scores = [score for score, _ in points]
        axes.plot([x] * len(points), scores, MARKERS[key[0]] + "-", color=colour, linewidth=1.2, markersize=6)
        _draw_seeds(axes, rows, [x] * len(rows), colour)
        if key[0] == "original":
            continue
        for (score, bpp), offset in zip({points[0]: None, points[-1]: None}, (-11, 6), strict=False):
            axes.annotate(
                f"{bpp:.2g}", (x, score), xytext=(0, offset), textcoords="offset points", ha="center", fontsize=7,
                color=colour,
            )  # fmt: skip
    if places:
        low, high = min(places.values()), max(places.values())
        margin = 0.08 * (high - low) or 0.1 * high
        axes.set_xlim(low - margin, high + margin)


def side_by_side(costs: dict[Series, float], share: float = 0.04) -> dict[Series, float]:
    """Where to draw each column: at its cost, but neighbours at least `share` of the axis apart, about their mean."""
    if not costs:
        return {}
    ordered = sorted(costs, key=lambda key: costs[key])
    span = costs[ordered[-1]] - costs[ordered[0]] or costs[ordered[0]]
    gap = share * max(span, 0.05 * costs[ordered[-1]])
    clusters: list[list[Series]] = []
    for key in ordered:
        if clusters and costs[key] - costs[clusters[-1][-1]] < gap:
            clusters[-1].append(key)
        else:
            clusters.append([key])
    places = {}
    for cluster in clusters:
        middle = sum(costs[key] for key in cluster) / len(cluster)
        for index, key in enumerate(cluster):
            places[key] = middle + (index - (len(cluster) - 1) / 2) * gap
    return places
