"""float2int: paper eq. 2 by hand, rounding, clipping, and native == NumPy bit for bit."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.errors import ArtifactError, InputError
from latentseg.kernels import native_available
from latentseg.kernels.quantize import midpoints, quantize, quantize_codebook

IMPLEMENTATIONS: list[Any] = ["numpy", "native"] if native_available() else ["numpy"]
F32 = np.float32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_by_hand(implementation: Any) -> None:
    x = np.array([-1.0, 0.0, 0.5, 2.0, 3.0, -9.0], F32)
    # 3 * (x + 1) / 3 = x + 1; half goes to even; outside is clipped.
    assert quantize(x, 2, -1.0, 2.0, implementation).tolist() == [0, 1, 2, 3, 3, 0]
    assert quantize(np.array([0.5, 1.5, 2.5, 253.5, 254.5], F32), 8, 0, 255, implementation).tolist() == [
        0, 2, 2, 254, 254,
    ]  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_ends_of_the_range(implementation: Any, bits: int) -> None:
    x = np.array([[0.1, 0.7], [-3.3, 12.9]], F32)
    q = quantize(x, bits, x.min(axis=1), x.max(axis=1), implementation)
    assert q.dtype == np.uint8
    assert q.tolist() == [[0, 2**bits - 1]] * 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_step_in_exact_arithmetic(implementation: Any) -> None:
    # Against fractions: away from ties, float32 rounding cannot move a value to another symbol.
    lo, hi = F32(-0.75), F32(2.125)
    x = np.linspace(-1, 2.5, 1001, dtype=F32)
    q = quantize(x, 5, float(lo), float(hi), implementation)
    for value, symbol in zip(x, q, strict=True):
        exact = 31 * (Fraction(float(value)) - Fraction(float(lo))) / (Fraction(float(hi)) - Fraction(float(lo)))
        exact = min(max(exact, Fraction(0)), Fraction(31))
        assert abs(exact - int(symbol)) <= Fraction(1, 2) + Fraction(1, 10**5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_value_only_gives_zeros(implementation: Any) -> None:
    x = np.full((2, 3, 5), 4.25, F32)
    assert not quantize(x, 8, 4.25, 4.25, implementation).any()
    x[1] = [[0, 1, 2, 3, 4]] * 3
    q = quantize(x, 2, x.min(axis=(1, 2)), x.max(axis=(1, 2)), implementation)
    assert not q[0].any()
    assert q[1].tolist() == [[0, 1, 2, 2, 3]] * 3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("lo", [0.0, 1.0])
def test_not_finite(implementation: Any, value: float, lo: float) -> None:
    x = np.zeros((2, 3, 37), F32)
    x[1, 2, 36] = value
    with pytest.raises(InputError, match=r"1 values that are not finite.*\(1, 2, 36\)"):
        quantize(x, 8, lo, 1.0, implementation)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 2.0**100, width=32),
    st.integers(1, 8),
)
@settings(max_examples=200, deadline=None)
def test_native_equals_numpy(values: list[float], lo: float, span: float, bits: int) -> None:
    x = np.array(values, F32)
    hi = float(F32(lo) + F32(span))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference = quantize(x, bits, lo, hi, "numpy")
    assert reference.max() < 2**bits
    for implementation in IMPLEMENTATIONS:
        assert (quantize(x, bits, lo, hi, implementation) == reference).all()


# --- codebooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_centres_by_hand(implementation: Any) -> None:
    centres = (-2.0, -1.0, 0.5, 4.0)  # midpoints -1.5, -0.25, 2.25
    above = np.nextafter(F32(2.25), F32(9))
    x = np.array([[-99.0, -1.5, -1.4999999, -0.25], [0.0, 2.25, above, 3e38]], F32)
    q = quantize_codebook(x, centres, implementation)
    assert (q.dtype, q.tolist()) == (np.uint8, [[0, 0, 1, 1], [2, 2, 3, 3]])
    assert quantize_codebook(np.array([-0.0, 0.0, 1e-45], F32), (-1.0, 1.0), implementation).tolist() == [0, 0, 1]


def test_midpoints_are_rounded_twice() -> None:
    # The sum 2 + 2^-23 is a tie, and goes to the even 2; half of it is 1, not 1 + 2^-24.
    low, high = F32(1), np.nextafter(F32(1), F32(2))
    assert midpoints([float(low), float(high)]).tolist() == [1.0]
    assert quantize_codebook(np.array([low, high]), [float(low), float(high)]).tolist() == [0, 1]


@given(
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=2, max_size=256, unique=True),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_any_codebook(values: list[float], extra: list[float], seed: int) -> None:
    centres = np.sort(np.array(values, F32))
    limits = [F32(F32(0.5) * F32(low + high)) for low, high in itertools.pairwise(centres)]
    # On midpoints, just above them, on centres, and anywhere.
    chosen = np.random.default_rng(seed).choice(np.array([*limits, *centres], F32), 300)
    x = np.concatenate([chosen, np.nextafter(chosen, F32(np.inf)), np.array(extra, F32)])
    x = x[np.isfinite(x)]
    expected = [sum(bool(limit < value) for limit in limits) for value in x]
    for implementation in IMPLEMENTATIONS:
        assert quantize_codebook(x, centres, implementation).tolist() == expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [2, 33, 256])
def test_not_finite_under_a_codebook(implementation: Any, value: float, count: int) -> None:
    x = np.zeros((2, 3, 137), F32)
    x[1, 2, 136] = value
    with pytest.raises(InputError, match=r"1 values that are not finite.*\(1, 2, 136\)"):
        quantize_codebook(x, tuple(range(count)), implementation)


def test_what_is_no_codebook() -> None:
    for centres in ((1.0,), (1.0, 0.0), (0.0, float("nan")), tuple(range(257))):
        with pytest.raises(InputError, match=r"^codebook"):
            quantize_codebook(np.zeros(3, F32), centres)


def test_bad_ranges() -> None:
    x = np.zeros((3, 2), F32)
    with pytest.raises(InputError, match="expected finite lo <= hi"):
        quantize(x, 8, 1.0, 0.0)
    with pytest.raises(InputError, match="expected finite lo <= hi"):
        quantize(x, 8, -3e38, 3e38)
    with pytest.raises(InputError, match=r"expected 1\.\.8"):
        quantize(x, 9, 0.0, 1.0)
    with pytest.raises(ArtifactError, match=r"\(3,\)"):
        quantize(x, 8, np.zeros(2, F32), np.ones(2, F32))


def test_strided_input() -> None:
    x = np.arange(24, dtype=F32).reshape(4, 6)[:, ::2]
    assert (quantize(x, 5, 0, 31) == x).all()
    assert (quantize_codebook(x, tuple(range(24))) == x).all()
