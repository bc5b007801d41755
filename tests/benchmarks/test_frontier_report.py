"""The frontier's rows as tables, plot and page, and the paper's table made of them."""

from __future__ import annotations

import copy
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from latentseg.benchmarks import frontier_report, paper_table, results_page
from latentseg.benchmarks.frontier_plot import plot_frontier, side_by_side

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"cpu": "a CPU", "cores": 2}


def part(name: str, key: str | None, seed: int = 0, **learned: Any) -> dict[str, Any]:
    """A described network; without a key, one that is not trained."""
    trained = {"steps": 1200, "seconds": 60.0, "seed": seed, "init": "ab", "average_of": None, "input": learned or None}
    untrained = {"steps": None, "seconds": None, "seed": None, "init": "", "input": None}
    return {"name": name, "id": key, **(untrained if key is None else trained)}


def row(way: str, name: str, network: Any, codec: Any, level: float | None, bpp: float | None, score: float | None,
        **changes: Any) -> dict[str, Any]:  # fmt: skip
    """A row; without a rate, one of costs alone."""
    quality = score and {"miou": score, "mean_dice": score + 0.1, "pixel_accuracy": 0.9}
    quality = quality and {**quality, "iou": {"sky": score + 0.05, "car": score - 0.05}}
    macs = {"segmenter": 5e9, **({"encoder": 1e9} if codec else {}), **({"decoder": 2e9} if way == "decoded" else {})}
    if network is None:
        del macs["segmenter"]
    return {
        "data": "streets-val", "images": 0 if bpp is None else 101, "frame_size": [360, 480], "way": way, "name": name,
        "network": network, "codec": codec, "level": level, "coder": "context", "bpp": bpp,
        "bpp_paper_coder": bpp and codec and bpp * 2, "compression_factor": bpp and 24 / bpp, "psnr": None,
        "ssim": None, "quality": quality, "macs": macs, "parameters": {key: 10**6 for key in macs}, "timing": None,
        "machine": MACHINE, "threads": 1, "date": "2030-01-02T03:04:05+00:00", **changes,
    }  # fmt: skip


def frontier_rows() -> list[dict[str, Any]]:
    """Two seeds of latents and of JPEG, originals, and one of decoded frames."""
    rows = []
    for seed in (0, 1):
        codec = part("compact-codec", f"codec{seed}", seed)
        latent = part("compact-latent", f"latent{seed}", seed, kind="latents", codec=f"codec{seed}", levels=[0.4, 2.5])
        rgb = part("compact-rgb", f"rgb{seed}", seed, kind="originals", codec=None, levels=None)
        rows += [row("latent", "ours", latent, codec, s, 0.5 / s, 0.7 + 0.02 * seed) for s in (0.5, 1.0, 2.0)]
        rows += [row("jpeg", "rgb", rgb, None, q, b, m + 0.01 * seed) for q, b, m in ((5, 0.25, 0.4), (50, 1.0, 0.6))]
        rows.append(row("original", "rgb", rgb, None, None, 24.0, 0.75))
        if not seed:
            rows.append(row("decoded", "rgb", rgb, codec, 1.0, 0.5, 0.65, psnr=28.125, ssim=0.85))
    return rows


def cells(table: str, start: str) -> list[str]:
    """The line of a table that starts so, as words."""
    (line,) = [words for words in map(str.split, table.splitlines()) if " ".join(words).startswith(start)]
    return line


def test_rates_with_their_seeds() -> None:
    table = frontier_report.rate_table(frontier_rows())
    line = " ".join(cells(table, "latent ours step 1 "))
    assert line == "latent ours step 1 2 0.500 48.0 - - 0.7100 (0.7000 to 0.7200) 0.8100 0.9000 5.00 5.00 1.00 -"
    line = " ".join(cells(table, "decoded rgb"))
    assert line == "decoded rgb step 1 1 0.500 48.0 28.12 0.850 0.6500 0.7500 0.9000 5.00 7.00 2.00 -"
    assert len(table.splitlines()) == 2 + 3 + 2 + 1 + 1


