"""The last look, given slates that no stage should have made: everything that may not be shown is taken out."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalog import CatalogFilter
from recsys.catalog.live_rows import ItemRow
from recsys.records import ITEMS
from serving import recheck
from serving.engine import EngineRequest
from serving.layout import Layout
from serving.recheck import CheckedRow, Look, SlateCheck

NOW = 1_000
Rows = list[dict[str, Any]]


def row(number: int, **rest: Any) -> dict[str, Any]:
    return {"item_id": f"i{number}", "title": f"T{number}", "category_path": ["All", "A"], "brand": "b", **rest}


def table(rows: Rows) -> pa.Table:
    """The items table; what no row names is null throughout."""
    return pa.Table.from_pylist([{name: each.get(name) for name in ITEMS.names} for each in rows], schema=ITEMS)


def asking(**rest: Any) -> EngineRequest:
    return EngineRequest(**{"history": (), "n": 5, "time": NOW, **rest})


def shown(check: SlateCheck, request: EngineRequest, *indices: int) -> list[bool]:
    return [checked.eligible for checked in check.rows(request, indices)]


@pytest.mark.parametrize(
    ("asked", "second"),
    [
        ({"history": ["i1"]}, {}),
        ({"deny": ["i1"]}, {}),
        ({"shown": ["i1"]}, {}),
        ({"allow": ["i0", "i2"]}, {}),
        ({}, {"available_until": NOW}),
        ({}, {"available_from": NOW + 1}),
        ({"conditions": CatalogFilter(categories=(("All", "A"),))}, {"category_path": ["All", "B"]}),
        ({"conditions": CatalogFilter(categories=(("All", "A"),))}, {"category_path": None}),
        ({"conditions": CatalogFilter(brands=("b", "c"))}, {"brand": "d"}),
        ({"conditions": CatalogFilter(brands=("b",))}, {"brand": None}),
        ({"conditions": CatalogFilter(price_min_micros=5)}, {"price_micros": 4}),
        ({"conditions": CatalogFilter(price_max_micros=9)}, {"price_micros": 10}),
        ({"conditions": CatalogFilter(price_max_micros=9)}, {"price_micros": None}),
    ],
)
def test_one_item_that_may_not_be_shown_is_seen_among_others(asked: dict[str, Any], second: dict[str, Any]) -> None:
    rows = [row(0, price_micros=7), row(1, **{"price_micros": 7, **second}), row(2, price_micros=7)]
    assert shown(SlateCheck(table(rows)), asking(**asked), 0, 1, 2) == [True, False, True]


@pytest.mark.parametrize(
    ("layout", "second"),
    [
        (Layout(brand_cap=1), {"brand": "b", "category_path": None}),
        (Layout(category_cap=1), {"brand": None, "category_path": ["All", "A"]}),
        (Layout(category_cap=1, category_depth=1), {"brand": None, "category_path": ["All", "B"]}),
    ],
)
def test_one_item_too_many_of_a_kind_is_seen(layout: Layout, second: dict[str, Any]) -> None:
    rows = [row(0), row(1, **second), row(2, brand="c", category_path=["Other"])]
    assert shown(SlateCheck(table(rows)), asking(layout=layout), 0, 1, 2) == [True, False, True]


def test_an_index_that_is_no_items_is_taken_out() -> None:
    assert shown(SlateCheck(table([row(0)])), asking(), 0, 1) == [True, False]


def test_rows_that_were_read_before_are_judged_by_what_is_asked_now() -> None:
    check = SlateCheck(table([row(0), row(1, brand="d", price_micros=4), row(2, available_until=NOW + 1)]))
    assert shown(check, asking(), 0, 1, 2) == [True, True, True]
    assert shown(check, asking(time=NOW + 1), 0, 1, 2) == [True, True, False]
    assert shown(check, asking(conditions=CatalogFilter(brands=("b",))), 0, 1, 2) == [True, False, True]
    assert shown(check, asking(layout=Layout(brand_cap=1)), 0, 1, 2) == [True, True, False]
    assert shown(check, asking(), 0, 1, 2) == [True, True, True]


def test_more_rows_than_are_kept_are_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recheck, "_AT_HAND", 2)
    check = SlateCheck(table([row(number, available_until=(NOW, NOW + 1)[number % 2]) for number in range(6)]))
    slates = [[0, 1, 2], [2, 3], [5, 4, 3, 2], [0, 5]]
    assert [shown(check, asking(), *slate) for slate in slates] == [
        [False, True, False], [False, True], [True, False, True, False], [False, True],
    ]  # fmt: skip
    assert [len(rows) for rows in check._known.values()] == [2]


def test_what_fits_is_shown_with_its_title_in_the_order_of_the_slate() -> None:
    rows = [row(0), row(1, title=None), row(2, available_from=NOW, available_until=NOW + 1)]
    checked = SlateCheck(table(rows)).rows(asking(history=["i0"], exclude_seen=False), [2, 0, 1])
    assert checked == [CheckedRow("i2", "T2", True), CheckedRow("i0", "T0", True), CheckedRow("i1", None, True)]


def test_an_item_stands_in_a_slate_once() -> None:
    check = SlateCheck(table([row(0), row(1)]))
    assert shown(check, asking(), 0, 1, 0) == [True, True, False]
    look = Look(asking())
    assert [[each.eligible for each in check.rows(asking(), [item], look)] for item in (0, 1, 0)] == [
        [True],
        [True],
        [False],
    ]


def test_nothing_is_made_of_an_empty_slate() -> None:
    assert SlateCheck(table([row(0)])).rows(asking(), []) == []


@pytest.mark.parametrize(
    "change",
    [{"deleted": True}, {"stock": 0}, {"available_until": NOW}, {"available_from": NOW + 1}, {"brand": "other"}],
)
def test_a_changed_row_counts_in_the_place_of_the_tables(change: dict[str, Any]) -> None:
    changes = {0: ItemRow("i0", title="new", brand="b"), 1: ItemRow("i1", **{"brand": "b", **change})}
    check = SlateCheck(table([row(0, brand="before"), row(1)]), changes.get)
    request = asking(conditions=CatalogFilter(brands=("b",)))
    assert check.rows(request, [0, 1]) == [CheckedRow("i0", "new", True), CheckedRow("i1", None, False)]


def test_an_item_that_came_later_is_judged_by_its_row() -> None:
    check = SlateCheck(table([row(0)]), {1: ItemRow("new"), 2: ItemRow("gone", deleted=True)}.get)
    assert check.rows(asking(), [1, 0, 2]) == [
        CheckedRow("new", None, True), CheckedRow("i0", "T0", True), CheckedRow("gone", None, False),
    ]  # fmt: skip


def test_what_only_the_caps_keep_out_is_counted() -> None:
    check = SlateCheck(table([row(0), row(1), row(2, brand=None), row(3, available_until=1)]))
    request = asking(layout=Layout(brand_cap=1))
    look = Look(request)
    assert [each.eligible for each in check.rows(request, [0, 1, 2, 3], look)] == [True, False, True, False]
    assert look.passed_over == 1


times = st.none() | st.integers(NOW - 2, NOW + 2)
prices = st.none() | st.integers(0, 3)
drawn_rows = st.lists(
    st.fixed_dictionaries(
        {
            "available_from": times,
            "available_until": times,
            "price_micros": prices,
            "brand": st.sampled_from([None, "b", "c"]),
            "category_path": st.sampled_from([None, ["All"], ["All", "A"], ["B"]]),
        }
    ),
    min_size=1,
    max_size=8,
)
filters = st.builds(
    CatalogFilter,
    categories=st.sampled_from([(), (("All",),), (("All", "A"), ("B",))]),
    brands=st.sampled_from([(), ("b",), ("b", "c")]),
    price_min_micros=prices,
    price_max_micros=prices,
)


@given(drawn_rows, filters, st.data())
@settings(max_examples=300)
def test_every_value_is_compared_for_every_request(drawn: Rows, conditions: CatalogFilter, data: st.DataObject) -> None:
    rows = [row(number, **each) for number, each in enumerate(drawn)]
    slate = data.draw(st.permutations(range(len(rows))))
    low, high = conditions.price_min_micros, conditions.price_max_micros
    fits = [
        all(
            [
                each["available_from"] is None or each["available_from"] <= NOW,
                each["available_until"] is None or each["available_until"] > NOW,
                not conditions.brands or each["brand"] in conditions.brands,
                not conditions.categories
                or any((each["category_path"] or [])[: len(path)] == list(path) for path in conditions.categories),
                low is None or (each["price_micros"] is not None and each["price_micros"] >= low),
                high is None or (each["price_micros"] is not None and each["price_micros"] <= high),
            ]
        )
        for each in rows
    ]
    assert shown(SlateCheck(table(rows)), asking(conditions=conditions), *slate) == [fits[item] for item in slate]
