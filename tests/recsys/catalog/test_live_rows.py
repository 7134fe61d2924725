"""Masks over changed and added rows against the catalog that is built of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalog import Catalog, CatalogFilter, live_rows
from recsys.catalog.changes import Delete, Stock
from recsys.catalog.live_rows import ItemRow, LiveRows
from recsys.records import ITEMS

paths = st.sampled_from([(), ("a",), ("a", "b"), ("a", "c"), ("ab",), ("b", "a")])
brands = st.sampled_from([None, "x", "y", "z"])
prices = st.none() | st.integers(0, 5)
times = st.none() | st.integers(0, 5)
fields = st.fixed_dictionaries(
    {"category_path": paths, "brand": brands, "price_micros": prices, "available_from": times, "available_until": times}
)
filters = st.builds(
    CatalogFilter,
    categories=st.lists(paths, max_size=2).map(tuple),
    brands=st.lists(st.sampled_from(["x", "y", "unheard of"]), max_size=2).map(tuple),
    price_min_micros=prices,
    price_max_micros=prices,
)
NOTHING: dict[str, Any] = {"category_path": (), "brand": None, "price_micros": None}
puts = st.tuples(st.integers(0, 7), fields)
asks = st.tuples(filters, st.integers(0, 6))


def table(rows: list[dict[str, Any]]) -> pa.Table:
    values = [{**row, "category_path": list(row["category_path"])} for row in rows]
    return pa.Table.from_pylist([{"item_id": f"i{n}"} | row for n, row in enumerate(values)], schema=ITEMS)


@settings(max_examples=60)
@given(rows=st.lists(fields, min_size=4, max_size=4), steps=st.lists(puts | asks, max_size=25))
def test_masks_are_those_of_a_catalog_built_anew(rows: list[dict[str, Any]], steps: list[Any]) -> None:
    """Items 4 to 7 come on the way, in any order."""
    live = LiveRows(Catalog.build(table(rows)))
    known = {n: dict(row) for n, row in enumerate(rows)}
    for step in steps:
        if isinstance(step[0], int):
            item = min(step[0], len(known))
            row = ItemRow(f"i{item}", **step[1])
            assert item < len(known) or live.add(row) == item
            live.put(item, row)
            known[item] = step[1]
            continue
        oracle = Catalog.build(table(list(known.values()))).eligible(*step)
        expected = np.ones(len(known), dtype=np.bool_) if oracle is None else oracle
        mask = live.mask(*step)
        found = Catalog.build(table(rows)).eligible(*step) if mask is None else mask.items
        shown = np.ones(len(known), dtype=np.bool_) if found is None else found
        assert shown.tolist() == expected.tolist()
        assert mask is None or not mask.whole or mask.items.all()


def test_what_is_gone_is_in_no_mask_and_keeps_its_index() -> None:
    live = LiveRows(Catalog.build(table([{"category_path": ("a",)}] * 2)))
    assert live.mask(CatalogFilter(), 0) is None
    row = ItemRow("new", price_micros=3)
    assert live.add(row) == 2
    live.put(1, ItemRow("i1").after(Delete(item_id="i1", time=0)))
    live.put(2, row.after(Stock(item_id="new", time=0, stock=0)))
    mask = live.mask(CatalogFilter(), 0)
    assert mask is not None
    assert (mask.items.tolist(), mask.whole, len(live), live.changed) == ([True, False, False], True, 3, 2)
    assert live.lookup(["new", "i1", "nobody", "i0"]).tolist() == [2, 1, -1, 0]
    assert live.row(0) is None
    assert live.row(2) == ItemRow("new", price_micros=3, stock=0)


@given(asked=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8), at_hand=st.integers(0, 3))
def test_ids_are_found_whatever_was_asked_before(asked: list[list[int]], at_hand: int) -> None:
    """Items 4, 5, ... come, one behind every question."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live_rows, "_AT_HAND", at_hand)
        live = LiveRows(Catalog.build(table([NOTHING] * 4)))
        for numbers in asked:
            found = live.lookup([f"i{n}" for n in numbers])
            kept = live.found([f"i{n}" for n in numbers])
            assert found.dtype == kept.dtype == np.dtype(np.int32)
            assert kept.tolist() == [n for n in numbers if n < len(live)]
            assert found.tolist() == [n if n < len(live) else -1 for n in numbers]
            assert {"i0", "i1", "i2", "i3"} >= live._known.keys()
            live.add(ItemRow(f"i{len(live)}"))


def test_no_more_ids_are_kept_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rows, "_AT_HAND", 1)
    live = LiveRows(Catalog.build(table([NOTHING] * 4)))
    assert live.lookup(["i0", "i1"]).tolist() == [0, 1]
    assert live.lookup(["i2", "i0"]).tolist() == [2, 0]
    assert live._known == {"i2": 2}


def test_masks_take_no_more_memory_than_they_may() -> None:
    """Whatever the size of the catalogue: here it is that of two masks and a half."""
    rows = LiveRows(Catalog.build(table([NOTHING] * 4)), kept_bytes=10)
    rows.put(0, ItemRow("i0"))
    asked = [CatalogFilter(price_min_micros=n) for n in range(4)]
    first = [rows.mask(conditions, 0) for conditions in asked]
    again = [rows.mask(conditions, 0) for conditions in reversed(asked)]
    assert [one is other for one, other in zip(first, reversed(again), strict=True)] == [False, False, True, True]
