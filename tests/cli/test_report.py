"""doctor and inspect: what they say, as text and as JSON, and their exit codes."""

from __future__ import annotations

import builtins
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentseg import bundles, cli
from latentseg.engine import bundle as engine_bundle
from latentseg.engine.bundle import Bundle
from latentseg.kernels import entropy


def report(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert cli.main([*argv, "--json"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    record: dict[str, Any] = json.loads(out)
    assert record["schema"] == 1
    return record


@pytest.fixture
def shipped(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable copy of the tiny bundle that passes for the only shipped one."""
    copy = tmp_path / "bundles" / "tiny"
    shutil.copytree(tiny_bundle.path, copy)
    monkeypatch.setattr(engine_bundle, "shipped_bundles", lambda: {"tiny": copy})
    return copy


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_as_json(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(["doctor"], capsys)
    assert found["type"] == "doctor"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["numpy"] == np.__version__
    assert found["machine"]["cores"] >= 1
    assert found["kernels"] in ("native", "numpy")
    assert found["bundles"] == [
        {"name": "tiny", "roles": ["compressor", "decompressor", "segmenter", "rgb_segmenter"], "error": ""}
    ]
    assert [(test["name"], test["result"]) for test in found["tests"]] == [("coder", "ok"), ("bundle", "ok")]


def test_doctor_as_text(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "coder: ok" in out
    assert "tiny: files verified" in out


def test_doctor_finds_a_changed_bundle(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((shipped / "segmenter.onnx").read_bytes())
    data[-1] ^= 1
    (shipped / "segmenter.onnx").write_bytes(data)
    found = report(["doctor"], capsys, code=5)
    assert "was changed" in found["bundles"][0]["error"]
    assert found["tests"][1]["result"] == "skipped"


def test_doctor_finds_a_coder_that_is_wrong(
    shipped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    decode = entropy.decode_symbols
    monkeypatch.setattr(entropy, "decode_symbols", lambda *args, **options: decode(*args, **options) ^ 1)
    found = report(["doctor"], capsys, code=5)
    assert found["tests"][0]["result"] == "failed"


def test_doctor_says_what_a_missing_package_would_bring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        if name == "numpy":
            return "2.0"
        raise metadata.PackageNotFoundError(name)

    importer = builtins.__import__

    def no_runtime(name: str, *args: Any, **options: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError(name)
        return importer(name, *args, **options)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(builtins, "__import__", no_runtime)
    monkeypatch.setattr(engine_bundle, "shipped_bundles", dict)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "would bring video files, cameras and stream URLs: pip install 'latentseg[video]'" in out
    assert "bundle: skipped" in out


def test_shipped_bundles_of_this_installation_are_intact(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(["doctor"], capsys)
    assert [entry["error"] for entry in found["bundles"]] == [""] * len(found["bundles"])
    assert len(found["bundles"]) == len(list(Path(next(iter(bundles.__path__))).glob("*/manifest.json")))


# --- inspect ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Three latents (4, 6, 9) packed with 5 bits."""
    stack = np.random.default_rng(0).integers(0, 32, (3, 4, 6, 9), np.uint8)
    np.save(tmp_path / "in.npy", stack)
    path = tmp_path / "x.lseg"
    assert cli.main(["pack", str(tmp_path / "in.npy"), "-o", str(path), "--bits", "5", "-q"]) == 0
    return path, stack


def test_stream(stream: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    path, stack = stream
    found = report(["inspect", str(path)], capsys)
    assert found["kind"] == "lseg"
    assert found["codec_id"] == "00" * 32
    assert (found["latent_shape"], found["bits"], found["frames"]) == ([4, 6, 9], 5, 3)
    assert found["scaling"] == {"mode": "fixed", "lo": 0.0, "hi": 31.0, "centres": []}
    assert found["bytes"] == path.stat().st_size - 200  # all but the stream header
    payloads = found["bytes"] - 3 * 28
    assert found["frame_bytes"]["mean"] == pytest.approx(payloads / 3)
    assert found["bits_per_symbol"] == pytest.approx(8 * payloads / stack.size)
    assert (found["damages"], found["lost"], found["bpp"], found["bundle"]) == ([], 0, None, None)
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "unnamed" in out
    assert "4x6x9, 5 bits, scaling fixed 0 to 31" in out


def test_stream_with_a_source_size(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latentseg.bitstream import Writer

    tiny = engine_bundle.load_bundle(shipped)
    header = tiny.header(17, 23, (25, 1))
    with open(tmp_path / "x.lseg", "wb") as file:
        writer = Writer(file, header)
        sizes = [
            writer.write(entropy.encode_symbols(np.full(header.latent_shape, value, np.uint8), header), 40_000 * value)
            for value in range(4)
        ]
    found = report(["inspect", str(tmp_path / "x.lseg")], capsys)
    assert found["bpp"] == pytest.approx(8 * sum(sizes) / (4 * 17 * 23))
    assert found["factor_vs_rgb24"] == pytest.approx(24 / found["bpp"])
    assert (found["bundle"], found["frame_rate"], found["last_timestamp_us"]) == ("tiny", [25, 1], 120_000)
    assert cli.main(["inspect", str(tmp_path / "x.lseg")]) == 0
    assert "23x17 at 25 frames/s" in capsys.readouterr().out


def test_stream_from_a_pipe(
    stream: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.BufferedReader(io.BytesIO(stream[0].read_bytes()))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe, isatty=lambda: False))
    assert report(["inspect", "-"], capsys)["frames"] == 3


def test_damaged_stream(stream: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(stream[0].read_bytes())
    data[-1] ^= 1
    stream[0].write_bytes(data)
    found = report(["inspect", str(stream[0])], capsys, code=7)
    assert (found["frames"], found["lost"], len(found["damages"])) == (2, 1, 1)
    assert found["damages"][0]["frame_index"] == 2


@pytest.mark.parametrize("data", [b"", b"not a stream at all", b"\x89LSEG\r\n\x1a", bytes(300)])
def test_no_stream(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.lseg").write_bytes(data)
    assert cli.main(["inspect", str(tmp_path / "x.lseg")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_no_such_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "none.lseg")]) == 3
    assert cli.main(["inspect", str(tmp_path)]) == 4  # an empty folder is no bundle
    assert "manifest.json" in capsys.readouterr().err


def test_bundle(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spec in (str(shipped), "tiny"):
        found = report(["inspect", spec], capsys)
        assert (found["kind"], found["name"]) == ("bundle", "tiny")
        assert found["codec"]["channels"] == 3
        assert all(entry["intact"] for entry in found["files"].values())
        assert [entry["name"] for entry in found["classes"]] == ["red", "green", "blue"]
    assert cli.main(["inspect", "tiny"]) == 0
    assert "red, green, blue" in capsys.readouterr().out


def test_changed_bundle(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((shipped / "segmenter.onnx").read_bytes())
    data[-1] ^= 1
    (shipped / "segmenter.onnx").write_bytes(data)
    found = report(["inspect", "tiny"], capsys, code=4)
    assert [role for role, entry in found["files"].items() if not entry["intact"]] == ["segmenter"]


@pytest.mark.parametrize("without_onnx", [False, True])
def test_model(
    without_onnx: bool, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_onnx:
        monkeypatch.setitem(sys.modules, "onnx", None)
    found = report(["inspect", str(tiny_bundle.path / "segmenter.onnx")], capsys)
    assert (found["kind"], found["inputs"][0]["shape"][1]) == ("onnx", 3)
    types = [found[kind][0]["type"] for kind in ("inputs", "outputs")]
    assert types == ["float32", "uint8"]
    assert found["opset"] == (None if without_onnx else {"ai.onnx": 18})


def test_broken_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no protobuf")
    assert cli.main(["inspect", str(tmp_path / "x.onnx")]) == 3
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "expected", "words"),
    [
        (np.array([[[0, 5]]], np.int64), {"latents": 1, "min": 0, "max": 5, "bits": 3}, "--bits 3 or more"),
        (np.array([[[[0]]], [[[256]]]], np.int16), {"latents": 2, "max": 256, "bits": None}, "not as it is"),
        (np.array([[[-1.5, np.nan]]], np.float32), {"min": -1.5, "max": -1.5, "not_finite": 1}, "not before"),
        (np.array([[[0.5]]], np.float32), {"bits": None, "not_finite": 0}, "with --quantize"),
    ],
)
def test_npy(
    array: np.ndarray, expected: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", array)
    found = report(["inspect", str(tmp_path / "x.npy")], capsys)
    assert found | expected == found
    assert cli.main(["inspect", str(tmp_path / "x.npy")]) == 0
    assert words in capsys.readouterr().out
