import numpy as np
from numpy.typing import NDArray

def quantize(
    x: NDArray[np.float32], levels: int, lo: NDArray[np.float32], hi: NDArray[np.float32], q: NDArray[np.uint8]
) -> bool: ...
def dequantize(
    q: NDArray[np.uint8], levels: int, lo: NDArray[np.float32], hi: NDArray[np.float32], out: NDArray[np.float32]
) -> None: ...
def encode(q: NDArray[np.uint8], segments: int, lane_symbols: int, scales: bytes) -> bytes: ...
def decode_symbols(
    payload: bytes,
    channels: int,
    bits: int,
    scaling: int,
    lo: float,
    hi: float,
    table_a_channel: bool,
    lane_symbols: int,
    out: NDArray[np.uint8],
    threads: int,
) -> None: ...
def decode_floats(
    payload: bytes,
    channels: int,
    bits: int,
    scaling: int,
    lo: float,
    hi: float,
    table_a_channel: bool,
    lane_symbols: int,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def context_encode(q: NDArray[np.uint8], bits: int, rows: int, columns: int, scales: bytes) -> bytes: ...
def context_decode_symbols(
    payload: bytes,
    channels: int,
    height: int,
    width: int,
    bits: int,
    scaling: int,
    lo: float,
    hi: float,
    rows: int,
    columns: int,
    out: NDArray[np.uint8],
    threads: int,
) -> None: ...
def context_decode_floats(
    payload: bytes,
    channels: int,
    height: int,
    width: int,
    bits: int,
    scaling: int,
    lo: float,
    hi: float,
    rows: int,
    columns: int,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def context_lanes(
    payload: bytes,
    channels: int,
    height: int,
    width: int,
    bits: int,
    scaling: int,
    lo: float,
    hi: float,
    rows: int,
    columns: int,
    at: int,
    ranges: NDArray[np.float32],
    what: NDArray[np.int32],
    lanes: NDArray[np.int32],
) -> None: ...
def context_tables_crc() -> int: ...
