"""The sizes that the kernels are compiled for, on which compiler, launcher and torch calls agree.

Nothing here imports triton.
"""

from __future__ import annotations

LANES = 32  # lanes a program of context_decode: one warp, so that its barrier costs next to nothing
BLOCK = 1024  # values a program of minmax, quantize and dequantize takes at once
TURNS = 8  # and how often minmax does
WARPS = 4  # of those three
SOUND = 2**31 - 1  # what `damaged` holds for a frame without damage
PARTS = 64  # at most so many parts a row of the compiled quantize: rows of 2^19 values
# Rounding each operation on its own is what makes the GPU's floats equal the CPU's.
EXACT = {"enable_fp_fusion": False}


def programs(lane_count: int, lanes: int = LANES) -> int:
    """Programs of context_decode for so many lanes."""
    return -(-lane_count // lanes)


def history_words(lane_count: int, tile: tuple[int, int], lanes: int = LANES) -> int:
    """32-bit words of its history buffer."""
    return programs(lane_count, lanes) * 2 * columns(tile) * lanes


def columns(tile: tuple[int, int]) -> int:
    """Columns of the history buffer of context_decode: those of a tile, rounded up to a power of two."""
    return 1 << (tile[1] - 1).bit_length()


def chunk(history_columns: int) -> int:
    """Columns that are written at once: more would take more registers than they save time."""
    return min(8, history_columns)
