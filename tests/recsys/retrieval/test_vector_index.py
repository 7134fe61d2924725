"""Every kind of index against brute force: what may not be shown is never answered, what must be answered is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from recsys.errors import InputError
from recsys.retrieval.kinds import largest_divisor
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import VectorIndex, build_index

WIDTH = 6
KINDS = ("flat", "hnsw", "ivf_pq")
# exact_rows = 0: the faiss index is asked wherever it could be
SEARCHING = {"exact_rows": 0, "exact_share": 0.0, "hnsw_links": 4, "hnsw_build": 16, "hnsw_search": 8, "ivf_probes": 2}
Vectors = npt.NDArray[np.float32]


def whole_numbers(seed: int, count: int) -> Vectors:
    """(count, WIDTH) small whole numbers: inner products have no rounding, and ties."""
    return np.random.default_rng(seed).integers(-3, 4, (count, WIDTH)).astype(np.float32)


def best_scores(vectors: Vectors, rows: list[int], query: Vectors, k: int) -> list[float]:
    return sorted((vectors[rows] @ query).tolist(), reverse=True)[:k]


def check_answer(index: VectorIndex, vectors: Vectors, may: list[int], query: Vectors, k: int, mask: Any) -> None:
    """Against brute force over the rows that may be shown."""
    found = index.search(query, k, mask)
    assert len(set(found.rows.tolist())) == len(found.rows) == min(k, len(may)), "never fewer than there are"
    assert set(found.rows.tolist()) <= set(may), "nothing that may not be shown"
    assert found.scores.tolist() == (vectors[found.rows] @ query).tolist(), "true scores"
    assert found.rows.tolist() == sorted(found.rows.tolist(), key=lambda row: (-float(vectors[row] @ query), row))
    exact = best_scores(vectors, may, query, k) if found.exact else found.scores.tolist()
    assert found.scores.tolist() == exact


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    count=st.integers(1, 120),
    k=st.integers(1, 130),
    hidden=st.floats(0, 1),
    known=st.integers(0, 130),
    rest=st.fixed_dictionaries({"exact_rows": st.sampled_from([0, 20]), "exact_share": st.sampled_from([0.0, 0.3])}),
)
def test_every_kind_against_brute_force(
    kind: str, seed: int, count: int, k: int, hidden: float, known: int, rest: dict[str, Any]
) -> None:
    vectors, rng = whole_numbers(seed, count), np.random.default_rng(seed + 1)
    index = build_index(vectors, IndexSettings(kind=kind, **(SEARCHING | rest)), cosine=False)
    query = whole_numbers(seed + 2, 1)[0]
    mask = rng.random(known) >= hidden
    may = np.flatnonzero(mask[:count]).tolist()
    check_answer(index, vectors, may, query, k, mask)
    check_answer(index, vectors, list(range(count)), query, k, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shown", [1, 7, 100])
def test_many_hidden_items_cost_no_answer(kind: str, shown: int) -> None:
    """The near ones are all hidden: a search that filtered behind itself would find nothing."""
    vectors = whole_numbers(1, 3_000)
    query = whole_numbers(2, 1)[0]
    farthest = np.argsort(vectors @ query, kind="stable")[:shown]
    mask = np.zeros(3_000, dtype=bool)
    mask[farthest] = True
    index = build_index(vectors, IndexSettings(kind=kind, **SEARCHING), cosine=False)
    found = index.search(query, 10, mask)
    assert len(found.rows) == min(10, shown)
    assert mask[found.rows].all()


def test_few_eligible_items_are_searched_exactly() -> None:
    vectors = whole_numbers(3, 2_000)
    query = whole_numbers(4, 1)[0]
    mask = np.random.default_rng(5).random(2_000) < 0.02
    for kind in ("hnsw", "ivf_pq"):
        index = build_index(vectors, IndexSettings(kind=kind, exact_rows=0, exact_share=0.03), cosine=False)
        found = index.search(query, 10, mask)
        assert found.exact
        assert found.scores.tolist() == best_scores(vectors, np.flatnonzero(mask).tolist(), query, 10)
        assert not index.search(query, 10).exact


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.95), ("ivf_pq", 0.8)])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_recall_with_and_without_hidden_items(kind: str, least: float, share: float) -> None:
    rng = np.random.default_rng(6)
    centres = rng.standard_normal((30, 32))
    vectors = (centres[rng.integers(30, size=4_000)] + 0.5 * rng.standard_normal((4_000, 32))).astype(np.float32)
    mask = rng.random(4_000) < share
    exact = build_index(vectors, IndexSettings(kind="flat"))
    index = build_index(vectors, IndexSettings(kind=kind, exact_rows=0))
    pairs = [(exact.search(query, 20, mask), index.search(query, 20, mask)) for query in vectors[:50]]
    assert np.mean([np.isin(true.rows, found.rows).mean() for true, found in pairs]) >= least


def test_cosine_ignores_lengths_and_items_without_a_vector() -> None:
    vectors = np.array([[2, 0], [0, 0], [0, 1e-30], [3e30, 3e30]], dtype=np.float32)
    index = build_index(vectors, IndexSettings())
    found = index.search(np.array([1e-20, 0]), 10)
    assert found.rows.tolist() == [0, 3, 2]
    np.testing.assert_allclose(found.scores, [1, np.sqrt(0.5), 0], atol=1e-6)
    assert (len(index), index.vector(1)) == (3, None)
    assert index.search(np.array([1, 0]), 10, np.array([False, True, True, True])).rows.tolist() == [3, 2]


def test_an_index_without_any_vector_answers_nothing_and_takes_some() -> None:
    index = build_index(np.zeros((5, 2)), IndexSettings())
    assert len(index.search(np.ones(2), 3).rows) == 0
    index.put(np.array([4]), np.ones((1, 2)))
    assert index.search(np.ones(2), 3).rows.tolist() == [4]


def test_a_graph_on_one_thread_is_the_same_twice() -> None:
    vectors = whole_numbers(8, 500)
    one, two = (build_index(vectors, IndexSettings(kind="hnsw", **SEARCHING)) for _ in range(2))
    queries = vectors[vectors.any(axis=1)][:20]
    assert [one.search(q, 5).rows.tolist() for q in queries] == [two.search(q, 5).rows.tolist() for q in queries]


@pytest.mark.parametrize(
    ("vectors", "field"),
    [
        ([[1, np.nan]], "vectors[0]"),
        ([[1, 2], [np.inf, 1]], "vectors[1]"),
        ([[1e39, 1]], "vectors[0]"),
        ([[1, 2, 3]], "vectors.dimension"),
        ([1, 2], "vectors"),
        ([["a", "b"]], "vectors"),
        ([[1, 1], [0, 0]], "vectors[1]"),
    ],
)
def test_bad_vectors_are_named_and_change_nothing(vectors: Any, field: str) -> None:
    index = build_index(np.eye(2), IndexSettings())
    with pytest.raises(InputError) as raised:
        index.put(np.arange(2, 2 + len(vectors)), np.array(vectors))
    assert raised.value.field == field
    assert len(index) == 2


@pytest.mark.parametrize("query", [[np.nan, 1], [np.inf, 1], [1, 2, 3], [0, 0]])
def test_bad_queries_are_named(query: list[float]) -> None:
    with pytest.raises(InputError, match=r"query"):
        build_index(np.eye(2), IndexSettings()).search(np.array(query), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_that_was_handed_out_outlives_a_rebuild(kind: str) -> None:
    """faiss owns the memory of a built segment; a view of it would be read after it was freed."""
    vectors = whole_numbers(7, 200)
    index = build_index(vectors, IndexSettings(kind=kind, **SEARCHING), cosine=False)
    held = index.vector(3)
    assert held is not None
    assert not np.shares_memory(held, index.state.built.vectors)
    index.put(np.array([3]), np.zeros((1, WIDTH)))
    index.rebuild()
    assert held.tolist() == vectors[3].tolist()


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_rows_are_found_wherever_they_stand(kind: str) -> None:
    """Gaps between rows, before the first and behind the last, with and without tombstones."""
    rows = np.array([2, 3, 5, 9])
    index = build_index(whole_numbers(3, 4) + 10, IndexSettings(kind=kind), rows=rows)
    asked = np.array([0, 2, 4, 5, 9, 10])
    assert index.state.holds(asked).tolist() == [False, True, False, True, True, False]
    index.remove(np.array([9, 2]))
    index.put(np.array([4]), np.ones((1, WIDTH)))
    assert index.state.holds(asked).tolist() == [False, False, True, True, False, False]
    empty = build_index(np.zeros((3, WIDTH)), IndexSettings(kind=kind))
    assert not empty.state.holds(asked).any()
    with pytest.raises(InputError, match="not in the index"):
        empty.remove(np.array([0]))


def test_bad_rows_and_counts_are_named() -> None:
    with pytest.raises(InputError, match="index of an item"):
        build_index(whole_numbers(1, 3), IndexSettings(), cosine=False).put(np.array([1.5]), np.ones((1, WIDTH)))
    index = build_index(np.eye(3), IndexSettings())
    with pytest.raises(InputError, match="stands twice"):
        index.put(np.array([7, 7]), np.ones((2, 3)))
    with pytest.raises(InputError, match="one row each"):
        index.put(np.array([7]), np.ones((2, 3)))
    with pytest.raises(InputError, match="index of an item"):
        index.put(np.array([-1]), np.ones((1, 3)))
    with pytest.raises(InputError, match=r"not in the index.*= 9"):
        index.remove(np.array([0, 9]))
    with pytest.raises(InputError, match="at least one"):
        index.search(np.ones(3), 0)
    assert sorted(index.search(np.ones(3), 9).rows.tolist()) == [0, 1, 2]
    index.remove(np.array([1]))
    with pytest.raises(InputError, match="not in the index"):
        index.remove(np.array([1]))


class Changes(RuleBasedStateMachine):
    """Any order of putting in, replacing, taking out and rebuilding, beside a dictionary."""

    @initialize(kind=st.sampled_from(KINDS), seed=st.integers(0, 1_000), count=st.integers(0, 40))
    def begin(self, kind: Any, seed: int, count: int) -> None:
        self.rng = np.random.default_rng(seed)
        vectors = whole_numbers(seed, count)
        self.index = build_index(vectors, IndexSettings(kind=kind, **SEARCHING), cosine=False)
        self.model = dict(enumerate(vectors))

    @rule(rows=st.sets(st.integers(0, 60), min_size=1, max_size=8))
    def put(self, rows: set[int]) -> None:
        vectors = whole_numbers(int(self.rng.integers(1_000)), len(rows))
        self.index.put(np.array(list(rows)), vectors)
        self.model.update(zip(rows, vectors, strict=True))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from([-1, *self.model]), max_size=8)) - {-1}
        self.index.remove(np.array(list(gone), dtype=np.int64))
        self.model = {row: vector for row, vector in self.model.items() if row not in gone}

    @rule()
    def rebuild(self) -> None:
        self.index.rebuild()
        assert len(self.index.state.rows) == 0
        assert self.index.state.dead is None

    @rule(rows=st.sets(st.integers(0, 60), min_size=1, max_size=5), data=st.data())
    def change_while_it_is_rebuilt(self, rows: set[int], data: st.DataObject) -> None:
        """`progress` is called between the snapshot and the swap."""
        self.index.rebuild(progress=lambda _: (self.put(rows), self.remove(data))[0])

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        table = np.zeros((61, WIDTH), dtype=np.float32)
        for row, vector in self.model.items():
            table[row] = vector
        assert len(self.index) == len(self.model)
        query = whole_numbers(int(self.rng.integers(1_000)), 1)[0]
        mask = self.rng.random(61) < self.rng.random()
        may = [row for row in self.model if mask[row]]
        check_answer(self.index, table, may, query, 5, mask)
        check_answer(self.index, table, list(self.model), query, 80, None)


def test_any_order_of_changes() -> None:
    run_state_machine_as_test(Changes, settings=settings(max_examples=25, stateful_step_count=12))


def test_searches_and_changes_while_it_is_rebuilt_in_the_background() -> None:
    vectors = whole_numbers(11, 3_000)
    index = build_index(vectors, IndexSettings(kind="hnsw", **SEARCHING), cosine=False)
    done = threading.Event()
    missed: list[int] = []

    def look() -> None:
        while not done.is_set():
            missed.append(10 - len(index.search(vectors[0], 10).rows))

    reader = threading.Thread(target=look)
    reader.start()
    futures = []
    for turn in range(5):
        index.put(np.arange(3_000 + turn, 3_010 + turn), vectors[:10])
        futures.append(index.rebuild_in_background())
        index.remove(np.array([turn, 3_000 + turn]))
    for future in futures:
        future.result(60)
    done.set()
    reader.join()
    assert missed
    assert not any(missed)
    index.rebuild()
    gone = [*range(5), *range(3_000, 3_005)]
    assert set(index.search(vectors[0], 4_000).rows.tolist()) == set(range(3_014)) - set(gone)


def test_a_rebuild_that_fails_says_so_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(np.eye(3), IndexSettings())
    index.put(np.array([5]), np.ones((1, 3)))

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("recsys.retrieval.vector_index.build", fail)
    with pytest.raises(MemoryError):
        index.rebuild_in_background().result(10)
    assert sorted(index.search(np.ones(3), 9).rows.tolist()) == [0, 1, 2, 5]


def test_a_crowded_index_asks_for_a_rebuild() -> None:
    index = build_index(np.eye(3), IndexSettings(fresh_most=1))
    crowded = [index.crowded]
    index.put(np.array([7, 8]), np.eye(3)[:2])
    crowded.append(index.crowded)
    index.rebuild()
    crowded.append(index.crowded)
    index.remove(np.array([0, 1, 2]))
    crowded.append(index.crowded)
    assert crowded == [False, True, False, True]


@given(number=st.integers(1, 400), most=st.integers(1, 400))
def test_parts_of_a_quantised_vector_are_of_one_width(number: int, most: int) -> None:
    found = largest_divisor(number, most)
    assert number % found == 0
    assert found == max(d for d in range(1, min(number, most) + 1) if number % d == 0)
