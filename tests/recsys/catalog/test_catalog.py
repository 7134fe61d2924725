from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import Catalog, CatalogFilter
from recsys.catalog.filters import MaskCache
from recsys.errors import CorruptionError
from recsys.records import ITEMS

ROWS: list[dict[str, Any]] = [
    {"item_id": "a", "category_path": ["Food"], "brand": "Ash", "price_micros": 1_000_000},
    {"item_id": "b", "category_path": ["Food", "Tea"], "brand": "Birch", "price_micros": 2_000_000},
    {"item_id": "c", "category_path": ["Food", "Tea", "Green"], "brand": "Ash", "available_until": 100},
    {"item_id": "d", "category_path": ["Foot"], "brand": "", "price_micros": 0, "available_from": 50},
    {"item_id": "e", "category_path": None, "brand": None, "price_micros": 5_000_000},
    {"item_id": "f", "category_path": ["Food", "T"], "price_micros": -1},
]


def catalog_of(rows: list[dict[str, Any]]) -> Catalog:
    return Catalog.build(pa.Table.from_pylist(rows, schema=ITEMS))


def shown(catalog: Catalog, mask: np.ndarray[Any, Any] | None) -> str:
    allowed = np.ones(len(catalog), dtype=bool) if mask is None else mask
    return "".join(catalog.index.ids(np.flatnonzero(allowed)))


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (CatalogFilter(), "abcdef"),
        (CatalogFilter(categories=(("Food",),)), "abcf"),
        (CatalogFilter(categories=(("Food", "Tea"),)), "bc"),
        (CatalogFilter(categories=(("Food", "Tea", "Green"), ("Foot",))), "cd"),
        (CatalogFilter(categories=(("Tea",),)), ""),
        (CatalogFilter(brands=("Ash",)), "ac"),
        (CatalogFilter(brands=("Ash", "Birch", "Nobody")), "abc"),
        (CatalogFilter(brands=("",)), ""),
        (CatalogFilter(price_min_micros=2_000_000), "be"),
        (CatalogFilter(price_max_micros=1_000_000), "adf"),
        (CatalogFilter(price_min_micros=0, price_max_micros=0), "d"),
        (CatalogFilter(categories=(("Food",),), brands=("Ash",), price_max_micros=3_000_000), "a"),
    ],
)
def test_filters(conditions: CatalogFilter, expected: str) -> None:
    catalog = catalog_of(ROWS)
    assert shown(catalog, catalog.matching(conditions)) == expected


def test_the_mask_of_a_filter_is_kept_and_read_only() -> None:
    catalog = catalog_of(ROWS)
    first = catalog.matching(CatalogFilter(brands=("Ash",)))
    assert first is not None
    assert catalog.matching(CatalogFilter(brands=("Ash",))) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = False


@pytest.mark.parametrize(
    ("now", "expected"), [(0, "abcef"), (49, "abcef"), (50, "abcdef"), (99, "abcdef"), (100, "abdef")]
)
def test_availability_follows_the_clock(now: int, expected: str) -> None:
    catalog = catalog_of(ROWS)
    assert shown(catalog, catalog.available(now)) == expected


times = st.none() | st.integers(-5, 5)


@given(st.lists(st.tuples(times, times), max_size=8), st.lists(st.integers(-7, 7), min_size=1, max_size=12))
def test_kept_availability_equals_a_fresh_one(spans: list[tuple[int | None, int | None]], clock: list[int]) -> None:
    rows = [{"item_id": f"{n}", "available_from": low, "available_until": high} for n, (low, high) in enumerate(spans)]
    catalog = catalog_of(rows)
    for now in clock:
        expected = [(low is None or low <= now) and (high is None or now < high) for low, high in spans]
        mask = catalog.available(now)
        assert (np.ones(len(rows), dtype=bool) if mask is None else mask).tolist() == expected


def test_eligible_is_both() -> None:
    catalog = catalog_of(ROWS)
    assert shown(catalog, catalog.eligible(CatalogFilter(brands=("Ash",)), 100)) == "a"
    assert shown(catalog, catalog.eligible(CatalogFilter(brands=("Ash",)), 60)) == "ac"
    assert shown(catalog, catalog.eligible(CatalogFilter(), 100)) == "abdef"
    assert catalog.eligible(CatalogFilter(), 60) is None


def test_the_same_question_gives_the_same_array_until_availability_changes() -> None:
    catalog = catalog_of(ROWS)
    ash = CatalogFilter(brands=("Ash",))
    before = catalog.eligible(ash, 100)
    assert catalog.eligible(ash, 101) is before
    assert catalog.eligible(ash, 20) is not before


def test_filters_larger_than_their_masks_count_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.catalog.catalog._CACHE_BYTES", 100_000)
    catalog = catalog_of(ROWS)
    first = CatalogFilter(brands=("Ash", "x" * 40_000))
    before = catalog.eligible(first, 100)
    assert catalog.eligible(first, 100) is before
    for number in range(3):
        catalog.eligible(CatalogFilter(brands=(f"{number}" * 40_000,)), 100)
    assert catalog.eligible(first, 100) is not before


def test_the_cache_of_masks_is_bounded() -> None:
    cache = MaskCache(10)
    cache.put("a", np.zeros(6, dtype=bool))
    cache.put("b", np.zeros(6, dtype=bool))
    cache.put("c", np.zeros(11, dtype=bool))
    assert (cache.get("a"), cache.get("c")) == (None, None)
    assert cache.get("b") is not None


paths = st.lists(st.sampled_from(["a", "b", "a\x01", "a b", "é"]), max_size=3)


@given(st.lists(paths, max_size=12), st.lists(st.sampled_from(["a", "b", "a\x01", "a b", "é"]), min_size=1, max_size=3))
def test_ranges_of_categories_equal_prefix_tests(catalog_paths: list[list[str]], asked: list[str]) -> None:
    rows = [{"item_id": f"{n:03d}", "category_path": path} for n, path in enumerate(catalog_paths)]
    mask = catalog_of(rows).matching(CatalogFilter(categories=(tuple(asked),)))
    assert mask is not None
    assert mask.tolist() == [path[: len(asked)] == asked for path in catalog_paths]


def test_open_gives_back_what_was_saved(tmp_path: Path) -> None:
    catalog = catalog_of(ROWS)
    catalog.save(tmp_path)
    opened = Catalog.open(tmp_path)
    assert opened.index.lookup(["a", "f", "g"]).tolist() == [0, 5, -1]
    assert opened.categories == catalog.categories
    assert shown(opened, opened.eligible(CatalogFilter(categories=(("Food",),)), 100)) == "abf"
    assert not opened.price_micros.flags.writeable


def test_an_empty_catalog_opens(tmp_path: Path) -> None:
    catalog_of([]).save(tmp_path)
    assert len(Catalog.open(tmp_path)) == 0


@pytest.mark.parametrize("name", ["brand.npy", "vocabulary.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    catalog_of(ROWS).save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CorruptionError, match=name):
        Catalog.open(tmp_path)
