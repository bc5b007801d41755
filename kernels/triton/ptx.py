"""The fused entropy decode as PTX for a TensorRT plugin (export/tensorrt_plugin.py): a kernel, and checks of its text.

A plugin that is compiled ahead of time gives TensorRT the text of one kernel. TensorRT then compiles and launches it on
its own, which asks for four things that our own launcher (kernels/gpu/launch.py) does otherwise:

- Arguments come as (input pointers, 32-bit numbers, output pointers), so the kernel here takes them in that order.
- Nothing sets an output before the launch. So a program sets its own row of damage flags, and the graph behind the
  plugin takes the smallest of each column. The history lies in the same output, since a plugin has no workspace.
- Behind our arguments Triton declares two scratch pointers of its own. TensorRT does not know of them, and accounts
  differ on what a kernel finds there. Nothing in the text reads them, which is checked, so the declarations go.
- The text is compiled without our options. So no operation in it may be one that a compiler is free to fuse.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import get_ptxas

from ...errors import VerificationError
from ..gpu import shapes
from .compile import check_compiler, check_resources, compile_kernel, decode_constants
from .context_decode import context_decode

NAME = "context_decode_plugin"
MAX_SHARED = 48 * 1024  # bytes that a launch gets without asking for more
SOUND = tl.constexpr(shapes.SOUND)
# Without a rounding mode, a compiler may fuse these (PTX ISA, mul and add); a fused one differs from the CPU anyway.
_FUSIBLE = re.compile(r"\b(?:(?:add|sub|mul)(?:\.ftz)?(?:\.sat)?\.f(?:16|32|64)|fma(?:\.\w+)*\.f(?:16|32|64))\w*\b")
_PARAMETER = re.compile(r"\.param\s+\.(?P<type>\w+)(?P<pointer>\s+\.ptr)?.*\s(?P<name>\w+)$")


@triton.jit  # type: ignore[untyped-decorator]
def context_decode_plugin(  # type: ignore[no-untyped-def]
    words, lanes, channels, ranges, tables, table_map_words,
    word_count, frames, channel_count, height, width, ranges_a_frame,
    out, scratch,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    BITS: tl.constexpr, LANES: tl.constexpr, FLOATS: tl.constexpr, CODEBOOK: tl.constexpr,
):  # fmt: skip
    """`context_decode` with its arguments in a plugin's order.

    table_map_words: its table_map as int32 (48 * 48, 4).  out: its out.  scratch: int32 (programs, 2 * COLUMNS * LANES
    + F), any content, with F the frames rounded up to LANES: a program's history, then its damage flags. Of those the
    smallest of a column is the frame's lowest damaged lane, or 2^31 - 1.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    history: tl.constexpr = 2 * COLUMNS * LANES
    flags = (frames + LANES - 1) // LANES * LANES
    damaged = scratch + program * (history + flags) + history
    start = 0
    while start < flags:  # not `for`: the interpreter takes no tensor as the end of a range
        tl.store(damaged + start + lane, SOUND)
        start += LANES
    tl.debug_barrier()
    # The kernel itself steps over the histories of the programs before.
    context_decode(
        words, word_count, lanes, channels, ranges, tables, table_map_words.to(tl.pointer_type(tl.int64)),
        scratch + program * flags, damaged, out, frames, channel_count, height, width, ranges_a_frame,
        TILE_ROWS, TILE_COLUMNS, COLUMNS, CHUNK, BITS, LANES, FLOATS, CODEBOOK,
    )  # fmt: skip


@dataclass(frozen=True)
class PtxKernel:
    """A kernel's PTX, checked, and what a launch of it needs.

    name: of its entry.  text: the PTX.  version, target: of its head, such as "8.7" and "sm_90a".
    bits, tile, floats: the streams and results that it is for.  arch: compute capability, major * 10 + minor.
    arguments: (name, "pointer" or "int32") in order.  warps, shared: threads / 32 of a program, and its bytes of
    dynamic shared memory.  registers: a thread's, as the assembler in Triton's package gives them.
    """

    name: str
    text: str
    version: str
    target: str
    bits: int
    tile: tuple[int, int]
    floats: str
    arch: int
    arguments: tuple[tuple[str, str], ...]
    warps: int
    shared: int
    registers: int


