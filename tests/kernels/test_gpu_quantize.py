"""float2int on a GPU: how a batch is cut into rows and passes, and the launcher with the real kernels interpreted."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
from _kernel_images import SCALING_ARGUMENTS

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import ArtifactError
from latentseg.kernels.gpu import shapes
from latentseg.kernels.gpu.rows import quantize_rows

HERE = Path(__file__).resolve().parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="wants Triton: Linux on x86-64")


def header(shape: tuple[int, int, int], mode: str) -> StreamHeader:
    given = {"fixed": {"lo": -1.0, "hi": 1.0}, "codebook": {"centres": tuple(range(129))}}.get(mode, {})
    scaling = Scaling(mode, **given)  # type: ignore[arg-type]
    return StreamHeader(bytes(32), shape, 8, scaling)


@needs_triton
def test_the_launcher_with_interpreted_kernels_equals_numpy() -> None:
    result = subprocess.run([sys.executable, HERE / "_interpreted_quantize.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "interpreted: all equal\n"


ARGUMENTS = """
from latentseg.kernels.triton import scaling
print({kernel.fn.__name__: [name for name in kernel.arg_names if name.islower()]
       for kernel in (scaling.minmax, scaling.quantize)})
"""


@needs_triton
def test_the_fakes_arguments_are_the_kernels_own() -> None:
    result = subprocess.run([sys.executable, "-c", ARGUMENTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = {k: [n for n, kind in names if kind != "scratch"] for k, names in SCALING_ARGUMENTS.items()}
    assert result.stdout.strip() == str(expected)


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (32, 135, 240), (3, 720, 1280), (1, 8000, 8000)])
@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel", "codebook"])
def test_every_value_is_in_a_part_that_the_next_pass_reads(shape: tuple[int, int, int], mode: str, frames: int) -> None:
    rows = quantize_rows(header(shape, mode), frames)
    assert rows.rows * rows.size == frames * math.prod(shape)
    assert rows.rows == frames * (shape[0] if mode == "channel" else 1)
    assert rows.launches == len(rows.parts) + 1
    assert bool(rows.parts) == (mode in ("tensor", "channel"))
    sizes = [rows.size, *(2 * parts for parts in rows.parts)]
    for size, parts in zip(sizes, rows.parts, strict=False):
        assert parts - 1 < size / (shapes.BLOCK * shapes.TURNS) <= parts
    assert not rows.parts or rows.parts[-1] <= shapes.PARTS
    # The passes' results lie apart, aligned, and inside.
    ends = [start + 8 * rows.rows * parts for start, parts in zip(rows.starts, rows.parts, strict=True)]
    assert all(start % 256 == 0 for start in rows.starts)
    assert all(end <= start for end, start in zip(ends, rows.starts[1:], strict=False))
    assert max(ends, default=0) <= rows.partial_bytes


def test_at_1080p_a_range_a_frame_takes_two_passes_and_one_a_channel_one() -> None:
    assert quantize_rows(header((32, 135, 240), "tensor"), 8).parts == (127, 1)
    assert quantize_rows(header((32, 135, 240), "channel"), 8).parts == (4,)
    assert quantize_rows(header((32, 135, 240), "fixed"), 8).parts == ()


def test_what_a_grid_cannot_hold_is_refused() -> None:
    with pytest.raises(ArtifactError, match="67108864 values share a range, expected at most 67107840") as caught:
        quantize_rows(header((1, 8192, 8192), "fixed"), 1)
    assert caught.value.hint == "--backend onnxruntime"
