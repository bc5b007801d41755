"""`Engine` on the backend "tensorrt", whose GPU and TensorRT are fakes: bytes to labels and frames to bytes in batches,
as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _fake_engines import Context, write_fake_engine
from _fused_setup import SIZE, Setup, frames_of, payloads_of, truth
from PIL import Image

from latentseg import cli
from latentseg.bitstream import Writer
from latentseg.engine import Engine
from latentseg.engine.roles import Compressor
from latentseg.engine.sources import open_source
from latentseg.errors import ArtifactError, InputError, UsageError

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


# --- frames to bytes --------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(machine: Setup, tmp_path: Path) -> Path:
    """A folder of frames, and the engine that compresses them."""
    write_fake_engine(machine.bundle, machine.cuda, "compressor")
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(frames_of(COUNT)):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_stream_is_the_cpu_engines_to_the_last_byte(
    machine: Setup, pictures: Path, tmp_path: Path, batch: int
) -> None:
    with Engine(machine.bundle) as cpu:
        expected = cpu.encode(pictures, tmp_path / "cpu.lseg")
    seen: list[int] = []
    with Engine(machine.bundle, "tensorrt", threads=2, batch=batch) as engine:
        for name in ("a.lseg", "b.lseg"):  # the second run takes the device again
            found = engine.encode(pictures, tmp_path / name, on_frame=lambda run: seen.append(run.frames))
            assert (found.frames, found.bytes, found.payload_bytes, found.lost) == (
                COUNT, expected.bytes, expected.payload_bytes, 0
            )  # fmt: skip
            assert (tmp_path / name).read_bytes() == (tmp_path / "cpu.lseg").read_bytes()
            assert machine.clean
        assert engine.encode(pictures, tmp_path / "c.lseg", limit=2).frames == 2
    assert seen == [*range(1, COUNT + 1)] * 2


def test_the_command_line_encodes_on_the_gpu(
    machine: Setup, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["encode", str(pictures), "--bundle", str(machine.bundle.path), "-q"]
    assert cli.main([*options, "-o", str(tmp_path / "cpu.lseg")]) == 0
    gpu = [*options, "--backend", "tensorrt", "-o", str(tmp_path / "gpu.lseg")]
    assert cli.main(gpu) == ArtifactError.exit_code  # the default of 8 frames is above this engine's profile
    shown = capsys.readouterr().err
    assert "outside the engine's profile" in shown
    assert "--role compressor" in shown
    assert cli.main([*gpu, "--batch", "3", "--threads", "2", "--overwrite"]) == 0
    assert (tmp_path / "gpu.lseg").read_bytes() == (tmp_path / "cpu.lseg").read_bytes()
    assert cli.main([*options, "-o", str(tmp_path / "c.lseg"), "--batch", "3"]) == UsageError.exit_code
    for path in (machine.bundle.path / "engines").glob("compressor*"):
        path.unlink()
    assert cli.main([*gpu, "--overwrite"]) == ArtifactError.exit_code
    assert "build" in (shown := capsys.readouterr().err)
    assert "--role compressor --precision fp32" in shown


@pytest.mark.parametrize("with_frames", [False, True])
def test_labels_of_frames_by_way_of_their_bytes(machine: Setup, pictures: Path, with_frames: bool) -> None:
    with Engine(machine.bundle) as cpu:
        expected = list(cpu.segment(pictures, with_frames=with_frames))
    with Engine(machine.bundle, "tensorrt", batch=3) as engine:
        found = list(engine.segment(pictures, with_frames=with_frames))
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert (b.index, b.payload_bytes) == (index, a.payload_bytes)
        assert np.array_equal(a.labels, b.labels)
        assert {"read", "pad", "compress", "entropy_encode", "plan", "gpu"} <= b.timings_ms.keys()
        assert (b.rgb is not None) == with_frames
        assert not with_frames or np.array_equal(a.rgb, b.rgb)


def test_a_sender_without_a_receiver_is_freed(machine: Setup, pictures: Path) -> None:
    for path in (machine.bundle.path / "engines").glob("segmenter*"):
        path.unlink()
    with (
        Engine(machine.bundle, "tensorrt", batch=2) as engine,
        pytest.raises(ArtifactError, match="engine of its segmenter"),
    ):
        engine.segment(pictures)
    assert machine.clean


def test_a_latent_without_symbols_ends_the_stream_behind_the_frames_before_it(
    machine: Setup, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both backends say the same, name the frame, and leave a stream that is readable to the frame before."""
    marked = frames_of(COUNT)[4, 0, 0]
    compute, latents = Context.compute, Compressor.latents

    def spoiled(frames: np.ndarray, found: np.ndarray) -> np.ndarray:
        found[(frames[:, 0, 0] == marked).all(axis=1), 1, 2, 3] = np.nan
        return found

    def on_gpu(self: Context, array: np.ndarray) -> np.ndarray:
        found = compute(self, array)
        return spoiled(array, found) if found.ndim == 4 else found

    monkeypatch.setattr(Context, "compute", on_gpu)
    monkeypatch.setattr(Compressor, "latents", lambda self, frames: spoiled(frames, latents(self, frames)))
    said = []
    for backend in ("onnxruntime", "tensorrt"):
        path = tmp_path / f"{backend}.lseg"
        with (
            Engine(machine.bundle, backend, batch=3 if backend == "tensorrt" else None) as engine,
            pytest.raises(InputError) as caught,
        ):
            engine.encode(pictures, path)
        said.append(str(caught.value))
        with Engine(machine.bundle) as cpu:
            assert [result.index for result in cpu.segment(path)] == [0, 1, 2, 3]
    assert said[0] == said[1]
    assert said[0].startswith("frame 4: latent holds 1 values that are not finite, the first (nan) at (1, 2, 3)")
