"""pack and unpack: exact round trips of every bit length and integer type, and every way the input can be wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from latentseg import cli
from latentseg.bitstream import Reader
from latentseg.bitstream.header import CODERS, DEFAULT_CODER, DEFAULT_TILE, Coder
from latentseg.cli import _common
from latentseg.kernels import quantize as float2int

CAN_FILL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants /dev/full, which Linux has")


def latents(shape: tuple[int, ...], bits: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Peaked around the middle, as latents are, with both ends of the range present."""
    top = 2**bits - 1
    values = np.random.default_rng(seed).laplace(top / 2, top / 16 + 0.3, shape).round().clip(0, top)
    values.flat[0], values.flat[-1] = 0, top
    return values.astype(dtype)


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def lsegs(argv: list[str], code: int = 0) -> None:
    assert cli.main(argv) == code


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("coder", _common.CODERS)
def test_round_trip_of_every_bit_length(bits: int, coder: str, tmp_path: Path) -> None:
    stack = latents((3, 5, 7, 11), bits, seed=bits)
    source = save(tmp_path / "in.npy", stack)
    lseg, back = str(tmp_path / "x.lseg"), str(tmp_path / "out.npy")
    lsegs(["pack", source, "-o", lseg, "--bits", str(bits), "--coder", coder, "-q"])
    lsegs(["unpack", lseg, "-o", back, "-q"])
    found = np.load(back)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, stack)
    with open(lseg, "rb") as file:
        assert Reader(file).header.coder == coder


def test_coders_are_those_of_the_stream() -> None:
    # The command line knows them without NumPy, so they stand there a second time.
    assert _common.CODERS == tuple(CODERS) == get_args(Coder)
    assert _common.CODERS[0] == DEFAULT_CODER


@pytest.mark.parametrize("tile", [None, (4, 4), (1, 16), (16, 1), (14, 32), (65535, 256)])
def test_round_trip_of_tiles(tile: tuple[int, int] | None, tmp_path: Path) -> None:
    stack = latents((2, 3, 15, 33), 6)
    source, lseg, back = save(tmp_path / "in.npy", stack), str(tmp_path / "x.lseg"), str(tmp_path / "out.npy")
    options = [] if tile is None else ["--coder", "context", "--tile", *map(str, tile)]
    lsegs(["pack", source, "-o", lseg, "--bits", "6", *options, "-q"])
    lsegs(["unpack", lseg, "-o", back, "-q"])
    np.testing.assert_array_equal(np.load(back), stack)
    with open(lseg, "rb") as file:
        assert Reader(file).header.tile == (tile or DEFAULT_TILE)


def test_inspect_shows_coder_and_lanes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "in.npy", latents((2, 3, 5, 7), 8))
    for options, coder, tile, lane, words in (
        (["--tile", "3", "9"], "context", [3, 9], 27, "context, lanes of 3x9 symbols"),
        (["--coder", "huffman-frame"], "huffman-frame", [0, 0], 4096, "huffman-frame, lanes of 4096 symbols"),
    ):
        lsegs(["pack", source, "-o", str(tmp_path / "x.lseg"), *options, "--overwrite", "-q"])
        lsegs(["inspect", str(tmp_path / "x.lseg"), "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (report["coder"], report["tile"], report["lane_symbols"]) == (coder, tile, lane)
        assert "dictionary" not in report
        lsegs(["inspect", str(tmp_path / "x.lseg")])
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", ">i4", "u4", "i8", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_round_trip_of_every_integer_type(dtype: str, order: str, tmp_path: Path) -> None:
    stack = np.asarray(latents((2, 3, 5, 4), 7).astype(dtype), order=order)  # type: ignore[call-overload]
    source = save(tmp_path / "in.npy", stack)
    lsegs(["pack", source, "-o", str(tmp_path / "x.lseg"), "--bits", "7", "-q"])
    lsegs(["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy"), "-q"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), stack)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 1031), (300, 1, 1), (16, 13, 31)])
def test_one_latent_comes_back_as_a_stack_of_one(shape: tuple[int, int, int], tmp_path: Path) -> None:
    latent = latents(shape, 8)
    lsegs(["pack", save(tmp_path / "in.npy", latent), "-o", str(tmp_path / "x.lseg"), "-q"])
    lsegs(["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy"), "-q"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), latent[None])


