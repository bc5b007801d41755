"""Pictures of recorded results (matplotlib, drawn without a display and without its global state)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import OutputError, missing_extra
from . import gains_report, report

# One colour a stage and one marker a curve, from a palette that stays apart for the colour-blind (Okabe and Ito).
STAGE_COLOURS = {
    "entropy_decode": "#E69F00", "decode": "#D55E00", "segment": "#0072B2", "classify": "#0072B2", "rest": "#999999",
}  # fmt: skip
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STAGE_NAMES = {
    "entropy_decode": "entropy decode", "decode": "decode to RGB", "segment": "segmenter", "classify": "classifier",
    "rest": "rest",
}  # fmt: skip


def new_figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    """A figure in inches and its row of axes, on matplotlib's Agg canvas."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plot") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; a folder that does not exist is an OutputError."""
    try:
        figure.savefig(path, dpi=130, format="png")
    except OSError as error:
        raise OutputError(f"cannot write the plot {path}: {error.strerror or error}") from error


def plot_bench(result: dict[str, Any], path: Path) -> None:
    """Left: milliseconds a frame by stage, one bar for each arm and batch size. Right: quality over bits per pixel
    (mIoU or top-1, or agreement with the RGB network where the clip has no labels)."""
    bars = len(result["arms"]) * len(result["configuration"]["batches"])
    figure, (left, right) = new_figure(13.0, max(4.2, 1.8 + 0.42 * bars), 2)
    _draw_stages(left, result)
    _draw_quality(right, result)
    setup = result["configuration"]
    height, width = setup["frame_size"]
    precision = setup.get("precision", "fp32")
    figure.suptitle(
        f"{setup['source']}, {setup['frames']} frames of {width}x{height}, {setup['bundle']['name']}"
        f"{'' if precision == 'fp32' else f', segmenters in {precision}'}: "
        f"{result['machine']['cpu']}, threads: {setup['threads']}",
        fontsize=10,
    )
    save(figure, path)