def test_equal_bytes_are_interpolated_and_never_made_up() -> None:
    curve = [(1.0, 0.6), (0.25, 0.4)]
    assert frontier_report.at_rate(curve, 0.5) == pytest.approx(0.5)  # half way on a log axis
    assert frontier_report.at_rate(curve, 1.0) == pytest.approx(0.6)
    assert frontier_report.at_rate(curve, 1.01) is frontier_report.at_rate(curve, 0.2) is None
    assert frontier_report.at_rate([], 0.5) is None
    table = frontier_report.equal_bytes_table(frontier_rows())
    assert "0.5050 (0.5000 to 0.5100)" in " ".join(cells(table, "latent ours, step 1 "))
    line = " ".join(cells(table, "latent ours, step 0.5"))  # 1 bpp: JPEG's end, and no decoded frames
    assert line.endswith("0.7100 (0.7000 to 0.7200) 0.6050 (0.6000 to 0.6100) -")
    low = [r for r in frontier_rows() if r["way"] != "jpeg" or r["level"] == 5]
    assert "0.5050" not in frontier_report.equal_bytes_table(low)
    assert frontier_report.equal_bytes_table([r for r in frontier_rows() if r["way"] != "latent"]) == ""


def test_classes_at_the_rate_of_the_latents() -> None:
    table = frontier_report.class_table(frontier_rows())
    assert "latent ours, 0.500 bpp" in table
    assert "jpeg rgb, 0.250 bpp" in table or "jpeg rgb, 1.000 bpp" in table  # as near one as the other
    assert cells(table, "sky")[1] == "0.760"
    assert cells(table, "car")[1] == "0.660"


def test_the_last_recording_counts() -> None:
    old, new = frontier_rows(), copy.deepcopy(frontier_rows()[:1])
    new[0]["quality"]["miou"] = 0.123
    (shown,) = frontier_report.latest([*old, *new]).values()
    assert len(shown) == len(old)
    assert next(r["quality"]["miou"] for r in shown if r["way"] == "latent") == 0.123


def test_columns_of_one_cost_stand_apart() -> None:
    costs = {("latent", "a"): 4.81, ("jpeg", "a"): 4.88, ("jpeg", "b"): 4.88, ("decoded", "a"): 7.45}
    places = side_by_side(costs)
    assert places["decoded", "a"] == 7.45
    ordered = sorted(places.values())
    assert min(b - a for a, b in pairwise(ordered)) > 0.1
    assert sum(ordered[:3]) / 3 == pytest.approx((4.81 + 2 * 4.88) / 3)
    assert side_by_side({}) == {}
    assert side_by_side({("latent", "a"): 4.0}) == {("latent", "a"): 4.0}


def paper_rows() -> list[dict[str, Any]]:
    """Ours, the paper's d=2 codec with some networks, and d=1 without any that is trained."""
    first, second = (part(f"kakaiya-codec-d{d}", f"k{d}") for d in (1, 2))
    rgb = part("compact-rgb", "rgb0", kind="originals", codec=None, levels=None)
    on_decoded = part("compact-rgb", "rgb-d", kind="decoded", codec="k2", levels=[1.0, 1.0])
    on_jpeg = part("compact-rgb", "rgb-j", kind="jpeg", codec=None, levels=[4, 50])
    return [
        row("codec", "d1", None, first, 1.0, 3.5, None, psnr=38.0, ssim=0.98),
        row("latent", "d1", part("kakaiya-latent-d1", None), first, None, None, None),
        row("codec", "d2", None, second, 1.0, 1.2, None, psnr=30.0, ssim=0.9),
        row("decoded", "rgb", rgb, second, 1.0, 1.2, 0.61, psnr=30.0, ssim=0.9),
        row("decoded", "trained on it", on_decoded, second, 1.0, 1.2, 0.66, psnr=30.0, ssim=0.9),
        row("latent", "d2", part("compact-latent", "l2", kind="latents", codec="k2"), second, 1.0, 1.2, 0.63),
        row("jpeg", "trained on it", on_jpeg, None, 9, 0.4, 0.5, psnr=25.0),
        row("jpeg", "trained on it", on_jpeg, None, 70, 1.3, 0.68, psnr=25.0),
        row("decoded", "trained on JPEGs", on_jpeg, second, 1.0, 1.2, 0.55, psnr=30.0, ssim=0.9),
    ]  # fmt: skip


