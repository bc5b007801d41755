"""The fused sender on a fake device: payloads against the CPU engine's, and what overlaps with what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, frames_of
from _sender_setup import Machine, sized, truth, works

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.engine.roles import Compressor
from latentseg.engine.run import Work
from latentseg.engine.tensorrt import sender
from latentseg.errors import InputError, UsageError
from latentseg.kernels import entropy, native_available
from latentseg.kernels.gpu import shapes

KERNELS = {"fixed": ["quantize"], "tensor": ["minmax", "quantize"], "channel": ["minmax", "quantize"]}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# --- payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flavour", "bindings"), [("tensorrt", False), ("tensorrt-rtx", True)])
@pytest.mark.parametrize(
    ("batch", "slots", "threads", "graphs"), [(1, 1, 1, True), (3, 2, 2, True), (4, 3, 9, False), (2, 4, 1, True)]
)
def test_payloads_are_the_cpu_engines_in_order(
    machine: Machine, flavour: str, bindings: bool, batch: int, slots: int, threads: int, graphs: bool
) -> None:
    machine.install(flavour)
    (machine.bundle.path / "engines" / "compressor-fp32-tensorrt.engine").unlink()
    write_fake_engine(machine.bundle, machine.cuda, "compressor", flavour=flavour)
    frames = frames_of(11)
    device = partial(machine.device, bindings)
    with machine.compressor(batch, slots, threads, graphs=graphs, device=device) as fused:
        assert fused.provider.endswith("on Fake (9.0)")
        assert fused.host_bytes == sum(len(block) for block in machine.cuda.pinned.values())
        found = list(fused.run(iter(works(frames))))
    assert [(work.index, work.timestamp_us) for work in found] == [(10 * i, 40 * i) for i in range(11)]
    assert [work.payload for work in found] == truth(machine.bundle, frames)
    assert all(work.rgb is None for work in found)
    assert all(work.timings_ms.keys() == {"pad", "compress", "entropy_encode"} for work in found)
    assert all(min(work.timings_ms.values()) > 0 for work in found)
    assert bool(machine.cuda.calls["cuGraphLaunch"]) == graphs
    assert machine.clean


@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel", "codebook"])
@pytest.mark.parametrize("size", [(1, 1), (61, 83), (64, 9)])
def test_any_size_and_scaling(machine: Machine, mode: str, size: tuple[int, int]) -> None:
    if mode != "fixed":
        machine.rescale(mode)
    frames = sized(5, *size)
    frames[1] = 17  # every range of it is empty
    frames[2, :, :, 0] = 0
    with machine.compressor(2, 2, size=size) as fused:
        for _ in range(2):  # in graphs as well
            found = list(fused.run(works(frames)))
            assert [work.payload for work in found] == truth(machine.bundle, frames)
    header = machine.bundle.header(*size)
    with Compressor(machine.bundle) as compressor:
        latents = compressor.latents(frames)
    for latent, work in zip(latents, found, strict=True):
        expected = entropy.decode_symbols(entropy.encode_latent(latent, header, "numpy"), header)
        assert np.array_equal(entropy.decode_symbols(work.payload, header), expected)
    assert machine.clean


@pytest.mark.parametrize("mode", ["tensor", "channel"])
def test_long_rows_are_reduced_more_than_once(machine: Machine, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.rescale(mode)
    monkeypatch.setattr(shapes, "BLOCK", 4)
    monkeypatch.setattr(shapes, "TURNS", 1)
    monkeypatch.setattr(shapes, "PARTS", 3)
    frames = sized(3, *SIZE)
    with machine.compressor(3, 1) as fused:
        machine.cuda.run.clear()
        for _ in range(3):
            assert fused.collect(fused.submit(frames)).payloads == truth(machine.bundle, frames)
    # Tensor: 264 values in 66 parts, 33, 17, 9, 5, 3; channel: 88 in 22, 11, 6, 3.
    assert [name for name, _ in machine.cuda.run].count("minmax") == 3 * (6 if mode == "tensor" else 4)


def test_given_the_latent_the_symbols_are_exact(machine: Machine) -> None:
    with machine.compressor(3, 1) as fused:
        ticket = fused.submit(frames_of(3))
        latents = fused.latents(ticket)
        assert latents.shape == (3, *machine.header.latent_shape)
        assert fused.collect(ticket).payloads == [entropy.encode_latent(z, machine.header) for z in latents]


@pytest.mark.parametrize("mode", ["fixed", "channel"])
def test_a_batch_is_one_graph_and_takes_no_memory_of_its_own(machine: Machine, mode: str) -> None:
    if mode != "fixed":
        machine.rescale(mode)
    frames = frames_of(12)
    with machine.compressor(batch=3, slots=2) as fused:
        taken = {name: machine.cuda.calls[name] for name in ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate")}
        machine.cuda.run.clear()  # the fixed range
        list(fused.run(works(frames)))
        assert [name for name, _ in machine.cuda.run] == ["upload", "fill", "engine", *KERNELS[mode], "fetch"] * 4
        # Each slot's first batch runs as it is, and its second one is captured and replayed.
        assert machine.cuda.calls["cuStreamBeginCapture"] == machine.cuda.calls["cuGraphLaunch"] == 2
        list(fused.run(works(frames)))
        assert machine.cuda.calls["cuStreamBeginCapture"] == 2
        assert machine.cuda.calls["cuGraphLaunch"] == 6
        assert taken == {name: machine.cuda.calls[name] for name in taken}
        # A smaller batch has a context and a graph of its own: what was captured for the others stays.
        for count in (2, 2, 3, 2):
            assert fused.collect(fused.submit(frames[:count])).payloads == truth(machine.bundle, frames[:count])
        assert len(machine.module.contexts) == 3
        assert machine.cuda.calls["cuStreamBeginCapture"] == 3
    assert machine.clean


# --- in flight --------------------------------------------------------------------------------------------------------


def test_batches_are_in_flight_together_and_come_back_in_any_order(machine: Machine) -> None:
    chunks = [frames_of(2, seed) for seed in range(9)]
    with machine.compressor(batch=2, slots=3) as fused:
        for turn in range(3):
            mine = [chunk.copy() for chunk in chunks[3 * turn : 3 * turn + 3]]
            before = len(machine.cuda.run)
            tickets = [fused.submit(chunk) for chunk in mine]
            assert len(machine.cuda.run) == before  # the host waits for nothing
            for chunk in mine:
                chunk[:] = 0  # the frames are the caller's again
            with pytest.raises(UsageError, match="all 3 slots are in flight"):
                fused.submit(mine[0])
            for place in (2, 0, 1):
                found = fused.collect(tickets[place])
                assert found.payloads == truth(machine.bundle, chunks[3 * turn + place])
                assert not found.errors
            with pytest.raises(UsageError, match="is not in flight"):
                fused.collect(tickets[0])


def test_frames_of_a_batch_are_coded_side_by_side(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=20)
    good = entropy.encode_symbols

    def encode(*arguments: Any) -> bytes:
        both.wait()  # breaks unless two threads are here at once
        return good(*arguments)

    expected = truth(machine.bundle, frames_of(4))
    monkeypatch.setattr(sender.entropy, "encode_symbols", encode)
    with machine.compressor(batch=4, slots=1, threads=2) as fused:
        assert fused.collect(fused.submit(frames_of(4))).payloads == expected


@pytest.mark.skipif(not native_available(), reason="wants the native coder")
def test_the_native_coder_lets_other_threads_run() -> None:
    """This thread takes the time while another one codes noise: it must come to it in the middle of that."""
    header = StreamHeader(bytes(32), (16, 512, 512), 8, Scaling("fixed", 0.0, 255.0), coder="context")
    noise = np.random.default_rng(0).integers(0, 256, header.latent_shape, np.uint8)
    span: list[float] = []

    def code() -> None:
        span.append(time.perf_counter())
        entropy.encode_symbols(noise, header, implementation="native")
        span.append(time.perf_counter())

    for _ in range(5):  # a busy machine may keep this thread from running
        span.clear()
        ticks = []
        thread = threading.Thread(target=code)
        thread.start()
        while thread.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0.001)
        quarter = (span[1] - span[0]) / 4
        if any(span[0] + quarter < tick < span[1] - quarter for tick in ticks):
            return
    raise AssertionError("the coder holds the GIL")


def test_a_batch_is_coded_while_the_next_ones_are_on_their_way(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch's coder waits until the third batch is asked for: with nothing overlapped that never comes."""
    asked, coding = threading.Event(), threading.Event()
    good = entropy.encode_symbols
    frames = frames_of(8)
    expected = truth(machine.bundle, frames)

    def encode(*arguments: Any) -> bytes:
        coding.set()
        assert asked.wait(20)
        return good(*arguments)

    def source() -> Iterator[Work]:
        for place, work in enumerate(works(frames)):
            if place == 4:
                assert coding.wait(20)  # the first batch left the device, with the second one there
                asked.set()
            yield work

    monkeypatch.setattr(sender.entropy, "encode_symbols", encode)
    with machine.compressor(batch=2, slots=3, threads=1) as fused:
        assert [work.payload for work in fused.run(source())] == expected