def _draw_stages(axes: Any, result: dict[str, Any]) -> None:
    batches = result["configuration"]["batches"]
    thickness = 0.8 / len(batches)
    longest = 0.0
    for row, arm in enumerate(result["arms"]):
        for timing in arm["timings"]:
            place = row + (batches.index(timing["batch"]) - (len(batches) - 1) / 2) * thickness
            start = 0.0
            for stage, colour in STAGE_COLOURS.items():
                milliseconds = max(timing["stage_ms_per_frame"].get(stage, 0.0), 0.0)
                axes.barh(place, milliseconds, thickness * 0.9, left=start, color=colour)
                start += milliseconds
            longest = max(longest, start)
            axes.annotate(
                f"{start:.1f} ms, batch {timing['batch']}",
                (start, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(range(len(result["arms"])), [arm["name"] for arm in result["arms"]])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.35)
    answers = "classes" if report.classifies(result) else "labels"
    axes.set_xlabel(f"time per frame, bytes to {answers} (ms)")
    axes.set_title("Where the time goes", fontsize=10)
    from matplotlib.patches import Patch

    used = [s for s in STAGE_COLOURS if any(t["stage_share"].get(s) for arm in result["arms"] for t in arm["timings"])]
    handles = [Patch(color=STAGE_COLOURS[stage], label=_STAGE_NAMES[stage]) for stage in used]
    axes.legend(handles=handles, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def log_x(axes: Any) -> None:
    """A logarithmic x axis with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_quality(axes: Any, result: dict[str, Any]) -> None:
    scored = result["configuration"]["labels"] is not None
    key, name = ("top1", "top-1 accuracy") if report.classifies(result) else ("miou", "mIoU")

    def quality(arm: dict[str, Any]) -> float | None:
        found: float | None = arm["quality"][key] if scored else arm["agreement"]
        return found

    for index, arm in enumerate(result["arms"]):
        value = quality(arm)
        if value is not None:
            colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
            axes.plot(arm["bpp"], value, "o^sDv"[index % 5], color=colour, markersize=8, label=arm["name"])
    ceiling = result["ceiling"] and quality(result["ceiling"])
    if ceiling is not None and scored:
        axes.axhline(ceiling, color="#555555", linestyle="--", linewidth=1, label="RGB network, original frames")
    log_x(axes)
    axes.set_xlabel("bits per pixel (real bytes on the wire, log scale)")
    axes.set_ylabel(name if scored else "agreement with the RGB network on originals")
    axes.set_title("Quality against rate", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


# Markers of the ways of `gains.py`.
WAY_MARKERS = {"rgb-original": "s", "rgb-decoded": "^", "latent": "o"}


def plot_gains(rows: list[dict[str, Any]], path: Path) -> None:
    """Quality over multiply-accumulates of a frame, rows of one data set: a line for each bundle through its ways.

    A marker is filled where the decoder is counted and hollow where it is not; a way that decodes has both.
    """
    figure, (axes,) = new_figure(10.5, 5.6, 1)
    from matplotlib.lines import Line2D

    key, name = ("top1", "top-1 accuracy") if rows[0]["task"] == "classification" else ("miou", "mIoU")
    scale, unit = report.macs_unit([row["macs_with_decoder"] for row in rows])
    names = gains_report.labels(rows)
    handles = []
    for index, bundle in enumerate(dict.fromkeys(names)):
        own = {row["way"]: row for row, label in zip(rows, names, strict=True) if label == bundle}
        colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
        ways = [own[way] for way in WAY_MARKERS if way in own]
        points = [(row["macs_with_decoder"] / scale, row["quality"][key]) for row in ways]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2)
        for row, (total, quality) in zip(ways, points, strict=True):
            marker = WAY_MARKERS[row["way"]]
            alone = row["macs_per_frame"] / scale
            axes.plot([alone, total], [quality, quality], color=colour, linewidth=1, linestyle=":")
            axes.plot(total, quality, marker, color=colour, markersize=8)
            axes.plot(alone, quality, marker, color=colour, markersize=12, markerfacecolor="none")
        handles.append(Line2D([], [], color=colour, label=f"{bundle}{_rate(ways)}"))
    for way, marker in WAY_MARKERS.items():
        handles.append(Line2D([], [], color="#555555", marker=marker, linestyle="", label=way))
    for fill, label in (("#555555", "filled: with the decoder"), ("none", "hollow: the network alone")):
        handles.append(Line2D([], [], color="#555555", marker="D", linestyle="", markerfacecolor=fill, label=label))
    log_x(axes)
    axes.set_xlabel(f"{unit} a frame (log scale)")
    axes.set_ylabel(name)
    axes.set_title(f"{rows[0]['data']}: quality against the receiver's cost", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)


def _rate(ways: list[dict[str, Any]]) -> str:
    """The rate of a bundle's bytes for a legend; nothing where no way has bytes."""
    for row in ways:
        if row["way"] != "rgb-original":
            sheet = row["sheet_bpp"]
            return f", {row['bpp']:.3f} bpp" + ("" if sheet is None else f" (on sheets {sheet:.3f})")
    return ""


def plot_rate_distortion(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """PSNR and SSIM over bits per pixel: a curve for each codec, its settings joined in order of rate.

    Learned codecs have large markers, hollow with the paper's coder.
    """
    figure, panels = new_figure(13.0, 5.6, 2)
    names = list(dict.fromkeys(row["codec"] for row in rows))
    for axes, key, label in zip(panels, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for index, name in enumerate(names):
            colour = CURVE_COLOURS[index % len(CURVE_COLOURS)]
            for coder in (None, "context", "huffman-frame"):
                points = sorted(
                    (row["bpp"], row[key])
                    for row in rows
                    if row["codec"] == name and row["setting"].get("coder") == coder and row[key] is not None
                )
                if points:
                    hollow = {"markerfacecolor": "white"} if coder == "huffman-frame" else {}
                    axes.plot(
                        [bpp for bpp, _ in points],
                        [value for _, value in points],
                        color=colour,
                        linewidth=1.2,
                        marker="." if coder is None else "o",
                        markersize=5 if coder is None else 8,
                        label=name if coder is None else f"{name}, {coder}",
                        **hollow,
                    )
        log_x(axes)
        axes.set_xlabel("bits per pixel (real bytes, log scale)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    save(figure, path)
