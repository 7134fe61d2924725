from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import ItemIndex
from recsys.errors import DataError

identifiers = st.text(min_size=1, max_size=12).filter(lambda text: "\0" not in text and text.isprintable())


@given(st.sets(identifiers, max_size=30), st.lists(st.text(max_size=20), max_size=30))
def test_lookup_equals_a_dictionary(known: set[str], asked: list[str]) -> None:
    ids = sorted(known, key=str.encode)
    index = ItemIndex.build(ids)
    oracle = {item: place for place, item in enumerate(ids)}
    wanted = asked + ids
    assert index.lookup(wanted).tolist() == [oracle.get(item, -1) for item in wanted]


@given(st.sets(identifiers, min_size=1, max_size=30))
def test_ids_invert_lookup(known: set[str]) -> None:
    ids = sorted(known, key=str.encode)
    index = ItemIndex.build(ids)
    assert index.ids(np.arange(len(ids))) == ids
    assert index.lookup(index.ids(np.arange(len(ids))[::-1])).tolist() == list(range(len(ids)))[::-1]


@pytest.mark.parametrize(
    "stranger",
    ["", "a\0", "ab\0\0", "abc", "abcd" * 100, "\0a", "ä", "\ud800", "A"],
    ids=["empty", "nul", "nuls", "longer", "very long", "leading nul", "umlaut", "surrogate", "case"],
)
def test_strangers_are_unknown(stranger: str) -> None:
    assert ItemIndex.build(["a", "ab"]).lookup(["a", stranger, "ab"]).tolist() == [0, -1, 1]


def test_empty_catalog_and_empty_question() -> None:
    assert ItemIndex.build([]).lookup(["a"]).tolist() == [-1]
    assert ItemIndex.build(["a"]).lookup([]).tolist() == []
    assert ItemIndex.build([]).ids(np.array([], dtype=np.int64)) == []


@pytest.mark.parametrize(
    "ids",
    [["b", "a"], ["a", "a"], [""], ["a\0"], ["a" * 257]],
    ids=["order", "twice", "empty", "nul", "long"],
)
def test_bad_ids_are_named(ids: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        ItemIndex.build(ids)
    assert raised.value.field == "item_id"
    assert raised.value.remedy


def test_order_is_the_order_of_bytes() -> None:
    ids = sorted(["z", "ä", "a", "é", "\U0001f600", "\uffff"], key=str.encode)
    assert ItemIndex.build(ids).lookup(ids).tolist() == list(range(6))


def test_a_thousand_ids_take_far_less_than_a_request() -> None:
    ids = [f"item-{number:08d}" for number in range(100_000)]
    index = ItemIndex.build(ids)
    asked = ids[::100]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        index.lookup(asked)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02
