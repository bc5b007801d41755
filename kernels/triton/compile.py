"""Ahead-of-time compilation of the Triton kernels: needs Triton, but neither a GPU nor torch nor a driver."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError, VerificationError, missing_extra
from ..gpu import shapes
from ..gpu.images import KernelImage, KernelSet
from . import interpreted

ARCHS = (80, 86, 89, 90, 120)
# What Triton's LLVM knows; another number ends the process inside it.
KNOWN_ARCHS = (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)
FLOATS = {"float16": "*fp16", "float32": "*fp32"}
MAX_REGISTERS = 168  # twelve warps a multiprocessor: the decoder hides latency by many lanes, a warp each

_POINTERS = {
    "words": "*i32", "lanes": "*i32", "channels": "*i32", "ranges": "*fp32", "tables": "*i32", "table_map": "*i64",
    "history": "*i32", "damaged": "*i32", "x": "*fp32", "q": "*u8", "partial": "*fp32", "bad": "*i32",
    "table_map_words": "*i32", "scratch": "*i32",
}  # fmt: skip


def compile_kernels(
    bits: int,
    tile: tuple[int, int],
    archs: Sequence[int] = ARCHS,
    floats: Sequence[str] = ("float16", "float32"),
    codebook: bool = False,
) -> KernelSet:
    """Compile all kernels for the streams of one codec.

    bits, tile: of those streams.  archs: compute capabilities, major * 10 + minor.  floats: of int2float's results.
    codebook: whether the streams have one, and so no ranges.
    Raises BackendMissingError without Triton, UsageError for an arch that it does not know or under TRITON_INTERPRET,
    VerificationError for a kernel that spills registers or takes more than `MAX_REGISTERS`.
    """
    version = check_compiler(archs)
    images = [_compile(*job, arch) for arch in dict.fromkeys(archs) for job in _jobs(bits, tile, floats, codebook)]
    return KernelSet(bits, tile, version, tuple(images), codebook)


def check_compiler(archs: Sequence[int]) -> str:
    """Triton's version. Raises as `compile_kernels` does where it cannot compile for these capabilities."""
    try:
        import triton
    except ImportError:
        raise missing_extra("triton", "triton") from None
    if interpreted():
        raise UsageError("TRITON_INTERPRET is set: kernels are then interpreted, not compiled", hint="unset it")
    wrong = [arch for arch in archs if arch not in KNOWN_ARCHS]
    if wrong or not archs:
        known = ", ".join(map(str, KNOWN_ARCHS))
        raise UsageError(f"compute capability {wrong[0] if wrong else 'none'}, expected some of {known}")
    return str(triton.__version__)


def decode_constants(bits: int, tile: tuple[int, int], codebook: bool = False) -> dict[str, Any]:
    """What the fused decode is specialised for, by the names of its constants."""
    columns = shapes.columns(tile)
    return {
        "TILE_ROWS": tile[0], "TILE_COLUMNS": tile[1], "COLUMNS": columns, "CHUNK": shapes.chunk(columns),
        "BITS": bits, "LANES": shapes.LANES, "FLOATS": True, "CODEBOOK": codebook,
    }  # fmt: skip


def _jobs(
    bits: int, tile: tuple[int, int], floats: Sequence[str], codebook: bool
) -> Iterator[tuple[Any, str, dict[str, Any], int]]:
    """(kernel, variant, constants, warps) of everything that a codec's streams need."""
    from . import scaling
    from .context_decode import context_decode

    decode = decode_constants(bits, tile, codebook)
    block = {"BITS": bits, "BLOCK": shapes.BLOCK, "CODEBOOK": codebook}
    for variant in floats:
        yield context_decode, variant, decode, shapes.LANES // 32
        yield scaling.dequantize, variant, block, shapes.WARPS
    if not codebook:
        yield scaling.minmax, "float32", {"BLOCK": shapes.BLOCK, "TURNS": shapes.TURNS}, shapes.WARPS
    yield scaling.quantize, "float32", {**block, "PARTS": shapes.PARTS}, shapes.WARPS


def compile_kernel(
    kernel: Any, variant: str, constants: dict[str, Any], warps: int, arch: int
) -> tuple[Any, list[tuple[str, str]]]:
    """One kernel for one capability: what Triton made, and our arguments: (name, "pointer" or "int32") in order."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, aligned, arguments = {}, {}, []
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _POINTERS or name == "out":
            signature[name] = FLOATS[variant] if name == "out" else _POINTERS[name]
            aligned[(index,)] = [["tt.divisibility", 16]]
            arguments.append((name, "pointer"))
        else:
            signature[name] = "i32"
            arguments.append((name, "int32"))
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "maxnreg": MAX_REGISTERS, **shapes.EXACT}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # it is half of a cubin, and names this machine's paths
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options), arguments


def _compile(kernel: Any, variant: str, constants: dict[str, Any], warps: int, arch: int) -> KernelImage:
    compiled, arguments = compile_kernel(kernel, variant, constants, warps, arch)
    name = kernel.__name__
    declared = re.search(rf"\.entry {name}\((.*?)\)", compiled.asm["ptx"], re.DOTALL)
    found = declared.group(1).count(".param") if declared else 0
    # Behind our arguments Triton passes scratch pointers of its own, which these kernels do not use.
    if compiled.metadata.global_scratch_size or found < len(arguments):
        raise VerificationError(f"{name} for sm{arch} takes {found} arguments, expected {len(arguments)} or more")
    arguments += [("scratch", "scratch")] * (found - len(arguments))
    registers = check_resources(compiled.asm["cubin"], f"{name} ({variant}) for sm{arch}")
    return KernelImage(
        name, variant, arch, compiled.asm["cubin"], tuple(arguments), warps, compiled.metadata.shared, registers
    )


def check_resources(cubin: bytes, what: str) -> int:
    """Registers of a cubin's kernel, as the tool in Triton's package says. Raises VerificationError for spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            text = ""
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    if usage.keys() != {"REG", "STACK", "LOCAL"}:
        raise VerificationError(f"{what}: cannot read its registers", hint="use a tested version of Triton")
    if usage["STACK"] or usage["LOCAL"] or usage["REG"] > MAX_REGISTERS:
        raise VerificationError(
            f"{what} takes {usage['REG']} registers, {usage['STACK']} bytes of stack and {usage['LOCAL']} of local "
            f"memory, expected at most {MAX_REGISTERS}, 0 and 0",
            hint="use a tested version of Triton",
        )
    return usage["REG"]
