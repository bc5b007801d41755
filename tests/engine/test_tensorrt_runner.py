"""The fused runner on a fake device: labels against the CPU engine's, and what it asks of device and TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_cuda import Code
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, Setup, payloads_of, truth
from _kernel_images import kernels
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.run import Work
from latentseg.engine.tensorrt import api
from latentseg.engine.tensorrt.execution import open_device
from latentseg.engine.tensorrt.runner import FusedSegmenter
from latentseg.errors import ArtifactError, BackendMissingError, InputError, UsageError
from latentseg.kernels.gpu.images import save_kernels

ENGINE = ("upload", "fill", "context_decode", "engine", "fetch")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


def works(payloads: list[bytes]) -> list[Work]:
    return [Work(10 * place, 0, payload=payload) for place, payload in enumerate(payloads)]


def fail(work: Work, error: InputError) -> None:
    raise AssertionError(f"frame {work.index}: {error}")


@pytest.mark.parametrize("bindings", [False, True], ids=["pycuda", "bindings"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("batch", "slots", "graphs"), [(1, 1, True), (3, 2, True), (4, 3, False)])
def test_labels_are_the_cpu_engines_in_order(
    setup: Setup, bindings: bool, flavour: str, dtype: str, batch: int, slots: int, graphs: bool
) -> None:
    setup.install(flavour)
    (setup.bundle.path / "engines" / "segmenter-fp32-tensorrt.engine").unlink()
    write_fake_engine(setup.bundle, setup.cuda, precision="fp16", flavour=flavour, dtype=dtype)
    setup.cuda.half = dtype == "float16"
    payloads = payloads_of(setup.bundle, 11)
    expected = truth(setup.bundle, payloads)
    assert len(np.unique(expected)) == 3
    device = partial(setup.device, bindings)
    with setup.open(batch, slots, "fp16", graphs=graphs, device=device) as fused:
        assert fused.provider.endswith("on Fake (9.0)")
        found = list(fused.run(iter(works(payloads)), fail))
    assert [work.index for work in found] == list(range(0, 110, 10))
    assert np.array_equal(np.stack([work.labels for work in found]), expected)
    assert all(work.timings_ms["gpu"] > 0 and work.timings_ms["plan"] > 0 for work in found)
    assert bool(setup.cuda.calls["cuGraphLaunch"]) == graphs
    assert setup.clean


def test_a_batch_is_one_graph_and_takes_no_memory_of_its_own(setup: Setup) -> None:
    payloads = payloads_of(setup.bundle, 12)
    with setup.open(batch=3, slots=2) as fused:
        taken = {name: setup.cuda.calls[name] for name in ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate")}
        assert fused.host_bytes == sum(len(block) for block in setup.cuda.pinned.values())
        setup.cuda.run.clear()  # the decoder's tables
        list(fused.run(works(payloads), fail))
        assert [name for name, _ in setup.cuda.run] == [*ENGINE] * 4
        # Each slot's first batch runs as it is, and its second one is captured and replayed.
        assert setup.cuda.calls["cuStreamBeginCapture"] == setup.cuda.calls["cuGraphLaunch"] == 2
        list(fused.run(works(payloads), fail))
        assert setup.cuda.calls["cuStreamBeginCapture"] == 2
        assert setup.cuda.calls["cuGraphLaunch"] == 6
        assert taken == {name: setup.cuda.calls[name] for name in taken}
        assert len(setup.module.contexts) == 2
        # A smaller batch has a context of its own: what was captured for the others stays as it was captured.
        for count in (2, 2, 3, 2):
            ticket = fused.submit(payloads[:count])
            assert np.array_equal(fused.collect(ticket).labels, truth(setup.bundle, payloads[:count]))
        assert len(setup.module.contexts) == 3
        assert setup.cuda.calls["cuStreamBeginCapture"] == 3


def test_batches_are_in_flight_together_and_come_back_in_any_order(setup: Setup) -> None:
    chunks = [payloads_of(setup.bundle, 2, seed) for seed in range(9)]
    with setup.open(batch=2, slots=3) as fused:
        for turn in range(3):
            mine = chunks[3 * turn : 3 * turn + 3]
            before = len(setup.cuda.run)
            tickets = [fused.submit(chunk) for chunk in mine]
            assert len(setup.cuda.run) == before  # the host waits for nothing
            with pytest.raises(UsageError, match="all 3 slots are in flight"):
                fused.submit(mine[0])
            for place in (2, 0, 1):
                assert np.array_equal(fused.collect(tickets[place]).labels, truth(setup.bundle, mine[place]))
            with pytest.raises(UsageError, match="is not in flight"):
                fused.collect(tickets[0])


@pytest.mark.parametrize("graphs", [False, True])
def test_a_damaged_frame_is_reported_alone(setup: Setup, graphs: bool) -> None:
    payloads = payloads_of(setup.bundle, 8)
    expected = truth(setup.bundle, payloads)
    payloads[1] = payloads[1][:-1]  # the plan refuses it
    payloads[3] = payloads[3][:-1] + bytes([payloads[3][-1] ^ 0x80])  # the decoder finds it
    payloads[6] = b""
    lost: dict[int, str] = {}
    with setup.open(batch=4, slots=1, graphs=graphs) as fused:
        found = list(fused.run(works(payloads), lambda work, error: lost.update({work.index: str(error)})))
        both = fused.collect(fused.submit(payloads[:4]))
    assert sorted(lost) == [10, 30, 60]
    assert all(text.startswith("payload damaged: ") for text in lost.values())
    assert "does not end where its length says" in lost[30]
    assert [work.index for work in found] == [0, 20, 40, 50, 70]
    for work in found:
        assert np.array_equal(work.labels, expected[work.index // 10])
    assert sorted(both.damaged) == [1, 3]
    assert np.array_equal(both.labels[[0, 2]], expected[[0, 2]])


def test_stale_bytes_behind_short_payloads_come_to_nothing(setup: Setup) -> None:
    noisy, plain = payloads_of(setup.bundle, 4), payloads_of(setup.bundle, 4, seed=1, spread=3)
    assert sum(map(len, noisy)) > 2 * sum(map(len, plain))
    with setup.open(batch=4, slots=1) as fused:
        for chunk in (noisy, plain, noisy, plain, plain[:1], plain):
            assert np.array_equal(fused.collect(fused.submit(chunk)).labels, truth(setup.bundle, chunk))


def test_payloads_of_other_sizes_have_graphs_of_their_own(setup: Setup) -> None:
    write_fake_engine(setup.bundle, setup.cuda, frames=((1, 8, 8), (24, 256, 256)))
    noisy, plain = payloads_of(setup.bundle, 24), payloads_of(setup.bundle, 24, seed=1, spread=3)
    assert 9216 >= sum(map(len, noisy)) > 6144 > 4096 > sum(map(len, plain))
    with setup.open(batch=24, slots=1) as fused:
        for chunk in (plain, plain, noisy, plain, noisy, plain):
            assert np.array_equal(fused.collect(fused.submit(chunk)).labels, truth(setup.bundle, chunk))
    assert setup.cuda.calls["cuStreamBeginCapture"] == 2
    sizes = [size for name, size in setup.cuda.run if name == "upload"][2:]  # behind the decoder's tables
    assert sizes[2] - sizes[0] == 9216 - 4096
    assert sizes == [sizes[0], sizes[0], sizes[2], sizes[0], sizes[2], sizes[0]]


def test_labels_are_the_callers(setup: Setup) -> None:
    first, second = payloads_of(setup.bundle, 2, 1), payloads_of(setup.bundle, 2, 2)
    with setup.open(batch=2, slots=1) as fused:
        labels = fused.collect(fused.submit(first)).labels
        fused.collect(fused.submit(second))
    assert np.array_equal(labels, truth(setup.bundle, first))


def test_a_run_that_is_left_early_waits_for_what_is_in_flight(setup: Setup) -> None:
    payloads = payloads_of(setup.bundle, 9)
    with setup.open(batch=2, slots=3) as fused:
        running = fused.run(works(payloads), fail)
        next(running)
        running.close()  # type: ignore[attr-defined]
        assert not any(setup.cuda.pending.values())

        def broken() -> Iterator[Work]:
            yield from works(payloads[:4])
            raise InputError("the source broke")

        with pytest.raises(InputError, match="the source broke"):
            list(fused.run(broken(), fail))
        # All slots are free again.
        assert len(list(fused.run(works(payloads), fail))) == 9


def test_one_slot_gives_each_batch_before_it_takes_the_next(setup: Setup) -> None:
    taken: list[int] = []

    def live() -> Iterator[Work]:
        for work in works(payloads_of(setup.bundle, 3)):
            taken.append(work.index)
            yield work

    with setup.open(batch=1, slots=1) as fused:
        for work in fused.run(live(), fail):
            assert taken[-1] == work.index


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_missing_names_the_command_that_builds_it(setup: Setup) -> None:
    with pytest.raises(ArtifactError, match=r"has no TensorRT.* engine of its segmenter in int8") as caught:
        setup.open(precision="int8")
    assert caught.value.hint.startswith(f"latentseg build {setup.bundle.path} --target tensorrt")
    for path in (setup.bundle.path / "kernels").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match="no compiled kernels in") as caught:
        setup.open()
    assert caught.value.hint == f"latentseg build {setup.bundle.path} --target kernels --overwrite"
    save_kernels(kernels(90, tile=(4, 5)), setup.bundle.path / "kernels", overwrite=True)
    with pytest.raises(ArtifactError, match="compiled for 8 bits and tiles of 4x5"):
        setup.open()
    save_kernels(kernels(80, tile=setup.header.tile), setup.bundle.path / "kernels", overwrite=True)
    with pytest.raises(ArtifactError, match=r"no compiled kernel context_decode \(float32\) for compute capability 9"):
        setup.open()
    assert setup.clean


@pytest.mark.parametrize(
    ("frames", "batch", "profile", "wider"),
    [
        (((1, 8, 8), (2, 256, 256)), 3, "1x3x1x1:2x3x32x32:2x3x32x32", "1x8x8:2x256x256:3x256x256"),
        (((1, 8, 8), (4, 56, 256)), 3, "1x3x1x1:4x3x7x32:4x3x7x32", "1x8x8:4x56x256:4x64x256"),
        (((2, 8, 8), (4, 256, 256)), 3, "2x3x1x1:4x3x32x32:4x3x32x32", "1x8x8:4x256x256:4x256x256"),
    ],
)
def test_a_batch_outside_the_profile_says_the_profile_and_the_command(
    setup: Setup, frames: Any, batch: int, profile: str, wider: str
) -> None:
    write_fake_engine(setup.bundle, setup.cuda, frames=frames)
    with pytest.raises(ArtifactError, match=f"is outside the engine's profile {profile}") as caught:
        setup.open(batch=batch)
    assert f"--profile {wider} " in caught.value.hint
    assert caught.value.hint.startswith(f"latentseg build {setup.bundle.path} --target tensorrt --role segmenter ")


def test_an_engine_for_another_machine_is_not_loaded(setup: Setup) -> None:
    write_fake_engine(setup.bundle, setup.cuda, archs=(80,))
    with pytest.raises(ArtifactError, match=r"built for compute capability 8\.0, this GPU has 9\.0") as caught:
        setup.open()
    assert caught.value.exit_code == 4
    assert "latentseg build" in caught.value.hint
    write_fake_engine(setup.bundle, setup.cuda, version="10.1.0.1")
    with pytest.raises(ArtifactError, match=r"built by TensorRT 10\.1\.0\.1, this machine has 10\.13\.0\.35"):
        setup.open()
    assert not setup.module.contexts
    assert setup.cuda.retained == 0


def test_an_engine_that_is_not_what_its_sidecar_says(setup: Setup) -> None:
    path = write_fake_engine(setup.bundle, setup.cuda)
    side = path.with_suffix(".json")
    side.write_text(side.read_text().replace('"float32"', '"float16"'))
    with pytest.raises(ArtifactError, match="its sidecar says"):
        setup.open()


def test_missing_packages_are_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(api.importlib, "import_module", missing)
    with pytest.raises(BackendMissingError, match="'tensorrt', which is not installed") as caught:
        setup.open()
    assert caught.value.exit_code == 6
    assert setup.cuda.retained == 0
    monkeypatch.setitem(__import__("sys").modules, "pycuda", None)
    with pytest.raises(BackendMissingError, match="'pycuda', which is not installed"):
        setup.open(device=open_device)


def test_calls_that_make_no_sense(setup: Setup) -> None:
    for batch, slots in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match=f"batch {batch} and slots {slots}, expected at least 1"):
            setup.open(batch=batch, slots=slots)
    with pytest.raises(UsageError, match="frames of 61x91 have latents of"):
        FusedSegmenter(setup.bundle, setup.header, (61, 91), device=setup.device)
    other = write_tiny_bundle(setup.bundle.path.parent / "other", codec_seed="other").header(*SIZE)
    with pytest.raises(ArtifactError, match="was written by codec"):
        FusedSegmenter(setup.bundle, other, SIZE, device=setup.device)
    payloads = payloads_of(setup.bundle, 4)
    with setup.open(batch=3) as fused:
        for chunk in ([], payloads):
            with pytest.raises(UsageError, match=f"a batch of {len(chunk)} frames, expected 1 to 3"):
                fused.submit(chunk)
        ticket = fused.submit(payloads[:1])
    fused.close()
    for call in (lambda: fused.submit(payloads[:1]), lambda: fused.collect(ticket)):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert not setup.cuda.memory


# --- what fails -------------------------------------------------------------------------------------------------------


def silent(setup: Setup) -> None:
    setup.module.silent = True


def uncapturable(setup: Setup) -> None:
    setup.module.capturable = False


def refused_run(setup: Setup) -> None:
    setup.module.refuse = "run"


def broken_context(setup: Setup) -> None:
    setup.cuda.sticky = True


@pytest.mark.parametrize(
    ("flavour", "change", "message"),
    [
        ("tensorrt", silent, "graph capture failed: it recorded 4 operations, expected at least 5"),
        ("tensorrt-rtx", uncapturable, "cannot be captured as a CUDA graph"),
        ("tensorrt", refused_run, "refused a run for segmenter-fp32-tensorrt.engine"),
        ("tensorrt", broken_context, "failed: cuda_error_illegal_address"),
    ],
)
def test_a_failure_is_an_error_and_all_is_freed(
    setup: Setup, flavour: str, change: Callable[[Setup], None], message: str
) -> None:
    setup.install(flavour)
    (setup.bundle.path / "engines" / "segmenter-fp32-tensorrt.engine").unlink()
    write_fake_engine(setup.bundle, setup.cuda, flavour=flavour)
    payloads = payloads_of(setup.bundle, 3)
    fused = setup.open(batch=3, slots=1)
    fused.collect(fused.submit(payloads))
    change(setup)

    def use() -> None:
        with fused:
            fused.submit(payloads)

    with pytest.raises(ArtifactError, match=message):
        use()
    if not setup.cuda.sticky:
        assert setup.clean


@pytest.mark.parametrize("refuse", ["profile", "shape", "infer"])
def test_what_tensorrt_refuses_at_the_start(setup: Setup, refuse: str) -> None:
    setup.module.refuse = refuse
    with pytest.raises(
        ArtifactError, match=r"TensorRT 10\.13\.0\.35 refused (the first profile|shape \(3, 3, 8, 11\))"
    ):
        setup.open()
    assert setup.clean


def test_no_memory_says_what_takes_less(setup: Setup) -> None:
    setup.cuda.fail["cuMemHostAlloc"] = Code.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(ArtifactError, match="cuMemHostAlloc failed") as caught:
        setup.open()
    assert "smaller batch or fewer slots" in caught.value.hint
    assert caught.value.exit_code == 4


def test_the_runtime_cache_lies_beside_the_engine(setup: Setup) -> None:
    setup.install("tensorrt-rtx")
    path = write_fake_engine(setup.bundle, setup.cuda, flavour="tensorrt-rtx")
    (setup.bundle.path / "engines" / "segmenter-fp32-tensorrt.engine").unlink()
    cache = path.with_suffix(".runtime")
    setup.open().close()
    assert cache.read_bytes() == b"kernels"
    assert setup.module.caches == []
    before = cache.stat().st_mtime_ns
    setup.open().close()
    assert setup.module.caches == [b"kernels"]
    assert cache.stat().st_mtime_ns == before  # nothing new, nothing written
    cache.write_bytes(b"of another machine")
    setup.open().close()
    assert cache.read_bytes() == b"kernels"
