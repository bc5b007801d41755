"""inspect on the inside of a stream's frames: parts, lanes' overhead, rate by channel, and which frames it looks at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg import cli
from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.cli import _anatomy
from latentseg.kernels import entropy


def make_header(shape: tuple[int, int, int] = (2, 4, 4), **options: Any) -> StreamHeader:
    return StreamHeader(bytes(32), shape, 8, Scaling("fixed", 0.0, 255.0), **options)


def write(path: Path, header: StreamHeader, payloads: Sequence[bytes]) -> str:
    with open(path, "wb") as file:
        writer = Writer(file, header)
        for payload in payloads:
            writer.write(payload)
    return str(path)


def noise(seed: int, header: StreamHeader, high: int) -> bytes:
    q = np.random.default_rng(seed).integers(0, high, header.latent_shape, np.uint8)
    return entropy.encode_symbols(q, header)


def inspected(path: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert cli.main(["inspect", path, "--json"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def parts(anatomy: dict[str, Any]) -> float:
    return sum(anatomy[key] for key in ("frame_header", "scales", "tables", "lane_lengths", "lane_bytes"))


@pytest.mark.parametrize("coder", ["context", "huffman-channel", "huffman-frame"])
def test_parts_and_channels(coder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = (8, 8) if coder == "context" else (0, 0)
    header = make_header((3, 13, 20), coder=coder, lane_symbols=64, tile=tile)
    q = np.random.default_rng(0).integers(0, 9, (4, 3, 13, 20), np.uint8)
    q[:, 1] = 7
    payloads = [entropy.encode_symbols(frame, header) for frame in q]
    found = inspected(path := write(tmp_path / "x.lseg", header, payloads), capsys)
    anatomy, rates = found["anatomy"], found["channel_bits_per_symbol"]
    assert anatomy["frames"] == 4
    assert parts(anatomy) == pytest.approx(found["bytes"] / 4)
    # Two channels of 2 x 3 tiles, or of 5 lanes; one code a frame needs 13 lanes, the constant channel's among them.
    assert anatomy["lanes"] == {"context": 12, "huffman-channel": 10, "huffman-frame": 13}[coder]
    assert anatomy["lane_states"] == (12 * 11 / 8 if coder == "context" else 0)
    assert anatomy["lane_fill"] == anatomy["lanes"] * 3.5 / 8
    assert anatomy["lane_overhead"] == sum(anatomy[key] for key in ("lane_lengths", "lane_states", "lane_fill"))
    assert cli.main(["inspect", path]) == 0
    out = capsys.readouterr().out
    if coder == "huffman-frame":
        assert rates is None
        assert "no rate by channel" in out
    else:
        # The mean over the channels is the stream's; the constant one takes its table or its parameters alone: under
        # coder 2 two numbers of 3 to 17 bits, and a third of at most 11 bits that are no channel's.
        assert np.mean(rates) == pytest.approx(found["bits_per_symbol"])
        low, high = (6, 38) if coder == "context" else (16, 16)
        assert low - 1e-6 <= rates[1] * 13 * 20 <= high + 1e-6
        assert f"bits/symbol of each: 0: {rates[0]:.3f}, 1: {rates[1]:.3f}, 2: {rates[2]:.3f}" in out
    assert f"{anatomy['lanes']:.0f} a frame; overhead {anatomy['lane_overhead']:.0f} bytes" in out


def test_many_channels_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = make_header((300, 4, 4))
    rng = np.random.default_rng(0)
    q = rng.integers(0, 2, (300, 4, 4), np.uint8)
    q[[5, 250]] = rng.integers(0, 256, (2, 4, 4), np.uint8)
    path = write(tmp_path / "x.lseg", header, [entropy.encode_symbols(q, header)])
    rates = inspected(path, capsys)["channel_bits_per_symbol"]
    assert len(rates) == 300
    assert set(np.argsort(rates)[-2:]) == {5, 250}
    assert cli.main(["inspect", path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("channels")]
    summary, most = line.split("; most: ")
    assert f"{min(rates):.3f} to {max(rates):.3f} bits/symbol, median {np.median(rates):.3f}" in summary
    named = [int(entry.split(":")[0]) for entry in most.split(", ")]
    assert (len(named), set(named[:2])) == (8, {5, 250})


@pytest.mark.parametrize(
    ("frames", "limit", "taken"), [(8, 8, 8), (9, 8, 5), (16, 8, 8), (100, 8, 7), (5, 1, 1), (7, 3, 2)]
)
def test_long_streams_are_sampled_evenly(
    frames: int,
    limit: int,
    taken: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    header = make_header()
    # One more value a frame, so that no two frames are alike.
    payloads = [noise(i, header, 2 + 2 * i) for i in range(frames)]
    monkeypatch.setattr(_anatomy, "MOST_FRAMES", limit)
    looked_at = []
    dissect = _anatomy.dissect
    monkeypatch.setattr(_anatomy, "dissect", lambda payload, h: looked_at.append(payload) or dissect(payload, h))
    path = write(tmp_path / "x.lseg", header, payloads)
    anatomy = inspected(path, capsys)["anatomy"]
    assert anatomy["frames"] == taken
    step = -(-frames // taken)
    step = 1 << (step - 1).bit_length()
    assert parts(anatomy) - 28 == pytest.approx(np.mean([len(payload) for payload in payloads[::step]]))
    assert len(looked_at) <= limit * (1 + np.log2(max(1, frames / limit)))
    assert cli.main(["inspect", path]) == 0
    assert (f"means of {taken} evenly spaced frames" in capsys.readouterr().out) == (taken < frames)


@pytest.mark.parametrize("interval", [2, 3, 8, 30, 64])
def test_key_frames_are_sampled_as_often_as_they_come(interval: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = _anatomy.Sample(make_header(coder="inter"))
    monkeypatch.setattr(_anatomy, "dissect", lambda payload, h: payload[0])
    for number in range(5000):
        sample.add(bytes([number % interval > 0]))
    kinds = [kind for _, kind in sample._taken]
    assert 120 <= len(kinds) <= 256
    assert abs(kinds.count(0) - len(kinds) / interval) < 3


def test_frames_of_very_many_lanes_are_few() -> None:
    tiles = StreamHeader(bytes(32), (64, 1024, 1024), 8, Scaling("fixed", 0.0, 1.0), tile=(4, 4))
    assert _anatomy.Sample(tiles)._limit == 1
    usual = StreamHeader(bytes(32), (32, 45, 60), 8, Scaling("fixed", 0.0, 1.0), tile=(48, 64))
    assert _anatomy.Sample(usual)._limit == _anatomy.MOST_FRAMES


def test_a_stream_without_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(write(tmp_path / "x.lseg", make_header(), []), capsys)
    assert (found["anatomy"], found["channel_bits_per_symbol"]) == (None, None)


def test_a_frame_that_cannot_be_decoded_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its CRC fits, so only who takes it apart sees that its last byte is missing.
    header = make_header()
    payloads = [noise(i, header, 50) for i in range(3)]
    payloads[1] = payloads[1][:-1]
    found = inspected(write(tmp_path / "x.lseg", header, payloads), capsys, code=7)
    assert (found["frames"], found["lost"], found["anatomy"]["frames"]) == (2, 1, 2)
    assert [(damage["frame_index"], damage["lost"]) for damage in found["damages"]] == [(1, 1)]
    assert "frame 1 does not decode: payload damaged" in found["damages"][0]["reason"]
