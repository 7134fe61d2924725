"""A history as a query: newer items weigh more, those without a vector do not count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.taste import taste
from recsys.retrieval.vector_index import VectorIndex, build_index

VECTORS = np.random.default_rng(1).standard_normal((12, 4))
VECTORS[[2, 7]] = 0  # have no vector
UNIT = VECTORS / np.maximum(np.linalg.norm(VECTORS, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def index() -> VectorIndex:
    return build_index(VECTORS, IndexSettings())


@given(
    history=st.lists(st.integers(-2, 14), max_size=30),
    recent=st.integers(1, 25),
    fading=st.floats(0.01, 1),
)
def test_it_is_the_weighted_sum_of_the_newest_that_have_a_vector(
    index: VectorIndex, history: list[int], recent: int, fading: float
) -> None:
    known = [row for row in history if 0 <= row < 12 and row not in (2, 7)][::-1][:recent]
    expected = np.zeros(4)
    for age, row in enumerate(known):
        expected += fading**age * UNIT[row]
    asked = taste(index, history, recent=recent, fading=fading)
    np.testing.assert_allclose(np.zeros(4) if asked is None else asked, expected, atol=1e-5)
    assert (asked is None) <= (not known)


def test_opposite_items_ask_for_nothing() -> None:
    index = build_index(np.array([[1.0, 0.0], [-1.0, 0.0]]), IndexSettings())
    assert taste(index, [0, 1], fading=1) is None


def test_settings_out_of_range_are_refused(index: VectorIndex) -> None:
    with pytest.raises(InputError, match="recent"):
        taste(index, [1], recent=0)
    for fading in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="fading"):
            taste(index, [1], fading=fading)
