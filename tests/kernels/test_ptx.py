"""The TensorRT plugin's kernel without TensorRT and without a GPU: interpreted against NumPy, and what its PTX says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentseg.errors import UsageError, VerificationError
from latentseg.kernels.gpu import shapes

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")

# A plugin's outputs hold anything before a launch: the scratch buffer is filled with 0x5A5A5A5A, and all of them lie
# between guard zones. Damage is compared with what `context_decode` itself says, and with the reference decoder. The
# interpreter's time goes by programs and steps, so that most cases take more lanes a program than the compiled kernel.
INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from _interpreted import Guarded, message, scaling_of, symbols
from latentseg.bitstream import Scaling, StreamHeader, context_model
from latentseg.kernels import entropy
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.batch import plan_batch, table_map_words
from latentseg.kernels.triton import ptx, torch_ops
from latentseg.kernels.triton.compile import decode_constants

np.seterr(all="ignore")
kernel = Guarded(ptx.context_decode_plugin)
tables = torch.from_numpy(context_model.decoding_tables().view(np.int32).reshape(-1).copy())
numbers = torch.from_numpy(table_map_words().view(np.int32))


def launch(payloads, header, dtype, lanes):
    batch = plan_batch(payloads, header)
    part = lambda start, end: torch.from_numpy(batch.data[start:end].copy()).view(torch.int32)
    channels, height, width = header.latent_shape
    programs = -(-batch.lane_count // lanes)
    history = 2 * shapes.columns(header.tile) * lanes
    flags = -(-batch.frames // lanes) * lanes
    scratch = torch.full((programs, history + flags), 0x5A5A5A5A, dtype=torch.int32)
    out = torch.full((batch.frames, *header.latent_shape), 77.0, dtype=dtype)
    kernel[(programs,)](
        part(batch.payloads, None), part(batch.lanes, batch.payloads), part(batch.channels, batch.lanes),
        part(batch.ranges, batch.channels).view(torch.float32), tables, numbers,
        batch.word_count, batch.frames, channels, height, width, batch.ranges_a_frame, out, scratch,
        **decode_constants(header.bits, header.tile, header.scaling.mode == "codebook") | {"LANES": lanes},
        **shapes.EXACT,
    )
    damaged = scratch[:, history:].min(dim=0).values.numpy()
    assert (damaged[batch.frames :] == shapes.SOUND).all()
    return out.numpy(), damaged[: batch.frames]


def check_decode(shape, tile, bits, mode, frames, lanes, dtype):
    rng = np.random.default_rng([*shape, *tile, bits])
    header = StreamHeader(bytes(32), shape, bits, scaling_of(mode, bits), coder="context", tile=tile)
    payloads = []
    for _ in range(frames):
        count = {"tensor": 1, "channel": shape[0]}.get(mode, 0)
        lo = rng.normal(size=count).astype(np.float32)
        ranges = [lo, lo + np.float32(2.3)] if count else []
        q = np.minimum(symbols(rng, shape, bits), np.uint8(header.levels - 1))
        payloads.append(entropy.encode_symbols(q, header, *ranges))
    wanted = np.stack([entropy.decode_latent(payload, header, implementation="numpy") for payload in payloads])
    found, damaged = launch(payloads, header, dtype, lanes)
    np.testing.assert_array_equal(found, wanted.astype(found.dtype))
    assert (damaged == shapes.SOUND).all()


check_decode((5, 9, 13), (4, 5), 8, "fixed", 2, 64, torch.float32)
check_decode((3, 7, 7), (9, 2), 5, "tensor", 3, 64, torch.float16)
check_decode((1, 1, 1), (1, 16), 8, "channel", 37, 32, torch.float32)  # more frames than lanes
check_decode((2, 3, 17), (2, 9), 8, "channel", 1, 32, torch.float32)
check_decode((3, 7, 11), (4, 5), 3, "codebook", 2, 32, torch.float32)

header = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("fixed", 0.0, 255.0), coder="context", tile=(4, 5))
rng = np.random.default_rng(1)
good = [entropy.encode_symbols(symbols(rng, (3, 10, 9), 8), header) for _ in range(5)]
clean, _ = launch(good, header, torch.float32, 64)
decoder = torch_ops.Decoder(header, "cpu", 64)
seen = 0
for _ in range(5):
    bad = bytearray(good[3])
    bad[int(rng.integers(30, len(bad)))] ^= 1 << int(rng.integers(8))
    payloads = [*good[:3], bytes(bad), good[4]]
    if message(lambda: plan_batch(payloads, header)):
        continue
    found, damaged = launch(payloads, header, torch.float32, 64)
    batch, data = decoder.upload(payloads)
    truth = decoder.launch(batch, data, torch.empty((5, 3, 10, 9))).numpy()
    np.testing.assert_array_equal(damaged, truth)
    assert bool(message(lambda: entropy.decode_symbols(bytes(bad), header, "numpy"))) == (damaged[3] != shapes.SOUND)
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))
    seen += damaged[3] != shapes.SOUND
assert seen >= 2, seen
print("plugin kernel: all equal")
"""