def test_a_slot_is_not_used_again_before_its_symbols_are_coded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = entropy.encode_symbols
    late = threading.Event()
    first = [True]

    def encode(*arguments: Any) -> bytes:
        if first[0]:
            first[0] = False
            late.wait(0.3)  # the other batches could pass it meanwhile
        return good(*arguments)

    frames = frames_of(12)
    expected = truth(machine.bundle, frames)
    monkeypatch.setattr(sender.entropy, "encode_symbols", encode)
    with machine.compressor(batch=2, slots=2, threads=3) as fused:
        assert [work.payload for work in fused.run(works(frames))] == expected


def test_closing_with_batches_in_flight_frees_everything(machine: Machine) -> None:
    fused = machine.compressor(batch=2, slots=3)
    tickets = [fused.submit(frames_of(2, seed)) for seed in range(3)]
    fused.latents(tickets[0])  # the first is with the coder
    fused.close()
    fused.close()
    assert machine.clean
    for call in (lambda: fused.submit(frames_of(1)), lambda: fused.collect(tickets[0])):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("latentseg-encode")]


def test_a_run_that_is_left_early_waits_for_what_is_in_flight(machine: Machine) -> None:
    frames = frames_of(9)
    with machine.compressor(batch=2, slots=3) as fused:
        running = fused.run(works(frames))
        next(running)
        running.close()  # type: ignore[attr-defined]
        assert not any(machine.cuda.pending.values())

        def broken() -> Iterator[Work]:
            yield from works(frames[:4])
            raise InputError("the source broke")

        with pytest.raises(InputError, match="the source broke"):
            list(fused.run(broken()))
        # All slots are free again.
        assert [work.payload for work in fused.run(works(frames))] == truth(machine.bundle, frames)
    assert machine.clean


def test_one_slot_gives_each_batch_before_it_takes_the_next(machine: Machine) -> None:
    taken: list[int] = []

    def live() -> Iterator[Work]:
        for work in works(frames_of(3)):
            taken.append(work.index)
            yield work

    with machine.compressor(batch=1, slots=1) as fused:
        for work in fused.run(live()):
            assert taken[-1] == work.index


def test_frames_stay_where_they_are_wanted(machine: Machine) -> None:
    frames = frames_of(3)
    with machine.compressor(batch=2) as fused:
        kept = list(fused.run(works(frames), keep_rgb=True))
    assert np.array_equal(np.stack([work.rgb for work in kept]), frames)
