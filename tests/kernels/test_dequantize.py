"""int2float: paper eq. 4 by hand, and native == NumPy bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.errors import ArtifactError, InputError
from latentseg.kernels import native_available
from latentseg.kernels.dequantize import codebook_table, dequantize, dequantize_codebook
from latentseg.kernels.quantize import quantize, quantize_codebook

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]
F32 = np.float32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Any) -> None:
    q = np.array([0, 1, 2, 3], np.uint8)
    assert dequantize(q, 2, -1.0, 2.0, implementation=implementation).tolist() == [-1, 0, 1, 2]
    assert dequantize(q, 2, 5.5, 5.5, implementation=implementation).tolist() == [5.5] * 4
    codec = np.arange(256, dtype=np.uint8)
    assert dequantize(codec, 8, -128.0, 127.0, implementation=implementation).tolist() == list(range(-128, 128))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_each_step_is_rounded_to_float32(implementation: Any) -> None:
    # Plain Python, one rounding an operation: a fused multiply-add or a double in between would show.
    rng = np.random.default_rng(5)
    for _ in range(20):
        lo, hi = np.sort(rng.normal(size=2).astype(F32))
        values = dequantize(np.arange(256, dtype=np.uint8), 8, float(lo), float(hi), implementation=implementation)
        step = F32(float(F32(float(hi) - float(lo))) / 255)
        for symbol, value in enumerate(values):
            assert value == F32(float(F32(symbol * float(step))) + float(lo))


@given(
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 30),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 2.0**100, width=32),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_native_equals_numpy(bits: int, rows: int, n: int, lo: float, span: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 2**bits, (rows, n), np.uint8)
    lo_ = (F32(lo) * rng.random(rows, F32)).astype(F32)
    hi_ = lo_ + F32(span)
    reference = dequantize(q, bits, lo_, hi_, implementation="numpy")
    for implementation in IMPLEMENTATIONS:
        assert dequantize(q, bits, lo_, hi_, implementation=implementation).tobytes() == reference.tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_symbols_survive_a_round_trip(bits: int) -> None:
    q = np.arange(2**bits, dtype=np.uint8)
    assert (quantize(dequantize(q, bits, -0.37, 1.91), bits, -0.37, 1.91) == q).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 15, 16, 17, 32, 33, 200, 256])
def test_symbols_stand_for_centres(implementation: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    centres = np.sort(rng.normal(size=count)).astype(F32)
    bits = next(n for n in range(1, 9) if count <= 2**n)
    for size in (0, 1, 7, 8, 9, 41):
        q = rng.integers(0, 2**bits, (3, size), np.uint8)
        # Those without a centre take the last one.
        expected = [[centres[min(int(s), count - 1)] for s in row] for row in q]
        assert dequantize_codebook(q, tuple(centres.tolist()), implementation=implementation).tolist() == expected
    assert codebook_table(centres).tolist() == [*centres.tolist(), *[centres[-1]] * (2**bits - count)]
    known = np.arange(count, dtype=np.uint8)
    assert (quantize_codebook(dequantize_codebook(known, centres), centres, implementation) == known).all()


def test_symbols_that_no_codebook_of_so_many_centres_has() -> None:
    with pytest.raises(InputError, match=r"symbol 8 at \(1,\), expected 0 to 7 \(3 bits\)"):
        dequantize_codebook(np.array([7, 8], np.uint8), (0.0, 1.0, 2.0, 3.0, 4.0))
    with pytest.raises(InputError, match="codebook of 1 centres"):
        dequantize_codebook(np.zeros(2, np.uint8), (0.0,))
    with pytest.raises(ArtifactError, match="expected writable contiguous float32"):
        dequantize_codebook(np.zeros(2, np.uint8), (0.0, 1.0), out=np.empty(3, F32))


def test_out_is_written_into() -> None:
    batch = np.zeros((3, 2, 4), F32)
    q = np.ones((2, 4), np.uint8)
    result = dequantize(q, 1, 0.0, 2.0, out=batch[1])
    assert result.base is batch
    assert batch.sum(axis=(1, 2)).tolist() == [0, 16, 0]


def test_bad_arguments() -> None:
    q = np.array([[0, 4, 3]], np.uint8)
    with pytest.raises(InputError, match=r"symbol 4 at \(0, 1\), expected 0 to 3"):
        dequantize(q, 2, 0.0, 1.0)
    with pytest.raises(InputError, match="int64, expected uint8"):
        dequantize(q.astype(np.int64), 8, 0.0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="expected writable contiguous float32"):
        dequantize(q, 8, 0.0, 1.0, out=np.empty((3, 1), F32))
    with pytest.raises(ArtifactError, match="strided"):
        dequantize(q, 8, 0.0, 1.0, out=np.empty((1, 6), F32)[:, ::2])
    with pytest.raises(ArtifactError, match="float64"):
        dequantize(q, 8, 0.0, 1.0, out=np.empty((1, 3)))  # type: ignore[arg-type]
