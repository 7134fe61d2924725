from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.baselines.ease import Ease, EaseSettings
from recsys.baselines.interactions import recency_matrix, training_matrix
from recsys.baselines.item_cf import ItemCF, ItemCFSettings
from recsys.baselines.popularity import Popularity
from recsys.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData

    Prepare = Callable[[list[list[int]], int], PreparedData]

logs = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=2, max_size=12)
HISTORIES = [np.asarray(row, dtype=np.int32) for row in ([0, 3, 3, 1], [], [12], [5, 4])]


def naive_weights(history: np.ndarray, num_items: int, decay: float, max_history: int) -> np.ndarray:
    weights = np.zeros(num_items)
    for age, item in enumerate(reversed(history[-max_history:].tolist())):
        weights[item] += decay**age
    return weights


@given(logs)
def test_training_matrix_holds_the_training_part_only(prepared: Prepare, rows: list[list[int]]) -> None:
    data = prepared(rows, 7)
    expected = np.zeros((len(rows), 7))
    for user in range(len(rows)):
        expected[user, data.sequences.training(user)] = 1
    assert np.array_equal(training_matrix(data.sequences, 7).toarray(), expected)
    assert np.array_equal(training_matrix(data.sequences, 7, np.asarray([1, 0])).toarray(), expected[[1, 0]])


def test_recency_weights_fall_with_age() -> None:
    found = recency_matrix(HISTORIES, 13, decay=0.5, max_history=3).toarray()
    assert np.allclose(found, [naive_weights(history, 13, 0.5, 3) for history in HISTORIES])


@given(logs, st.sampled_from([0.5, 20.0]), st.sampled_from([0.6, 1.0]))
@settings(max_examples=40)
def test_ease_equals_the_closed_form_in_float64(
    prepared: Prepare, rows: list[list[int]], regularisation: float, decay: float
) -> None:
    data = prepared(rows, 8)
    model = Ease.fit(data, EaseSettings(regularisation=regularisation, decay=decay))
    matrix = training_matrix(data.sequences, 8).toarray().astype(np.float64)
    inverse = np.linalg.inv(matrix.T @ matrix + regularisation * np.eye(8))
    weights = np.eye(8) - inverse / np.diag(inverse)[None, :]
    histories = [np.asarray(row, dtype=np.int32) for row in rows]
    expected = [naive_weights(history, 8, decay, 50) @ weights for history in histories]
    assert np.allclose(model.score(histories), expected, atol=1e-4)


def test_ease_beyond_its_limit_keeps_the_most_popular_items(small_log: PreparedData) -> None:
    model = Ease.fit(small_log, EaseSettings(max_items=5))
    popular = np.sort(np.argsort(-small_log.train_counts, kind="stable")[:5])
    assert np.array_equal(model.kept, popular)
    scores = model.score(HISTORIES)
    assert scores.shape == (4, 13)
    assert not np.delete(scores, popular, axis=1).any()
    assert scores[:, popular].any()


def test_ease_of_some_users_ignores_the_others(prepared: Prepare, small_log: PreparedData) -> None:
    rows = [small_log.sequences.training(user).tolist() for user in range(20)]
    alone = Ease.fit(prepared([row[:2] for row in rows], 13))
    among = Ease.fit(prepared([row[:2] for row in rows] + [[1, 2]] * 9, 13), users=np.arange(20))
    assert np.allclose(alone.score(HISTORIES), among.score(HISTORIES))


def test_ease_reads_the_same_weights_with_another_decay(small_log: PreparedData) -> None:
    model = Ease.fit(small_log, EaseSettings(decay=0.9))
    other = Ease.fit(small_log, EaseSettings(decay=0.4))
    assert np.array_equal(model.with_decay(0.4).score(HISTORIES), other.score(HISTORIES))


def test_ease_needs_interactions(small_log: PreparedData) -> None:
    with pytest.raises(DataError, match="found none"):
        Ease.fit(small_log, users=np.zeros(0, dtype=int))


@given(logs, st.sampled_from([0.0, 10.0]))
@settings(max_examples=40)
def test_item_cf_equals_the_loop(prepared: Prepare, rows: list[list[int]], shrink: float) -> None:
    data = prepared(rows, 7)
    users = [set(data.sequences.training(user).tolist()) for user in range(len(rows))]
    holders = [{user for user, items in enumerate(users) if item in items} for item in range(7)]
    pairs = [[len(holders[a] & holders[b]) * (a != b) for b in range(7)] for a in range(7)]
    sizes = np.asarray([len(holder) for holder in holders], dtype=float)
    cosine = np.asarray(pairs) / np.maximum(np.sqrt(np.outer(sizes, sizes)) + shrink, 1e-9)
    histories = [np.asarray(row, dtype=np.int32) for row in rows]
    expected = [naive_weights(history, 7, 0.6, 50) @ cosine for history in histories]
    assert np.allclose(ItemCF.fit(data, ItemCFSettings(shrink=shrink)).score(histories), expected, atol=1e-5)


def test_popularity_is_the_same_for_everybody(small_log: PreparedData) -> None:
    scores = Popularity.fit(small_log).score(HISTORIES)
    assert np.array_equal(scores, np.tile(small_log.train_counts, (4, 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EaseSettings(regularisation=0),
        lambda: EaseSettings(decay=0),
        lambda: EaseSettings(max_items=0),
        lambda: ItemCFSettings(decay=1.5),
        lambda: ItemCFSettings(shrink=-1),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()
