"""`--key-interval`, and streams whose frames refer to each other, as a user types them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import _inter_clip as inter
import _tiny_bundle as tiny
import numpy as np
import pytest
from PIL import Image

from latentseg import cli
from latentseg.engine.bundle import Bundle

FRAMES = 11


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inter") / "frames"
    folder.mkdir()
    for index, frame in enumerate(inter.clip()):
        Image.fromarray(frame).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture
def stream(pictures: Path, tmp_path: Path, bundle_options: list[str]) -> Path:
    path = tmp_path / "x.lseg"
    assert cli.main(["encode", str(pictures), "-o", str(path), "--key-interval", "4", "-q", *bundle_options]) == 0
    return path


@pytest.fixture
def damaged(stream: Path, tmp_path: Path) -> Path:
    """Frame 5 is changed, so that 5, 6 and 7 are lost."""
    data = bytearray(stream.read_bytes())
    data[inter.spans(bytes(data), inter.read(stream)[1])[5][1] - 1] ^= 1
    (tmp_path / "damaged.lseg").write_bytes(data)
    return tmp_path / "damaged.lseg"


def records(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert cli.main(list(argv)) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_encode_run_and_decode(
    pictures: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "y.lseg")
    encode = ["encode", str(pictures), "-o", out, "--json", "--overwrite", *bundle_options]
    (plain,) = records(capsys, *encode)
    (record,) = records(capsys, *encode, "--key-interval", "0")
    assert (plain["key_interval"], record["key_interval"]) == (1, 0)
    assert record["bytes"] == Path(out).stat().st_size < plain["bytes"]
    *_, summary = records(capsys, "run", out, "--labels", str(tmp_path / "labels"), *bundle_options)
    assert (summary["frames"], summary["lost"]) == (FRAMES, 0)
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "labels").iterdir())]
    np.testing.assert_array_equal(found, tiny.labels(inter.clip()))
    (decoded,) = records(capsys, "decode", out, "-o", str(tmp_path / "pngs"), "--json", *bundle_options)
    assert decoded["frames"] == FRAMES


def test_damage_is_told_and_ends_in_7(
    damaged: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    *_, summary = records(capsys, "run", str(damaged), "--labels", str(labels), *bundle_options, code=7)
    assert (summary["frames"], summary["lost"]) == (FRAMES - 3, 3)
    assert [(d["frame_index"], d["lost"]) for d in summary["damages"]] == [(5, 1), (6, 2)]
    assert sorted(path.stem for path in labels.iterdir()) == [f"{i:06d}" for i in (0, 1, 2, 3, 4, 8, 9, 10)]
    assert cli.main(["run", str(damaged), *bundle_options]) == 7
    assert "damage: frames 6 to 7 cannot be decoded without frame 5\n" in capsys.readouterr().err
    (found,) = records(capsys, "decode", str(damaged), "-o", str(tmp_path / "o"), "--json", *bundle_options, code=7)
    assert (found["frames"], found["lost"]) == (FRAMES - 3, 3)


@pytest.mark.parametrize("floats", [False, True])
def test_unpack(floats: bool, damaged: Path, stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.npy"
    options = ["-o", str(out), "--json", "--overwrite", *["--float"] * floats]
    (whole,) = records(capsys, "unpack", str(stream), *options)
    assert (whole["frames"], whole["lost"], whole["damages"]) == (FRAMES, 0, 0)
    expected = tiny.symbols(inter.clip())
    np.testing.assert_array_equal(np.load(out), expected)  # symbols stand for themselves, 0 to 255
    (found,) = records(capsys, "unpack", str(damaged), *options, code=7)
    assert (found["frames"], found["lost"], found["damages"]) == (FRAMES - 3, 3, 2)
    assert found["lost_ranges"] == [[5, 5], [6, 7]]
    np.testing.assert_array_equal(np.load(out), np.delete(expected, [5, 6, 7], axis=0))


def test_inspect(stream: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [len(frame.payload) for frame in inter.read(stream)[1]]
    key, rest = sizes[::4], [size for i, size in enumerate(sizes) if i % 4]
    (found,) = records(capsys, "inspect", str(stream), "--json")
    kinds = found["kinds"]
    assert (found["coder"], kinds["key_frames"], kinds["inter_frames"]) == ("inter", 3, 8)
    assert kinds["key_bytes"] == pytest.approx(np.mean(key))
    assert kinds["inter_bytes"] == pytest.approx(np.mean(rest))
    assert (kinds["key_interval"], found["frames"], found["lost"]) == (4, FRAMES, 0)
    assert cli.main(["inspect", str(stream)]) == 0
    words = f"3, every 4 frames at most, mean {np.mean(key):.0f} bytes; 8 inter frames, mean {np.mean(rest):.0f}\n"
    assert words in capsys.readouterr().out
    (found,) = records(capsys, "inspect", str(damaged), "--json", code=7)
    assert (found["frames"], found["lost"]) == (FRAMES - 3, 3)
    assert [(d["frame_index"], d["lost"]) for d in found["damages"]] == [(5, 1), (6, 2)]
    assert found["kinds"]["inter_frames"] == 5


def test_pack(tmp_path: Path, stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q = tiny.symbols(inter.clip())
    np.save(tmp_path / "q.npy", q)
    out = tmp_path / "p.lseg"
    pack = ["pack", str(tmp_path / "q.npy"), "-o", str(out), "--coder", "inter", "--json", "--overwrite"]
    for options, keys in (
        (["--key-interval", "4", "--tile", "2", "8"], [0, 4, 8]),
        ([], [0]),
        (["--key-interval", "0"], [0]),
    ):
        (record,) = records(capsys, *pack, *options)
        assert record["frames"] == FRAMES
        assert inter.keys(out) == keys
        (found,) = records(capsys, "unpack", str(out), "-o", str(tmp_path / "b.npy"), "--json", "--overwrite")
        assert found["frames"] == FRAMES
        np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), q)
    (alone,) = records(capsys, *pack, "--key-interval", "1")
    assert inter.keys(out) == list(range(FRAMES))
    assert alone["bytes"] > record["bytes"]


def test_one_frame(
    pictures: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "y.lseg")
    argv = ["encode", str(pictures), "-o", out, "--limit", "1", "--key-interval", "9", "-q", *bundle_options]
    assert cli.main(argv) == 0
    *_, summary = records(capsys, "run", out, *bundle_options)
    assert summary["frames"] == 1
    assert cli.main(["inspect", out]) == 0
    assert "key frames   1, mean " in capsys.readouterr().out


def test_through_a_pipe(pictures: Path, command: list[str], bundle_options: list[str]) -> None:
    encode = [*command, "encode", str(pictures), "-o", "-", "--key-interval", "3", *bundle_options]
    with subprocess.Popen(encode, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as sender:
        run = subprocess.run(
            [*command, "run", "-", *bundle_options], stdin=sender.stdout, capture_output=True, timeout=60, check=True
        )
    *frames, summary = (json.loads(line) for line in run.stdout.splitlines())
    assert (len(frames), summary["lost"]) == (FRAMES, 0)


def test_entropy_benchmark_takes_the_first_key_frame(
    stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stream.read_bytes()
    spans = inter.spans(data, inter.read(stream)[1])
    (tmp_path / "late.lseg").write_bytes(data[: spans[0][0]] + data[spans[1][0] :])
    bench = ["bench", "entropy", "--seconds", "0.01", "--repeats", "1", "--json", "-q"]
    rows = records(capsys, *bench, str(tmp_path / "late.lseg"), code=7)
    assert rows[0]["shape"] == [3, 6, 8]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["encode", "{frames}", "-o", "{new}", "--key-interval", "-1"], 2, "expected an integer of at least 0"),
        (["encode", "{frames}", "-o", "{new}", "--key-interval", "often"], 2, "expected an integer of at least 0"),
        (["encode", "{frames}", "-o", "{new}", "--key-interval", "4", "--backend", "tensorrt"], 4, "--key-interval 1"),
        (["pack", "x.npy", "-o", "{new}", "--key-interval", "4"], 2, "key frames belong to --coder inter"),
        (
            ["pack", "x.npy", "-o", "{new}", "--coder", "huffman-frame", "--key-interval", "1"],
            2,
            "--coder huffman-frame",
        ),
        (["export", "x", "--coder", "inter"], 2, "invalid choice: 'inter'"),
    ],
)
def test_refused(
    argv: list[str],
    code: int,
    words: str,
    pictures: Path,
    tmp_path: Path,
    tiny_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"frames": pictures, "new": tmp_path / "new.lseg"}
    bundle = ["--bundle", str(tiny_bundle.path)] if argv[0] == "encode" else []
    assert cli.main([*(part.format_map(places) for part in argv), *bundle]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new.lseg").exists()