def test_several_inputs_become_one_stream(tmp_path: Path) -> None:
    one, many = latents((2, 3, 4), 8), latents((3, 2, 3, 4), 8, seed=1)
    inputs = [save(tmp_path / "a.npy", one), save(tmp_path / "b.npy", many)]
    lsegs(["pack", *inputs, "-o", str(tmp_path / "x.lseg"), "-q"])
    lsegs(["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy"), "-q"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.concatenate([one[None], many]))


def test_pipes_and_arrays_one_after_the_other() -> None:
    stacks = [latents((2, 3, 4, 5), 8), latents((3, 4, 5), 8, seed=1)]
    arrays = io.BytesIO()
    for stack in stacks:
        np.save(arrays, stack)
    command = [sys.executable, "-m", "latentseg.cli"]
    packed = subprocess.run([*command, "pack", "-", "-o", "-", "-q"], input=arrays.getvalue(), capture_output=True)
    assert (packed.returncode, packed.stderr) == (0, b"")
    unpacked = subprocess.run([*command, "unpack", "-", "-o", "-", "-q"], input=packed.stdout, capture_output=True)
    assert (unpacked.returncode, unpacked.stderr) == (0, b"")
    found = np.load(io.BytesIO(unpacked.stdout))
    np.testing.assert_array_equal(found, np.concatenate([stacks[0], stacks[1][None]]))


def test_summaries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "in.npy", latents((2, 3, 4, 5), 4))
    lsegs(["pack", source, "-o", str(tmp_path / "x.lseg"), "--bits", "4", "--json"])
    packed = json.loads(capsys.readouterr().out)
    size = (tmp_path / "x.lseg").stat().st_size
    assert packed == {
        "schema": 1,
        "type": "pack",
        "frames": 2,
        "latent_shape": [3, 4, 5],
        "bits": 4,
        "symbols": 120,
        "bytes": size,
        "bits_per_symbol": 8 * size / 120,
    }
    lsegs(["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy"), "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "type": "unpack",
        "frames": 2,
        "latent_shape": [3, 4, 5],
        "dtype": "uint8",
        "lost": 0,
        "lost_ranges": [],
        "damages": 0,
    }


def test_float_gives_symbols_by_default_and_the_range_on_request(tmp_path: Path) -> None:
    stack = latents((2, 3, 4, 5), 8)
    source = save(tmp_path / "in.npy", stack)
    for options, expected in (
        ([], stack.astype(np.float32)),
        (["--lo", "-1", "--hi", "1"], stack.astype(np.float32) * (np.float32(2) / np.float32(255)) - np.float32(1)),
    ):
        lsegs(["pack", source, "-o", str(tmp_path / "x.lseg"), *options, "--overwrite", "-q"])
        lsegs(["unpack", str(tmp_path / "x.lseg"), "--float", "-o", str(tmp_path / "out.npy"), "--overwrite", "-q"])
        found = np.load(tmp_path / "out.npy")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("mode", ["tensor", "channel", "fixed"])
def test_quantize_is_float2int(mode: str, dtype: str, tmp_path: Path) -> None:
    stack = np.random.default_rng(3).normal(0, 3, (2, 4, 5, 6)).astype(dtype)
    limits = ["--lo=-4", "--hi=4"] if mode == "fixed" else []
    lsegs(["pack", save(tmp_path / "in.npy", stack), "-o", str(tmp_path / "x.lseg"), "--quantize", mode, *limits, "-q"])
    lsegs(["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy"), "-q"])
    lsegs(["unpack", str(tmp_path / "x.lseg"), "--float", "-o", str(tmp_path / "float.npy"), "-q"])
    symbols, floats = np.load(tmp_path / "out.npy"), np.load(tmp_path / "float.npy")
    for latent, found, dequantised in zip(stack.astype(np.float32), symbols, floats, strict=True):
        axes = (1, 2) if mode == "channel" else None
        lo = np.asarray(-4 if mode == "fixed" else latent.min(axes), np.float32)
        hi = np.asarray(4 if mode == "fixed" else latent.max(axes), np.float32)
        np.testing.assert_array_equal(found, float2int.quantize(latent, 8, lo, hi, implementation="numpy"))
        step = (hi - lo).max() / 255
        inside = np.clip(latent, -4, 4) if mode == "fixed" else latent
        assert np.abs(dequantised - inside).max() <= 0.51 * step


