"""Table I of Kakaiya et al. (ICME 2023) from rows of `frontier.py`, with what the paper prints beside it.

    python -m latentseg.benchmarks.paper_table benchmarks/results/frontier.jsonl benchmarks/results/paper_table.jsonl

BL1: RGB network, trained on originals, on originals. BL2: the same on frames that the codec decoded. BL3: trained on
frames that the codec decoded, and on them. BL4: trained on JPEGs, and on JPEGs, here at the quality whose rate is
nearest to the codec's. net_seg,D': a segmenter of the codec's latents. Rows of other combinations are left out.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from . import frontier_report, report
from .frontier_report import Row, grouped, mean, quality, series_of, spread

INTRO = """\
The driving paper's Table I, at its own codecs and at ours. BL1: RGB network trained and run on originals. BL2: the same
network on frames that the codec decoded. BL3: trained and run on frames that the codec decoded. BL4: trained and run on
JPEGs, at the quality of those measured whose rate is nearest to the codec's, and within 1.5 times. net_seg,D': a
segmenter of latents; PSNR and SSIM beside it are the codec's, though it decodes no picture. The lines behind a codec's
own are its group. Ours are of CamVid at 480x360 and 11 classes, the paper's of Cityscapes at 840x840 and 21 classes, so
that nothing but the order within a group compares; docs/networks.md counts our networks as the paper does. Steps and
seconds: of the last run, on two CPU cores or less; `+`: it started from another trained run; `m`: a mean of runs. bpp:
context coder; Huffman: the paper's coder, one code a frame. The factor is against 24-bit RGB; the paper's CF is very
probably against float32 RGB, four times larger, and BL4's against PNG files. Of several seeds: mean (smallest to
largest).
"""
PAPER_FLOAT_BASE = 4.0  # 96 bits of float32 RGB over 24
NEAR = 1.5  # how far BL4's rate may be from the codec's


@dataclass(frozen=True)
class Printed:
    """What the paper's Table I prints of a method; None where it is silent. M of parameters, G of "Flops" (MACs)."""

    cf: float | None = None
    dice: float | None = None
    ssim: float | None = None
    psnr: float | None = None
    segmenter_parameters: float | None = None
    segmenter_macs: float | None = None
    decoder_macs: float | None = None
    encoder_macs: float | None = None


# net_seg,E and net_seg,D are added up. BL1's net_seg,E is printed as 35.11, which no count reproduces, not as 55.11.
_LATENT = "net_seg,D'"
PAPER = {
    (_LATENT, 1): Printed(16, 0.88, 0.99, 45.74, 53.41, 2053.53, None, 16.40),
    (_LATENT, 2): Printed(66, 0.84, 0.97, 40.09, 53.41, 513.41, None, 18.13),
    (_LATENT, 3): Printed(230, 0.77, 0.94, 35.52, 53.41, 125.93, None, 18.57),
    ("BL1", None): Printed(66, 0.91, None, None, 53.52, 548.41),
    ("BL2", 2): Printed(66, 0.90, None, None, 53.53, 568.51, 9.48, 18.13),
    ("BL3", 2): Printed(66, 0.88, None, None, 53.53, 568.51, 9.48, 18.13),
    ("BL4", 2): Printed(66, 0.82, 0.76, 25.07),
}
_PAPER_CODEC = "kakaiya-codec-d"


@dataclass(frozen=True)
class Line:
    """A line of the table: rows of one series at one level, which are its seeds. pictures: rows that say what PSNR and
    SSIM its codec reaches, which of latents are the codec's own."""

    method: str
    digest_units: int | None
    rows: Sequence[Row]
    pictures: Sequence[Row]

    @property
    def printed(self) -> Printed:
        return PAPER.get((self.method, self.digest_units), Printed())


def method(row: Row) -> str | None:
    """The paper's name for what a row measured; None for what the paper does not have."""
    way = row["way"]
    if way in ("latent", "codec"):
        return _LATENT if way == "latent" else "codec"
    learned = row["network"]["input"]
    kind = "originals" if learned is None else learned["kind"]
    if way == "original":
        return "BL1" if kind == "originals" else None
    if way == "decoded" and (learned is None or kind == "originals"):
        return "BL2"
    if way == "decoded" and kind == "decoded" and learned["codec"] == row["codec"]["id"]:
        return "BL3"
    return "BL4" if way == "jpeg" and kind == "jpeg" else None


