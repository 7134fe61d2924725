"""The kernel against dense arithmetic, and tables that cannot be."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.decoding.neighbours import Neighbours
from recsys.errors import DataError, InputError

ITEMS = 12


def table_of(dense: np.ndarray) -> Neighbours:
    """The positive entries of (I, I)."""
    rows, columns = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return Neighbours(offsets.astype(np.int64), columns.astype(np.int32), dense[rows, columns].astype(np.float32))


def random_table(seed: int, density: float = 0.4) -> tuple[np.ndarray, Neighbours]:
    rng = np.random.default_rng(seed)
    dense = (rng.random((ITEMS, ITEMS)) * (rng.random((ITEMS, ITEMS)) < density)).astype(np.float32)
    np.fill_diagonal(dense, 0)
    return dense, table_of(dense)


def expected(dense: np.ndarray, history: list[int], items: list[int], decay: float, limit: int) -> np.ndarray:
    wide = np.pad(dense.astype(float), ((0, 0), (0, 3)))  # items beyond the catalogue have no neighbours
    rows = [decay**age * wide[item] for age, item in enumerate(history[::-1][:limit])]
    return np.asarray(np.sum([np.zeros(ITEMS + 3), *rows], axis=0)[items])


REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, ITEMS - 1), max_size=8), st.lists(st.integers(0, ITEMS + 2), max_size=15)),
    max_size=5,
)


@given(
    seed=st.integers(0, 50),
    requests=REQUESTS,
    decay=st.sampled_from([0.5, 0.8, 1.0]),
    limit=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_scores_equal_the_dense_sum(
    seed: int, requests: list[tuple[list[int], list[int]]], decay: float, limit: int, density: float
) -> None:
    dense, table = random_table(seed, density)
    table.check()
    found = table.scores(
        [np.array(history, np.int32) for history, _ in requests],
        [np.array(items, np.int32) for _, items in requests],
        decay=decay,
        max_history=limit,
    )
    assert len(found) == len(requests)
    for (history, items), scores in zip(requests, found, strict=True):
        np.testing.assert_allclose(scores, expected(dense, history, items, decay, limit), rtol=1e-12)


def test_a_request_takes_no_memory_for_the_catalogue() -> None:
    count = 1_000_000
    offsets = np.minimum(np.arange(count + 1, dtype=np.int64) * 2, 2_000)
    table = Neighbours(offsets, np.tile(np.array([5, 7], np.int32), 1_000), np.full(2_000, 0.5, np.float32))
    requests = [np.array([3, 999, 999_999])], [np.arange(100, dtype=np.int32)]
    first = table.scores(*requests, decay=0.5, max_history=50)[0]  # compiles
    tracemalloc.start()
    again = table.scores(*requests, decay=0.5, max_history=50)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first.tolist() == again.tolist()
    assert {item: again[item] for item in np.flatnonzero(again).tolist()} == {5: 0.375, 7: 0.375}
    assert peak < 50_000


@pytest.mark.parametrize("item", [-1, ITEMS])
def test_a_history_outside_the_table_is_refused(item: int) -> None:
    _, table = random_table(0)
    with pytest.raises(InputError, match=r"0\.\.11") as raised:
        table.scores([np.array([1, item, 2])], [np.array([3])], decay=0.5, max_history=5)
    assert (raised.value.field, raised.value.value) == ("histories", item)
    # what is older than the newest is not read
    assert len(table.scores([np.array([item, 2])], [np.array([3])], decay=0.5, max_history=1)[0]) == 1


def test_candidates_belong_to_histories() -> None:
    with pytest.raises(InputError, match="for each of 1 histories"):
        random_table(0)[1].scores([np.array([1])], [], decay=0.5, max_history=5)


def changed(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {
        "offsets": np.array([0, 2, 3, 3], np.int64),
        "items": np.array([1, 2, 0], np.int32),
        "similarity": np.array([0.5, 0.25, 0.5], np.float32),
    }
    return whole | arrays


def test_the_table_that_the_next_tests_spoil_is_whole() -> None:
    Neighbours(**changed()).check()


@pytest.mark.parametrize(
    ("arrays", "field"),
    [
        (changed(offsets=np.array([0, 2, 3, 3], np.int32)), "offsets"),
        (changed(offsets=np.array([], np.int64)), "offsets"),
        (changed(offsets=np.array([1, 2, 3, 3], np.int64)), "offsets"),
        (changed(offsets=np.array([0, 3, 2, 3], np.int64)), "offsets"),
        (changed(offsets=np.array([0, 2, 3, 4], np.int64)), "offsets"),
        (changed(items=np.array([[1, 2, 0]], np.int32)), "items"),
        (changed(similarity=np.array([0.5, 0.25], np.float32)), "similarity"),
        (changed(similarity=np.array([0.5, 0.25, 0.5])), "similarity"),
    ],
)
def test_arrays_that_do_not_fit_together(arrays: dict[str, np.ndarray], field: str) -> None:
    with pytest.raises(DataError) as raised:
        Neighbours(**arrays)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("arrays", "entry"),
    [
        (changed(items=np.array([2, 1, 0], np.int32)), "entry 1 of the neighbours, of item 0"),
        (changed(items=np.array([1, 1, 0], np.int32)), "entry 1 of the neighbours, of item 0"),
        (changed(items=np.array([1, 2, 3], np.int32)), "entry 2 of the neighbours, of item 1"),
        (changed(items=np.array([-1, 2, 0], np.int32)), "entry 0 of the neighbours, of item 0"),
        (changed(similarity=np.array([0.5, 0, 0.5], np.float32)), "entry 1 of the neighbours, of item 0"),
        (changed(similarity=np.array([0.5, 0.2, np.nan], np.float32)), "entry 2 of the neighbours, of item 1"),
        (changed(similarity=np.array([np.inf, 0.2, 0.5], np.float32)), "entry 0 of the neighbours, of item 0"),
    ],
)
def test_entries_that_may_not_be(arrays: dict[str, np.ndarray], entry: str) -> None:
    with pytest.raises(DataError, match=entry):
        Neighbours(**arrays).check()
