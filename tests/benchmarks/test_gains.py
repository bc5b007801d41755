"""Bundles three ways: quality, rate and cost by hand on the tiny bundles; rows to table, plot and page."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import numpy as np
import pytest
import torch
from _labelled import camvid_bundle, digit_bundle, with_classes, write_camvid, write_idx
from PIL import Image

from latentseg.benchmarks import gains, gains_report, plots, report, results_page
from latentseg.benchmarks.gains_data import load_data
from latentseg.bitstream import Writer
from latentseg.engine.bundle import Bundle
from latentseg.engine.placement import Placement
from latentseg.engine.roles import Compressor
from latentseg.errors import OutputError, UsageError
from latentseg.training.evaluate_classifier import evaluate_classifier
from latentseg.training.image_sets import image_set

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(24, 32), (24, 32), (17, 30), (24, 32)]  # a change of size in the middle, and back
WAYS = ["rgb-original", "rgb-decoded", "latent"]


def rows_of(bundle: Bundle, data: Any, rounds: int = 1, **options: Any) -> dict[str, dict[str, Any]]:
    (rows,) = gains.run([(bundle, data)], Placement(threads=1), rounds=rounds, timed=2, **options)
    assert [row["way"] for row in rows] == WAYS
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    return {row["way"]: row for row in rows}


def coded(bundle: Bundle, frames: list[np.ndarray]) -> list[int]:
    """Bytes of each frame with its framing."""
    sizes = []
    with Compressor(bundle, Placement(threads=1)) as compressor:
        for frame in frames:
            header = bundle.header(*frame.shape[:2])
            sizes.append(Writer(io.BytesIO(), header).write(compressor.encode(frame[None], header)[0]))
    return sizes


def decoded(frame: np.ndarray) -> np.ndarray:
    small = tiny.symbols(frame[None]).transpose(0, 2, 3, 1)
    return small.repeat(8, axis=1).repeat(8, axis=2)[0, : frame.shape[0], : frame.shape[1]]


def test_a_segmenter_by_hand(tmp_path: Path) -> None:
    frames, labels = write_camvid(tmp_path / "streets", SIZES)
    bundle = camvid_bundle(tmp_path)
    rows = rows_of(bundle, load_data(bundle, tmp_path / "streets", "camvid", None, None), rounds=2)
    answers = {
        "rgb-original": [frame.argmax(2) for frame in frames],
        "rgb-decoded": [decoded(frame).argmax(2) for frame in frames],
        "latent": [tiny.labels(frame[None])[0] for frame in frames],
    }
    truth = np.concatenate([label.ravel() for label in labels])
    known = truth < 11
    for way, found in answers.items():
        flat = np.concatenate([label.ravel() for label in found])
        iou = []
        for k in range(3):
            both, either = (flat == k) & (truth == k) & known, ((flat == k) | (truth == k)) & known
            iou.append(both.sum() / either.sum())
        assert rows[way]["quality"]["miou"] == pytest.approx(np.mean(iou))
        assert rows[way]["quality"]["pixels"] == known.sum()
    assert rows["rgb-original"]["quality"]["miou"] == 1.0 > rows["latent"]["quality"]["miou"]
    sizes = coded(bundle, frames)
    for way in ("rgb-decoded", "latent"):
        assert rows[way]["bytes_per_frame"] == pytest.approx(np.mean(sizes))
        expected = [8 * size / (h * w) for size, (h, w) in zip(sizes, SIZES, strict=True)]
        assert rows[way]["bpp"] == pytest.approx(np.mean(expected))
    assert rows["rgb-original"]["bpp"] == 24.0
    # 1 MAC a pixel in each network's manifest; 17x30 is computed as 24x32. Parameters: 100 and the role's place.
    assert {way: row["macs_per_frame"] for way, row in rows.items()} == dict.fromkeys(WAYS, 24 * 32)
    assert [rows[way]["macs_with_decoder"] for way in WAYS] == [24 * 32, 2 * 24 * 32, 24 * 32]
    assert [rows[way]["parameters"] for way in WAYS] == [103, 103, 102]
    assert [rows[way]["parameters_with_decoder"] for way in WAYS] == [103, 204, 102]
    for way, row in rows.items():
        assert (row["images"], row["frame_size"], row["sheet_bpp"], row["network"]) == (4, None, None, None)
        assert (row["data"], row["task"], row["bundle"]["name"]) == ("streets-val", "segmentation", "streets")
        stages = row["timing"]["stage_ms_per_frame"]
        assert (stages["decode"] > 0, stages["entropy_decode"] > 0) == (way == "rgb-decoded", way != "rgb-original")
        assert (row["timing"]["n"], row["timing"]["rounds"]) == (4, 2)  # the first 2 frames, twice


def test_a_classifier_by_hand(tmp_path: Path) -> None:
    frames, truth = write_idx(tmp_path / "signs", 9)
    bundle = digit_bundle(tmp_path)
    rows = rows_of(bundle, load_data(bundle, tmp_path / "signs", "idx", None, None))
    stacked = np.stack(frames)
    means = {
        "rgb-original": tiny.frame_means(stacked),
        "rgb-decoded": tiny.frame_means(np.stack([decoded(frame) for frame in frames])),
        "latent": tiny.symbols(stacked).astype(np.float64).mean((2, 3)),
    }
    for way, values in means.items():
        order = np.argsort(-tiny.probabilities(values), axis=1)
        assert rows[way]["quality"]["top1"] == pytest.approx(np.mean(order[:, 0] == truth))
        assert rows[way]["quality"]["top5"] == pytest.approx(np.mean((order[:, :5] == truth[:, None]).any(1)))
        assert (rows[way]["data"], rows[way]["frame_size"]) == ("signs-test-24", [24, 24])
    # 3 x 7 products at any size, and 1 a pixel of the decoder.
    assert [rows[way]["macs_with_decoder"] for way in WAYS] == [21, 24 * 24 + 21, 21]
    assert [rows[way]["network"] for way in WAYS] == [None, None, "tiny-c"]
    # 9 images of 24x24 lie side by side in one frame of 24 x 216.
    sheet = np.concatenate(frames, axis=1)
    (size,) = coded(bundle, [sheet])
    assert (
        rows["latent"]["sheet_bpp"] == rows["rgb-decoded"]["sheet_bpp"] == pytest.approx(8 * size / sheet[..., 0].size)
    )
    assert rows["rgb-original"]["sheet_bpp"] is None
    assert rows["latent"]["sheet_bpp"] < rows["latent"]["bpp"]


def test_limited_and_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are spread over the set, and what comes out does not depend on how many are in memory at once."""
    write_idx(tmp_path / "signs", 9)
    bundle = digit_bundle(tmp_path)
    data = load_data(bundle, tmp_path / "signs", "idx", "test", 24)
    whole = rows_of(bundle, data, limit=4)
    assert whole["latent"]["images"] == 4
    monkeypatch.setattr(gains, "GROUP", 3)
    parts = rows_of(bundle, data, limit=4)
    for way in WAYS:
        for key in ("quality", "bpp", "sheet_bpp", "macs_with_decoder", "images"):
            assert parts[way][key] == whole[way][key]
    seen: list[int] = []

    def follow(places: Any) -> Any:
        seen.extend(places)
        return places

    rows_of(bundle, data, limit=4, progress=follow)
    assert seen == [0, 2, 4, 6]