def compile_plugin(bits: int, tile: tuple[int, int], arch: int, floats: str = "float32") -> PtxKernel:
    """Compile the plugin's kernel for one capability: Triton does it, without a GPU.

    bits, tile: of the streams.  arch: compute capability, major * 10 + minor.  floats: "float16" or "float32".
    Raises UsageError for an arch that Triton does not know or under TRITON_INTERPRET, VerificationError for PTX that
    TensorRT could not launch as it is, or whose numbers could differ from the CPU's.
    """
    check_compiler([arch])
    constants = decode_constants(bits, tile)
    compiled, arguments = compile_kernel(context_decode_plugin, floats, constants, shapes.LANES // 32, arch)
    what, made = f"{NAME} ({floats}) for sm{arch}", compiled.metadata
    scratch = made.global_scratch_size + made.profile_scratch_size
    if scratch or made.num_ctas != 1 or made.launch_cooperative_grid or made.launch_pdl or made.shared > MAX_SHARED:
        raise VerificationError(
            f"{what} wants {scratch} bytes of Triton's scratch memory, {made.num_ctas} blocks a cluster and "
            f"{made.shared} bytes of shared memory, expected 0, 1 and at most {MAX_SHARED} in a plain launch",
            hint="use a tested version of Triton",
        )
    text = without_scratch(compiled.asm["ptx"], NAME, len(arguments))
    check_entry(text, NAME, arguments, made.num_warps)
    check_exact(text, what)
    version, target = (_head(text, word) for word in ("version", "target"))
    registers = check_resources(assemble(text, arch), what)
    return PtxKernel(
        NAME, text, version, target, bits, tile, floats, arch, tuple(arguments), made.num_warps, made.shared, registers
    )


def _head(text: str, word: str) -> str:
    found = re.search(rf"^\.{word}\s+(\S+)", text, re.MULTILINE)
    if not found:
        raise VerificationError(f"the PTX does not say its .{word}", hint="use a tested version of Triton")
    return found.group(1)


def _declaration(text: str, name: str) -> re.Match[str]:
    """The parameters between an entry's parentheses, group 1."""
    found = re.search(rf"\.visible \.entry {re.escape(name)}\(([^()]*)\)", text)
    if not found:
        raise VerificationError(f"the PTX has no entry {name}", hint="use a tested version of Triton")
    return found


def parameters(text: str, name: str) -> list[tuple[str, str]]:
    """An entry's parameters in order: (name, kind), with kind "pointer", "int32" or the PTX type of another one."""
    found = []
    for row in _declaration(text, name).group(1).split(","):
        match = _PARAMETER.match(row.strip())
        if match is None:
            raise VerificationError(f"the PTX declares a parameter of {name} as '{row.strip()}', expected .param")
        kind = "pointer" if match["pointer"] and match["type"] == "u64" else match["type"]
        found.append((match["name"], "int32" if kind in ("u32", "s32", "b32") else kind))
    return found


def without_scratch(text: str, name: str, keep: int) -> str:
    """The PTX with only the first `keep` parameters of its entry declared: the others are Triton's own.

    Raises VerificationError where there are fewer, or where one of the others is read.
    """
    declared = _declaration(text, name)
    found = parameters(text, name)
    if len(found) < keep:
        raise VerificationError(f"the PTX of {name} takes {len(found)} arguments, expected {keep} or more")
    for extra, kind in found[keep:]:
        uses = len(re.findall(rf"\b{re.escape(extra)}\b", text)) - 1
        if uses or kind != "pointer":
            raise VerificationError(
                f"the PTX of {name} reads {extra} ({kind}) {uses} times, expected an unused pointer of Triton's: a "
                "TensorRT plugin cannot pass it",
                hint="use a tested version of Triton",
            )
    rows = declared.group(1).split(",")[:keep]
    return text[: declared.start(1)] + ",".join(rows).rstrip() + "\n" + text[declared.end(1) :]


def check_entry(text: str, name: str, arguments: list[tuple[str, str]], warps: int) -> None:
    """Raise VerificationError unless the entry takes exactly these arguments and runs that many warps, in 64 bits."""
    found = [kind for _, kind in parameters(text, name)]
    expected = [kind for _, kind in arguments]
    if found != expected:
        raise VerificationError(f"the PTX of {name} takes {', '.join(found)}, expected {', '.join(expected)}")
    threads = re.search(r"^\.(?:req|max)ntid (\d+)", text, re.MULTILINE)
    if _head(text, "address_size") != "64" or threads is None or int(threads.group(1)) != 32 * warps:
        raise VerificationError(
            f"the PTX of {name} is for {threads.group(1) if threads else 'any number of'} threads and addresses of "
            f"{_head(text, 'address_size')} bits, expected {32 * warps} and 64"
        )


def check_exact(text: str, what: str) -> None:
    """Raise VerificationError for a floating-point operation that need not be rounded on its own."""
    found = _FUSIBLE.search(text)
    if found:
        raise VerificationError(
            f"{what} has {found.group(0)}, expected operations with a rounding mode: TensorRT compiles it without our "
            "options, and a fused operation would differ from the CPU's",
            hint="use a tested version of Triton",
        )


def assemble(text: str, arch: int) -> bytes:
    """The PTX as machine code, by the assembler in Triton's package with its default options.

    arch: compute capability. Raises VerificationError where the assembler refuses the text.
    """
    tool = get_ptxas(arch).path  # which of Triton's two it is depends on its version, too
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text, encoding="utf-8")
        command = [tool, f"--gpu-name={_head(text, 'target')}", str(source), "-o", str(result)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise VerificationError(f"cannot run Triton's assembler: {error.strerror}") from error
        except subprocess.CalledProcessError as error:
            first = next(iter(error.stderr.strip().splitlines()), "no reason given")
            raise VerificationError(f"the PTX does not assemble: {first}") from None
        return result.read_bytes()
