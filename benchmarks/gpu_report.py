"""What was measured on a GPU, for people: a table a batch size and precision, the stages, the sender, and the aims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import report
from .gpu_material import ROLES
from .gpu_parts import RAN, Row

_ORDER = list(ROLES)
# Names of the stages in tables; every arm has some of them.
STAGES = {
    "copy_in": "copy in", "entropy_decode": "entropy + int2float", "decode": "JPEG decode",
    "copy_frames": "frames to the input",
    "decompressor": "decompressor", "rgb_segmenter": "RGB segmenter", "segmenter": "segmenter", "copy_out": "copy out",
}  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """An aim beside what was found. text: what was wanted, of what.  found: in the aim's own unit."""

    text: str
    wanted: float
    found: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def aims(rows: Sequence[Row]) -> list[Aim]:
    """The aims that these rows, of one set of networks on one machine, say something about."""
    found = []
    for row in rows:
        if row["result"] != RAN or row["kind"] == "part":
            continue
        where = f"{row['precision']}, batch {row['batch']}"
        arm = row.get("arm")
        if row["kind"] == "stages" and arm == "compressed":
            wanted = 0.03 if row["batch"] == 1 else 0.01 if row["batch"] >= 8 else None
            if wanted is not None:
                share = row["stage_share"]["entropy_decode"]
                found.append(Aim(f"entropy decode + int2float, share of the time, {where}", wanted, share, True))
        if row["kind"] == "arm" and arm == "compressed":
            found.append(Aim(f"host time a batch (ms), {where}", 0.05, row["host_ms"]["total"], True))
        if row["kind"] == "arm" and arm in ("jpeg", "learned-decode") and row["time_over_compressed"] is not None:
            wanted = 1.10 if arm == "jpeg" else 1.8
            ratio = row["time_over_compressed"]["median"]
            found.append(Aim(f"time of {arm} over compressed, {where}", wanted, ratio, False))
        if row["kind"] == "sender":
            text = f"sender, {row['frame_size'][1]}x{row['frame_size'][0]} frames/s, batch {row['batch']}"
            found.append(Aim(text, row["real_time"], row["frames_per_second"]["median"], False))
    return found


def arm_table(rows: Sequence[Row]) -> str:
    """One line an arm; rows of one batch size and precision."""
    header = [
        "arm", "frames/s (range)", "p50 ms", "p95 ms", "p99 ms", "time / compressed", "host ms", "CPU ms/frame",
        "GPU MiB", "J/frame", "bytes/frame", "agreement",
    ]  # fmt: skip
    cells = []
    for row in sorted(rows, key=lambda row: _ORDER.index(row["arm"])):
        if row["result"] != RAN:
            cells.append([row["arm"], row["result"], *["-"] * (len(header) - 2)])
            continue
        rate, latency, joules = row["frames_per_second"], row["latency_ms"], row["joules_per_frame"]
        cells.append(
            [
                row["arm"],
                f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})",
                *(report.number(latency[key], 2) for key in ("p50", "p95", "p99")),
                report.ratio(row["time_over_compressed"]),
                report.number(row["host_ms"]["total"], 3),
                report.number(row["cpu_ms_per_frame"], 3),
                report.number(row["gpu_memory_mib"], 0),
                "-" if isinstance(joules, str) else report.number(joules, 3),
                report.number(row["bytes_per_frame"], 0),
                report.number(row["agreement"], 4),
            ]
        )
    return report.table(header, cells)


def stage_table(rows: Sequence[Row]) -> str:
    """Milliseconds and share of each stage, one line an arm; rows of one batch size and precision."""
    used = [stage for stage in STAGES if any(stage in row.get("stage_ms", {}) for row in rows)]
    cells = []
    for row in sorted(rows, key=lambda row: _ORDER.index(row["arm"])):
        if row["result"] != RAN:
            cells.append([row["arm"], *[row["result"]] * bool(used), *["-"] * (len(used) - 1)])
            continue
        times, shares = row["stage_ms"], row["stage_share"]
        cells.append([row["arm"], *(f"{times[s]:.3f} ({100 * shares[s]:.1f} %)" if s in times else "-" for s in used)])
    return report.table(["stage ms (share)", *(STAGES[stage] for stage in used)], cells)


def sender_table(rows: Sequence[Row]) -> str:
    """The sender's rate, one line a batch size."""
    cells = []
    for row in rows:
        name = f"{row['bundle']}, batch {row['batch']}"
        if row["result"] != RAN:
            cells.append([name, row["result"], "-", "-", "-"])
            continue
        rate = row["frames_per_second"]
        cells.append(
            [
                name,
                f"{rate['median']:,.1f} ({rate['min']:,.1f} to {rate['max']:,.1f})",
                report.number(row["cpu_ms_per_frame"], 2),
                report.number(row["bytes_per_frame"], 0),
                f"{100 * row['symbols_equal']:.3f} %",
            ]
        )
    return report.table(["sender", "frames/s (range)", "CPU ms/frame", "bytes/frame", "symbols as the CPU's"], cells)


def aim_table(found: Sequence[Aim]) -> str:
    """The aims, one a line."""
    cells = [
        [aim.text, f"{'at most' if aim.at_most else 'at least'} {aim.wanted:g}", f"{aim.found:.4g}",
         "met" if aim.met else "missed"]
        for aim in found
    ]  # fmt: skip
    return report.table(["aim", "wanted", "found", ""], cells)


def text(rows: Sequence[Row]) -> str:
    """The whole report of a run's rows, in the order of its parts; "" where there are none."""
    return "\n\n".join(_parts([row for row in rows if row.get("kind") in ("arm", "stages", "sender", "part")]))


def _parts(rows: Sequence[Row]) -> Iterator[str]:
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        last = [row for row in own if row["kind"] == "part"]
        yield f"{part}: {_said(last[-1]) if last else 'was not finished'}"
        measured = [row for row in own if row["kind"] in ("arm", "stages")]
        for batch, precision in dict.fromkeys((row["batch"], row["precision"]) for row in measured):
            these = [row for row in measured if (row["batch"], row["precision"]) == (batch, precision)]
            arms = [row for row in these if row["kind"] == "arm"]
            stages = [row for row in these if row["kind"] == "stages"]
            yield f"{_heading(these[0])}\n{arm_table(arms)}" if arms else _heading(these[0])
            if stages:
                yield stage_table(stages)
            reasons = [f"{row['arm']} ({row['kind']}): {_said(row)}" for row in these if row["result"] != RAN]
            if reasons:
                yield "\n".join(reasons)
        senders = [row for row in own if row["kind"] == "sender"]
        if senders:
            yield sender_table(senders)
            yield from (f"batch {row['batch']}: {_said(row)}" for row in senders if row["result"] != RAN)
        wanted = aims(own)
        if wanted:
            yield aim_table(wanted)


def _heading(row: Row) -> str:
    height, width = row["frame_size"]
    random = ", random weights: speed only" if row["weights"] == "random" else ""
    return (
        f"{row['bundle']}{random}: {width}x{height}, segmenters in {row['precision']} (codec fp32), "
        f"batch {row['batch']}; latency is a batch's, from bytes on the host to labels there"
    )


def _said(row: Row) -> str:
    detail: dict[str, Any] = row["detail"]
    why = detail.get("reason") or detail.get("error") or ", ".join(f"{key} {value}" for key, value in detail.items())
    return f"{row['result']}: {why}" if why else str(row["result"])
