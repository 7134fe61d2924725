from __future__ import annotations

from math import exp, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.marketplace import DAY, SIZES, START, Marketplace, Moments, Scene, WorldSize, named_size
from recsys.datasets.marketplace.behaviour import TRAITS, examination
from recsys.datasets.marketplace.catalog import BEST, SHELF
from recsys.datasets.marketplace.settings import INTEREST_WEIGHTS, SUCCESSOR_WEIGHTS
from recsys.errors import ConfigError, InputError


def _block(market: Marketplace) -> Moments:
    return market.moments(0, 0, 20)


def test_the_catalog_is_sorted_by_creation_and_grows(market: Marketplace) -> None:
    catalog = market.catalog
    assert (np.diff(catalog.created_at) >= 0).all()
    assert catalog.created_before(START) == 225
    assert catalog.created_before(START + market.size.days * DAY) == market.size.items
    assert len(catalog) == 375


def test_leaves_own_adjacent_places_and_have_other_leaves_as_successors(market: Marketplace) -> None:
    catalog, tree = market.catalog, market.catalog.tree
    assert sorted(catalog.by_leaf.tolist()) == list(range(len(catalog)))
    owners = np.repeat(np.arange(tree.leaves), np.diff(catalog.leaf_first))
    np.testing.assert_array_equal(catalog.leaf[catalog.by_leaf], owners)
    assert all(len({leaf, *row}) == 4 for leaf, row in enumerate(tree.successors.tolist()))
    assert len({tuple(tree.path(leaf)) for leaf in range(tree.leaves)}) == tree.leaves


@pytest.mark.parametrize("kinds", [1, 2, 6])
@pytest.mark.parametrize("modifiers", [1, 3, 20])
def test_trees_of_any_width_have_distinct_successors(kinds: int, modifiers: int) -> None:
    tree = Marketplace(WorldSize("any", 100, 1, 1, kinds, modifiers, 1), 0).catalog.tree
    assert tree.leaves == 12 * kinds * modifiers
    assert all(len({leaf, *row}) == 4 for leaf, row in enumerate(tree.successors.tolist()))


def test_prices_of_a_leaf_are_log_normal_around_its_level() -> None:
    catalog = Marketplace(WorldSize("prices", 20_000, 1, 1, 1, 1, 1), 3).catalog
    deviation = np.log(catalog.price_micros / 1e6) - catalog.tree.price_level[catalog.leaf]
    assert abs(np.median(deviation)) < 0.25
    assert 0.3 < deviation.std() < 0.7
    assert (catalog.price_micros >= 500_000).all()


def test_shelves_hold_only_what_is_on_sale_all_day(market: Marketplace) -> None:
    shelves = market.shelves(9)
    shelf = shelves.leaves[shelves.leaves >= 0]
    assert len(set(shelf.tolist())) == len(shelf)
    assert market.catalog.available(shelf, 9).all()
    owners = np.broadcast_to(np.arange(len(shelves.leaves))[:, None], shelves.leaves.shape)[shelves.leaves >= 0]
    np.testing.assert_array_equal(market.catalog.leaf[shelf], owners)
    assert set(shelves.popular.tolist()) <= set(shelves.leaves[:, :BEST].ravel().tolist())
    assert shelves.leaves.shape == (24, SHELF)
    everything = np.arange(len(market.catalog), dtype=np.int32)
    assert shelves.available == market.catalog.available(everything, 9).sum()


def test_moments_are_in_order_and_apart(market: Marketplace) -> None:
    moments = _block(market)
    same = moments.user[1:] == moments.user[:-1]
    assert (np.diff(moments.user) >= 0).all()
    assert (np.diff(moments.time)[same] >= 120_000_000).all()
    assert moments.time.min() >= START
    assert moments.time.max() < START + 20 * DAY