def lines(rows: Sequence[Row]) -> list[Line]:
    """The table's lines of one data set's rows: BL1, then a group for each codec, by name."""
    known = [(name, row) for row in rows if (name := method(row)) is not None]
    found = [Line("BL1", None, seeds, seeds) for seeds in _series([row for name, row in known if name == "BL1"])]
    jpegs = [row for name, row in known if name == "BL4"]
    with_codec = [row for _, row in known if row["codec"] is not None]
    for own in _codec_groups(with_codec):
        codec = own[0]["codec"]["name"]
        d = int(codec.removeprefix(_PAPER_CODEC)) if codec.startswith(_PAPER_CODEC) else None
        coded = _at_named_rate(own)
        alone = _codecs(coded)
        found.append(Line("codec", d, alone, alone))
        for name in ("BL2", "BL3"):
            found += [Line(name, d, seeds, seeds) for seeds in _series([row for row in coded if method(row) == name])]
        rate = mean([row["bpp"] for row in alone])
        if rate is not None:
            found += [Line("BL4", d, seeds, seeds) for seeds in _series(_nearest(jpegs, rate))]
        found += [Line(_LATENT, d, seeds, alone) for seeds in _series([r for r in coded if method(r) == _LATENT])]
    return found


def _codec_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by codec, the paper's first. Codecs that learned with the seeds of one latent segmenter are one group."""
    groups: list[set[str]] = []
    for seeds in (own for own in _series(rows) if own[0]["way"] == "latent"):
        ids = {row["codec"]["id"] for row in seeds}
        joined = [group for group in groups if group & ids]
        groups = [group for group in groups if not group & ids] + [ids.union(*joined)]
    known = set().union(*groups)
    groups += [{id} for id in dict.fromkeys(row["codec"]["id"] for row in rows) if id not in known]
    found = [[row for row in rows if row["codec"]["id"] in group] for group in groups]
    names = [own[0]["codec"]["name"] for own in found]
    order = sorted(range(len(found)), key=lambda k: (not names[k].startswith(_PAPER_CODEC), names[k]))
    return [found[k] for k in order]


def _codecs(coded: Sequence[Row]) -> list[Row]:
    """What the rows of a codec's group say of the codec alone: a row for each seed's, the one that has pictures."""
    found: dict[str, Row] = {}
    for row in sorted(coded, key=lambda row: (row["psnr"] is None, row["bpp"] is None)):
        if row["codec"]["id"] not in found:
            alone = {part: {k: v for k, v in row[part].items() if k != "segmenter"} for part in ("parameters", "macs")}
            emptied = {"way": "codec", "network": None, "quality": None, "timing": None}
            found[row["codec"]["id"]] = {**row, **emptied, **alone}
    return list(found.values())


def _series(rows: Sequence[Row]) -> list[list[Row]]:
    return list(grouped(rows, series_of).values())


def _at_named_rate(rows: Sequence[Row]) -> list[Row]:
    """Of each series the rows at the step nearest to 1, and those without training."""
    chosen: list[Row] = []
    for own in _series(rows):
        near = min((abs(math.log(row["level"])) for row in own if row["level"]), default=None)
        chosen += [row for row in own if row["level"] is None or abs(math.log(row["level"])) == near]
    return chosen


def _nearest(jpegs: Sequence[Row], rate: float) -> list[Row]:
    """Of each series of JPEGs the quality whose rate is nearest, as a ratio, to a codec's; none where all are far."""
    chosen: list[Row] = []
    for own in _series([row for row in jpegs if row["bpp"] is not None]):
        near = min(own, key=lambda row: abs(math.log(row["bpp"] / rate)))
        if abs(math.log(near["bpp"] / rate)) <= math.log(NEAR):
            chosen += [row for row in own if row["level"] == near["level"]]
    return chosen


def quality_table(found: Sequence[Line]) -> str:
    """Rate and quality, ours and the paper's."""
    header = ["method", "arm", "trained steps", "s", "seeds", "bpp", "Huffman", "factor", "PSNR dB", "SSIM", "mIoU"]
    header += ["Dice", "paper: CF", "CF/4", "PSNR", "SSIM", "Dice"]
    cells = []
    for line in found:
        rows, printed = line.rows, line.printed
        trained = [part for part in map(_trained_part, rows) if part["id"] is not None]
        # BL1 sends originals, and BL4's CF has another base.
        of_codec = line.method not in ("BL1", "BL4")
        true_cf = None if printed.cf is None or not of_codec else printed.cf / PAPER_FLOAT_BASE
        cells.append(
            [
                _name(line),
                _arm(line),
                " / ".join(dict.fromkeys(map(_steps, trained))) or "not trained",
                report.number(mean([part["seconds"] for part in trained]), 0),
                str(len(trained)) if trained else "-",
                report.number(mean([row["bpp"] for row in rows]), 3),
                report.number(mean([row["bpp_paper_coder"] for row in rows]), 3),
                report.number(mean([row["compression_factor"] for row in rows]), 1),
                report.number(mean([row["psnr"] for row in line.pictures]), 2),
                report.number(mean([row["ssim"] for row in line.pictures]), 3),
                spread([quality(row, "miou") for row in rows], 4),
                spread([quality(row, "mean_dice") for row in rows], 4),
                report.number(printed.cf, 0),
                report.number(true_cf, 1),
                report.number(printed.psnr, 2),
                report.number(printed.ssim, 2),
                report.number(printed.dice, 2),
            ]
        )
    return report.table(header, cells)


