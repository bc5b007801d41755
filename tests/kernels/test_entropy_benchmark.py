"""`latentseg bench entropy`: its rows, its own check, the coders of others, and its errors."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg import cli
from latentseg.benchmarks import constriction_coder, entropy, results_page
from latentseg.benchmarks.entropy_arms import Setup
from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.errors import UsageError, VerificationError
from latentseg.kernels import native_available
from latentseg.kernels.entropy import encode_symbols

FAST = ["--repeats", "3", "--seconds", "0.01", "-q"]
OURS = ["context", "huffman-channel", "huffman-frame"]
OTHERS = ["zstd -1", "zlib -1", "zlib -9", "constriction", "constriction diff"]
OPTIONAL = {"zstd -1": "zstandard", "constriction": "constriction", "constriction diff": "constriction"}
SHAPE = (4, 16, 17)
NEEDS_CONSTRICTION = pytest.mark.skipif(
    importlib.util.find_spec("constriction") is None, reason="wants the package constriction"
)
NEEDS_NATIVE = pytest.mark.skipif(not native_available(), reason="threads need the native coder")


@pytest.fixture
def symbols(tmp_path: Path) -> Path:
    path = tmp_path / "latent.npy"
    np.save(path, np.random.default_rng(0).integers(0, 50, SHAPE, np.uint8))
    return path


def rows_of(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    assert cli.main(["bench", "entropy", *argv, "--json", *FAST]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def write_stream(path: Path, frames: list[np.ndarray], **options: Any) -> str:
    bits = options.pop("bits", 8)
    header = StreamHeader(bytes(32), frames[0].shape, bits, Scaling("fixed", -1.0, 1.0), **options)  # type: ignore[arg-type]
    with open(path, "wb") as file:
        writer = Writer(file, header)
        for frame in frames:
            writer.write(encode_symbols(frame, header))
    return str(path)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_recorded(symbols: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([str(symbols), "--record", str(tmp_path / "rows.jsonl")], capsys)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert [row["coder"] for row in rows] == OURS + OTHERS
    for row in rows:
        assert (row["file"], row["shape"], row["bits"]) == ("latent.npy", list(SHAPE), 8)
        assert row["machine"]["cpu"]
        assert row["versions"]["latentseg"]
        if "not_installed" in row:
            continue
        assert row["bits_per_symbol"] == pytest.approx(8 * row["bytes"] / np.prod(SHAPE), abs=1e-4)
        for way in ("encode_msymbols_s", "decode_msymbols_s"):
            assert 0 < row[way]["min"] <= row[way]["median"] <= row[way]["max"]
            assert row[way]["repeats"] == 3


def test_keys_are_documented(symbols: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = cli.verb_parser("bench entropy").format_help().split("JSON keys", 1)[1].split("examples:", 1)[0]
    documented = set(re.findall(r"[a-z_0-9]+", re.sub(r"\([^)]*\)", "", text)))
    for row in rows_of([str(symbols)], capsys):
        assert row.keys() <= documented


@NEEDS_NATIVE
def test_one_row_a_number_of_threads(symbols: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([str(symbols), "--threads", "2,1,2"], capsys)
    assert [(row["coder"], row["threads"]) for row in rows if "threads" in row] == [
        (coder, threads) for coder in OURS for threads in (2, 1)
    ]
    for first, second in (rows[0:2], rows[2:4], rows[4:6]):
        assert first["bytes"] == second["bytes"]
        assert first["encode_msymbols_s"] is not None
        assert second["encode_msymbols_s"] is None  # encoding takes one thread: timed once
        assert second["decode_msymbols_s"]["repeats"] == 3
    assert [row["coder"] for row in rows[6:]] == OTHERS


def test_table(symbols: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = ["--threads", "1,2"] if native_available() else []
    assert cli.main(["bench", "entropy", str(symbols), str(symbols), *threads, *FAST]) == 0
    out = capsys.readouterr().out
    assert out.count("latent.npy: 4x16x17 symbols of 8 bits") == 2
    for name in OURS + OTHERS:
        assert len(re.findall(rf"^  {re.escape(name)}  ", out, flags=re.MULTILINE)) == 2
    assert out.count("context, 2 threads ") == (2 if threads else 0)


def test_table_shows_what_threads_bring() -> None:
    def row(threads: int, median: float) -> dict[str, Any]:
        rates = {"min": median, "median": median, "max": median, "repeats": 3}
        return {
            "file": "a.npy", "shape": [1, 2, 3], "bits": 8, "tile": [4, 4], "coder": "context", "threads": threads,
            "bytes": 5, "bits_per_symbol": 1.25, "encode_msymbols_s": rates if threads == 1 else None,
            "decode_msymbols_s": rates,
        }  # fmt: skip

    lines = entropy.text([row(1, 100.0), row(2, 190.0)]).splitlines()
    assert lines[-2].endswith(" 1.00")
    assert lines[-1].endswith(" 1.90")


# --- missing packages -------------------------------------------------------------------------------------------------


def test_missing_packages_are_named(
    symbols: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in set(OPTIONAL.values()):
        monkeypatch.setitem(sys.modules, package, None)
    rows = rows_of([str(symbols)], capsys)
    assert [row["coder"] for row in rows] == OURS + OTHERS
    for row in rows:
        assert ("bytes" in row) == (row["coder"] not in OPTIONAL)
        assert row.get("not_installed") == ("pip install 'latentseg[bench]'" if row["coder"] in OPTIONAL else None)
    assert cli.main(["bench", "entropy", str(symbols), *FAST]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^  zstd -1 +not installed: pip install 'latentseg\[bench\]'$", out, re.MULTILINE)) == 1
    assert out.count("not installed") == 3
    assert results_page.entropy_table(rows).count("not installed") == 3


def test_results_page_reads_rows_of_threads() -> None:
    rates = {"min": 1.0, "median": 2.0, "max": 3.0, "repeats": 3}
    row = {"file": "a", "coder": "context", "bits_per_symbol": 1.0, "decode_msymbols_s": rates}
    rows = [row | {"encode_msymbols_s": rates}, row | {"threads": 2, "encode_msymbols_s": None}]
    first, second = results_page.entropy_table(rows).splitlines()[-2:]
    assert first.split() == ["a", "context", "1.000", "2", "(1)", "2", "(1)"]
    assert second.split() == ["a", "context,", "2", "threads", "1.000", "-", "2", "(1)"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_first_frame_of_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 8, (2, 9, 11), np.uint8), np.zeros((2, 9, 11), np.uint8)]
    path = write_stream(tmp_path / "x.lseg", frames, bits=3, tile=(5, 8))
    rows = rows_of([path], capsys)
    header = StreamHeader(bytes(32), (2, 9, 11), 3, Scaling("fixed", 0.0, 7.0), tile=(5, 8))
    assert (rows[0]["coder"], rows[0]["tile"], rows[0]["bits"]) == ("context", [5, 8], 3)
    assert rows[0]["bytes"] == len(encode_symbols(frames[0], header))
    assert rows[1]["lane_symbols"] == 4096
    assert rows_of([path, "--tile", "4", "4", "--lane-symbols", "99"], capsys)[0]["tile"] == [4, 4]
    path = write_stream(tmp_path / "y.lseg", frames, coder="huffman-frame", lane_symbols=64)
    rows = rows_of([path], capsys)
    assert [row.get("lane_symbols") for row in rows[:3]] == [None, 64, 64]
    assert rows[0]["tile"] == [14, 32]


def test_a_damaged_stream_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_stream(tmp_path / "x.lseg", [np.zeros((1, 4, 4), np.uint8)])
    data = bytearray(Path(path).read_bytes())
    data[20] ^= 1  # in the first header copy
    Path(path).write_bytes(data)
    assert len(rows_of([path], capsys, code=7)) == len(OURS + OTHERS)


# --- the coders of others ---------------------------------------------------------------------------------------------


def latent(kind: str) -> np.ndarray:
    """(3, 12, 40) symbols that each of the differences is best for, or that have none."""
    rng = np.random.default_rng(0)
    shape = (3, 12, 40)
    steps = rng.integers(0, 256, shape)
    noise = rng.integers(0, 2, shape)
    return {
        "symbols": noise + 100,
        "along rows": noise + steps[:, :, :1],
        "along columns": noise + steps[:, :1, :],
        "both": noise + steps[:, :1, :] + steps[:, :, :1],
        "one value": np.broadcast_to(np.array([0, 7, 255])[:, None, None], shape),
        "all values": steps,
        "extremes": 255 * noise,
    }[kind].astype(np.uint8)


KINDS = ["symbols", "along rows", "along columns", "both", "one value", "all values", "extremes"]


@NEEDS_CONSTRICTION
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("differences", [False, True])
def test_constriction_gives_symbols_back(kind: str, differences: bool) -> None:
    q = latent(kind)
    payload = constriction_coder.encode(q, differences)
    assert (constriction_coder.decode(payload, q.shape) == q).all()
    best = {"symbols": 0, "one value": 0, "along rows": 1, "along columns": 2, "both": 3}.get(kind)
    if best is not None:
        assert list(payload[:3]) == [best if differences else 0] * 3


@NEEDS_CONSTRICTION
def test_constriction_is_near_the_order_0_entropy() -> None:
    # Ideal code lengths of each channel's own histogram, 0.003 bits for histograms in thirds of octaves, and tables.
    q = np.random.default_rng(0).laplace(128, 4, (2, 300, 300)).round().astype(np.uint8)
    shares = [np.unique(channel, return_counts=True)[1] / channel.size for channel in q]
    ideal = sum(-(p * np.log2(p)).sum() for p in shares) / 2
    bits = 8 * len(constriction_coder.encode(q, differences=False)) / q.size
    assert ideal < bits < ideal + 0.003 + 8 * 150 / q.size


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_coder_that_loses_symbols_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentseg.kernels.entropy.decode_latent", lambda payload, header, out, *rest: out.fill(0))
    with pytest.raises(VerificationError, match="context: the symbols did not come back"):
        entropy.measure(np.ones((1, 2, 3), np.uint8), Setup(implementation="numpy", repeats=3))


def test_the_reference_has_one_thread() -> None:
    with pytest.raises(UsageError, match="one thread"):
        Setup(implementation="numpy", threads=(1, 2))


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.lseg").write_text("no stream")
    np.save(tmp_path / "floats.npy", np.zeros((1, 2, 3)))
    np.save(tmp_path / "stack.npy", np.zeros((2, 1, 2, 3), np.uint8))
    write_stream(tmp_path / "empty.lseg", [np.zeros((1, 2, 3), np.uint8)])
    data = (tmp_path / "empty.lseg").read_bytes()
    (tmp_path / "empty.lseg").write_bytes(data[:200])
    for name, message in (
        ("text.npy", "is not an .npy array"),
        ("text.lseg", "not an .lseg stream"),
        ("floats.npy", "holds float64, expected symbols as uint8"),
        ("stack.npy", "holds several latents, expected one"),
        ("empty.lseg", "no frame that can be read"),
        ("none.npy", "No such file"),
    ):
        assert cli.main(["bench", "entropy", str(tmp_path / name)]) == 3, name
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.startswith("latentseg bench entropy: error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: FILE"),
        (["x.npy", "--threads", "1,0"], "at least 1"),
        (["x.npy", "--tile", "1", "2"], "16 to 16777216 symbols"),
        (["x.npy", "--lane-symbols", "15"], "expected 16 to 16777216"),
        (["x.npy", "--bundle", "a"], "unknown option '--bundle'"),
        (["x.npy", "--record", "none/x.jsonl"], "the folder of the output does not exist"),
    ],
)
def test_usage_errors(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "entropy", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_source_called_entropy_is_still_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "./entropy"]) == 3
    assert "latentseg bench: error: " in capsys.readouterr().err
    assert cli.main(["bench", "--help"]) == 0
    assert "latentseg bench entropy FILE" in capsys.readouterr().out
    assert cli.main(["help", "bench", "entropy"]) == 0
    assert capsys.readouterr().out.startswith("usage: latentseg bench entropy ")