@pytest.mark.parametrize("count", [200, 350])
def test_the_rate_of_sheets_is_that_of_eval_classifier(tmp_path: Path, count: int) -> None:
    """28x28: 324 images a sheet, 18 across; 200 leave 2 out, and 350 fill a sheet and one row of the next."""
    frames, _ = write_idx(tmp_path / "signs", count, side=28)
    bundle = digit_bundle(tmp_path)
    rows = rows_of(bundle, load_data(bundle, tmp_path / "signs", "idx", "test", 28))

    class Means(torch.nn.Module):
        stride, bits, tile, scaling = 8, bundle.codec.bits, bundle.codec.tile, ("fixed", 0.0, 255.0)

        def compress(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x * 255, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(tiny.probabilities(x.mean((2, 3)).double().numpy()))

    images = image_set("idx", tmp_path / "signs", "test")
    scores = evaluate_classifier(Means(), images, 28, codec=Means(), coder=bundle.codec.coder, progress=False)
    by_hand = []
    for part in (frames[:324], frames[324:]):
        lines = [np.concatenate(part[start : start + 18], axis=1) for start in range(0, len(part) // 18 * 18, 18)]
        if lines:
            sheet = np.concatenate(lines)
            by_hand.append(8 * coded(bundle, [sheet])[0] / sheet[..., 0].size)
    assert len(by_hand) == 1 + (count > 324)
    for way in ("latent", "rgb-decoded"):
        assert rows[way]["sheet_bpp"] == pytest.approx(scores["sheet_bpp"], rel=1e-4)
        assert rows[way]["sheet_bpp"] == pytest.approx(np.mean(by_hand))


def test_a_way_without_its_networks_is_left_out(tmp_path: Path) -> None:
    write_camvid(tmp_path / "data", SIZES[:1])
    bundle = camvid_bundle(tmp_path, ("compressor", "segmenter"))
    notes: list[str] = []
    data = load_data(bundle, tmp_path / "data", "camvid", "val", None)
    (rows,) = gains.run([(bundle, data)], Placement(threads=1), rounds=1, note=notes.append)
    assert [row["way"] for row in rows] == ["latent"]
    assert notes == [
        "streets: rgb-original left out: the bundle has no rgb_segmenter",
        "streets: rgb-decoded left out: the bundle has no decompressor and no rgb_segmenter",
    ]
    plots.plot_gains(rows, tmp_path / "alone.png")  # a line of one point


def test_data_of_other_classes_are_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    write_camvid(tmp_path / "data", SIZES[:1])
    write_idx(tmp_path / "signs", 7)
    streets, digits = camvid_bundle(tmp_path), digit_bundle(tmp_path)
    swapped = with_classes(tmp_path / "swapped", streets, [*streets.classes[1::-1], *streets.classes[2:]], {})
    for bundle, root, layout, size, says in (
        (tiny_bundle, "data", "camvid", None, "class lists differ: 11 classes in the data, 3 of bundle 'tiny'"),
        (swapped, "data", "camvid", None, "class 0 is 'sky' in the data, 'building' of bundle 'swapped'"),
        (tiny_bundle, "signs", "idx", None, "'tiny' is for segmentation, the layout 'idx' is not"),
        (digits, "data", "camvid", None, "'digits' is for classification, the layout 'camvid' is not"),
        (digits, "data", "coco", None, "unknown layout 'coco'"),
        (streets, "data", "camvid", 64, "--size belongs to classified images"),
    ):
        with pytest.raises(UsageError, match=says):
            load_data(bundle, tmp_path / root, layout, None, size)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_camvid(tmp_path / "streets", SIZES[:2])
    bundle, record = camvid_bundle(tmp_path), tmp_path / "gains.jsonl"
    common = ["--data", str(tmp_path / "streets"), "--layout", "camvid", "--rounds", "1", "--threads", "1"]
    for _ in range(2):
        assert gains.main([str(bundle.path), *common, "--record", str(record)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("streets-val: 2 images of 32x24; ")
    assert len(record.read_text().splitlines()) == 6
    assert str(tmp_path) not in record.read_text()
    for words, code, says in (
        (["no-such-bundle"], 2, "no bundle named"),
        *(
            (
                [str(bundle.path), f"--{name}", value],
                2,
                f"--{name} {value}, expected at least 1\nhint: leave --{name} out",
            )
            for name, value in (("limit", "0"), ("size", "0"), ("threads", "0"), ("threads", "-3"), ("timed", "0"))
        ),
        (
            [str(bundle.path), str(bundle.path)],
            2,
            "2 of the bundles are named 'streets', expected a name for each\nhint: ",
        ),
        ([str(bundle.path), "--record", str(tmp_path / "no" / "x.jsonl")], 2, "no such folder\nhint: mkdir -p "),
        ([str(bundle.path), "--record", str(tmp_path)], 2, "is a folder, expected a file\nhint: "),
        ([str(bundle.path), "--split", "night"], 3, "no split 'night'"),
    ):
        assert gains.main([*common, *words]) == code
        found = capsys.readouterr()
        assert says in found.err
        assert not found.out  # before anything is measured


def test_rows_that_cannot_be_written_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_camvid(tmp_path / "streets", SIZES[:1])
    bundle = camvid_bundle(tmp_path)

    def fail(path: Path, row: Any) -> None:
        raise OutputError("cannot append")

    monkeypatch.setattr(report, "append_row", fail)
    words = ["--data", str(tmp_path / "streets"), "--layout", "camvid", "--rounds", "1", "--threads", "1"]
    assert gains.main([str(bundle.path), *words, "--record", str(tmp_path / "x.jsonl")]) == OutputError.exit_code
    found = capsys.readouterr()
    assert "cannot append" in found.err
    assert all(way in found.out for way in WAYS)


NO_DECODE = {"entropy_decode": 0.25, "decode": 0.0, "rest": 0.0}


def row(bundle: str, way: str, score: float, alone: float, total: float, **changes: Any) -> dict[str, Any]:
    stages = {"entropy_decode": 0.0 if way == "rgb-original" else 0.25, "decode": total - alone, "rest": 0.0}
    return {
        "data": "somewhere-val", "task": "segmentation", "way": way, "network": "compact-deeplab", "images": 1101,
        "frame_size": [360, 480], "machine": {"cpu": "Some CPU", "cores": 2}, "configuration": {"threads": 2},
        "date": "2026-01-01", "bundle": {"name": bundle, "codec_id": "c0dec1d0" * 8},
        "quality": {"miou": score, "mean_dice": 0.75}, "bpp": 0.36, "sheet_bpp": None,
        "macs_per_frame": alone * 1e9, "macs_with_decoder": total * 1e9, "parameters": 1_800_000,
        "parameters_with_decoder": 2_760_000,
        "timing": {"latency_ms": {"p50": 12.3}, "stage_ms_per_frame": {**stages, "segment": 11.5}}, **changes,
    }  # fmt: skip


TABLE = """\
somewhere-val: 1,101 images of 480x360; Some CPU, 2 of 2 cores

bundle           way          network    bpp    mIoU    Dice   GMAC  with decoder  M param  with decoder  p50 ms  entropy ms  decode ms  network ms
------  ------------  ---------------  -----  ------  ------  -----  ------------  -------  ------------  ------  ----------  ---------  ----------
one     rgb-original  compact-deeplab  0.360  0.7000  0.7500  2.000         2.000     1.80          2.76   12.30           -          -       11.50
one      rgb-decoded  compact-deeplab  0.360  0.6100  0.7500  2.000         5.000     1.80          2.76   12.30        0.25       3.00       11.50
two           latent                -  0.360  0.6500  0.7500  1.875         1.875     1.80          2.76   12.30        0.25          -       11.50
"""  # noqa: E501


def test_rows_to_page_and_plot(tmp_path: Path) -> None:
    rows = [
        row("one", "rgb-original", 0.1, 2.0, 2.0),
        row("two", "latent", 0.65, 1.875, 1.875, network=None),
        row("one", "rgb-original", 0.7, 2.0, 2.0),  # recorded again: this one counts
        row("one", "rgb-decoded", 0.61, 2.0, 5.0),
        row("three", "latent", 0.9, 0.04, 0.04, data="things-test-64", task="classification", frame_size=[64, 64],
            quality={"top1": 0.91, "top5": 1.0}, sheet_bpp=0.337,
            timing={"latency_ms": {"p50": 1.0}, "stage_ms_per_frame": {**NO_DECODE, "classify": 1.0}}),
    ]  # fmt: skip
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", folder)
    (folder / "gains.jsonl").unlink(missing_ok=True)
    without = results_page.page(folder)
    assert "not decoding" not in without
    (folder / "gains.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert results_page.main([str(folder), str(tmp_path / "results.md")]) == 0
    page = (tmp_path / "results.md").read_text()
    assert TABLE in page
    assert "(gains-somewhere-val.png)" in page
    assert "0.337" in page
    assert "top-5" in page
    assert "Times compare between the ways of one bundle" in page
    for name in ("somewhere-val", "things-test-64"):
        with Image.open(tmp_path / f"gains-{name}.png") as image:
            assert image.format == "PNG"
    assert list(gains_report.latest(rows)) == ["somewhere-val", "things-test-64"]


def test_a_bundle_is_shown_as_it_was_recorded_last() -> None:
    """Whole: no way of an earlier recording beside those of a later one, by date or by what comes twice."""
    first = [row("one", way, 0.5, 2.0, 2.0) for way in WAYS]
    for again in (
        [row("one", "latent", 0.9, 2.0, 2.0, images=4, date="2026-01-02")],
        [row("one", way, 0.9, 2.0, 2.0, images=4) for way in WAYS[:2]],
    ):
        other = row("two", "latent", 0.7, 1.0, 1.0)
        (shown,) = gains_report.latest([*first, other, *again]).values()
        assert shown == [*again, other]
    table = gains_report.table(shown)
    assert table.count("one, 4 images") == 2
    assert table.count("two, 1,101 images") == 1


def test_codecs_of_one_name_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
    new = {"name": "one", "codec_id": "5eed" * 16}
    rows = [row("one", way, 0.5, 2.0, 2.0) for way in WAYS] + [{**row("one", "latent", 0.9, 2.0, 2.0), "bundle": new}]
    (shown,) = gains_report.latest(rows).values()
    assert shown == rows
    lines = gains_report.table(shown).splitlines()[2:]
    assert [line.split(")")[0] for line in lines] == ["one (c0dec1d0"] * 3 + ["one (5eed5eed"]
    plots.plot_gains(shown, tmp_path / "x.png")
    texts = [text.get_text() for text in kept[0].axes[0].get_legend().get_texts()[:2]]
    assert texts == ["one (c0dec1d0), 0.360 bpp", "one (5eed5eed), 0.360 bpp"]


def test_the_plot_shows_each_point_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a way that decodes a hollow marker at the network's cost, and a filled one at the sum."""
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
    rows = [row("one", "rgb-original", 0.7, 2.0, 2.0, bpp=24.0), row("one", "rgb-decoded", 0.6, 2.0, 5.0)]
    plots.plot_gains([*rows, row("one", "latent", 0.65, 1.5, 1.5)], tmp_path / "x.png")
    (axes,) = kept[0].axes
    marks = {
        (line.get_marker(), line.get_markerfacecolor() == "none"): line.get_xydata().tolist()
        for line in axes.lines
        if line.get_marker() != "None"
    }
    assert marks["^", True] == [[2.0, 0.6]]
    assert marks["^", False] == [[5.0, 0.6]]
    assert marks["s", True] == marks["s", False] == [[2.0, 0.7]]
    assert marks["o", True] == marks["o", False] == [[1.5, 0.65]]
    joined = [
        line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2
    ]
    assert joined == [[[2.0, 0.7], [5.0, 0.6], [1.5, 0.65]]]
    assert axes.get_legend().get_texts()[0].get_text() == "one, 0.360 bpp"