def test_the_papers_table() -> None:
    found = paper_table.lines([*frontier_rows(), *paper_rows()])
    seen = [(line.method, line.digest_units, line.rows[0]["name"], line.rows[0]["level"]) for line in found]
    assert seen == [
        ("BL1", None, "rgb", None),
        ("codec", 1, "d1", 1.0), ("net_seg,D'", 1, "d1", None),  # JPEG was not measured near 3.5 bpp
        ("codec", 2, "d2", 1.0), ("BL2", 2, "rgb", 1.0), ("BL3", 2, "trained on it", 1.0),
        ("BL4", 2, "trained on it", 70), ("net_seg,D'", 2, "d2", 1.0),
        ("codec", None, "rgb", 1.0), ("BL2", None, "rgb", 1.0), ("BL4", None, "trained on it", 9),
        ("net_seg,D'", None, "ours", 1.0),
    ]  # fmt: skip
    quality = paper_table.quality_table(found)
    # bpp, Huffman, factor, the codec's PSNR and SSIM, mIoU, Dice; printed CF, against 24 bits, PSNR, SSIM, Dice.
    line = " ".join(cells(quality, "net_seg,D' d=2"))
    assert line.endswith("1,200+ 60 1 1.200 2.400 20.0 30.00 0.900 0.6300 0.7300 66 16.5 40.09 0.97 0.84")
    line = " ".join(cells(quality, "net_seg,D' d=1"))
    assert line.endswith("latent d1 not trained - - - - - 38.00 0.980 - - 16 4.0 45.74 0.99 0.88")
    assert " ".join(cells(quality, "BL4 d=2")).endswith("0.6800 0.7800 66 - 25.07 0.76 0.82")
    assert " ".join(cells(quality, "BL1")).endswith("2 24.000 - 1.0 - - 0.7500 (0.7500 to 0.7500) "
                                                    "0.8500 (0.8500 to 0.8500) 66 - - - 0.91")  # fmt: skip
    costs = paper_table.cost_table(found)
    line = " ".join(cells(costs, "BL2 d=2"))  # MACs: segmenter, decoder, both, encoder
    assert line.endswith("compact-rgb 1.00 1.00 1.00 5.00 2.00 7.00 1.00 - 53.53 568.51 9.48 577.99 18.13")
    line = " ".join(cells(costs, "compact-codec"))  # the codec of a group without rows of its own
    assert line.startswith("compact-codec codec rgb, step 1 compact-codec - 1.00 1.00 - 2.00 2.00 1.00")


def test_the_papers_table_of_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper_table.lines([]) == []
    (line,) = paper_table.lines([row("original", "rgb", part("kakaiya-rgb", None), None, None, None, None)])
    assert "not trained" in paper_table.quality_table([line])
    untrained = row("latent", "d1", part("kakaiya-latent-d1", None), part("kakaiya-codec-d1", None), None, None, None)
    codec, latent = paper_table.lines([untrained])
    assert (codec.method, latent.method) == ("codec", "net_seg,D'")
    assert "1.00" in cells(paper_table.cost_table([codec, latent]), "net_seg,D' d=1")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in paper_rows()))
    assert paper_table.main([str(file)]) == 0
    assert "kakaiya-codec-d2" in capsys.readouterr().out
    assert paper_table.main([]) == 2
    assert paper_table.main([str(tmp_path / "no.jsonl")]) == 3
    assert "no recorded rows at" in capsys.readouterr().err


def test_page_and_plot(tmp_path: Path) -> None:
    """The page's sections are those of the rows beside the others, and the plot is drawn beside the page."""
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", folder)
    for name, rows in (("frontier", frontier_rows()), ("paper_table", paper_rows())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert results_page.main([str(folder), str(tmp_path / "results.md")]) == 0
    text = (tmp_path / "results.md").read_text()
    (both,) = frontier_report.latest([*frontier_rows(), *paper_rows()]).values()
    assert "## Labels against bytes and multiply-accumulates" in text
    for table in (
        frontier_report.rate_table(frontier_rows()),
        frontier_report.equal_bytes_table(frontier_rows()),
        paper_table.quality_table(paper_table.lines(both)),
    ):
        assert table in text
    assert "(frontier-streets-val.png)" in text
    assert (tmp_path / "frontier-streets-val.png").read_bytes()[:4] == b"\x89PNG"
    assert list(paper_table.page_parts(frontier_rows())) == []  # nothing of the paper's codecs
    assert list(frontier_report.page_parts([])) == []
    plot_frontier(paper_rows()[:2], tmp_path / "bare.png")  # nothing that is scored
