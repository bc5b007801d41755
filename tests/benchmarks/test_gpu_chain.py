"""Engines one after another on a fake device: labels against the CPU engine's, graphs, and what they refuse."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, Setup, frames_of, payloads_of

from latentseg.benchmarks import gpu_chain
from latentseg.benchmarks.gpu_arms import open_engines
from latentseg.benchmarks.gpu_chain import ByteSlot, FrameSlot
from latentseg.engine.roles import Decompressor, RgbSegmenter
from latentseg.errors import ArtifactError, InputError
from latentseg.kernels.gpu.images import load_kernels
from latentseg.kernels.gpu.launch import DecodeKernel

BATCH = 3


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    found = Setup(tmp_path, monkeypatch)
    found.plug_in()
    monkeypatch.setattr("latentseg.benchmarks.gpu_arms.open_device", found.device)
    monkeypatch.setattr(gpu_chain, "_HOLD_BYTES", 4096)
    for role in ("decompressor", "rgb_segmenter"):
        write_fake_engine(found.bundle, found.cuda, role)
    return found


def byte_slot(setup: Setup, stack: ExitStack, *roles: str) -> ByteSlot:
    paths = [setup.bundle.path / "engines" / f"{role}-fp32-tensorrt.engine" for role in roles]
    device, loaded = open_engines(stack, paths)
    stack.enter_context(device.active())
    kernel = DecodeKernel(device, load_kernels(setup.bundle.path / "kernels"), setup.header, "float32")
    slot = ByteSlot(device, setup.header, setup.bundle.codec.stride, kernel, loaded, BATCH)
    stack.callback(slot.forget)
    return slot


def frame_slot(setup: Setup, stack: ExitStack) -> FrameSlot:
    device, (loaded,) = open_engines(stack, [setup.bundle.path / "engines" / "rgb_segmenter-fp32-tensorrt.engine"])
    stack.enter_context(device.active())
    slot = FrameSlot(device, loaded, (BATCH, 64, 88, 3))
    stack.callback(slot.forget)
    return slot


def decoded_first(setup: Setup, payloads: list[bytes]) -> np.ndarray:
    """What the CPU engine says of what the decompressor makes."""
    with Decompressor(setup.bundle) as decompressor, RgbSegmenter(setup.bundle) as rgb:
        latents = decompressor.entropy_decode(payloads, setup.header)
        return rgb.labels(decompressor.frames(latents, SIZE))


def test_decode_then_segment_is_one_graph_with_the_cpus_labels(setup: Setup) -> None:
    payloads = payloads_of(setup.bundle, 2 * BATCH)
    expected = decoded_first(setup, payloads)
    assert len(np.unique(expected)) == 3
    with ExitStack() as stack:
        slot = byte_slot(setup, stack, "decompressor", "rgb_segmenter")
        for turn in range(6):
            start = turn % 2 * BATCH
            slot.plan(payloads[start : start + BATCH])
            slot.start()
            found = slot.finish()[:, : SIZE[0], : SIZE[1]]
            assert np.array_equal(found, expected[start : start + BATCH]), turn
        assert slot.graph_count == 1
        assert setup.cuda.calls["cuGraphLaunch"] == 5
    graph = [name for name, _ in setup.cuda.run[-6:]]
    assert graph == ["upload", "fill", "context_decode", "engine", "engine", "fetch"]  # frames stay there
    assert setup.clean


def test_stages_by_events_in_order(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        slot = byte_slot(setup, stack, "decompressor", "rgb_segmenter")
        slot.plan(payloads_of(setup.bundle, BATCH))
        found = slot.timed()
        assert list(found) == ["copy_in", "entropy_decode", "decompressor", "rgb_segmenter", "copy_out"]
        # Once before the clock, and then behind what keeps the stream busy while the host starts all of them.
        names = [name for name, _ in setup.cuda.run]
        assert names.count("engine") == 4
        assert names[-7:-5] == ["fill", "upload"]
        assert slot.graph_count == 0


def test_damage_is_found(setup: Setup) -> None:
    payloads = payloads_of(setup.bundle, BATCH)
    bad = bytearray(payloads[1])
    bad[-1] ^= 0x80
    with ExitStack() as stack:
        slot = byte_slot(setup, stack, "decompressor", "rgb_segmenter")
        slot.plan([payloads[0], bytes(bad), payloads[2]])
        slot.start()
        with pytest.raises(InputError, match="frame 1 of the batch"):
            slot.finish()
        with pytest.raises(InputError, match="frame 2 of the batch"):
            slot.plan([*payloads[:2], payloads[2][:-1]])


def test_an_engine_that_starts_nothing_is_found(setup: Setup) -> None:
    with ExitStack() as stack:
        slot = byte_slot(setup, stack, "segmenter")
        slot.plan(payloads_of(setup.bundle, BATCH))
        slot.start()
        slot.finish()
        setup.module.silent = True
        with pytest.raises(ArtifactError, match="recorded 4 operations, expected at least 5"):
            slot.start()


def test_frames_of_any_address_are_one_graph(setup: Setup) -> None:
    frames = np.zeros((4, BATCH, 64, 88, 3), np.uint8)
    frames[:, :, : SIZE[0], : SIZE[1]] = frames_of(4 * BATCH).reshape(4, BATCH, *SIZE, 3)
    with ExitStack() as stack:
        slot = frame_slot(setup, stack)
        rooms = [
            slot.device.allocate(frames[0].nbytes) for _ in range(24)
        ]  # as many as DALI's CPU pool was seen to use
        for turn, batch in enumerate(np.concatenate([frames] * 6)):
            address = rooms[turn]
            setup.cuda.view(address, batch.nbytes)[:] = batch.reshape(-1)
            slot.start(address)
            assert np.array_equal(slot.finish(), batch.argmax(-1)), turn
        assert slot.graph_count == 1
        assert setup.cuda.calls["cuGraphLaunch"] == 23
        assert list(slot.timed(rooms[2])) == ["copy_frames", "rgb_segmenter", "copy_out"]
        assert slot.graph_count == 1
    assert setup.clean
