from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import Catalog
from recsys.catalog.live_rows import ItemRow, LiveRows
from recsys.records import ITEMS

names = st.sampled_from(["A", "B", "C", "AB"])
paths = st.lists(names, max_size=4).map(tuple)
brands = st.none() | st.sampled_from(["", "Acme", "Zeta", "Nova"])
rows = st.tuples(brands, paths)


def catalog_of(given_rows: list[tuple[str | None, tuple[str, ...]]]) -> Catalog:
    table = [
        {"item_id": f"i{number}", "brand": brand, "category_path": list(path)}
        for number, (brand, path) in enumerate(given_rows)
    ]
    return Catalog.build(pa.Table.from_pylist(table, schema=ITEMS))


@given(
    snapshot=st.lists(rows, min_size=1, max_size=9),
    changes=st.lists(st.tuples(st.integers(0, 14), rows), max_size=12),
    asked=st.booleans(),
    depth=st.none() | st.integers(1, 5),
)
def test_equal_numbers_are_equal_names(
    snapshot: list[tuple[str | None, tuple[str, ...]]],
    changes: list[tuple[int, tuple[str | None, tuple[str, ...]]]],
    *,
    asked: bool,
    depth: int | None,
) -> None:
    live, current = LiveRows(catalog_of(snapshot)), list(snapshot)
    for item, (brand, path) in changes:
        place = min(item, len(current))  # behind the last one: a new item
        current[place : place + 1] = [(brand, path)]
        row = ItemRow(f"i{place}", brand=brand, category_path=path)
        (live.put(place, row) if place < len(live) else live.add(row))
        for cut in range(1, 6 * asked):  # what is kept between changes must not be out of date
            live.labels.category(np.arange(len(current)), cut)
    items = np.arange(len(current))
    wanted: list[list[Any]] = [[brand or None for brand, _ in current], [path[:depth] or None for _, path in current]]
    found = [live.labels.brand(items).tolist(), live.labels.category(items, depth).tolist()]
    for expected, numbers in zip(wanted, found, strict=True):
        assert [number == -1 for number in numbers] == [name is None for name in expected]
        pairs = [(one, other) for one in range(len(items)) for other in range(len(items))]
        assert [numbers[one] == numbers[other] for one, other in pairs] == [
            expected[one] == expected[other] for one, other in pairs
        ]
    assert live.labels.deepest >= max(len(path) for _, path in current)


def test_the_snapshots_arrays_stay_as_they_are() -> None:
    catalog = catalog_of([("Acme", ("A", "B")), (None, ())])
    live = LiveRows(catalog)
    assert live.labels.brand(np.array([0, 1])).tolist() == [0, -1]
    live.put(0, ItemRow("i0", brand="Zeta", category_path=("C",)))
    assert (catalog.brand.tolist(), catalog.category.tolist()) == ([0, -1], [1, -1])
    assert live.labels.brand(np.array([0, 1])).tolist() == [1, -1]
