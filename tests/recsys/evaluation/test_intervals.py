from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation.intervals import draw_users, intervals, paired_intervals, resampled_means


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))
def test_every_replicate_draws_as_many_users_as_there_are(users: int, replicates: int, seed: int) -> None:
    drawn = draw_users(users, rng=np.random.default_rng(seed), replicates=replicates)
    assert drawn.shape == (replicates, users)
    assert (drawn.sum(axis=1) == users).all()
    assert (drawn >= 0).all()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(0, 99))
def test_resampled_means_equal_the_loop(metrics: int, seeds: int, users: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.random((metrics, seeds, users))
    gains[rng.random(gains.shape) < 0.2] = np.nan
    drawn = draw_users(users, rng=rng, replicates=6)
    found = resampled_means(gains, drawn, rng=np.random.default_rng(seed))
    chosen = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=6)  # the same draw
    for replicate in range(6):
        rows = np.repeat(np.arange(seeds), chosen[replicate])
        columns = np.repeat(np.arange(users), drawn[replicate].astype(int))
        crossing = np.ma.masked_invalid(gains[:, rows][:, :, columns])
        expected = crossing.mean(axis=(1, 2)).filled(np.nan)
        assert np.allclose(found[:, replicate], expected, equal_nan=True, atol=1e-6)


def test_the_interval_of_a_mean_has_the_normal_width() -> None:
    rng = np.random.default_rng(3)
    gains = rng.normal(size=(1, 1, 4000))
    (found,) = intervals(gains, draw_users(4000, rng=rng), rng=rng)
    assert found.value == pytest.approx(gains.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.1)
    assert found.low < found.value < found.high


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    users = rng.normal(size=(1, 1, 500))
    same = np.repeat(users, 3, axis=1)
    apart = same + np.asarray([-0.5, 0.0, 0.5])[None, :, None]
    drawn = draw_users(500, rng=rng)
    (narrow,) = intervals(same, drawn, rng=rng)
    (wide,) = intervals(apart, drawn, rng=rng)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_pairing_removes_what_both_methods_share() -> None:
    rng = np.random.default_rng(5)
    shared = rng.normal(size=(1, 1, 800))
    better = shared + 0.01
    drawn = draw_users(800, rng=rng)
    (found,) = paired_intervals(better, np.repeat(shared, 2, axis=1), drawn, rng=rng)
    assert found.value == pytest.approx(0.01)
    assert 0.009 < found.low <= found.high < 0.011


def test_a_metric_that_speaks_of_nobody_is_zero() -> None:
    rng = np.random.default_rng(6)
    (found,) = intervals(np.full((1, 2, 5), np.nan), draw_users(5, rng=rng), rng=rng)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_shapes_that_do_not_fit_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError):
        intervals(np.zeros((2, 3)), draw_users(3, rng=rng), rng=rng)
    with pytest.raises(InputError):
        paired_intervals(np.zeros((1, 1, 3)), np.zeros((1, 1, 4)), draw_users(3, rng=rng), rng=rng)