def test_damaged_frames_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = latents((5, 4, 8, 8), 8)
    lsegs(["pack", save(tmp_path / "in.npy", stack), "-o", str(tmp_path / "x.lseg"), "-q"])
    data = bytearray((tmp_path / "x.lseg").read_bytes())
    data[200 + 2 * (len(data) - 200) // 5 + 60] ^= (
        0x10  # frames are of about one size: this lies in the third's payload
    )
    (tmp_path / "bad.lseg").write_bytes(data)
    lsegs(["unpack", str(tmp_path / "bad.lseg"), "-o", str(tmp_path / "out.npy"), "--json"], code=7)
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["frames"], record["lost"], record["lost_ranges"], record["damages"]) == (4, 1, [[2, 2]], 1)
    assert "damage at byte" in err
    assert "1 frame(s) lost" in err
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), stack[[0, 1, 3, 4]])


@pytest.mark.parametrize(
    ("array", "options", "code", "words"),
    [
        (np.full((1, 2, 2), 256, np.uint16), [], 3, ["values from 256 to 256, expected 0 to 255 (--bits 8)"]),
        (np.full((1, 2, 2), 9, np.int8), ["--bits", "3"], 3, ["from 9 to 9, expected 0 to 7", "hint: --bits 4"]),
        (np.full((1, 2, 2), -1, np.int8), [], 3, ["from -1 to -1, expected 0 to 255", "shift or rescale"]),
        (np.zeros((1, 2, 2), np.float32), [], 3, ["holds float32, expected integers", "--quantize tensor"]),
        (np.zeros((1, 2, 2), np.uint8), ["--quantize", "tensor"], 3, ["holds uint8 already"]),
        (np.full((1, 2, 2), np.nan, np.float32), ["--quantize", "tensor"], 3, ["latent 0", "NaN"]),
        (np.full((1, 2, 2), np.inf, np.float64), ["--quantize", "channel"], 3, ["latent 0"]),
        (np.full((1, 2, 2), 1e300), ["--quantize", "fixed", "--lo", "0", "--hi", "1"], 3, ["latent 0"]),
        (np.zeros((1, 2, 2), bool), [], 3, ["holds bool, expected an integer type"]),
        (np.zeros((1, 2, 2), complex), [], 3, ["holds complex128"]),
        (np.zeros((2, 2), np.uint8), [], 3, ["shape (2, 2), expected (C, h, w) or (N, C, h, w)"]),
        (np.zeros((0, 1, 2, 2), np.uint8), [], 3, ["nothing empty"]),
        (np.zeros((1, 2, 2), np.uint8), ["--quantize", "fixed"], 2, ["needs --lo and --hi"]),
        (np.zeros((1, 2, 2), np.uint8), ["--quantize", "tensor", "--lo", "1"], 2, ["takes the range from the latents"]),
        (np.zeros((1, 2, 2), np.uint8), ["--lo", "3", "--hi", "1"], 2, ["--lo must lie below --hi"]),
        (np.zeros((1, 2, 2), np.uint8), ["--lo", "nan"], 2, ["--lo must lie below --hi"]),
        (
            np.zeros((1, 2, 2), np.uint8),
            ["--coder", "huffman-channel", "--tile", "4", "4"],
            2,
            ["--tile with --coder huffman-channel", "hint: tiles belong to --coder context"],
        ),
        (np.zeros((1, 2, 2), np.uint8), ["--coder", "huffman-frame", "--tile", "14", "32"], 2, ["--tile with --coder"]),
        (np.zeros((1, 2, 2), np.uint8), ["--tile", "3", "5"], 2, ["--tile 3 5: expected sides", "16 to 16777216"]),
        (np.zeros((1, 2, 2), np.uint8), ["--tile", "65536", "1"], 2, ["--tile 65536 1: expected sides up to 65535"]),
        (np.zeros((1, 2, 2), np.uint8), ["--tile", "65535", "257"], 2, ["--tile 65535 257: expected sides"]),
    ],
)
def test_what_pack_refuses(
    array: np.ndarray,
    options: list[str],
    code: int,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = save(tmp_path / "in.npy", array), tmp_path / "x.lseg"
    lsegs(["pack", source, "-o", str(output), *options], code=code)
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.npy"]  # no output, and no temporary file


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\x93NUMPY", "version"),
        (b"\x93NUMPY\x01\x00\xff", "damaged .npy header"),
        (b"\x93NUMPY\x09\x00abc", ".npy version (9, 0)"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "damaged .npy header"),
        (b"PK\x03\x04rest", "not an .npy array"),
        (b"\x89LSEG\r\n\x1a", "not an .npy array"),
    ],
)
def test_what_is_not_an_npy(data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.npy").write_bytes(data)
    lsegs(["pack", str(tmp_path / "in.npy"), "-o", str(tmp_path / "x.lseg")], code=3)
    assert words in capsys.readouterr().err


def test_pickles_are_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "in.npy", np.array([[[None]]], object), allow_pickle=True)
    lsegs(["pack", str(tmp_path / "in.npy"), "-o", str(tmp_path / "x.lseg")], code=3)
    assert "pickle" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["C", "F"])
