"""The fast way of every converter says what the careful way says."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.datasets.importing.times import guess_form, time_converter
from recsys.datasets.importing.values import (
    Converter,
    action,
    attribute,
    categorical,
    integer,
    money,
    string_list,
    string_map,
    text,
)
from recsys.errors import InputError

NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.integers(-(10**12), 10**12).map(str),
    st.decimals(-(10**10), 10**10, places=3).map(str),
    st.text("0123456789-+.eExX_ ", max_size=8),
)
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 - drawn without a zone
WRITTEN_TIMES = st.one_of(
    MOMENTS.map(str), MOMENTS.map(datetime.isoformat), st.dates().map(str), st.text("0123456789-:T Z.+", max_size=20)
)
DAYS = st.one_of(
    st.dates(date(1000, 1, 1)).map(lambda day: day.strftime("%d/%m/%Y")), st.just("31/02/2021"), st.just("1/2/2021")
)
CASES: list[tuple[Converter, st.SearchStrategy[str]]] = [
    (text(), st.text(max_size=5)),
    (integer(pa.int32()), NUMBERS),
    (integer(pa.int64()), NUMBERS),
    (money(1_000_000), NUMBERS),
    (money(10_000), NUMBERS),
    (money(1), NUMBERS),
    (action({"Buy now": "purchase"}), st.sampled_from(["click", "Buy now", "VIEW", "add-to-cart", "1st", ""])),
    (attribute(), st.text(max_size=5)),
    (time_converter("s"), NUMBERS),
    (time_converter("ms"), NUMBERS),
    (time_converter("us"), NUMBERS),
    (time_converter("iso8601"), WRITTEN_TIMES),
    (time_converter("%d/%m/%Y"), DAYS),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@given(data=st.data())
def test_the_fast_way_agrees_with_the_careful_way(case: int, data: st.DataObject) -> None:
    converter, values = CASES[case]
    column = data.draw(st.lists(st.none() | values, max_size=4))
    careful = Converter(converter.type, converter.one)
    expected, expected_bad = careful.convert(column)
    found, bad = converter.convert(pa.array(column, pa.string()))
    assert found.to_pylist() == expected.to_pylist()
    assert {row: str(error) for row, error in bad.items()} == {row: str(error) for row, error in expected_bad.items()}


@pytest.mark.parametrize(
    ("converter", "value", "expected"),
    [
        (text(), 17, "17"),
        (text(), 17.0, "17"),
        (text(), b"caf\xc3\xa9", "café"),
        (integer(pa.int32()), 3.0, 3),
        (money(1_000_000), "19.99", 19_990_000),
        (money(1_000_000), 19.99, 19_990_000),
        (money(10_000), "1999", 19_990_000),
        (money(1), Decimal(7), 7),
        (string_list(">"), " A > B>", ["A", "B"]),
        (string_list(">"), ["A", None, ""], ["A"]),
        (string_map(), {"a": 1, "b": None, "c": [True]}, [("a", "1"), ("c", "[true]")]),
        (string_map(), '{"a": "x"}', [("a", "x")]),
        (action({"Buy": "purchase"}), "Buy", "purchase"),
        (action({}), "Add to cart", "add_to_cart"),
        (attribute(), {"k": 1}, '{"k":1}'),
        (attribute(), True, "true"),
        (time_converter("s"), "1.5", 1_500_000),
        (time_converter("s"), -1, -1_000_000),
        (time_converter("ms"), 1_650_812_741_436, 1_650_812_741_436_000),
        (time_converter("iso8601"), "1970-01-02T01:00:00+01:00", 86_400_000_000),
        (time_converter("%Y-%m-%d %z"), "1970-01-02 +0000", 86_400_000_000),
        (time_converter("s"), date(1970, 1, 2), 86_400_000_000),
        (time_converter("us"), datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
    ],
)
def test_values_become(converter: Converter, value: Any, expected: Any) -> None:
    found, bad = converter.convert([value])
    assert (found.to_pylist(), bad) == ([expected], {})


@pytest.mark.parametrize(
    ("converter", "value", "reason"),
    [
        (text(), True, "wrong_type"),
        (text(), 1.5, "wrong_type"),
        (text(), ["a"], "wrong_type"),
        (text(), b"\xff", "bad_encoding"),
        (text(), "\udcff", "bad_encoding"),
        (integer(pa.int32()), 2**31, "wrong_type"),
        (integer(pa.int64()), "0x1F", "wrong_type"),
        (money(1_000_000), "1,234.50", "wrong_type"),
        (money(1_000_000), math.nan, "wrong_type"),
        (money(1_000_000), "1e30", "wrong_type"),
        (string_map(), "x", "wrong_type"),
        (string_map(), 3, "wrong_type"),
        (action({}), "42", "wrong_type"),
        (time_converter("s"), "yesterday", "bad_time"),
        (time_converter("s"), 1_650_812_741_436, "bad_time"),
        (time_converter("s"), math.inf, "bad_time"),
        (time_converter("iso8601"), "2026-13-01", "bad_time"),
        (time_converter("iso8601"), 5, "bad_time"),
        (time_converter("%d/%m/%Y"), "31/02/2021", "bad_time"),
    ],
)
def test_values_refused(converter: Converter, value: Any, reason: str) -> None:
    found, bad = converter.convert([None, value])
    assert found.to_pylist() == [None, None]
    assert bad[1].reason == reason


@pytest.mark.parametrize(
    "array",
    [
        pa.array([datetime(1970, 1, 2, tzinfo=UTC)], pa.timestamp("ns", "UTC")),
        pa.array([datetime(1970, 1, 2)], pa.timestamp("s")),  # noqa: DTZ001 - a column without a zone
        pa.array([date(1970, 1, 2)], pa.date32()),
        pa.array([86_400], pa.int32()),
        pa.array(["86400"], pa.large_string()),
        pa.array(["86400"]).dictionary_encode(),
        pa.array([86_400.0]),
    ],
)
def test_stored_times_are_understood(array: pa.Array) -> None:
    assert time_converter("s").convert(array)[0].to_pylist() == [86_400_000_000]


def test_a_nanosecond_time_is_cut_to_microseconds() -> None:
    column = pa.array([-1, 1_999], pa.timestamp("ns"))
    assert time_converter("s").convert(column)[0].to_pylist() == [-1, 1]


def test_a_category_is_converted_once() -> None:
    seen: list[str] = []
    categorical(lambda value: seen.append(value) or value).convert(pa.array(["a", "b", "a", None]))  # type: ignore[func-returns-value]
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["", None, "1318896000"], "s"),
        ([1_650_812_741_436], "ms"),
        ([1_650_812_741_436_000], "us"),
        (["2020-01-01"], "iso8601"),
        (["n/a", "1318896000"], "s"),
        ([], "iso8601"),
    ],
)
def test_the_form_of_times_is_guessed_from_the_first_time(values: list[Any], form: str) -> None:
    assert guess_form(values) == form


def test_an_unknown_form_of_time_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"iso8601.*strptime"):
        time_converter("seconds")
