from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.fields import Field, Kind
from feature_store.joins import point_in_time_join
from feature_store.tables import table_schema
from feature_store.views import View
from recsys.errors import InputError

MICRO = timedelta(microseconds=1)
FIELDS = (Field("clicks", Kind.INT64, optional=True),)
USERS = View("users", "user", FIELDS, 1, "team", ttl=3 * MICRO, keep=6 * MICRO)
ITEMS = View("items", "item", FIELDS, 1, "team")
HISTORY = View("recent", "user", FIELDS, 1, "team", history=3)

Row = tuple[str, int, int, bool, int | None]
NAMES = ("entity_id", "event_time", "created_at", "deleted", "clicks")
TIMES = st.integers(0, 9)
ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), TIMES, TIMES, st.booleans(), st.none() | st.integers(0, 2)), max_size=9
)
LABELS = st.lists(st.tuples(st.none() | st.sampled_from("abcd"), st.sampled_from("ab"), TIMES), max_size=9)


def table(rows: list[Row], view: View = USERS) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(NAMES, row, strict=True)) for row in rows], schema=table_schema(view))


def labels(rows: list[tuple[str | None, str, int]]) -> pa.Table:
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("time", pa.int64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def naive(entity: str | None, time: int, rows: list[Row], view: View, *, inclusive: bool) -> tuple[Any, ...]:
    """Every row is looked at for every label. Of equal times a deletion stays, then None, then the greater number."""
    known = [
        (event, created, deleted, not deleted and clicks is None, -1 if deleted or clicks is None else clicks)
        for name, event, created, deleted, clicks in rows
        if name == entity
        and (event <= time if inclusive else event < time)
        and (created <= time if inclusive else created < time)
    ]
    if not known:
        return (None, None, "MISSING")
    event, _, deleted, empty, clicks = max(known)
    age = time - event
    if view.keep is not None and age * MICRO >= view.keep:
        return (None, None, "MISSING")
    if deleted:
        return (None, event, "MISSING")
    stale = view.ttl is not None and age * MICRO > view.ttl
    return (None if empty else clicks, event, "STALE" if stale else "PRESENT")


def joined(view: View, found: pa.Table) -> list[tuple[Any, ...]]:
    columns = [found[f"{view.name}__{name}"].to_pylist() for name in ("clicks", "event_time", "status")]
    return list(zip(*columns, strict=True))


@settings(max_examples=400)
@given(users=ROWS, items=ROWS, wanted=LABELS, inclusive=st.booleans())
def test_the_join_equals_a_naive_one(
    users: list[Row], items: list[Row], wanted: list[tuple[str | None, str, int]], inclusive: bool
) -> None:
    found = point_in_time_join(
        labels(wanted), [(USERS, table(users)), (ITEMS, table(items, ITEMS))], inclusive=inclusive
    )
    assert found.select(["user_id", "item_id", "time"]).equals(labels(wanted))
    assert joined(USERS, found) == [naive(user, time, users, USERS, inclusive=inclusive) for user, _, time in wanted]
    assert joined(ITEMS, found) == [naive(item, time, items, ITEMS, inclusive=inclusive) for _, item, time in wanted]


@given(times=st.lists(TIMES, min_size=1, max_size=8))
def test_the_labelled_event_itself_never_joins(times: list[int]) -> None:
    """Every event is a label and a row that counts it; the row was written in the same microsecond."""
    rows: list[Row] = [("a", time, time, False, sum(other <= time for other in times)) for time in times]
    wanted: list[tuple[str | None, str, int]] = [("a", "a", time) for time in times]
    strict = joined(ITEMS, point_in_time_join(labels(wanted), [(ITEMS, table(rows, ITEMS))]))
    leaking = joined(ITEMS, point_in_time_join(labels(wanted), [(ITEMS, table(rows, ITEMS))], inclusive=True))
    assert [clicks or 0 for clicks, _, _ in strict] == [sum(other < time for other in times) for time in times]
    assert [clicks for clicks, _, _ in leaking] == [sum(other <= time for other in times) for time in times]


def test_a_row_filled_in_later_is_not_known_before_it_was_written() -> None:
    rows: list[Row] = [("a", 1, 1, False, 1), ("a", 3, 8, False, 2)]
    wanted: list[tuple[str | None, str, int]] = [("a", "a", time) for time in (5, 8, 9)]
    assert joined(ITEMS, point_in_time_join(labels(wanted), [(ITEMS, table(rows, ITEMS))])) == [
        (1, 1, "PRESENT"), (1, 1, "PRESENT"), (2, 3, "PRESENT"),
    ]  # fmt: skip


def test_values_of_every_kind_are_joined_and_other_columns_stay() -> None:
    fields = (Field("texts", Kind.STRING_LIST, 2), Field("vector", Kind.FLOAT16_VECTOR, 2), Field("truth", Kind.BOOL))
    view = View("kinds", "user", fields, 1, "team")
    row = {"entity_id": "a", "event_time": 1, "created_at": 1, "texts": ["x"], "vector": [0.5, 1], "truth": True}
    rows = pa.Table.from_pylist([row, row | {"texts": ["y"]}])
    wanted = pa.table({"user": ["a", "b"], "time": [5, 5], "clicked": [True, False]})
    found = point_in_time_join(wanted, [(view, rows)], entities={"user": "user"}).to_pylist()
    assert found[0] == {
        "user": "a", "time": 5, "clicked": True, "kinds__texts": ["y"], "kinds__vector": [0.5, 1.0],
        "kinds__truth": True, "kinds__event_time": 1, "kinds__status": "PRESENT",
    }  # fmt: skip
    assert found[1]["kinds__status"] == "MISSING"
    assert found[1]["kinds__texts"] is None


GOOD = table([("a", 1, 1, False, 1)])


@pytest.mark.parametrize(
    ("wanted", "features", "named"),
    [
        (pa.table({"user_id": ["a"]}), [(USERS, GOOD)], "time_column"),
        (pa.table({"user_id": ["a"], "time": ["1"]}), [(USERS, GOOD)], "time"),
        (pa.table({"user_id": ["a"], "time": pa.array([None], pa.int64())}), [(USERS, GOOD)], "time"),
        (pa.table({"person": ["a"], "time": [1]}), [(USERS, GOOD)], "entities"),
        (labels([]), [(HISTORY, GOOD)], "view"),
        (labels([]), [(USERS, GOOD), (USERS, GOOD)], "view"),
        (labels([]), [(USERS, GOOD.drop(["created_at"]))], "created_at"),
        (labels([]), [(USERS, pa.concat_tables([GOOD, pa.table({"entity_id": ["b"]})], promote_options="default"))],
         "event_time"),
        (labels([]), [(USERS, pa.table({**{name: GOOD[name] for name in NAMES}, "clicks": ["x"]}))], "clicks"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_named(wanted: pa.Table, features: list[tuple[View, pa.Table]], named: str) -> None:
    with pytest.raises(InputError, match=rf"\[{named} = "):
        point_in_time_join(wanted, features)
