"""The Triton kernels as far as a machine without a GPU can show: interpreted against NumPy, compiled, and launched.

The interpreter and the compiler exclude each other in one process, so each has one of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import ArtifactError, BackendMissingError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.gpu import images, shapes
from latentseg.kernels.gpu.batch import plan_batch, table_map_words
from latentseg.kernels.gpu.images import KernelImage, KernelSet, load_kernels, save_kernels
from latentseg.kernels.gpu.launch import Gpu, GpuDecoder

HERE = Path(__file__).resolve().parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")
HEADER = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(4, 5))


def payload(seed: int, header: StreamHeader = HEADER) -> bytes:
    rng = np.random.default_rng(seed)
    q = np.clip(np.rint(rng.normal(100, 4, header.latent_shape)), 0, 255).astype(np.uint8)
    q[1] = 7
    lo = rng.normal(size=header.latent_shape[0]).astype(np.float32)
    return entropy.encode_symbols(q, header, lo, lo + 1)


@needs_triton
def test_interpreted_kernels_equal_numpy_between_guard_zones() -> None:
    result = subprocess.run([sys.executable, HERE / "_interpreted.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("interpreted: all equal\n")  # behind the rows of the benchmark's check


COMPILE = """
import sys
from pathlib import Path
from latentseg.kernels.triton.compile import compile_kernels
from latentseg.kernels.gpu.images import save_kernels
save_kernels(compile_kernels(8, (14, 32)), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(folder)]
    subprocess.run(command, check=True, env={**environment, "TRITON_CACHE_DIR": str(folder / "cache")})
    return folder


@needs_triton
def test_every_kernel_compiles_for_every_arch_without_spills(compiled: Path) -> None:
    found = load_kernels(compiled)  # compile_kernels refuses spills and too many registers: test below
    assert found.archs() == [80, 86, 89, 90, 120]
    variants = {(image.kernel, image.variant) for image in found.images}
    floats = {(kernel, kind) for kernel in ("context_decode", "dequantize") for kind in ("float16", "float32")}
    assert variants == floats | {("minmax", "float32"), ("quantize", "float32")}
    assert len(found.images) == 5 * len(variants)
    for image in found.images:
        assert image.cubin.startswith(b"\x7fELF")
        assert 0 < image.registers <= 168
        assert str(HERE.parents[1]).encode() not in image.cubin  # no path of the machine that compiled it
        assert image.arguments[-1] == ("scratch", "scratch")
    decode = found.find("context_decode", "float16", 90)
    assert [name for name, kind in decode.arguments if kind == "int32"] == [
        "word_count", "frames", "channel_count", "height", "width", "ranges_a_frame"
    ]  # fmt: skip
    assert decode.warps * 32 == shapes.LANES


