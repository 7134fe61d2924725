"""Items that nothing is fitted on: which, and whether anything of them or of what is measured is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.cold_data import hold_out, write_without
from recsys.errors import ConfigError
from recsys.records import TABLES, TableCounts, TablesManifest

if TYPE_CHECKING:
    from pathlib import Path


@example(popularity=[1] * 27, share=0.5, seed=0)  # 13 strata, not 14: 14 would want 28 items
@given(
    popularity=st.lists(st.integers(0, 1000), min_size=20, max_size=200),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**16),
)
def test_every_stratum_of_popularity_gives_one_item_to_either_set(
    popularity: list[int], share: float, seed: int
) -> None:
    counts = np.array(popularity)
    held = hold_out(counts, share, np.random.default_rng(seed))
    wanted = min(round(share * len(counts)), len(counts) // 2)
    assert len(held.measured) == len(held.choice) == wanted
    assert len(np.unique(held.every)) == 2 * wanted
    order = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    place = {item: number for number, item in enumerate(order)}
    for drawn in (held.measured, held.choice):
        places = sorted(place[item] for item in drawn.tolist())
        # stratum s of n begins at about s / n of the order, give or take what does not divide
        for stratum, found in enumerate(places):
            assert stratum * (len(order) // wanted) <= found < (stratum + 1) * -(-len(order) // wanted)
    again = hold_out(counts, share, np.random.default_rng(seed))
    np.testing.assert_array_equal(again.measured, held.measured)


@pytest.mark.parametrize("share", [0.0, 0.6, 0.001])
def test_a_share_that_holds_nothing_or_too_much_out_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        hold_out(np.arange(50), share, np.random.default_rng(1))


def rows(table: str, values: list[dict[str, object]]) -> pa.Table:
    empty = dict.fromkeys(TABLES[table].names)
    return pa.Table.from_pylist([empty | value for value in values], schema=TABLES[table])


def test_neither_held_out_items_nor_what_is_measured_can_be_trained_on(tmp_path: Path) -> None:
    walks = {"long": "abXcd", "last": "abcX", "short": "aXYbX", "gone": "XYX", "plain": "dcba"}
    events: list[dict[str, object]] = [
        {"event_id": f"{user}{place}", "user_id": user, "item_id": item, "time": place, "seq": place, "action": "like"}
        for user, walk in walks.items()
        for place, item in enumerate(walk)
    ]
    for user, action, number in (("looked", "impression", 2), ("twice", "like", 0)):  # of neither would be held out
        shown = [("like", 0), (action, number), (action, number), ("like", 1)]
        events += [
            {
                "event_id": f"{user}{kind}{n}",
                "user_id": user,
                "item_id": "a",
                "time": place,
                "seq": place,
                "action": kind,
            }
            for place, (kind, n) in enumerate(shown)
        ]
    tables = tmp_path / "tables"
    for name, table in (
        ("events", rows("events", events)),
        ("items", rows("items", [{"item_id": i} for i in "abcdXY"])),
    ):
        (tables / name).mkdir(parents=True)
        pq.write_table(table, tables / name / "part.parquet")
    TablesManifest("toy", False, {}, {"events": TableCounts(29, 29, 0)}).save(tables)
    counts = write_without(tables, tmp_path / "out", pa.array(["X", "Y"]))
    assert counts == {"items": 2, "events": 8, "short_users": 3}
    left = pq.read_table(tmp_path / "out" / "events")
    assert set(left["item_id"].to_pylist()) <= set("abcd")
    assert set(left["user_id"].to_pylist()) == {"long", "last", "plain"}
    assert set(pq.read_table(tmp_path / "out" / "items")["item_id"].to_pylist()) == set("abcd")
    assert TablesManifest.load(tmp_path / "out").dataset == "toy"
    by_user = {user: "".join(row["item_id"] for row in left.to_pylist() if row["user_id"] == user) for user in walks}
    for user, walk in walks.items():
        trained = by_user[user][:-2]  # leave-one-out
        assert trained == "".join(item for item in walk if item in "abcd")[: len(trained)]
        assert not set(trained) & set(walk[-1])
