from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.baselines.item_cf import ItemCF, ItemCFSettings, truncated
from recsys.baselines.neighbours import fit_neighbours
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData


@given(
    rows=st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=12),
    neighbours=st.integers(1, 10),
    shrink=st.sampled_from([0.0, 1.0, 10.0]),
    block=st.integers(1, 12),
)
def test_the_table_scores_as_item_cf_does(
    prepared: Callable[[list[list[int]], int], PreparedData],
    rows: list[list[int]],
    neighbours: int,
    shrink: float,
    block: int,
) -> None:
    data = prepared(rows, 11)
    fitted = ItemCF.fit(data, ItemCFSettings(shrink=shrink, decay=0.7, max_history=4))
    kept = ItemCF(truncated(fitted.similarity, neighbours), fitted.settings)
    blocks: list[int] = []
    table = fit_neighbours(data, shrink=shrink, neighbours=neighbours, block=block, tick=blocks.append)
    assert sum(blocks) == 11
    assert np.diff(table.offsets).max() <= neighbours
    histories = [np.array(row, np.int32) for row in rows]
    everything = [np.arange(11, dtype=np.int32)] * len(rows)
    found = table.scores(histories, everything, decay=0.7, max_history=4)
    np.testing.assert_allclose(found, kept.score(histories), rtol=1e-5, atol=1e-7)


def test_equal_neighbours_are_kept_by_index(prepared: Callable[[list[list[int]], int], PreparedData]) -> None:
    data = prepared([[0, item, 9, 9] for item in (5, 3, 4, 1)], 10)
    table = fit_neighbours(data, shrink=1, neighbours=2)
    assert table.items[: table.offsets[1]].tolist() == [1, 3]


@pytest.mark.parametrize(("field", "value"), [("shrink", -1), ("neighbours", 0)])
def test_settings_out_of_range(small_log: PreparedData, field: str, value: int) -> None:
    settings: dict[str, Any] = {"shrink": 1, "neighbours": 1, field: value}
    with pytest.raises(ConfigError) as raised:
        fit_neighbours(small_log, **settings)
    assert raised.value.field == field
