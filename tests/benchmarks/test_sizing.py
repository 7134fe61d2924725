from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Figure
from benchmarks.sizing import LOAD, engines, sizes_table


@given(st.floats(0.1, 1e6), st.floats(0.01, 100))
def test_no_engine_is_busier_than_meant_and_none_is_spare(rate: float, milliseconds: float) -> None:
    count = engines(rate, milliseconds)
    busy = rate * milliseconds / 1_000
    assert busy / count <= LOAD * (1 + 1e-9)
    assert busy > (count - 1) * LOAD * (1 - 1e-9)


def test_a_row_of_the_table() -> None:
    figures = {
        f"decoding.crossover.items{items}.{name}": Figure("", value, "")
        for items in (100_000, 1_000_000, 10_000_000)
        for name, value in (("nezha_beam50.ms", 3.5), ("nezha.bytes", 2.5e6))
    }
    table = sizes_table(figures)
    assert table.rows[1] == ["1,000,000", "3.50", "2.5", "1", "5", "50", "500"]


def test_a_figure_that_is_missing_is_no_row() -> None:
    with pytest.raises(KeyError, match="items100000"):
        sizes_table({})