def test_nobody_comes_before_joining(market: Marketplace) -> None:
    moments, people = _block(market), market.people(0)
    assert (moments.time >= people.joined_at[moments.user]).all()


def test_a_day_does_not_depend_on_what_was_asked_before(market: Marketplace) -> None:
    other = Marketplace(market.size, market.seed)
    late = other.moments(1, 12, 2)
    again = market.moments(1, 0, 25)
    rows = np.flatnonzero((again.time >= START + 12 * DAY) & (again.time < START + 14 * DAY))
    np.testing.assert_array_equal(late.desire, again.take(rows).desire)
    np.testing.assert_array_equal(late.intent, again.take(rows).intent)


def test_evenings_and_weekends_are_busy() -> None:
    market = Marketplace(WorldSize("rhythm", 100, 600, 28, 1, 1, 600), 1)
    moments = market.moments(0, 0, 28)
    hours = np.bincount((moments.time - START) // (DAY // 24) % 24, minlength=24)
    weekdays = np.bincount((moments.time - START) // DAY % 7, minlength=7)
    assert hours[19:23].sum() > 5 * hours[1:5].sum()
    assert weekdays[5:].mean() > 1.15 * weekdays[:4].mean()


def test_wishes_hold_from_a_step_to_the_next(market: Marketplace) -> None:
    moments = _block(market)
    exact = market.at(moments.user, moments.time)
    np.testing.assert_array_equal(exact.intent, moments.intent)
    np.testing.assert_array_equal(exact.desire, moments.desire)
    just_before = market.at(moments.user, moments.time - 1)
    same = moments.user[1:] == moments.user[:-1]
    np.testing.assert_array_equal(just_before.intent[1:][same], moments.intent[:-1][same])


def test_wishes_of_users_of_all_blocks_in_any_order(market: Marketplace) -> None:
    users = np.array([199, 0, 64, 63, 0, 130])
    times = START + np.array([3, 0, 29, 7, 12, 1]) * DAY
    together = market.at(users, times)
    np.testing.assert_array_equal(together.user, users)
    np.testing.assert_array_equal(together.time, times)
    alone = [int(market.at(user, time).intent[0]) for user, time in zip(users, times, strict=True)]
    assert together.intent.tolist() == alone


def _utility_by_hand(market: Marketplace, user: int, item: int, scene: Scene, time: int) -> float:
    catalog, moment, traits = market.catalog, market.at(user, time), TRAITS[scene]
    leaf, intent = int(catalog.leaf[item]), int(moment.intent[0])
    successors, interests = catalog.tree.successors[intent].tolist(), moment.interests[0].tolist()
    age = max(time - int(catalog.created_at[item]), 0) / DAY
    price = float(moment.thrift[0]) * (float(catalog.price_position[item]) - float(moment.price_level[0])) ** 2
    return (
        traits.intent * (leaf == intent)
        + traits.successor * sum(w for w, c in zip(SUCCESSOR_WEIGHTS, successors, strict=True) if c == leaf)
        + traits.interest * sum(w for w, c in zip(INTEREST_WEIGHTS, interests, strict=True) if c == leaf)
        + 1.9 * float(moment.desire[0].astype(np.float64) @ catalog.style[item]) / sqrt(8)
        + 0.6 * float(catalog.appeal[item])
        + 0.5 * exp(-age / 10)
        - min(price, 3.0)
    )


@given(st.integers(0, 199), st.integers(0, 374), st.sampled_from(list(Scene)), st.integers(START, START + 20 * DAY - 1))
@settings(max_examples=40)
def test_utility_is_the_documented_sum(market: Marketplace, user: int, item: int, scene: Scene, time: int) -> None:
    got = market.utility([user], [[item]], scene, time)
    assert got.dtype == np.float64
    assert got[0, 0] == pytest.approx(_utility_by_hand(market, user, item, scene, time), abs=1e-5)


def test_an_empty_place_is_worth_nothing_and_never_clicked(market: Marketplace) -> None:
    slate = [-1, 3, -1]
    assert np.isneginf(market.utility([0, 1], slate, Scene.HOME, START)[:, [0, 2]]).all()
    assert market.click_probability([0], slate, Scene.HOME, START)[0, [0, 2]].tolist() == [0.0, 0.0]
    response = market.respond(np.zeros(500), slate, Scene.HOME, START, np.random.default_rng(0))
    assert not response.examined[:, [0, 2]].any()


def test_responses_follow_the_stated_probabilities(market: Marketplace) -> None:
    moments = market.visits(0, 20)
    repeated = moments.take(np.repeat(np.arange(len(moments)), 30))
    rng = np.random.default_rng(5)
    slates = rng.integers(0, 300, size=(len(repeated), 6))
    question = (repeated.user, slates, repeated.scene, repeated.time)
    response = market.respond(*question, rng)
    chance = market.click_probability(*question)
    spread = np.sqrt((chance * (1 - chance)).sum(axis=0))
    assert (np.abs((response.clicks - chance).sum(axis=0)) < 4.5 * spread).all()
    looked = examination(repeated.scene, 6)
    spread = np.sqrt((looked * (1 - looked)).sum(axis=0))
    assert (np.abs((response.examined - looked).sum(axis=0)) < 4.5 * spread + 1e-6).all()
    assert (response.clicks <= response.examined).all()
    assert (response.carts <= response.clicks).all()
    assert (response.purchases <= response.carts).all()
    price = market.catalog.price_micros[slates]
    np.testing.assert_array_equal(response.value_micros, np.where(response.purchases, price, 0))
    assert response.purchases.any()


def test_a_day_without_visits_has_an_empty_answer(market: Marketplace) -> None:
    visits = market.visits(0, 0)
    slates = np.empty((len(visits), 6), dtype=np.int32)
    response = market.respond(visits.user, slates, visits.scene, visits.time, np.random.default_rng(0))
    assert response.clicks.shape == (0, 6)
    assert market.utility(visits.user, slates, Scene.HOME, visits.time).shape == (0, 6)


def test_the_same_generator_gives_the_same_response(market: Marketplace) -> None:
    question = (np.arange(50), np.arange(6), Scene.SEARCH, START + DAY)
    first = market.respond(*question, np.random.default_rng(1))
    second = market.respond(*question, np.random.default_rng(1))
    np.testing.assert_array_equal(first.clicks, second.clicks)


def test_ids_name_users_and_items(market: Marketplace) -> None:
    assert market.user_ids([0, 12]) == ["u0000000", "u0000012"]
    assert market.users_of(market.user_ids([5, 199])).tolist() == [5, 199]
    assert market.items_of(market.item_ids([374])).tolist() == [374]


@pytest.mark.parametrize("name", ["u0000200", "u1", "x0000001", "", "u-000001", "u000000\u0661"])
def test_an_id_of_nobody_is_refused(market: Marketplace, name: str) -> None:
    with pytest.raises(InputError, match="user_id"):
        market.users_of([name])


@pytest.mark.parametrize(
    ("users", "items", "scene", "time", "field"),
    [
        ([200], [[0]], Scene.HOME, START, "user"),
        ([0], [[375]], Scene.HOME, START, "item"),
        ([0], [[0]], 5, START, "scene"),
        ([0], [[0]], Scene.HOME, START - 1, "time"),
    ],
)
def test_questions_out_of_range_are_refused(
    market: Marketplace, users: list[int], items: list[list[int]], scene: int, time: int, field: str
) -> None:
    with pytest.raises(InputError, match=rf"\[{field} ="):
        market.utility(users, items, scene, time)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="items"):
        named_size("tests", items=5)
    with pytest.raises(ConfigError, match="huge"):
        named_size("huge")
    with pytest.raises(ConfigError, match="seed"):
        Marketplace(SIZES["tests"], -1)