COMPILED = """
import json, sys
from dataclasses import asdict
from latentseg.kernels.triton.ptx import assemble, compile_plugin
made = []
jobs = (80, "float32", 8, (14, 32)), (90, "float16", 8, (14, 32)), (120, "float32", 5, (3, 7))
for arch, floats, bits, tile in jobs:
    kernel = compile_plugin(bits, tile, arch, floats)
    with open(f"{sys.argv[1]}/sm{arch}.cubin", "wb") as file:
        file.write(assemble(kernel.text, arch))
    made.append(asdict(kernel))
json.dump(made, sys.stdout)
"""


def clean_environment(folder: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {**environment, "TRITON_CACHE_DIR": str(folder / "cache")}


def test_the_interpreted_kernel_equals_numpy_whatever_its_outputs_held(tmp_path: Path) -> None:
    script = tmp_path / "interpreted.py"  # Triton reads a kernel's source from its file, so not `python -c`
    script.write_text(INTERPRETED)
    result = subprocess.run([sys.executable, script, HERE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "plugin kernel: all equal\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sm80.cubin and so on, and kernels.json, in a folder."""
    where = tmp_path_factory.mktemp("ptx")
    command = [sys.executable, "-c", COMPILED, str(where)]
    result = subprocess.run(command, capture_output=True, text=True, env=clean_environment(where))
    assert result.returncode == 0, result.stderr[-3000:]
    (where / "kernels.json").write_text(result.stdout)
    return where


@pytest.fixture(scope="module")
def kernels(folder: Path) -> list[dict]:
    return json.loads((folder / "kernels.json").read_text())


POINTERS = ["words", "lanes", "channels", "ranges", "tables", "table_map_words"]
NUMBERS = ["word_count", "frames", "channel_count", "height", "width", "ranges_a_frame"]


def test_the_text_declares_what_tensorrt_passes(kernels: list[dict]) -> None:
    """Read here with a grammar of its own: pointers in, 32-bit numbers, pointers out, and nothing of Triton's."""
    targets = []
    for kernel in kernels:
        text = kernel["text"]
        (entry,) = re.findall(r"\.entry\s+(\w+)\s*\(", text)
        assert entry == kernel["name"] == "context_decode_plugin"
        inside = text.split(".entry", 1)[1].split("(", 1)[1].split(")", 1)[0]
        types = [row.split()[1:3] for row in inside.split(",")]
        pointer = [".u64", ".ptr"]
        assert [t == pointer for t in types] == [True] * 6 + [False] * 6 + [True] * 2
        assert all(t[0] == ".u32" for t in types[6:12])
        assert [name for name, _ in kernel["arguments"]] == [*POINTERS, *NUMBERS, "out", "scratch"]
        used = set(re.findall(r"context_decode_plugin_param_(\d+)", text.split("{", 1)[1]))
        assert used == {str(index) for index in range(14)}  # and no fifteenth
        assert re.search(r"^\.address_size 64$", text, re.MULTILINE)
        assert re.search(rf"^\.reqntid {shapes.LANES}$", text, re.MULTILINE)
        assert f".target {kernel['target']}\n" in text
        assert f".version {kernel['version']}\n" in text
        assert str(HERE.parents[1]) not in text  # no path of the machine that compiled it
        assert (kernel["warps"], kernel["shared"] <= 48 * 1024, 0 < kernel["registers"] <= 168) == (1, True, True)
        targets.append(kernel["target"])
    assert targets == ["sm_80", "sm_90a", "sm_120a"]


def test_no_operation_may_be_fused(kernels: list[dict]) -> None:
    for kernel in kernels:
        operations = re.findall(r"\t((?:add|sub|mul|mad|fma)\S*f32)\s", kernel["text"])
        assert set(operations) == {"mul.rn.f32", "add.rn.f32"}


def test_the_assembler_counts_the_arguments_too(folder: Path) -> None:
    """Bytes of constant bank 0: what the driver keeps there for sm_80 (0x160), and 6 * 8 + 6 * 4 + 2 * 8 of ours."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", folder / "sm80.cubin"], capture_output=True, text=True, check=True)
    assert re.search(r"CONSTANT\[0\]:(\d+)", usage.stdout).group(1) == str(0x160 + 88)  # type: ignore[union-attr]


SMALL = """.version 8.7
.target sm_80
.address_size 64
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0,
	.param .u32 small_param_1,
	.param .u64 .ptr .global .align 1 small_param_2,
	.param .u64 .ptr .global .align 1 small_param_3
)
.reqntid 32
{
	ld.param.b64 	%rd1, [small_param_0];
	add.rn.f32 	%r1, %r2, %r3;
	ret;
}
"""


def test_scratch_goes_only_where_nothing_reads_it() -> None:
    from latentseg.kernels.triton import ptx

    kept = ptx.without_scratch(SMALL, "small", 2)
    assert ptx.parameters(kept, "small") == [("small_param_0", "pointer"), ("small_param_1", "int32")]
    assert kept.split("{")[1] == SMALL.split("{")[1]
    assert ptx.without_scratch(SMALL, "small", 4).split() == SMALL.split()
    ptx.check_entry(kept, "small", [("a", "pointer"), ("b", "int32")], 1)
    read = SMALL.replace("\tret;", "\tld.param.b64 \t%rd2, [small_param_3];\n\tret;")
    for text, keep, message in (
        (read, 2, r"reads small_param_3 \(pointer\) 1 times, expected an unused pointer"),
        (SMALL, 1, r"reads small_param_1 \(int32\) 0 times"),
        (SMALL, 5, "takes 4 arguments, expected 5 or more"),
        (SMALL.replace("entry small", "entry other"), 2, "no entry small"),
        (SMALL.replace(".param .u32 small", "u32 small"), 2, "declares a parameter of small as 'u32 small_param_1'"),
    ):
        with pytest.raises(VerificationError, match=message):
            ptx.without_scratch(text, "small", keep)


def test_what_a_plain_launch_cannot_do_is_refused() -> None:
    from latentseg.kernels.triton import ptx

    arguments = [("a", "pointer"), ("b", "int32"), ("c", "pointer"), ("d", "pointer")]
    ptx.check_entry(SMALL, "small", arguments, 1)
    for text, rows, warps, message in (
        (SMALL, arguments[:3], 1, "takes pointer, int32, pointer, pointer, expected pointer, int32, pointer"),
        (SMALL.replace("param .u32", "param .u64"), arguments, 1, "takes pointer, u64, pointer, pointer"),
        (SMALL, arguments, 4, "is for 32 threads and addresses of 64 bits, expected 128 and 64"),
        (SMALL.replace("size 64", "size 32"), arguments, 1, "addresses of 32 bits, expected 32 and 64"),
        (SMALL.replace(".address_size 64\n", ""), arguments, 1, "does not say its .address_size"),
    ):
        with pytest.raises(VerificationError, match=message):
            ptx.check_entry(text, "small", rows, warps)
    ptx.check_exact(SMALL, "small")
    for operation in ("add.f32", "mul.f32", "sub.ftz.f32", "fma.rn.f32", "add.f16x2"):
        with pytest.raises(VerificationError, match=f"small has {operation}, expected operations with a rounding mode"):
            ptx.check_exact(SMALL.replace("add.rn.f32", operation), "small")
    with pytest.raises(VerificationError, match="the PTX does not assemble: "):
        ptx.assemble(SMALL, 80)  # its registers are not declared


def test_an_unknown_capability_is_refused() -> None:
    from latentseg.kernels.triton import ptx

    with pytest.raises(UsageError, match="compute capability 95, expected some of 75, 80"):
        ptx.compile_plugin(8, (14, 32), 95)