def cost_table(found: Sequence[Line]) -> str:
    """Parameters, multiply-accumulates and time, ours and the paper's."""
    header = [
        "method",
        "arm",
        "network",
        "M param",
        "decoder",
        "encoder",
        "GMAC",
        "decoder",
        "receiver",
        "encoder",
        "ms",
    ]
    header += ["paper: M param", "GMAC", "decoder", "receiver", "encoder"]
    cells = []
    for line in found:
        first, printed = line.rows[0], line.printed
        millions = [first["parameters"].get(part) for part in ("segmenter", "decoder", "encoder")]
        macs = [first["macs"].get(part) for part in ("segmenter", "decoder", "encoder")]
        receiver = [macs[0], macs[1], frontier_report.total_macs(first) or None, macs[2]]
        times = [row["timing"]["latency_ms"]["p50"] for row in line.rows if row["timing"]]
        total = None if printed.segmenter_macs is None else printed.segmenter_macs + (printed.decoder_macs or 0)
        cells.append(
            [
                _name(line),
                _arm(line),
                _trained_part(first)["name"],
                *(report.number(None if value is None else value / 1e6, 2) for value in millions),
                *(report.number(None if value is None else value / 1e9, 2) for value in receiver),
                report.number(times[0] if times else None, 1),
                report.number(printed.segmenter_parameters, 2),
                report.number(printed.segmenter_macs, 2),
                report.number(printed.decoder_macs, 2),
                report.number(total, 2),
                report.number(printed.encoder_macs, 2),
            ]
        )
    return report.table(header, cells)


def _trained_part(row: Row) -> dict[str, Any]:
    """The network whose training a line is about: the segmenter, or the codec itself."""
    found: dict[str, Any] = row["network"] or row["codec"]
    return found


def _name(line: Line) -> str:
    if line.method == "codec":
        return line.rows[0]["codec"]["name"]  # type: ignore[no-any-return]
    return (
        line.method
        if line.method == "BL1"
        else f"  {line.method}" + ("" if line.digest_units is None else f" d={line.digest_units}")
    )


def _arm(line: Line) -> str:
    first = line.rows[0]
    level = frontier_report.level_text(first)
    return f"{first['way']} {first['name']}" + ("" if level == "-" else f", {level}")


def _steps(part: dict[str, Any]) -> str:
    if part["steps"] is None:
        return f"m {part['average_of']}" if part["average_of"] else "-"
    return f"{part['steps']:,}" + ("+" if part["init"] not in ("", "pca") else "")


def parts(rows: Sequence[Row]) -> Iterator[str]:
    """Heading and the two tables of each data set, as plain text."""
    for data, own in frontier_report.latest(rows).items():
        found = lines(own)
        if found:
            yield f"{frontier_report.heading(data, own)}\n\n{quality_table(found)}\n\n{cost_table(found)}\n"


def page_parts(rows: Sequence[Row]) -> Iterator[str]:
    """The section of docs/results.md; nothing where nothing of the paper's codecs was recorded."""
    of_paper = any(row["codec"] is not None and row["codec"]["name"].startswith(_PAPER_CODEC) for row in rows)
    if not of_paper:
        return
    yield f"## The paper's table\n\n{INTRO}"
    for text in parts(rows):
        yield f"```\n{text}```\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: files of rows, whose table is printed; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return report.exit_code("paper_table", lambda: _run(words))


def _run(words: Sequence[str]) -> None:
    if not words or any(word.startswith("-") for word in words):
        raise UsageError("expected files of rows", hint="python -m latentseg.benchmarks.paper_table ROWS.jsonl ...")
    for text in parts([row for word in words for row in _read(Path(word))]):
        print(text)


def _read(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise InputError(f"no recorded rows at {path}", hint="record them first: benchmarks.frontier --record")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {"way", "data"} <= row.keys():
            raise InputError(f"{path}, line {number}: no row of benchmarks.frontier", hint="give its --record file")
        yield row


if __name__ == "__main__":
    sys.exit(main())
