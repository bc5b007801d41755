"""Devices and launches, on a fake device in host memory behind both of its drivers' looks."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from _fake_cuda import Code, FakeCuda
from _fake_drivers import FakeDriver, FakePycuda
from _kernel_images import ARGUMENTS, HEADER, image, kernels, payload

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import ArtifactError, BackendMissingError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.batch import plan_batch, table_map_words
from latentseg.kernels.gpu.device import Device
from latentseg.kernels.gpu.launch import Gpu, GpuDecoder
from latentseg.kernels.gpu.pycuda import PycudaDevice

Maker = Callable[[FakeCuda], Device]
MAKERS: dict[str, Maker] = {
    "bindings": lambda cuda: Gpu(0, FakeDriver(cuda)),
    "pycuda": lambda cuda: PycudaDevice(0, FakePycuda(cuda), FakeDriver(cuda)),
}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(arguments=ARGUMENTS)


@both
def test_the_decoder_hands_the_kernel_what_it_wants(make: Maker, cuda: FakeCuda) -> None:
    payloads = [payload(i) for i in range(3)]
    plan = plan_batch(payloads, HEADER)
    wanted = np.stack([entropy.decode_latent(p, HEADER) for p in payloads]).astype(np.float16)
    with make(cuda) as gpu:
        assert (gpu.capability, gpu.name) == (90, "Fake")
        decoder = GpuDecoder(gpu, kernels(), HEADER, most=3)
        assert np.array_equal(decoder.decode(payloads), wanted)
        ((_, launch),) = [entry for entry in cuda.run if entry[0] == "context_decode"]
        programs = -(-plan.lane_count // shapes.LANES)
        grid = f"grid {(programs, 1, 1, 32, 1, 1)} shared 512 ['c_void_p', 'c_int']"
        assert cuda.calls[grid] == 1
        assert (launch["frames"], launch["channel_count"], launch["height"], launch["width"]) == (3, 3, 10, 9)
        assert (launch["word_count"], launch["ranges_a_frame"]) == (plan.word_count, 3)
        assert launch["lanes"] - launch["channels"] == plan.lanes - plan.channels
        size = table_map_words().nbytes
        assert np.array_equal(cuda.view(launch["table_map"], size, np.int64), table_map_words().reshape(-1))
        # Memory is taken once: a second batch of this size allocates nothing.
        before = cuda.calls["cuMemAlloc"]
        decoder.decode(payloads)
        assert cuda.calls["cuMemAlloc"] == before
        with pytest.raises(UsageError, match="a batch of 4 frames, expected at most 3"):
            decoder.start([*payloads, payloads[0]])
        with pytest.raises(InputError, match="frame 0 of the batch: payload damaged"):
            decoder.start([payloads[0][:-1]])
    gpu.close()
    assert not cuda.memory
    assert cuda.retained == 0
    assert cuda.depth <= 1  # PyCUDA's stack is empty, or the process would end with its thread


@both
def test_the_decoder_of_a_codebook(make: Maker, cuda: FakeCuda) -> None:
    centres = np.sort(np.random.default_rng(0).normal(size=6)).astype(np.float32)
    header = replace(HEADER, bits=3, scaling=Scaling("codebook", centres=tuple(centres.tolist())))
    latents = np.random.default_rng(1).normal(size=(3, *header.latent_shape)).astype(np.float32)
    payloads = [entropy.encode_latent(latent, header) for latent in latents]
    cuda.bits, cuda.codebook = 3, True
    with make(cuda) as gpu:
        with pytest.raises(ArtifactError, match=r"compiled for 3 bits and tiles of 4x5, but .* with a codebook"):
            GpuDecoder(gpu, kernels(bits=3), header, most=3)
        images = replace(kernels(bits=3), codebook=True)
        found = GpuDecoder(gpu, images, header, most=3).decode(payloads)
        expected = np.stack([entropy.decode_latent(p, header) for p in payloads])
        assert np.array_equal(found, expected.astype(np.float16))
        assert set(np.unique(expected)) <= set(centres.tolist())
        with pytest.raises(ArtifactError, match="of 4x5, with a codebook, but the stream has 3 bits"):
            GpuDecoder(gpu, images, replace(HEADER, bits=3), most=3)


@both
def test_memory_grows_and_what_was_freed_is_not_used_again(make: Maker, cuda: FakeCuda) -> None:
    with make(cuda) as gpu:
        decoder = GpuDecoder(gpu, kernels(), HEADER, most=8)
        decoder.decode([payload(0)])
        decoder.decode([payload(i) for i in range(8)])  # the fake refuses addresses that are no memory
        assert cuda.calls["cuMemFree"] >= 1
        # No memory for still more: the next batch that fits does not run in what was given back.
        decoder._rooms["data"] = (decoder._rooms["data"][0], 0)
        cuda.fail["cuMemAlloc"] = Code.CUDA_ERROR_OUT_OF_MEMORY
        with pytest.raises(ArtifactError, match=r"^cuMemAlloc failed: .*(?i:out_of_memory)") as caught:
            decoder.decode([payload(0)])
        assert "less memory" in caught.value.hint
        wanted = entropy.decode_latent(payload(0), HEADER).astype(np.float16)
        assert np.array_equal(decoder.decode([payload(0)])[0], wanted)


@both
def test_damage_that_the_kernel_finds_is_an_error(make: Maker, cuda: FakeCuda) -> None:
    bad = bytearray(payload(1))
    bad[-1] ^= 0x80
    with make(cuda) as gpu, pytest.raises(InputError, match=r"^frame 1 of the batch: payload damaged: lane \d+ does"):
        GpuDecoder(gpu, kernels(), HEADER, most=2).decode([payload(0), bytes(bad)])


@both
def test_a_launch_names_all_arguments(make: Maker, cuda: FakeCuda) -> None:
    with make(cuda) as gpu, gpu.active(), pytest.raises(UsageError, match="context_decode takes "):
        gpu.launch("context_decode", image(90), (1, 1), {"words": 0})


@both
def test_streams_events_and_pinned_memory(make: Maker, cuda: FakeCuda) -> None:
    with make(cuda) as gpu, gpu.active():
        stream, start, end = gpu.stream(), gpu.event(), gpu.event()
        pinned, memory = gpu.pinned(1000), gpu.allocate(1000)
        assert (pinned.dtype, pinned.shape, memory % 256) == (np.uint8, (1000,), 0)
        pinned[:] = np.arange(1000, dtype=np.uint8)
        back = np.zeros(1000, np.uint8)
        gpu.record(start, stream)
        gpu.upload(memory, pinned, stream)
        gpu.fill(memory, 7, 3, stream)
        gpu.fetch(back, memory, stream)
        gpu.record(end, stream)
        assert not back.any()  # nothing waited yet
        gpu.wait_event(end)
        assert np.array_equal(back[12:], pinned[12:])
        assert np.array_equal(back[:12].view(np.int32), [7, 7, 7])
        assert gpu.elapsed(start, end) == pytest.approx(2.5e-3)
    assert not cuda.memory
    assert not cuda.pinned
    assert list(cuda.pending) == [0]  # the stream went, in a context


@both
def test_a_capture_records_and_a_graph_repeats(make: Maker, cuda: FakeCuda) -> None:
    with make(cuda) as gpu, gpu.active():
        stream, memory, back = gpu.stream(), gpu.allocate(16), np.zeros(4, np.int32)
        value = np.zeros(4, np.int32)

        def body() -> None:
            gpu.upload(memory, value, stream)
            gpu.fill(memory, 9, 1, stream)
            gpu.fetch(back, memory, stream)

        graph = gpu.capture(stream, body, least=3)
        assert graph.nodes == 3
        gpu.wait(stream)
        assert not cuda.run  # recorded alone
        for number in (1, 2):
            value[:] = number
            gpu.replay(graph, stream)
            gpu.wait(stream)
            assert back.tolist() == [9, number, number, number]
        with pytest.raises(ArtifactError, match="graph capture failed: it recorded 3 operations, expected at least 4"):
            gpu.capture(stream, body, least=4)
        assert not cuda.captures
    assert not cuda.graphs


@both
def test_a_capture_that_goes_wrong_is_an_error_and_ends(make: Maker, cuda: FakeCuda) -> None:
    with make(cuda) as gpu, gpu.active():
        stream, memory = gpu.stream(), gpu.allocate(16)
        with pytest.raises(ArtifactError, match=r"^graph capture failed: it was .*INVALIDATED before"):
            gpu.capture(stream, lambda: cuda.invalidate(stream))
        assert not cuda.captures

        def fails() -> None:
            gpu.fill(memory, 1, 1, stream)
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            gpu.capture(stream, fails)
        assert not cuda.captures
        assert not cuda.graphs
        cuda.fail["cuGraphInstantiate"] = Code.CUDA_ERROR_OUT_OF_MEMORY
        with pytest.raises(ArtifactError, match="cuGraphInstantiate failed"):
            gpu.capture(stream, lambda: gpu.fill(memory, 1, 1, stream))
        assert not cuda.graphs
        gpu.fill(memory, 1, 4, stream)  # the stream is still of use
        gpu.wait(stream)
        assert cuda.view(memory, 16, np.int32).tolist() == [1, 1, 1, 1]


@both
def test_closing_behind_a_broken_context_hides_nothing(make: Maker, cuda: FakeCuda) -> None:
    gpu = make(cuda)

    def use() -> None:
        with gpu.active():
            for _ in range(3):
                gpu.allocate(8)
            cuda.sticky = True
            gpu.wait()

    with pytest.raises(ArtifactError, match=r"^cu(Stream|Ctx)Synchronize failed: .*(?i:illegal_address)"):
        use()
    gpu.close()  # says nothing
    assert cuda.calls["cuMemFree"] == 3  # each was tried, though the first one failed
    # Where nothing has said it before, the first error of closing is said, and the rest is freed.
    cuda.sticky, cuda.depth, cuda.retained = False, 0, 0
    cuda.memory.clear()
    quiet = make(cuda)
    with quiet.active():
        quiet.allocate(8)
        quiet.allocate(8)
    cuda.fail["cuMemFree"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(ArtifactError, match="cuMemFree failed"):
        quiet.close()
    assert (len(cuda.memory), cuda.retained) == (1, 0)

    def mine() -> None:
        with make(cuda) as other:
            with other.active():
                other.allocate(8)
            cuda.fail["cuMemFree"] = Code.CUDA_ERROR_ILLEGAL_ADDRESS
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        mine()


@both
def test_what_does_not_fit_is_refused_before_anything_runs(make: Maker) -> None:
    cuda = FakeCuda(capability=120, arguments=ARGUMENTS)
    with make(cuda) as gpu:
        with pytest.raises(ArtifactError, match=r"for compute capability 12\.0"):
            GpuDecoder(gpu, kernels(80, 90), HEADER, most=1)
        other = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(14, 32))
        with pytest.raises(ArtifactError, match="compiled for 8 bits and tiles of 4x5"):
            GpuDecoder(gpu, kernels(120), other, most=1)
        for most, floats, message in ((0, "float16", "batches of 0 frames"), (1, "bfloat16", "floats 'bfloat16'")):
            with pytest.raises(UsageError, match=message):
                GpuDecoder(gpu, kernels(120), HEADER, most, floats)
    assert not cuda.run


def test_pycuda_needs_its_own_streams_and_a_context_in_every_thread(cuda: FakeCuda) -> None:
    gpu = PycudaDevice(0, FakePycuda(cuda), FakeDriver(cuda))
    with gpu.active(), pytest.raises(UsageError, match="stream 0x3e7 is not one of this device's"):
        gpu.wait(999)
    with pytest.raises(ArtifactError, match="cuMemAlloc failed: cuda_error_invalid_context"):
        gpu.allocate(8)
    found: list[Any] = []

    def work() -> None:
        with gpu.active(), gpu.active():
            found.append(gpu.allocate(8))
        found.append(cuda.depth)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] in cuda.memory
    assert found[1] == 0
    closing = threading.Thread(target=gpu.close)
    closing.start()
    closing.join()
    assert not cuda.memory
    assert cuda.retained == 0


def test_the_fake_driver_takes_what_the_real_one_takes() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    fakes = {name[1:]: value for name, value in vars(FakeDriver).items() if name.startswith("_cu")}
    assert len(fakes) > 30
    for name, fake in fakes.items():
        signature = re.search(rf"{name}\((.*)\)", getattr(driver, name).__doc__ or "")
        assert signature, name
        wanted = [part for part in signature.group(1).split(",") if part.strip()]
        code = fake.__code__
        assert code.co_flags & 4 or code.co_argcount - 1 == len(wanted), (name, wanted)
    mode, status = driver.CUstreamCaptureMode, driver.CUstreamCaptureStatus
    assert mode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1
    assert status.CU_STREAM_CAPTURE_STATUS_ACTIVE == 1
    assert driver.CUstream_flags.CU_STREAM_NON_BLOCKING == 1


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    if importlib.util.find_spec("cuda") is None:
        with pytest.raises(BackendMissingError, match="cuda-bindings"):
            Gpu()
    else:
        try:
            Gpu().close()
        except BackendMissingError as error:
            assert "no CUDA device 0 on this machine" in str(error)  # noqa: PT017
    if importlib.util.find_spec("pycuda") is None:
        with pytest.raises(BackendMissingError, match="'pycuda', which is not installed") as caught:
            PycudaDevice(0, None, FakeDriver(cuda))
        assert caught.value.hint == "pip install 'latentseg[pycuda]'"
    for make in MAKERS.values():
        cuda.fail["cuDeviceGet"] = Code.CUDA_ERROR_INVALID_CONTEXT
        with pytest.raises(BackendMissingError, match="no CUDA device 0 on this machine: cuDeviceGet failed"):
            make(cuda)
    import sys
    import types

    broken = types.ModuleType("pycuda")
    broken.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", broken)
    monkeypatch.setattr("builtins.__import__", _import_error(__import__))
    with pytest.raises(BackendMissingError, match=r"PyCUDA is installed but does not import: libcuda\.so\.1"):
        PycudaDevice(0, None, FakeDriver(cuda))


def _import_error(real: Callable[..., Any]) -> Callable[..., Any]:
    def fake(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "pycuda.driver":
            raise ImportError("libcuda.so.1: cannot open shared object file")
        return real(name, *arguments, **named)

    return fake
