"""Codes are off by no more than they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from recsys.errors import InputError
from recsys.models.vector_codes import Int8Codes, from_int8, int8_similarities, to_float16, to_int8

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=6)


def vectors(largest: float) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    return arrays(np.float32, SHAPES, elements=st.floats(-largest, largest, width=32, allow_subnormal=False))


@given(vectors(60000.0))
def test_float16_is_off_by_at_most_its_bound(x: npt.NDArray[np.float32]) -> None:
    error = np.abs(to_float16(x).astype(np.float64) - x)
    assert (error <= np.maximum(np.abs(x.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


@given(vectors(2.0**99))
def test_int8_is_off_by_at_most_half_a_scale(x: npt.NDArray[np.float32]) -> None:
    coded = to_int8(x)
    error = np.abs(from_int8(coded).astype(np.float64) - x)
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    assert (error <= largest / 254 * (1 + 1e-5) + 1e-36).all()
    assert coded.codes.dtype == np.int8
    assert np.abs(coded.codes.astype(int)).max() <= 127


@given(vectors(100.0))
def test_the_codes_of_the_negative_are_the_negative_codes(x: npt.NDArray[np.float32]) -> None:
    there, back = to_int8(x), to_int8(-x)
    np.testing.assert_array_equal(there.codes, -back.codes)
    np.testing.assert_array_equal(there.scales, back.scales)


def test_similarities_of_codes_are_those_of_what_they_stand_for() -> None:
    rng = np.random.default_rng(1)
    q, d = (to_int8(rng.normal(size=(rows, 33)).astype(np.float32)) for rows in (4, 7))
    expected = from_int8(q).astype(np.float64) @ from_int8(d).astype(np.float64).T
    np.testing.assert_allclose(int8_similarities(q, d), expected, rtol=1e-5, atol=1e-5)


def test_integer_sums_are_exact_up_to_the_stated_width() -> None:
    extreme = Int8Codes(np.full((2, 1040), 127, np.int8), np.ones(2, np.float32))
    assert int8_similarities(extreme, extreme)[0, 1] == 1040 * 127 * 127


def test_a_zero_vector_stays_zero() -> None:
    coded = to_int8(np.zeros((1, 5), np.float32))
    assert coded.scales[0] == 0
    assert (from_int8(coded) == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_row(value: float) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = value
    for encode in (to_float16, to_int8):
        with pytest.raises(InputError, match="row 1"):
            encode(x)


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="beyond the range"):
        to_float16(np.array([[1.0], [65520.0]], np.float32))
    with pytest.raises(InputError, match="beyond float32"):
        to_int8(np.array([[1e300]]))


@pytest.mark.parametrize("x", [np.zeros(3, np.float32), np.zeros((2, 2), np.int64)])
def test_another_form_is_refused(x: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="floating"):
        to_int8(x)
