from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from recsys.baselines.sasrec import SasRec, SasRecSettings, _batches, _windows
from recsys.baselines.scorer import validation_ndcg
from recsys.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData

    Prepare = Callable[[list[list[int]], int], PreparedData]

SMALL = SasRecSettings(
    d_model=16, layers=1, heads=2, dropout=0.0, max_history=4, learning_rate=1e-2, batch_positions=64,
    steps=90, evaluate_every=30, warmup_steps=5, bf16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(small_log: PreparedData) -> SasRec:
    return SasRec.fit(small_log, SMALL, seed=1)


def test_it_learns_what_follows_what(small_log: PreparedData, fitted: SasRec) -> None:
    assert validation_ndcg(fitted, small_log) > 0.95
    assert fitted.valid_ndcg > 0.95
    assert fitted.score([np.asarray([3, 4])]).argmax() == 5


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(small_log: PreparedData) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (SasRec.fit(small_log, SMALL, seed=2).score([np.asarray([1])]) for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_score_depends_neither_on_the_batch_nor_on_old_items(fitted: SasRec) -> None:
    short, long = np.asarray([2, 3]), np.asarray([9, 8, 0, 1, 2, 3])
    together = fitted.score([short, np.zeros(0, dtype=int), long, long[-4:]])
    assert np.allclose(together[0], fitted.score([short])[0], atol=1e-5)
    assert np.allclose(together[2], together[3], atol=1e-5)
    assert not together[1].any()


def test_every_training_event_but_the_first_is_one_target(prepared: Prepare) -> None:
    data = prepared([list(range(n)) for n in (1, 2, 3, 7, 20)], 20)
    windows = _windows(data, 4)
    targets = np.concatenate([window[1:] for window in windows]).tolist()
    expected = [item for user in range(5) for item in data.sequences.training(user)[1:].tolist()]
    assert sorted(targets) == sorted(expected)
    assert max(len(window) for window in windows) == 5


def test_an_epoch_of_batches_holds_every_window_once(prepared: Prepare) -> None:
    windows = _windows(prepared([list(range(n)) for n in range(3, 30)], 30), 8)
    stream = _batches(windows, 16, np.random.default_rng(0))
    total, seen = sum(len(window) - 1 for window in windows), 0
    rows: list[tuple[int, ...]] = []
    while seen < total:
        batch = next(stream)
        seen += sum(len(window) - 1 for window in batch)
        rows += [tuple(window.tolist()) for window in batch]
    assert sorted(rows) == sorted(tuple(window.tolist()) for window in windows)


def test_one_event_per_user_is_too_little(prepared: Prepare) -> None:
    with pytest.raises(DataError, match="two training events"):
        SasRec.fit(prepared([[0], [1, 2, 0]], 3), SMALL, seed=1)


def test_without_validation_the_last_weights_are_kept(prepared: Prepare) -> None:
    data = prepared([[0, 1], [1, 2], [2, 0]], 3)
    assert SasRec.fit(data, SMALL, seed=1).score([np.asarray([0])]).argmax() == 1


@pytest.mark.parametrize("changes", [{"d_model": 15}, {"dropout": 1.0}, {"steps": 0}])
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SasRecSettings(**changes)  # type: ignore[arg-type]
