"""The fused sender on a fake device: latents without symbols, what is refused, and what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_cuda import Code
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, frames_of
from _kernel_images import kernels
from _sender_setup import MARK, Machine, sized, spoil, truth, works

from latentseg.engine.bundle import load_bundle
from latentseg.engine.roles import Compressor
from latentseg.engine.run import Work
from latentseg.engine.tensorrt.sender import FusedCompressor
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.gpu.batch import check_gpu_stream
from latentseg.kernels.gpu.images import KernelSet, save_kernels


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# --- what has no symbols ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel", "codebook"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_latent_that_is_not_finite_is_an_error_of_its_frame(
    machine: Machine, mode: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode != "fixed":
        machine.rescale(mode)
    frames = frames_of(9)
    frames[:, 0, 0, 0] = 0
    expected = truth(machine.bundle, frames)
    frames[4, 0, 0, 0] = MARK
    with Compressor(machine.bundle) as compressor:
        latent = compressor.latents(frames[4:5])[0]
    latent[1, 2, 3] = value
    with pytest.raises(InputError) as on_cpu:
        entropy.encode_latent(latent, machine.header)
    assert f"1 values that are not finite, the first ({value}) at (1, 2, 3)" in str(on_cpu.value)
    spoil(monkeypatch, value)
    found: list[Work] = []
    with machine.compressor(batch=3, slots=3) as fused:
        running = fused.run(works(frames))
        with pytest.raises(InputError) as caught:
            found.extend(running)
        assert str(caught.value) == f"frame 40: {on_cpu.value}"
        assert caught.value.hint == on_cpu.value.hint
        # One that is damaged alone costs the others of its batch nothing, and leaves nothing behind.
        both = fused.collect(fused.submit(frames[3:6]))
        assert (both.payloads, list(both.errors)) == ([expected[3], b"", expected[5]], [1])
        assert fused.collect(fused.submit(frames[6:9])).payloads == expected[6:9]
    assert [work.payload for work in found] == expected[:4]
    assert machine.clean


def test_a_range_that_overflows_is_an_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.rescale("tensor")
    frames = frames_of(1)
    frames[0, 0, 0, 0] = MARK
    spoil(monkeypatch, 3e38)
    with machine.compressor() as fused:
        found = fused.collect(fused.submit(frames))
    assert str(found.errors[0]).startswith("quantisation range [")


def test_a_verdict_that_the_cpu_does_not_share_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    good = machine.cuda.kernel

    def accusing(kernel: str, named: dict[str, Any]) -> None:
        good(kernel, named)
        if kernel == "quantize":
            machine.cuda.view(named["bad"], 4, np.int32)[0] = 1

    monkeypatch.setattr(machine.cuda, "kernel", accusing)
    with machine.compressor(slots=1) as fused:
        with pytest.raises(ArtifactError, match="not finite on Fake, and the CPU finds none") as caught:
            fused.collect(fused.submit(frames_of(2)))
        assert "--check" in caught.value.hint
        monkeypatch.setattr(machine.cuda, "kernel", good)
        assert fused.collect(fused.submit(frames_of(2))).payloads == truth(machine.bundle, frames_of(2))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_missing_names_the_command_that_builds_it(machine: Machine) -> None:
    name = str(machine.bundle.path)
    for path in (machine.bundle.path / "engines").glob("compressor*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"has no TensorRT.* engine of its compressor in fp32") as caught:
        machine.compressor()
    assert caught.value.hint.startswith(f"latentseg build {name} --target tensorrt")
    assert caught.value.hint.endswith(" --role compressor --precision fp32")
    write_fake_engine(machine.bundle, machine.cuda, "compressor")
    save_kernels(kernels(80, tile=machine.header.tile), machine.bundle.path / "kernels", overwrite=True)
    with pytest.raises(ArtifactError, match=r"no compiled kernel quantize \(float32\) for compute capab") as caught:
        machine.compressor()
    assert caught.value.hint == f"latentseg build {name} --target kernels --overwrite"
    decoders = kernels(90, tile=machine.header.tile)
    save_kernels(
        KernelSet(8, machine.header.tile, "3.6.0", decoders.images[:2]), machine.bundle.path / "kernels", overwrite=True
    )
    with pytest.raises(ArtifactError, match="no compiled kernel quantize"):
        machine.compressor()
    for path in (machine.bundle.path / "kernels").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match="no compiled kernels in"):
        machine.compressor()
    assert machine.clean


def test_a_coder_that_there_are_no_kernels_for_is_refused_in_the_receivers_words(machine: Machine) -> None:
    path = machine.bundle.path / "manifest.json"
    raw = json.loads(path.read_text())
    raw["codec"] |= {"coder": "huffman-channel", "tile": [0, 0]}
    path.write_text(json.dumps(raw))
    machine.bundle = load_bundle(machine.bundle.path)
    with pytest.raises(ArtifactError) as received:
        check_gpu_stream(machine.bundle.header(*SIZE))
    with pytest.raises(ArtifactError) as caught:
        machine.compressor()
    assert str(caught.value) == (
        "a stream of coder huffman-channel, expected context: kernels are compiled for its tiles alone"
    )
    assert (str(caught.value), caught.value.hint) == (str(received.value), received.value.hint)
    assert caught.value.hint.startswith("--backend onnxruntime, or ")


def test_calls_that_make_no_sense(machine: Machine) -> None:
    for batch, slots, threads in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(UsageError, match=r"expected (at least 1|1 or more)"):
            machine.compressor(batch, slots, threads)
    with pytest.raises(UsageError, match="frames of 61x91 have latents of"):
        FusedCompressor(machine.bundle, machine.header, (61, 91), device=machine.device)
    with pytest.raises(ArtifactError, match="is outside the engine's profile 1x8x8x3:4x256x256x3") as caught:
        machine.compressor(batch=5)
    assert "--role compressor" in caught.value.hint
    assert "--profile 1x8x8:4x256x256:5x256x256" in caught.value.hint
    with machine.compressor(batch=3) as fused:
        for count in (0, 4):
            with pytest.raises(UsageError, match=f"a batch of {count} frames, expected 1 to 3"):
                fused.submit(frames_of(count))
        for wrong in (sized(1, 61, 82), frames_of(1).astype(np.float32), frames_of(1)[..., :2]):
            with pytest.raises(ArtifactError, match=r"expected uint8 \[61, 83, 3\]"):
                fused.submit([frames_of(1)[0], wrong[0]])
        assert fused.collect(fused.submit(frames_of(1))).payloads == truth(machine.bundle, frames_of(1))
    assert machine.clean


@pytest.mark.parametrize("graphs", [False, True])
def test_a_failure_is_an_error_and_all_is_freed(machine: Machine, graphs: bool) -> None:
    frames = frames_of(3)
    fused = machine.compressor(batch=3, slots=2, graphs=graphs)
    assert fused.collect(fused.submit(frames)).payloads == truth(machine.bundle, frames)
    machine.module.refuse = "run"

    def use() -> None:
        with fused:
            list(fused.run(works(frames)))

    with pytest.raises(ArtifactError, match=r"refused a run for compressor-fp32-tensorrt\.engine"):
        use()
    assert machine.clean


def test_an_engine_that_starts_nothing_is_no_graph(machine: Machine) -> None:
    with machine.compressor(batch=1, slots=1) as fused:
        fused.collect(fused.submit(frames_of(1)))
        machine.module.silent = True
        with pytest.raises(ArtifactError, match="it recorded 4 operations, expected at least 5"):
            fused.submit(frames_of(1))


def test_no_memory_says_what_takes_less(machine: Machine) -> None:
    machine.cuda.fail["cuMemHostAlloc"] = Code.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(ArtifactError, match="cuMemHostAlloc failed") as caught:
        machine.compressor()
    assert "smaller batch or fewer slots" in caught.value.hint
    assert machine.clean


def test_an_engine_of_other_ends_is_refused(machine: Machine) -> None:
    for path in (machine.bundle.path / "engines").glob("compressor*"):
        path.unlink()
    path = write_fake_engine(machine.bundle, machine.cuda, "compressor")
    side = path.with_suffix(".json")
    raw = json.loads(side.read_text())
    raw["output"]["dtype"] = "uint8"
    side.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=r"its sidecar says|expected uint8 frames and float32 latents"):
        machine.compressor()
    assert machine.clean
