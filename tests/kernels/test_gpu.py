"""The Triton kernels as far as a machine without a GPU can show: interpreted against NumPy, compiled, and kept in a
folder; and the host's plan of a batch. Launching them: test_gpu_launch.py.

The interpreter and the compiler exclude each other in one process, so each has one of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _kernel_images import HEADER, payload
from _kernel_images import image as stub

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.gpu import images, shapes
from latentseg.kernels.gpu.batch import batch_layout, batch_room, payload_limit, plan_batch, table_map_words
from latentseg.kernels.gpu.images import KernelSet, load_kernels, save_kernels

HERE = Path(__file__).resolve().parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")


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
save_kernels(compile_kernels(3, (14, 32), [80, 90, 120], ["float16"], codebook=True), Path(sys.argv[1]) / "codebook")
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


@needs_triton
def test_kernels_of_a_codebook_are_a_set_of_their_own(compiled: Path) -> None:
    found = load_kernels(compiled / "codebook")
    assert (found.bits, found.codebook, load_kernels(compiled).codebook) == (3, True, False)
    assert {image.kernel for image in found.images} == {"context_decode", "dequantize", "quantize"}
    assert all(0 < image.registers <= 168 for image in found.images)
    arguments = found.find("context_decode", "float16", 90).arguments
    assert arguments == load_kernels(compiled).find("context_decode", "float16", 90).arguments


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


@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel", "codebook"])
@pytest.mark.parametrize(("shape", "tile"), [((3, 10, 9), (4, 5)), ((1, 1, 1), (4, 5)), ((4, 33, 31), (16, 31))])
def test_plan_is_the_same_natively_and_says_where_lanes_are(
    mode: str, shape: tuple[int, int, int], tile: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    scalings = {"fixed": Scaling("fixed", -2.0, 3.0), "codebook": Scaling("codebook", centres=tuple(range(-99, 101)))}
    scaling = scalings[mode] if mode in scalings else Scaling(mode)  # type: ignore[arg-type]
    header = StreamHeader(bytes(32), shape, 8, scaling, coder="context", tile=tile)
    frames = [np.clip(rng.normal(90, 9, shape), 0, 255).astype(np.uint8) for _ in range(3)]
    frames[1][0] = 5
    ranges = [] if mode in scalings else [-1.5, 2.5]
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
    if mode == "codebook":
        assert batch.ranges_a_frame == 128
        assert (lo.reshape(3, 256) == np.minimum(np.arange(-99, 157), 100)).all()
        return
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


@pytest.mark.parametrize("implementation", ["native", "numpy"])
def test_a_plan_into_a_buffer_is_the_same_and_stays_inside(implementation: str) -> None:
    payloads = [payload(i) for i in range(4)]
    wanted = plan_batch(payloads, HEADER)
    room = np.full(batch_room(HEADER, 4) + 64, 0xA5, np.uint8)
    planned = plan_batch(payloads, HEADER, implementation, room[:-64])  # type: ignore[arg-type]
    assert np.shares_memory(planned.data, room)
    assert planned.word_count == wanted.word_count
    assert batch_layout(HEADER, 4).payloads == planned.payloads
    parts = [(0, 8 * 4 * 3), (wanted.channels, 4 * 4 * 3), (wanted.lanes, 8 * wanted.lane_count)]
    for start, size in (*parts, (wanted.payloads, 4 * wanted.word_count)):
        assert np.array_equal(planned.data[start : start + size], wanted.data[start : start + size])
    assert (room[len(planned.data) :] == 0xA5).all()
    with pytest.raises(ArtifactError, match="expected at most the 300 that there is room for"):
        plan_batch(payloads, HEADER, implementation, room[:300])  # type: ignore[arg-type]


def test_a_refused_payload_becomes_a_blank_frame_and_the_others_stay() -> None:
    good = [payload(i) for i in range(3)]
    long = bytes(payload_limit(HEADER) + 1)
    for implementation in ("native", "numpy"):
        refused: dict[int, InputError] = {}
        room = np.full(batch_room(HEADER, 5), 0xA5, np.uint8)
        batch = plan_batch([good[0], b"", good[1], long, good[2]], HEADER, implementation, room, refused)  # type: ignore[arg-type]
        alone = plan_batch(good, HEADER)
        assert sorted(refused) == [1, 3]
        assert str(refused[3]) == f"payload damaged: {len(long)} bytes, expected at most {len(long) - 1}"
        assert str(refused[1]).startswith("payload damaged: ")
        size = 4 * alone.word_count
        assert np.array_equal(batch.data[batch.payloads :], alone.data[alone.payloads : alone.payloads + size])
        lanes = batch.data[batch.lanes : batch.lanes + 8 * batch.lane_count].view(np.int32).reshape(5, -1)
        single = alone.data[alone.lanes : alone.lanes + 8 * alone.lane_count].view(np.int32).reshape(3, -1)
        assert np.array_equal(lanes[[0, 2, 4]], single)
        assert not lanes[[1, 3]].any()
        channels = batch.data[batch.channels : batch.channels + 4 * 5 * 3].view(np.int32).reshape(5, 3)
        assert not channels[[1, 3]].any()
        ranges = batch.data[: 8 * 5 * 3].view(np.float32).reshape(5, -1)
        assert not ranges[[1, 3]].any()


def test_no_payload_is_longer_than_the_limit() -> None:
    # Noise that no table fits, in the smallest lanes there are: about as long as a payload gets.
    shape = (3, 9, 17)
    header = StreamHeader(bytes(32), shape, 8, Scaling("channel"), coder="context", tile=(1, 16))
    for seed in range(5):
        q = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        coded = entropy.encode_symbols(q, header, 0.0, 1.0)
        assert q.size < len(coded) <= payload_limit(header)


def test_table_numbers_are_the_models() -> None:
    from latentseg.bitstream import context_model as model

    words = table_map_words()
    for f, g, level in ((0, 0, 0), (47, 47, 15), (12, 30, 7), (12, 30, 8)):
        number = int(words[f * model.STEPS + g, level // 8]) >> 8 * (level % 8) & 255
        assert number == model.table_map()[f, g, level]


# --- sets of compiled kernels -----------------------------------------------------------------------------------------


def test_a_set_comes_back_from_its_folder_and_is_checked(tmp_path: Path) -> None:
    made = KernelSet(8, (4, 5), "3.6.0", (stub(80), stub(86), stub(90), stub(90, "float32")))
    folder = tmp_path / "kernels"
    save_kernels(made, folder)
    assert load_kernels(folder) == made
    save_kernels(replace(made, codebook=True), folder / "codebook")
    assert load_kernels(folder / "codebook") == replace(made, codebook=True)
    # An index from before there were codebooks.
    raw = json.loads((folder / images.INDEX_NAME).read_text())
    del raw["codebook"]
    (folder / images.INDEX_NAME).write_text(json.dumps(raw))
    assert load_kernels(folder) == made
    with pytest.raises(UsageError, match="already holds compiled kernels"):
        save_kernels(made, folder)
    save_kernels(KernelSet(8, (4, 5), "3.6.0", (stub(80),)), folder, overwrite=True)
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
    made = KernelSet(8, (4, 5), "3.6.0", (stub(80), stub(86), stub(90)))
    assert [made.find("context_decode", "float16", c).arch for c in (80, 86, 87, 89, 90)] == [80, 86, 86, 86, 90]
    newest = KernelSet(8, (4, 5), "3.6.0", (stub(120),))
    assert newest.find("context_decode", "float16", 120).arch == 120
    with pytest.raises(ArtifactError, match=r"compute capability 12\.1; there are: sm120"):
        newest.find("context_decode", "float16", 121)  # sm120 is built as sm_120a, for that one alone
    for capability in (75, 100, 120):
        with pytest.raises(ArtifactError, match=f"compute capability {capability / 10}; there are: sm80, sm86, sm90"):
            made.find("context_decode", "float16", capability)
    with pytest.raises(ArtifactError, match=r"compiled for 8 bits and tiles of 4x5, but the stream has 8 bits"):
        made.check_stream(8, (14, 32))
    made.check_stream(8, (4, 5))
    with pytest.raises(ArtifactError, match=r"of 4x5, but the stream has 8 bits and tiles of 4x5, with a codebook"):
        made.check_stream(8, (4, 5), codebook=True)
    with pytest.raises(ArtifactError, match=r"of 4x5, with a codebook, but the stream has 8 bits and tiles of 4x5$"):
        replace(made, codebook=True).check_stream(8, (4, 5))
