"""The Triton kernels on torch tensors: what the tests, the GPU benchmark and programs that use torch anyway call.

The tensors may be on a GPU, or on the CPU where TRITON_INTERPRET=1 runs the kernels in Triton's interpreter. The
serving engine has neither torch nor the Triton compiler: it launches compiled kernels (kernels/gpu/launch.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
from torch import Tensor

from ...bitstream import context_model as model
from ...bitstream.header import StreamHeader, codebook_bits
from ...errors import InputError, UsageError
from ..dequantize import codebook_table
from ..gpu import shapes
from ..gpu.batch import Batch, check_damage, plan_batch, table_map_words
from ..quantize import midpoint_table
from . import scaling
from .context_decode import context_decode


def quantize(x: Tensor, bits: int, lo: Tensor | None = None, hi: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float2int of rows: x float32 (rows, size) to symbols uint8 (rows, size) and their ranges float32 (rows, 2).

    lo, hi: float32 (rows,), or (1,) for all of them; None takes each row's smallest and largest value. Raises
    InputError where a value or a range is not finite.
    """
    rows, size = _rows(x)
    if (lo is None) != (hi is None):
        raise UsageError("one end of the range alone, expected lo and hi, or neither")
    if lo is None or hi is None:
        parts = -(-size // (shapes.BLOCK * shapes.TURNS))
        partial = torch.empty((rows, parts, 2), dtype=torch.float32, device=x.device)
        scaling.minmax[(rows, parts)](x, partial, size, parts, BLOCK=shapes.BLOCK, TURNS=shapes.TURNS, **shapes.EXACT)
    else:
        parts = 1
        if lo.shape != hi.shape or lo.shape not in ((1,), (rows,)):
            raise UsageError(f"ranges of shape {tuple(lo.shape)} and {tuple(hi.shape)}, expected (1,) or ({rows},)")
        partial = torch.stack([lo, hi], dim=1).contiguous()
    q = torch.empty((rows, size), dtype=torch.uint8, device=x.device)
    ranges = torch.empty((rows, 2), dtype=torch.float32, device=x.device)
    bad = torch.zeros(rows, dtype=torch.int32, device=x.device)
    scaling.quantize[(rows, triton.cdiv(size, shapes.BLOCK))](
        x, partial, q, ranges, bad, size, parts, len(partial),
        BITS=bits, BLOCK=shapes.BLOCK, PARTS=triton.next_power_of_2(parts), **shapes.EXACT,
    )  # fmt: skip
    _check_bad(bad)
    return q, ranges


def dequantize(
    q: Tensor, bits: int, ranges: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """int2float of rows: symbols uint8 (rows, size) to float32 or float16; ranges float32 (rows, 2) or (1, 2).

    out: contiguous (rows, size) to write into; None makes a new one of `dtype`.
    """
    rows, size = q.shape
    if out is None:
        out = torch.empty((rows, size), dtype=dtype, device=q.device)
    scaling.dequantize[(rows, triton.cdiv(size, shapes.BLOCK))](
        q, ranges, out, size, len(ranges), BITS=bits, BLOCK=shapes.BLOCK, **shapes.EXACT
    )
    return out


def quantize_codebook(x: Tensor, centres: Sequence[float]) -> Tensor:
    """float2int of rows by a codebook: x float32 (rows, size) to symbols uint8 (rows, size).

    centres: (L,), as `Scaling` takes them. Raises InputError where a value is not finite.
    """
    rows, size = _rows(x)
    limits = torch.from_numpy(midpoint_table(centres)).to(x.device)
    q = torch.empty((rows, size), dtype=torch.uint8, device=x.device)
    bad = torch.zeros(rows, dtype=torch.int32, device=x.device)
    scaling.quantize[(rows, triton.cdiv(size, shapes.BLOCK))](
        x, limits, q, limits, bad, size, 0, 0,
        BITS=codebook_bits(len(centres)), BLOCK=shapes.BLOCK, PARTS=1, CODEBOOK=True, **shapes.EXACT,
    )  # fmt: skip
    _check_bad(bad)
    return q


def dequantize_codebook(q: Tensor, centres: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """int2float of rows by a codebook: symbols uint8 (rows, size) to float32 or float16."""
    rows, size = q.shape
    out = torch.empty((rows, size), dtype=dtype, device=q.device)
    values = torch.from_numpy(codebook_table(centres)).to(q.device)
    scaling.dequantize[(rows, triton.cdiv(size, shapes.BLOCK))](
        q, values, out, size, 0, BITS=codebook_bits(len(centres)), BLOCK=shapes.BLOCK, CODEBOOK=True, **shapes.EXACT
    )
    return out


def _rows(x: Tensor) -> tuple[int, int]:
    rows, size = x.shape
    if x.dtype != torch.float32 or not x.is_contiguous() or not x.numel():
        raise UsageError(f"x is {x.dtype} {tuple(x.shape)}, expected contiguous float32 (rows, size), not empty")
    if size > shapes.BLOCK * 65535:
        raise UsageError(f"rows of {size} values, expected at most {shapes.BLOCK * 65535}: a GPU's grid ends there")
    return rows, size


def _check_bad(bad: Tensor) -> None:
    if bad.any():
        raise InputError(f"row {int(bad.argmax())} of the latent holds values that are not finite")


class Decoder:
    """Decodes batches of one stream's payloads on a device: fused with int2float, or to symbols.

    Parameters
    ----------
    header: of the stream.  device: a CUDA device, or "cpu" under the interpreter.
    lanes: lanes a program (a power of two, at least 32); the default is what the compiled kernels have.
    """

    def __init__(self, header: StreamHeader, device: torch.device | str, lanes: int = shapes.LANES) -> None:
        self.header, self.device, self.lanes = header, torch.device(device), lanes
        tables = model.decoding_tables().view(np.int32).reshape(-1).copy()
        self._tables, self._numbers = (torch.from_numpy(table).to(device) for table in (tables, table_map_words()))
        self._history = torch.empty(0, dtype=torch.int32, device=device)

    def upload(self, payloads: Sequence[bytes]) -> tuple[Batch, Tensor]:
        """Plan a batch on the host and bring it to the device: the plan, and its bytes (uint8) there."""
        batch = plan_batch(payloads, self.header)
        return batch, torch.from_numpy(batch.data).to(self.device)

    def decode(self, payloads: Sequence[bytes], dtype: torch.dtype = torch.float32) -> Tensor:
        """The batch as (frames, C, h, w): dequantised as float32 or float16, or the symbols as uint8.

        Raises InputError for a damaged payload, naming its place in the batch.
        """
        batch, data = self.upload(payloads)
        out = torch.empty((batch.frames, *self.header.latent_shape), dtype=dtype, device=self.device)
        check_damage(self.launch(batch, data, out).cpu().numpy())
        return out

    def launch(self, batch: Batch, data: Tensor, out: Tensor) -> Tensor:
        """Start the kernel, which fills `out`. Returns the damage to come: int32 (frames,), for `check_damage`."""
        channels, height, width = self.header.latent_shape
        columns = shapes.columns(self.header.tile)
        history = shapes.history_words(batch.lane_count, self.header.tile, self.lanes)
        if self._history.numel() < history:
            self._history = torch.empty(history, dtype=torch.int32, device=self.device)
        damaged = torch.full((batch.frames,), shapes.SOUND, dtype=torch.int32, device=self.device)
        context_decode[(shapes.programs(batch.lane_count, self.lanes),)](
            data[batch.payloads :].view(torch.int32), batch.word_count,
            data[batch.lanes : batch.payloads].view(torch.int32),
            data[batch.channels : batch.lanes].view(torch.int32),
            data[batch.ranges : batch.channels].view(torch.float32),
            self._tables, self._numbers, self._history, damaged, out,
            batch.frames, channels, height, width, batch.ranges_a_frame,
            TILE_ROWS=self.header.tile[0], TILE_COLUMNS=self.header.tile[1], COLUMNS=columns,
            CHUNK=shapes.chunk(columns), BITS=self.header.bits, LANES=self.lanes, FLOATS=out.dtype != torch.uint8,
            CODEBOOK=self.header.scaling.mode == "codebook", num_warps=self.lanes // 32, **shapes.EXACT,
        )  # fmt: skip
        return damaged
