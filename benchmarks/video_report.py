"""The rows of `video_rates.py` for people: every point, bytes at equal quality, and where curves cross."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import report
from .machine import share_of

Row = dict[str, Any]
Curve = list[tuple[float, float]]  # (bpp, quality), by bpp
Key = tuple[str, str]  # codec and network
INTRO = """\
Recorded by `python -m latentseg.benchmarks.video_rates`. Every network's labels at every rate of a learned codec, which
no pixel is decoded of for a network of latents, beside RGB networks on what H.264 (libx264, preset slow) and AV1
(SVT-AV1, preset 4) decode. keys: every frame alone, a key frame every N frames, or the first one alone. Rates are real
bytes: of H.264 and AV1 the packets without a container, of ours the stream, its header once and 28 bytes of framing a
frame, which the others' containers would have, too. H.264 and AV1 may look ahead and code frames out of order; ours
does neither. encode, decode: ms a frame between RGB and bytes (H.264 and AV1: without the conversion of colours); to
latent: what a network of latents waits for. The encoders and decoders run with the threads that are named.
"""
_LABELLED = "Quality is mIoU over the labels of all frames."
_UNLABELLED = """\
There are no labels: "agreement" is the share of pixels that get the label which the same network gives the original
frame (of latents: the latent before it is rounded). It says what coding changes, not what is right; "as NAME" is the
agreement with that RGB network on original frames.
{source}"""
_RECODED = "These originals are themselves decoded {codec}, which favours the codecs of its kind."
_EQUAL = """\
bpp at equal quality, in brackets how many times the first column's. Curves are linear in the logarithm of the bpp
between the points measured, as they are: where one is not monotone, the lowest rate that reaches the level counts.
-: not reached; <: reached at the lowest rate measured.
"""
_CROSSING = """\
Where ours lies above or below the other at the same rate, over the rates that both have; in brackets the quality where
they cross.
"""


def latest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows to show, by clip: the last one of each point and network, in the order that they first came."""
    found: dict[str, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        found.setdefault(row["clip"]["name"], {})[(*point_of(row), row["name"])] = row
    return {clip: list(own.values()) for clip, own in found.items()}


def point_of(row: Row) -> tuple[Any, ...]:
    """What the networks of one stream share: codec, key interval and setting."""
    return row["codec"]["name"], row["key_interval"], row["setting"]


def quality(row: Row) -> float:
    """mIoU where there are labels, else the agreement."""
    found: float = row["agreement"] if row["quality"] is None else row["quality"]["miou"]
    return found


def curves(rows: Sequence[Row], key_interval: int | None) -> dict[Key, Curve]:
    """The curve of each codec and network at one key interval, ours first, and of these the latents' first."""
    found: dict[Key, Curve] = {}
    coded = [row for row in rows if row["codec"]["kind"] != "original" and row["key_interval"] == key_interval]
    for row in sorted(coded, key=lambda row: (row["codec"]["kind"] != "learned", row["way"] != "latent")):
        found.setdefault((row["codec"]["name"], row["name"]), []).append((row["bpp"], quality(row)))
    return {key: sorted(curve) for key, curve in found.items()}


def intervals(rows: Sequence[Row]) -> list[int | None]:
    """The key intervals of coded rows in the order that they first came."""
    return list(dict.fromkeys(row["key_interval"] for row in rows if row["codec"]["kind"] != "original"))


def interval_text(key_interval: int | None) -> str:
    """For a table: `all`, `every 15`, `first`."""
    return {1: "all", None: "first"}.get(key_interval, f"every {key_interval}")


def bpp_at(curve: Curve, level: float) -> float | None:
    """The lowest rate at which a curve reaches a level; None where it does not, or has from its first point on."""
    if curve[0][1] >= level:
        return None
    for (bpp, value), (next_bpp, next_value) in itertools.pairwise(curve):
        if value < level <= next_value:
            share = (level - value) / (next_value - value)
            return math.exp(math.log(bpp) + share * math.log(next_bpp / bpp))
    return None


def crossings(curve: Curve, other: Curve) -> tuple[tuple[float, float], list[tuple[float, float]], float] | None:
    """Where two curves cross over the rates that both have: (lowest and highest such rate, the crossings as (bpp,
    quality), and curve - other at the lowest rate where they differ). None without such rates."""
    low, high = max(curve[0][0], other[0][0]), min(curve[-1][0], other[-1][0])
    if low >= high:
        return None
    grid = np.log(sorted({low, high} | {bpp for bpp, _ in curve + other if low < bpp < high}))
    at = [np.interp(grid, np.log([bpp for bpp, _ in own]), [value for _, value in own]) for own in (curve, other)]
    known = np.flatnonzero(at[0] != at[1])
    points = []
    for left, right in itertools.pairwise(known):
        gap, next_gap = (at[0][i] - at[1][i] for i in (left, right))
        if gap * next_gap < 0:
            share = gap / (gap - next_gap)
            place = grid[left] + share * (grid[right] - grid[left])
            points.append((float(np.exp(place)), float(np.interp(place, grid, at[0]))))
    sign = float(at[0][known[0]] - at[1][known[0]]) if len(known) else 0.0
    return (low, high), points, sign


def levels(curve: Curve, most: int = 6) -> list[float]:
    """Round levels of quality between a curve's lowest and highest, `most` at most."""
    low, high = min(value for _, value in curve), max(value for _, value in curve)
    for step in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        found = [round(k * step, 3) for k in range(math.floor(low / step) + 1, math.ceil(high / step))]
        if len(found) <= most:
            break
    return found


def point_table(rows: Sequence[Row]) -> str:
    """One line a stream, with the quality of every network behind it."""
    names = list(dict.fromkeys((row["way"], row["name"]) for row in rows))
    labelled = rows[0]["clip"]["labels"] is not None
    reference = next(name for way, name in names if way == "rgb")
    columns: list[tuple[str, str, Callable[[Row], float]]] = []
    for way, name in names:
        columns.append((("mIoU " if labelled else "agreement ") + name, name, quality))
        if not labelled and way == "latent":
            columns.append((f"as {reference}", name, lambda row: float(row["agreement_rgb"])))
    header = ["codec", "keys", "setting", "bpp", "kbit/s", "PSNR dB", *(title for title, _, _ in columns)]
    header += ["encode ms", "decode ms", "to latent ms"]
    cells = []
    for own in _grouped(rows).values():
        by_name = {row["name"]: row for row in own}
        first = own[0]
        by_way = {row["way"]: row for row in own}
        original = first["codec"]["kind"] == "original"
        cells.append(
            [
                first["codec"]["name"],
                "-" if original else interval_text(first["key_interval"]),
                first["setting"],
                report.number(first["bpp"], 4),
                report.number(first["kbit_s"], 0),
                report.number(by_way.get("rgb", {}).get("psnr"), 2),
                *(report.number(get(by_name[n]) if n in by_name else None, 4) for _, n, get in columns),
                report.number(first["encode_ms"], 1),
                report.number(by_way.get("rgb", {}).get("decode_ms"), 1),
                report.number(by_way.get("latent", {}).get("decode_ms"), 1),
            ]
        )
    return report.table(header, cells)


def _grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(point_of(row), []).append(row)
    return found


def equal_table(rows: Sequence[Row]) -> str:
    """bpp of every codec and network at levels of quality, and how many times the first one's; "" without two."""
    cells: list[list[str]] = []
    heads: list[Key] = list(dict.fromkeys(key for interval in intervals(rows) for key in curves(rows, interval)))
    learned = {row["codec"]["name"] for row in rows if row["codec"]["kind"] == "learned"}
    if len(heads) < 2 or heads[0][0] not in learned:
        return ""
    for interval in intervals(rows):
        found = curves(rows, interval)
        for level in levels(found[heads[0]]) if heads[0] in found else ():
            base = bpp_at(found[heads[0]], level)
            line = [interval_text(interval), f"{level:.3f}", report.number(base, 4)]
            for key in heads[1:]:
                line.append(_beside(found.get(key, []), level, base))
            cells.append(line)
    return report.table(["keys", "quality", *(f"{codec}, {name}" for codec, name in heads)], cells)


def _beside(curve: Curve, level: float, base: float | None) -> str:
    if not curve:
        return report.number(None, 4)
    bpp = bpp_at(curve, level)
    if bpp is None:
        return f"< {curve[0][0]:.4f}" if curve[0][1] >= level else report.number(None, 4)
    return f"{bpp:.4f}" + ("" if base is None else f" ({bpp / base:.2f})")


def crossing_table(rows: Sequence[Row]) -> str:
    """For each of ours, and every codec behind it, who is above where; "" without a pair.

    A network of latents is compared with all of the others', an RGB network with itself behind the other codec.
    """
    kinds = {row["codec"]["name"]: row["codec"]["kind"] for row in rows}
    ways = {row["name"]: row["way"] for row in rows}
    cells = []
    for interval in intervals(rows):
        found = curves(rows, interval)
        for (ours, name), curve in found.items():
            for (other, network), behind in found.items():
                fits = ways[name] == "latent" or name == network
                if kinds[ours] == "learned" and kinds[other] != "learned" and fits:
                    pair = [f"{ours}, {name}", f"{other}, {network}"]
                    cells.append([interval_text(interval), *pair, crossing_text(curve, behind)])
    return report.table(["keys", "ours", "other", "ours lies"], cells) if cells else ""


def crossing_text(curve: Curve, other: Curve) -> str:
    """`above from 0.05 to 0.21 (0.65), below to 0.9 bpp`."""
    found = crossings(curve, other)
    if found is None:
        return "at no rate that both have"
    (low, high), points, sign = found
    if sign == 0:
        return f"on it from {low:.3g} to {high:.3g} bpp"
    sides = ("above", "below") if sign > 0 else ("below", "above")
    ends = [f"{bpp:.3g} ({value:.3f})" for bpp, value in points] + [f"{high:.3g} bpp"]
    parts = [f"{sides[index % 2]} to {end}" for index, end in enumerate(ends)]
    return ", ".join(parts).replace(" to ", f" from {low:.3g} to ", 1)


def heading(clip: str, rows: Sequence[Row]) -> str:
    """Two lines: the clip, and the machine."""
    facts = rows[-1]["clip"]
    height, width = facts["size"]
    rate = facts["rate"][0] / facts["rate"][1]
    first = f"{clip}: {facts['frames']} frames of {width}x{height}, {rate:.4g} a second"
    machines = dict.fromkeys(share_of(r["machine"], r["threads"]) for r in rows)
    return f"{first}\n{' or '.join(machines)}"


def remark(rows: Sequence[Row]) -> str:
    """What quality is on this clip."""
    if rows[0]["clip"]["labels"] is not None:
        return _LABELLED
    codec = rows[0]["clip"]["video"]
    source = _RECODED.format(codec={"h264": "H.264", "av1": "AV1"}.get(codec, codec)) if codec else ""
    return _UNLABELLED.format(source=source).strip()


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The tables of a clip, each with what stands above it; those that there is something for."""
    yield remark(rows) + "\n", point_table(rows)
    for above, table in ((_EQUAL, equal_table(rows)), (_CROSSING, crossing_table(rows))):
        if table:
            yield above, table


def parts(rows: Sequence[Row]) -> Iterator[str]:
    """Heading and tables of each clip, as plain text."""
    for clip, own in latest(rows).items():
        yield "\n\n".join([heading(clip, own), *(f"{above}\n{table}" for above, table in sections(own))]) + "\n"


def page_parts(rows: Sequence[Row]) -> Iterator[str]:
    """The section of docs/results.md; nothing where nothing was recorded."""
    if not rows:
        return
    yield f"## Beside H.264 and AV1\n\n{INTRO}"
    yield f"![Quality of the labels over bits per pixel, a panel a clip]({PLOT})\n"
    for clip, own in latest(rows).items():
        yield f"### Video: {clip}\n\n```\n{heading(clip, own)}\n```\n"
        for above, table in sections(own):
            yield f"{above}\n```\n{table}\n```\n"


PLOT = "video-rates.png"  # beside the page
_LINES = {1: "-", None: "--"}  # of key intervals; dotted is what lies between
_MARKERS = "osD^vPX"


def plot_video(rows: Sequence[Row], path: Path) -> None:
    """A panel a clip: quality over bits a pixel. A colour for a codec (two for ours: latents, and pictures), a marker
    for a network, and a kind of line for how often there is a key frame; hollow where not every frame is one."""
    from .plots import CURVE_COLOURS, log_x, new_figure, save

    clips = latest(rows)
    figure, panels = new_figure(max(8.0, 6.3 * len(clips)), 6.6, len(clips))
    ways = {row["name"]: row["way"] for row in rows}
    arms = list(dict.fromkeys((r["codec"]["name"], r["way"]) for r in rows if r["codec"]["kind"] != "original"))
    colours = {arm: CURVE_COLOURS[index % len(CURVE_COLOURS)] for index, arm in enumerate(arms)}
    markers = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(ways)}
    for axes, (clip, own) in zip(panels, clips.items(), strict=True):
        for interval in intervals(own):
            for (codec, name), curve in curves(own, interval).items():
                hollow = {} if interval == 1 else {"markerfacecolor": "white"}
                axes.plot(
                    [bpp for bpp, _ in curve], [value for _, value in curve], _LINES.get(interval, ":"),
                    color=colours[codec, ways[name]], marker=markers[name], markersize=5.5, linewidth=1.4, **hollow,
                    label=f"{codec}, {name}; key frames: {interval_text(interval)}",
                )  # fmt: skip
        labelled = own[0]["clip"]["labels"] is not None
        for row in own:
            if row["codec"]["kind"] == "original" and labelled:
                axes.axhline(
                    quality(row), color="#555555", linewidth=0.9, linestyle=(0, (6, 3)),
                    label=f"{row['name']} on original frames",
                )  # fmt: skip
        log_x(axes)
        height, width = own[0]["clip"]["size"]
        axes.set_title(f"{clip}, {own[0]['clip']['frames']} frames of {width}x{height}", fontsize=10)
        axes.set_xlabel("bits per pixel (real bytes, log scale)")
        axes.set_ylabel("mIoU" if labelled else "agreement with the same network on original frames")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    found = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = dict(sorted({label: handle for handle, label in found}.items(), key=lambda pair: pair[0].split(";")[0]))
    figure.legend(
        list(handles.values()), list(handles), fontsize=8, loc="outside lower center", ncols=3, frameon=False,
        handlelength=4,
    )  # fmt: skip
    save(figure, path)