def test_truncated_npy_at_every_byte(order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = io.BytesIO()
    np.save(whole, np.asarray(latents((2, 1, 2, 3), 8), order=order))  # type: ignore[call-overload]
    path = tmp_path / "in.npy"
    for size in range(len(whole.getvalue())):
        path.write_bytes(whole.getvalue()[:size])
        lsegs(["pack", str(path), "-o", str(tmp_path / "x.lseg")], code=3)
    assert "Traceback" not in capsys.readouterr().err


def test_npy_header_that_lies_about_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ((1, 1 << 20, 1 << 20), (1 << 40, 1, 1), (1 << 40, 1, 2, 2), (1 << 62, 1 << 62, 1 << 62)):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        (tmp_path / "in.npy").write_bytes(file.getvalue() + bytes(100))
        lsegs(["pack", str(tmp_path / "in.npy"), "-o", str(tmp_path / "x.lseg")], code=3)
        assert "truncated" in capsys.readouterr().err


def test_shapes_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [save(tmp_path / "a.npy", latents((1, 2, 3), 8)), save(tmp_path / "b.npy", latents((1, 3, 2), 8))]
    lsegs(["pack", *inputs, "-o", str(tmp_path / "x.lseg")], code=3)
    assert "shape (1, 3, 2), but the stream began with (1, 2, 3)" in capsys.readouterr().err


def test_output_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "in.npy", latents((1, 2, 3), 8))
    lseg, npy = tmp_path / "x.lseg", tmp_path / "out.npy"
    lseg.write_bytes(b"old")
    lsegs(["pack", source, "-o", str(lseg)], code=2)
    assert "the output exists" in capsys.readouterr().err
    assert lseg.read_bytes() == b"old"
    lsegs(["pack", source, "-o", str(lseg), "--overwrite", "-q"])
    npy.write_bytes(b"old")
    lsegs(["unpack", str(lseg), "-o", str(npy)], code=2)
    assert npy.read_bytes() == b"old"
    lsegs(["pack", source, "-o", str(tmp_path / "no" / "x.lseg")], code=2)
    assert "mkdir -p" in capsys.readouterr().err
    lsegs(["pack", source, "-o", str(tmp_path), "--overwrite"], code=2)


def test_a_failure_keeps_the_older_output(tmp_path: Path) -> None:
    (tmp_path / "x.lseg").write_bytes(b"old")
    lsegs(["pack", str(tmp_path / "none.npy"), "-o", str(tmp_path / "x.lseg"), "--overwrite"], code=3)
    bad = save(tmp_path / "in.npy", np.stack([latents((1, 2, 3), 8, "u2"), np.full((1, 2, 3), 999, "u2")]))
    lsegs(["pack", bad, "-o", str(tmp_path / "x.lseg"), "--overwrite"], code=3)
    assert (tmp_path / "x.lseg").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "x.lseg"]


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_missing_input(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lsegs([verb, str(tmp_path / "none"), "-o", str(tmp_path / "out")], code=3)
    assert "No such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@CAN_FILL
@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_full_disk(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, lseg = save(tmp_path / "in.npy", latents((2, 2, 3, 4), 8)), str(tmp_path / "x.lseg")
    lsegs(["pack", source, "-o", lseg, "-q"])
    lsegs([verb, source if verb == "pack" else lseg, "-o", "/dev/full"], code=7)
    err = capsys.readouterr().err
    assert "no space left" in err
    assert "Traceback" not in err


def test_json_and_stdout_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lsegs(["pack", save(tmp_path / "in.npy", latents((1, 2, 3), 8)), "-o", "-", "--json"], code=2)
    assert "both want stdout" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["(-1, 4, 4)", "(True, 4, 4)", "(3, 4, 4", "(3, 4, '4')", "(10**9, 4, 4)", "[]: 1"])
def test_headers_that_numpy_itself_stumbles_over(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(48))
    assert cli.main(["pack", str(path), "-o", str(tmp_path / "x.lseg")]) == 3
    assert "x.npy" in capsys.readouterr().err
    assert not (tmp_path / "x.lseg").exists()
