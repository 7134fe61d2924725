from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.semantic_ids.collisions import assign_new, reassign_last_level
from recsys.semantic_ids.fusion import fuse
from recsys.semantic_ids.residual_kmeans import Codebooks, choose_codebook_sizes, fit_residual_kmeans


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize(
    ("items", "size"),
    [(1, 32), (256, 32), (257, 64), (12_101, 256), (10**5, 1024), (10**6, 2048), (10**7, 8192), (10**8, 8192)],
)
def test_codebook_sizes_follow_the_documented_rule(items: int, size: int) -> None:
    assert choose_codebook_sizes(items) == (size, size, size)


def test_every_item_gets_its_own_semantic_id() -> None:
    vectors = unit_vectors(300)
    books = fit_residual_kmeans(vectors, (8, 8, 64), seed=1)
    codes, residuals = books.encode(vectors)
    unique = reassign_last_level(codes, residuals, books.centroids[-1])
    assert len(np.unique(unique, axis=0)) == 300
    assert (unique[:, :-1] == codes[:, :-1]).all()


def test_the_same_seed_gives_the_same_codebooks() -> None:
    vectors = unit_vectors(200)
    one, two = (fit_residual_kmeans(vectors, (8, 8, 8), seed=5) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one.centroids, two.centroids, strict=True))


def test_more_levels_leave_less_over() -> None:
    vectors = unit_vectors(500)
    books = fit_residual_kmeans(vectors, (16, 16, 16), seed=0)
    codes, before = books.encode(vectors)
    after = before - books.centroids[-1][codes[:, -1]]
    assert (before**2).sum() < (vectors**2).sum()
    assert (after**2).sum() < (before**2).sum()


def test_fewer_items_than_codes_still_encode() -> None:
    vectors = unit_vectors(3)
    books = fit_residual_kmeans(vectors, (32, 32, 32), seed=0)
    codes, _ = books.encode(vectors)
    assert codes.shape == (3, 3)
    assert np.isfinite(books.centroids[2]).all()


def test_no_items_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="items"):
        fit_residual_kmeans(np.zeros((0, 4), np.float32), (4, 4), seed=0)


@given(st.integers(1, 5), st.integers(0, 10_000))
def test_reassignment_is_optimal(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    last = rng.standard_normal((5, 2)).astype(np.float32)
    residuals = rng.standard_normal((count, 2)).astype(np.float32)
    codes = np.zeros((count, 2), np.int32)
    codes[:, 1] = ((residuals[:, None] - last) ** 2).sum(2).argmin(1)
    found = reassign_last_level(codes, residuals, last)[:, 1]
    cost = ((residuals[:, None] - last) ** 2).sum(2)
    best = min(sum(cost[i, c] for i, c in enumerate(choice)) for choice in itertools.permutations(range(5), count))
    assert len(set(found.tolist())) == count
    assert cost[np.arange(count), found].sum() == pytest.approx(best, rel=1e-5)


def test_a_full_prefix_shares_codes_evenly() -> None:
    codes = np.zeros((5, 2), np.int32)
    found = reassign_last_level(codes, np.zeros((5, 2), np.float32), np.eye(2, dtype=np.float32))
    assert sorted(np.bincount(found[:, 1]).tolist()) == [2, 3]


def test_new_items_take_the_nearest_free_code() -> None:
    books = Codebooks((np.zeros((1, 1), np.float32), np.array([[0.0], [1.0], [2.0]], np.float32)))
    taken = np.array([[0, 0]], np.int32)
    new = assign_new(np.array([[0.1], [0.2], [0.0], [0.9]], np.float32), books, taken)
    assert new.tolist() == [[0, 1], [0, 2], [0, 0], [0, 1]]


def test_fusion_mixes_squared_distances_linearly() -> None:
    text, collaborative = unit_vectors(2, 1), unit_vectors(2, 2)
    fused = fuse(text, collaborative, collaborative_weight=0.25)
    expected = 0.75 * ((text[0] - text[1]) ** 2).sum() + 0.25 * ((collaborative[0] - collaborative[1]) ** 2).sum()
    assert ((fused[0] - fused[1]) ** 2).sum() == pytest.approx(expected, rel=1e-5)
