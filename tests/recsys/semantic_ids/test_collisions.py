from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.semantic_ids.collisions import place_new, settle
from recsys.semantic_ids.residual_kmeans import Codebooks
from recsys.semantic_ids.settings import Policy

POLICIES: tuple[Policy, ...] = ("reassign", "extra_digit", "buckets")


def crowded(seed: int, items: int) -> tuple[Codebooks, np.ndarray]:
    rng = np.random.default_rng(seed)
    books = Codebooks(tuple(rng.standard_normal((size, 2)).astype("f4") for size in (2, 4)))
    return books, rng.standard_normal((items, 2)).astype("f4")


def as_rows(codes: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in codes.tolist()]


@given(st.sampled_from(POLICIES), st.integers(0, 1000), st.integers(1, 40))
def test_a_policy_keeps_its_promise(policy: Policy, seed: int, items: int) -> None:
    books, vectors = crowded(seed, items)
    greedy, residuals = books.encode(vectors)
    codes, sizes = settle(policy, greedy, residuals, books)
    kept = {"reassign": 1, "extra_digit": 2, "buckets": 2}[policy]
    largest = max(Counter(as_rows(codes)).values())
    allowed = {
        "reassign": max(-(-number // 4) for number in Counter(as_rows(greedy[:, :1])).values()),
        "extra_digit": 1,
        "buckets": max(Counter(as_rows(greedy)).values()),
    }[policy]
    assert (codes[:, :kept] == greedy[:, :kept]).all()
    assert ((codes >= 0) & (codes < sizes)).all()
    assert largest <= allowed


def test_the_extra_digit_numbers_the_items_of_a_code_and_leaves_room() -> None:
    books = Codebooks((np.array([[0.0], [5.0]], "f4"),))
    greedy, residuals = books.encode(np.array([[0.1], [5.0], [0.2], [0.0]], "f4"))
    codes, sizes = settle("extra_digit", greedy, residuals, books)
    assert codes.tolist() == [[0, 0], [1, 0], [0, 1], [0, 2]]
    assert sizes == (2, 8)


@pytest.mark.parametrize(
    ("digits", "expected"), [(3, [[0, 1], [0, 2], [0, 0], [5, 0]]), (4, [[0, 1], [0, 2], [0, 3], [5, 0]])]
)
def test_later_items_get_digits_that_were_never_given(digits: int, expected: list[list[int]]) -> None:
    books = Codebooks((np.arange(6, dtype="f4")[:, None],))
    late = np.array([[0.0], [0.1], [0.2], [5.0]], "f4")
    given_before = np.array([[0, 0], [1, 0]], np.int32)
    assert place_new("extra_digit", late, books, given_before, (6, digits)).tolist() == expected


def test_later_items_join_buckets() -> None:
    books, vectors = crowded(0, 5)
    found = place_new("buckets", vectors, books, np.zeros((1, 2), np.int32), books.sizes)
    np.testing.assert_array_equal(found, books.encode(vectors)[0])


@given(st.integers(0, 1000), st.integers(1, 8))
def test_a_later_item_never_takes_a_code_while_one_is_free(seed: int, items: int) -> None:
    books, vectors = crowded(seed, 3)
    greedy, residuals = books.encode(vectors)
    for policy in ("reassign", "extra_digit"):
        codes, sizes = settle(policy, greedy, residuals, books)
        late = np.repeat(vectors[:1], items, axis=0)
        both = as_rows(np.concatenate([codes, place_new(policy, late, books, codes, sizes)]))
        prefix = both[0][:-1]
        last = [row[-1] for row in both if row[:-1] == prefix]
        assert len(set(last)) == min(len(last), sizes[-1])
