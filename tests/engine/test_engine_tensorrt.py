"""`Engine` on the backend "tensorrt", whose GPU and TensorRT are fakes: bytes to labels in batches, as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, Setup, payloads_of, truth

from latentseg.bitstream import Writer
from latentseg.engine import Engine
from latentseg.engine.sources import open_source
from latentseg.errors import ArtifactError, UsageError

COUNT = 7


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    setup = Setup(tmp_path, monkeypatch)
    setup.plug_in()
    yield setup
    assert setup.clean


@pytest.fixture
def payloads(machine: Setup) -> list[bytes]:
    return payloads_of(machine.bundle, COUNT)


def stream(machine: Setup, payloads: list[bytes], path: Path) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, machine.header)
        for index, payload in enumerate(payloads):
            writer.write(payload, 1000 * index)
    return path


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 4])
def test_labels_of_a_stream(machine: Setup, payloads: list[bytes], tmp_path: Path, batch: int | None) -> None:
    path = stream(machine, payloads, tmp_path / "a.lseg")
    if batch is None:  # the default of 8 frames is above this engine's profile
        with Engine(machine.bundle, "tensorrt") as engine, pytest.raises(ArtifactError, match=r"outside .* profile"):
            engine.segment(path)
        return
    with Engine(machine.bundle, "tensorrt", batch=batch) as engine:
        results = list(engine.segment(path))
        assert engine.lost == 0
    assert [result.index for result in results] == list(range(COUNT))
    assert [result.timestamp_us for result in results] == [1000 * i for i in range(COUNT)]
    assert np.array_equal(np.stack([result.labels for result in results]), truth(machine.bundle, payloads))
    assert all(result.timings_ms.keys() >= {"read", "plan", "gpu"} for result in results)


def test_a_frame_that_does_not_decode_is_lost_alone(machine: Setup, payloads: list[bytes], tmp_path: Path) -> None:
    expected = truth(machine.bundle, payloads)
    payloads[4] = payloads[4][:-1]  # the container's CRC is made of what is written: it fits
    path = stream(machine, payloads, tmp_path / "a.lseg")
    with Engine(machine.bundle, "tensorrt", batch=3) as engine:
        results = list(engine.segment(path))
        assert engine.lost == 1
        (damage,) = engine.damages
    assert damage.reason.startswith("frame 4 does not decode")
    assert [result.index for result in results] == [0, 1, 2, 3, 5, 6]
    assert np.array_equal(np.stack([r.labels for r in results]), np.delete(expected, 4, axis=0))


def test_with_frames_the_decompressor_runs_beside_it(machine: Setup, payloads: list[bytes], tmp_path: Path) -> None:
    path = stream(machine, payloads, tmp_path / "a.lseg")
    write_fake_engine(machine.bundle, machine.cuda, "decompressor")
    with Engine(machine.bundle) as cpu:
        wanted = list(cpu.segment(path, with_frames=True))
    with Engine(machine.bundle, "tensorrt", batch=2) as engine:
        found = list(engine.segment(path, with_frames=True))
    for a, b in zip(wanted, found, strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.rgb, b.rgb)


def test_a_run_that_is_left_early_frees_the_device(machine: Setup, payloads: list[bytes], tmp_path: Path) -> None:
    path = stream(machine, payloads, tmp_path / "a.lseg")
    with Engine(machine.bundle, "tensorrt", batch=2) as engine:
        run = engine.segment(path)
        assert next(run).labels.shape == SIZE
        run.close()
        assert len(list(engine.segment(path, limit=3))) == 3
        with pytest.raises(UsageError, match="limit is 0"):
            engine.segment(open_source(path), limit=0)


def test_what_is_refused(machine: Setup, payloads: list[bytes], tmp_path: Path) -> None:
    path = stream(machine, payloads, tmp_path / "a.lseg")
    with pytest.raises(UsageError, match="batches of 2 on onnxruntime"):
        Engine(machine.bundle, batch=2)
    with pytest.raises(UsageError, match="backend tensorrt has no provider 'cpu'"):
        Engine(machine.bundle, "tensorrt", provider="cpu")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        Engine(machine.bundle, "tensorrt", precision="fp8")
    with (
        Engine(machine.bundle, "tensorrt", precision="fp16") as engine,
        pytest.raises(ArtifactError, match="fp16") as caught,
    ):
        engine.segment(path)
    assert "latentseg build" in (caught.value.hint or "")