SPILL = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from latentseg.kernels.triton.compile import check_resources
import {name} as module
source = ASTSource(module.greedy, {{"x": "*fp32", "SIZE": "constexpr"}}, {{"SIZE": {size}}})
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={{"num_warps": 1}})
print(check_resources(compiled.asm["cubin"], "greedy"))
"""
GREEDY = """
import triton, triton.language as tl
@triton.jit
def greedy(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(x + SIZE - at, value * tl.sum(value, 0))
"""


@needs_triton
def test_a_kernel_of_many_registers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "greedy_kernel.py").write_text(GREEDY)
    for size, code in ((64, 0), (16384, 1)):
        script = SPILL.format(name="greedy_kernel", size=size)
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        )  # fmt: skip
        assert result.returncode == code, result.stderr[-2000:]
    assert "VerificationError: greedy takes" in result.stderr


# --- the host's plan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel"])
@pytest.mark.parametrize(("shape", "tile"), [((3, 10, 9), (4, 5)), ((1, 1, 1), (4, 5)), ((4, 33, 31), (16, 31))])
def test_plan_is_the_same_natively_and_says_where_lanes_are(
    mode: str, shape: tuple[int, int, int], tile: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    scaling = Scaling("fixed", -2.0, 3.0) if mode == "fixed" else Scaling(mode)  # type: ignore[arg-type]
    header = StreamHeader(bytes(32), shape, 8, scaling, coder="context", tile=tile)
    frames = [np.clip(rng.normal(90, 9, shape), 0, 255).astype(np.uint8) for _ in range(3)]
    frames[1][0] = 5
    ranges = [] if mode == "fixed" else [-1.5, 2.5]
    payloads = [entropy.encode_symbols(q, header, *ranges) for q in frames]
    batch = plan_batch(payloads, header, "native")
    assert np.array_equal(batch.data, plan_batch(payloads, header, "numpy").data)
    assert batch.data.ctypes.data % 4 == 0
    assert all(start % 16 == 0 for start in (batch.channels, batch.lanes, batch.payloads))
    tiles = -(-shape[1] // tile[0]) * -(-shape[2] // tile[1])
    assert batch.lanes_a_frame == tiles * shape[0]
    rows = batch.data[batch.lanes : batch.lanes + 8 * batch.lane_count].view(np.int32).reshape(3, tiles, shape[0], 2)
    # By channel and tile, the lanes follow each other without gaps up to the end of their frame's payload.
    end = np.cumsum([len(p) for p in payloads])
    for frame in range(3):
        lanes = rows[frame].transpose(1, 0, 2).reshape(-1, 2)
        lanes = lanes[lanes[:, 1] > 0]
        if frame == 1:
            assert (rows[1, :, 0] == 0).all()
        if len(lanes):
            assert (lanes[1:, 0] == lanes[:-1].sum(axis=1)).all()
            assert lanes[-1].sum() == end[frame]
    lo = batch.data[: 8 * 3 * batch.ranges_a_frame].view(np.float32).reshape(3, -1, 2)
    assert (lo[..., 0] == (-2.0 if mode == "fixed" else -1.5)).all()
    assert (lo[..., 1] == np.float32(5 if mode == "fixed" else 4) / np.float32(255)).all()


def test_plan_refuses_what_the_kernel_could_not_trust() -> None:
    good = payload(0)
    for implementation in ("native", "numpy"):
        for bad in (good[:-1], good + b"\0", b"", good[:30]):
            with pytest.raises(InputError, match=r"^frame 1 of the batch: payload damaged: "):
                plan_batch([good, bad], HEADER, implementation)  # type: ignore[arg-type]
        with pytest.raises(ArtifactError, match="a batch of 0 frames"):
            plan_batch([], HEADER, implementation)  # type: ignore[arg-type]
    huffman = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="huffman-channel")
    with pytest.raises(ArtifactError, match="a stream of coder huffman-channel, expected context"):
        plan_batch([good], huffman)
    large = StreamHeader(bytes(32), (1, 8192, 8192), 8, Scaling("fixed", 0.0, 1.0), coder="context")
    with pytest.raises(ArtifactError, match="a batch of 33 frames, 2214592512 symbols"):
        plan_batch([b""] * 33, large)


def test_table_numbers_are_the_models() -> None:
    from latentseg.bitstream import context_model as model

    words = table_map_words()
    for f, g, level in ((0, 0, 0), (47, 47, 15), (12, 30, 7), (12, 30, 8)):
        number = int(words[f * model.STEPS + g, level // 8]) >> 8 * (level % 8) & 255
        assert number == model.table_map()[f, g, level]


# --- sets of compiled kernels -----------------------------------------------------------------------------------------


def image(arch: int, variant: str = "float16") -> KernelImage:
    names = [
        "words", "word_count", "lanes", "channels", "ranges", "tables", "table_map", "history", "damaged", "out",
        "frames", "channel_count", "height", "width", "ranges_a_frame",
    ]  # fmt: skip
    numbers = {"word_count", "frames", "channel_count", "height", "width", "ranges_a_frame"}
    arguments = [(name, "int32" if name in numbers else "pointer") for name in names]
    cubin = f"code {arch} {variant}".encode()
    return KernelImage("context_decode", variant, arch, cubin, (*arguments, ("scratch", "scratch")), 1, 512, 100)


def test_a_set_comes_back_from_its_folder_and_is_checked(tmp_path: Path) -> None:
    made = KernelSet(8, (4, 5), "3.6.0", (image(80), image(86), image(90), image(90, "float32")))
    folder = tmp_path / "kernels"
    save_kernels(made, folder)
    assert load_kernels(folder) == made
    with pytest.raises(UsageError, match="already holds compiled kernels"):
        save_kernels(made, folder)
    save_kernels(KernelSet(8, (4, 5), "3.6.0", (image(80),)), folder, overwrite=True)
    assert [path.name for path in folder.glob("*.cubin")] == ["context_decode-float16-sm80.cubin"]
    (folder / "context_decode-float16-sm80.cubin").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="was changed"):
        load_kernels(folder)
    (folder / "context_decode-float16-sm80.cubin").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        load_kernels(folder)
    for text, message in (
        ("{", "is not JSON"), ("[]", "has schema 'list'"), ('{"schema": 9}', "schema 9, expected 1"),
        ('{"schema": 1, "bits": 8, "tile": [1, 2], "triton": "", "images": [{"path": "../x", "kernel": "minmax"}]}',
         "is damaged"),
    ):  # fmt: skip
        (folder / images.INDEX_NAME).write_text(text)
        with pytest.raises(ArtifactError, match=message):
            load_kernels(folder)
    with pytest.raises(InputError, match="no compiled kernels in"):
        load_kernels(tmp_path / "nothing")


def test_the_image_for_a_device_is_of_its_major_version() -> None:
    made = KernelSet(8, (4, 5), "3.6.0", (image(80), image(86), image(90)))
    assert [made.find("context_decode", "float16", c).arch for c in (80, 86, 87, 89, 90)] == [80, 86, 86, 86, 90]
    newest = KernelSet(8, (4, 5), "3.6.0", (image(120),))
    assert newest.find("context_decode", "float16", 120).arch == 120
    with pytest.raises(ArtifactError, match=r"compute capability 12\.1; there are: sm120"):
        newest.find("context_decode", "float16", 121)  # sm120 is built as sm_120a, for that one alone
    for capability in (75, 100, 120):
        with pytest.raises(ArtifactError, match=f"compute capability {capability / 10}; there are: sm80, sm86, sm90"):
            made.find("context_decode", "float16", capability)
    with pytest.raises(ArtifactError, match=r"compiled for 8 bits and tiles of 4x5, but the stream has 8 bits"):
        made.check_stream(8, (14, 32))


# --- launching --------------------------------------------------------------------------------------------------------


class FakeDriver:
    """Behaves as cuda.bindings.driver does, on host memory; records the launches. `run` stands for the kernel."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )

    def __init__(self, capability: int = 90) -> None:
        self.capability = capability
        self.memory: dict[int, np.ndarray] = {}
        self.launches: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.run: Any = lambda values, memory: None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            done = getattr(type(self), "do_" + name, None)
            found = None if done is None else done(self, *args)
            return (0,) if found is None else (0, found)

        return call

    def do_cuDeviceGet(self, ordinal: int) -> int:
        return ordinal + 100

    def do_cuDeviceGetAttribute(self, which: int, device: int) -> int:
        return self.capability // 10 if which == 75 else self.capability % 10

    def do_cuDeviceGetName(self, size: int, device: int) -> bytes:
        return b"Fake\0\0"

    def do_cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return "context"

    def do_cuModuleLoadData(self, address: int) -> str:
        return "module"

    def do_cuModuleGetFunction(self, module: str, name: bytes) -> bytes:
        return name

    def do_cuMemAlloc(self, size: int) -> int:
        block = np.zeros(size, np.uint8)
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    def do_cuMemFree(self, address: int) -> None:
        del self.memory[address]

    def copy(self, target: int, source: int, size: int) -> None:
        import ctypes

        ctypes.memmove(target, source, size)

    def do_cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.copy(target, source, size)

    do_cuMemcpyDtoHAsync = do_cuMemcpyHtoDAsync

    def do_cuMemsetD32Async(self, address: int, value: int, count: int, stream: int) -> None:
        self.memory[address][: 4 * count].view(np.uint32)[:] = value

    def do_cuLaunchKernel(self, function: bytes, *args: Any) -> None:
        *shape, _, (values, types), _ = args
        named = dict(zip([name for name, _ in image(90).arguments], values, strict=True))
        self.launches.append({"function": function, "shape": shape, "types": types, **named})
        self.run(named, self.memory)


def kernels(*archs: int) -> KernelSet:
    return KernelSet(8, (4, 5), "3.6.0", tuple(image(arch) for arch in archs or (90,)))


def test_the_decoder_hands_the_kernel_what_it_wants() -> None:
    driver = FakeDriver()
    payloads = [payload(i) for i in range(3)]
    plan = plan_batch(payloads, HEADER)
    wanted = np.stack([entropy.decode_latent(p, HEADER) for p in payloads]).astype(np.float16)

    def run(values: dict[str, int], memory: dict[int, np.ndarray]) -> None:
        base = values["words"] - plan.payloads
        assert np.array_equal(memory[base][: len(plan.data)], plan.data)
        assert (memory[values["damaged"]][:12].view(np.int32) == shapes.SOUND).all()
        memory[values["out"]][: wanted.nbytes] = wanted.reshape(-1).view(np.uint8)

    driver.run = run
    with Gpu(0, driver) as gpu:
        assert (gpu.capability, gpu.name) == (90, "Fake")
        decoder = GpuDecoder(gpu, kernels(), HEADER, most=3)
        assert np.array_equal(decoder.decode(payloads), wanted)
        (launch,) = driver.launches
        programs = -(-plan.lane_count // shapes.LANES)
        assert launch["shape"] == [programs, 1, 1, 32, 1, 1, 512]
        assert launch["function"] == b"context_decode"
        assert [t.__name__ for t in launch["types"]][:2] == ["c_void_p", "c_int"]
        assert launch["scratch"] == 0
        assert (launch["frames"], launch["channel_count"], launch["height"], launch["width"]) == (3, 3, 10, 9)
        assert (launch["word_count"], launch["ranges_a_frame"]) == (plan.word_count, 3)
        assert launch["lanes"] - launch["channels"] == plan.lanes - plan.channels
        assert driver.memory[launch["history"]].nbytes >= 4 * programs * 2 * 8 * shapes.LANES
        assert np.array_equal(driver.memory[launch["table_map"]].view(np.int64), table_map_words().reshape(-1))
        # Memory is taken once: a second batch of this size allocates nothing.
        before = driver.calls.count("cuMemAlloc")
        decoder.decode(payloads)
        assert driver.calls.count("cuMemAlloc") == before
        with pytest.raises(UsageError, match="a batch of 4 frames, expected at most 3"):
            decoder.start([*payloads, payloads[0]])
        with pytest.raises(InputError, match="frame 0 of the batch: payload damaged"):
            decoder.start([payloads[0][:-1]])
    gpu.close()
    assert not driver.memory
    assert driver.calls.count("cuModuleUnload") == driver.calls.count("cuDevicePrimaryCtxRelease") == 1


def test_memory_grows_and_what_was_freed_is_not_used_again() -> None:
    driver = FakeDriver()
    with Gpu(0, driver) as gpu:
        decoder = GpuDecoder(gpu, kernels(), HEADER, most=8)
        decoder.decode([payload(0)])
        small = {name: driver.launches[-1][name] for name in ("words", "history")}
        decoder.decode([payload(i) for i in range(8)])
        grown = driver.launches[-1]
        assert driver.memory[grown["lanes"] - plan_batch([payload(i) for i in range(8)], HEADER).lanes].size > 0
        assert driver.calls.count("cuMemFree") >= 1
        assert any(grown[name] != small[name] for name in small)
        # No memory for still more: the next batch that fits does not run in what was given back.
        refuse = lambda self, size: (_ for _ in ()).throw(MemoryError(size))  # noqa: E731
        decoder._rooms["data"] = (decoder._rooms["data"][0], 0)
        allocate, FakeDriver.do_cuMemAlloc = FakeDriver.do_cuMemAlloc, refuse  # type: ignore[method-assign]
        try:
            with pytest.raises(MemoryError):
                decoder.decode([payload(0)])
        finally:
            FakeDriver.do_cuMemAlloc = allocate  # type: ignore[method-assign]
        decoder.decode([payload(0)])
        base = driver.launches[-1]["words"] - plan_batch([payload(0)], HEADER).payloads
        assert base in driver.memory


def test_a_launch_names_all_arguments() -> None:
    with Gpu(0, FakeDriver()) as gpu, pytest.raises(UsageError, match="context_decode takes "):
        gpu.launch(b"context_decode", image(90), (1, 1), {"words": 0})


def test_damage_that_the_kernel_finds_is_an_error() -> None:
    driver = FakeDriver()

    def run(values: dict[str, int], memory: dict[int, np.ndarray]) -> None:
        memory[values["damaged"]].view(np.int32)[1] = 5

    driver.run = run
    with Gpu(0, driver) as gpu, pytest.raises(InputError, match="frame 1 of the batch: payload damaged: lane 5 "):
        GpuDecoder(gpu, kernels(), HEADER, most=2).decode([payload(0), payload(1)])


def test_what_does_not_fit_is_refused_before_anything_runs() -> None:
    driver = FakeDriver(capability=120)
    with Gpu(0, driver) as gpu:
        with pytest.raises(ArtifactError, match=r"for compute capability 12\.0"):
            GpuDecoder(gpu, kernels(80, 90), HEADER, most=1)
        other = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(14, 32))
        with pytest.raises(ArtifactError, match="compiled for 8 bits and tiles of 4x5"):
            GpuDecoder(gpu, kernels(120), other, most=1)
        for most, floats, message in ((0, "float16", "batches of 0 frames"), (1, "bfloat16", "floats 'bfloat16'")):
            with pytest.raises(UsageError, match=message):
                GpuDecoder(gpu, kernels(120), HEADER, most, floats)
    assert not driver.launches


def test_no_gpu_is_said() -> None:
    if importlib.util.find_spec("cuda") is None:
        with pytest.raises(BackendMissingError, match="cuda-bindings"):
            Gpu()
        return
    try:
        Gpu().close()
    except BackendMissingError as error:
        assert "no CUDA device 0 on this machine" in str(error)  # noqa: PT017
