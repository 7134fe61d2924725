from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.marketplace import Marketplace, Moments, Scene, WorldSize
from recsys.datasets.marketplace.behaviour import click_given_examined, examination, utility
from recsys.datasets.marketplace.policy import candidates


def _asking(market: Marketplace, day: int) -> Moments:
    moments = Moments.join([market.moments(block, day, 1) for block in range(market.size.blocks)])
    return moments.take(np.flatnonzero(moments.scene != Scene.BROWSE))


def _propensities_by_hand(
    items: list[int], scores: list[float], slate: list[int], available: int, exploration: float
) -> list[float]:
    """The documented formula, slot by slot, in plain Python."""
    left = {item: np.exp(score) for item, score in zip(items, scores, strict=True) if item >= 0}
    expected = []
    for position, item in enumerate(slate):
        rate = exploration if left else 1.0
        share = left.get(item, 0.0) / sum(left.values()) if left else 0.0
        expected.append((1 - rate) * share + rate / (available - position))
        left.pop(item, None)
    return expected


@given(st.integers(0, 29), st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.4, 1.0]), st.integers(1, 45))
@settings(max_examples=25)
def test_propensities_are_those_of_the_documented_mixture(
    market: Marketplace, day: int, seed: int, exploration: float, length: int
) -> None:
    moments = _asking(market, day)
    slates = market.logged_slates(day, moments, np.random.default_rng(seed), length=length, exploration=exploration)
    shelves = market.shelves(day)
    assert market.catalog.available(slates.items, day).all()
    assert all(len(set(slate)) == length for slate in slates.items.tolist())
    items, scores = candidates(market.catalog, shelves, moments, moments.scene)
    expected = [
        _propensities_by_hand(row, score, slate, shelves.available, exploration)
        for row, score, slate in zip(items.tolist(), scores.tolist(), slates.items.tolist(), strict=True)
    ]
    np.testing.assert_allclose(slates.propensities, np.reshape(expected, slates.items.shape), rtol=1e-9)


def test_candidates_are_distinct_and_on_sale(market: Marketplace) -> None:
    moments = _asking(market, 4)
    items, scores = candidates(market.catalog, market.shelves(4), moments, moments.scene)
    assert (np.isfinite(scores) == (items >= 0)).all()
    assert all(len(set(row)) == len(row) for row in [[i for i in row if i >= 0] for row in items.tolist()])
    assert market.catalog.available(items[items >= 0], 4).all()


def test_items_are_shown_as_often_as_their_propensities_say(market: Marketplace) -> None:
    draws = 20_000
    moments = _asking(market, 2).take(np.zeros(draws, dtype=np.int64))
    slates = market.logged_slates(2, moments, np.random.default_rng(3), length=1, exploration=0.3)
    items, first, counts = np.unique(slates.items[:, 0], return_index=True, return_counts=True)
    propensity = slates.propensities[first, 0]
    spread = np.sqrt(draws * propensity * (1 - propensity))
    assert (np.abs(counts - draws * propensity) < 5 * spread).all()
    assert len(items) > 200
    assert propensity.sum() == pytest.approx(1.0, abs=0.02)


def test_a_slate_longer_than_the_catalog_ends_in_empty_places() -> None:
    market = Marketplace(WorldSize("short", 100, 30, 3, 1, 1, 30), 0)
    moments = market.moments(0, 0, 1)
    slates = market.logged_slates(0, moments, np.random.default_rng(0), length=140)
    available = market.shelves(0).available
    assert (slates.items[:, :available] >= 0).all()
    assert (slates.items[:, available:] == -1).all()
    assert (slates.propensities[:, available:] == 0).all()
    np.testing.assert_allclose(slates.propensities[:, available - 1], 1.0)


def _uniform_click_rates(
    market: Marketplace, day: int, moments: Moments, above: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """(n, k) exact chance of a click if a slot took any item on sale that is not above it, uniformly."""
    everything = np.arange(len(market.catalog), dtype=np.int32)
    on_sale = everything[market.catalog.available(everything, day)]
    items = np.broadcast_to(on_sale, (len(moments), len(on_sale)))
    clicked = click_given_examined(utility(market.catalog, moments, items, moments.scene), moments.scene)
    shown = click_given_examined(utility(market.catalog, moments, above, moments.scene), moments.scene)
    gone = np.cumsum(shown, axis=1) - shown
    left = len(on_sale) - np.arange(above.shape[1])
    rates: npt.NDArray[np.float64] = (
        examination(moments.scene, above.shape[1]) * (clicked.sum(axis=1)[:, None] - gone) / left
    )
    return rates


@pytest.mark.parametrize(("exploration", "repeats"), [(0.01, 40), (0.2, 15)])
def test_inverse_propensity_weighting_is_unbiased(market: Marketplace, exploration: float, repeats: int) -> None:
    rng = np.random.default_rng(11)
    errors, truths, explored = [], [], []
    for day in range(0, 30, 2):
        asking = _asking(market, day)
        moments = asking.take(np.repeat(np.arange(len(asking)), repeats))
        slates = market.logged_slates(day, moments, rng, exploration=exploration)
        response = market.respond(moments.user, slates.items, moments.scene, moments.time, rng)
        left = market.shelves(day).available - np.arange(slates.items.shape[1])
        truth = _uniform_click_rates(market, day, moments, slates.items)
        errors.append((response.clicks / (left * slates.propensities) - truth).ravel())
        truths.append(truth.ravel())
        explored.append(slates.explored.ravel())
    error, truth = np.concatenate(errors), np.concatenate(truths)
    standard_error = error.std() / np.sqrt(len(error))
    assert standard_error < 0.12 * truth.mean()  # so that the next line can fail
    assert abs(error.mean()) < 4 * standard_error
    share = np.concatenate(explored).mean()
    assert abs(share - exploration) < 5 * np.sqrt(exploration / len(error))
