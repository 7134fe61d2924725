"""Rollouts: what they hold, in what order, how often, and what they never hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.errors import DataError
from training.rere.candidates import Candidates, Requests, available_items
from training.rere.groups import has_hit
from training.rere.learning import rewarded, rolled_groups
from training.rere.rollouts import Plan, dynamic_choice, roll_out
from training.rere.samples import Samples
from training.rere.sampling import draw_leaves
from training.rere.settings import RereSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData
    from training.rere.policy import Policy
    from training.rere.rollouts import RolloutKind

HISTORIES = [np.array([2, 0, 4]), np.array([], np.int64), np.array([6]), np.array([1, 1, 3])]
REQUESTS = Requests(HISTORIES, np.array([1, 4, 2, 6]))
KINDS: list[RolloutKind] = ["beam", "independent", "dynamic"]
ALL = torch.arange(7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def totals(policy: Policy) -> np.ndarray:
    """(4, 7) log-probability of every item behind every history."""
    with torch.no_grad():
        found: np.ndarray = policy.item_log_probs(policy.states(HISTORIES), ALL.expand(4, -1)).sum(dim=2).numpy()
    return found


def test_a_wide_beam_gives_the_most_probable_items_in_order(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    rolled = roll_out(policy, Candidates(policy.trie), REQUESTS, Plan("beam", 4, 10), generator())
    wanted = np.argsort(-totals(policy).round(5), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(rolled.items, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_ineligible_is_rolled_out(make_policy: Callable[..., Policy], kind: RolloutKind) -> None:
    policy = make_policy()
    rng = np.random.default_rng(4)
    for seed in range(12):
        eligible = rng.random(7) < rng.random()
        eligible[rng.integers(7)] = True
        candidates = Candidates(policy.trie, eligible, exclude_history=True)
        plan = Plan(kind, 4, 4, hint_levels=seed % 4)
        rolled = roll_out(policy, candidates, REQUESTS, plan, generator(seed))
        for row, history in zip(rolled.items, HISTORIES, strict=True):
            allowed = set(np.flatnonzero(eligible)) - set(history.tolist())
            assert set(row[row >= 0].tolist()) <= allowed
            assert (row >= 0).any() == bool(allowed)


def test_histories_are_candidates_unless_excluded(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    rolled = roll_out(policy, Candidates(policy.trie), REQUESTS, Plan("beam", 7, 7), generator())
    np.testing.assert_array_equal(np.sort(rolled.items, axis=1), np.tile(np.arange(7), (4, 1)))


def test_draws_are_as_frequent_as_they_are_probable(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    candidates, draws = Candidates(policy.trie), 20_000
    states = policy.states(HISTORIES).detach()
    leaves = draw_leaves(policy, states, candidates.masks(REQUESTS), draws, generator())
    for row, log_probs in zip(leaves, totals(policy), strict=True):
        counts = np.bincount(row, minlength=6)
        chance = np.exp(log_probs[policy.trie.bucket_items[policy.trie.bucket_start[:-1]]])
        error = np.sqrt(chance * (1 - chance) / draws)
        assert (np.abs(counts / draws - chance) < 4.5 * error).all()


def test_draws_follow_their_generator_and_stand_by_probability(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    candidates, plan = Candidates(policy.trie), Plan("independent", 5, 5)
    one, same, other = (roll_out(policy, candidates, REQUESTS, plan, generator(s)).items for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (np.diff(np.take_along_axis(totals(policy), one, axis=1), axis=1) <= 1e-6).all()


def test_dynamic_sampling_keeps_targets_and_takes_others_by_turns() -> None:
    drawn = np.array([4, 2, 2, 9, 4, 2, 7, 4, 1])
    np.testing.assert_array_equal(dynamic_choice(drawn, 9, 6), [9, 4, 2, 7, 1, 4])
    np.testing.assert_array_equal(dynamic_choice(drawn, 4, 6), [4, 4, 4, 2, 9, 7])
    np.testing.assert_array_equal(dynamic_choice(np.full(6, 3), 3, 4), [3, 3, 3, 3])
    np.testing.assert_array_equal(dynamic_choice(np.full(6, 3), 1, 4), [3, 3, 3, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_hints_are_given_to_groups_without_a_hit_alone(make_policy: Callable[..., Policy], kind: RolloutKind) -> None:
    policy = make_policy()
    least = totals(policy).argmin(axis=1)  # hard to hit
    requests = Requests([*HISTORIES, *HISTORIES], np.concatenate([least, totals(policy).argmax(axis=1)]))
    candidates = Candidates(policy.trie)
    plain = roll_out(policy, candidates, requests, Plan(kind, 2, 2), generator())
    hinted = roll_out(policy, candidates, requests, Plan(kind, 2, 2, hint_levels=3), generator())
    missed = ~has_hit(plain.items, requests.targets)
    assert missed[:4].any()
    assert not plain.hinted.any()
    np.testing.assert_array_equal(hinted.hinted > 0, missed & has_hit(hinted.items, requests.targets))
    np.testing.assert_array_equal(hinted.items[~missed], plain.items[~missed])
    nodes = policy.trie.item_node
    for row in np.flatnonzero(hinted.hinted):
        depth = hinted.hinted[row] - 1
        found = hinted.items[row][hinted.items[row] >= 0]
        assert (nodes[found, depth] == nodes[requests.targets[row], depth]).all()


def test_a_beam_below_a_hint_is_the_best_of_what_stands_there(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    scores = totals(policy)[:1]
    target = int(scores[0, :3].argmin())  # the worst of the three items below code 0
    requests = Requests(HISTORIES[:1], np.array([target]))
    rolled = roll_out(policy, Candidates(policy.trie), requests, Plan("beam", 3, 3, hint_levels=1), generator())
    below = np.argsort(-scores[0, :3], kind="stable")
    best = np.argsort(-scores[0], kind="stable")[:3]
    wanted = {True: best, False: below}[target in best]
    np.testing.assert_array_equal(rolled.items[0], wanted)


def test_the_codes_of_a_hint_are_not_learned(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    requests = Requests(HISTORIES, totals(policy).argmin(axis=1))
    samples = np.array([[0, 1], [1, 1], [2, 1], [3, 1]])
    settings = RereSettings(group=2, hint_levels=2)
    groups = rolled_groups(policy, Candidates(policy.trie), requests, samples, settings, generator())
    assert (groups.hinted > 0).any()
    for row, given in enumerate(groups.hinted):
        assert not groups.learned[row, :, :given].any()
        np.testing.assert_array_equal(groups.learned[row, :, given:].all(axis=1), groups.valid[row])
    wanted = np.take_along_axis(totals(policy), np.maximum(groups.items, 0), axis=1)[groups.valid]
    np.testing.assert_allclose(groups.log_probs.sum(axis=2)[groups.valid], wanted, rtol=1e-5)


def test_samples_with_the_same_history_are_rewarded_by_their_own_targets(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    requests = Requests([HISTORIES[0], HISTORIES[0]], np.array([1, 4]))
    settings = RereSettings(group=7, reward="rule")
    samples = np.array([[0, 3], [1, 3]])
    groups = rolled_groups(policy, Candidates(policy.trie), requests, samples, settings, generator())
    found = rewarded(groups, settings, np.random.default_rng(0))
    np.testing.assert_array_equal(groups.items[0], groups.items[1])
    np.testing.assert_array_equal(found.rewards, groups.items == np.array([[1], [4]]))


def test_nothing_to_show_is_an_error(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(DataError, match="no item may be shown"):
        Candidates(make_policy().trie, np.zeros(7, np.bool_))


def test_every_sample_comes_once_per_epoch_and_is_a_training_event(tiny_data: PreparedData) -> None:
    sequences = tiny_data.sequences
    samples = Samples(sequences, seed=3, limit=4)
    count = 7
    steps = -(-2 * len(samples) // count)
    drawn = np.concatenate([samples.at(step, count) for step in range(steps)])
    wanted = [(user, place) for user, end in enumerate(sequences.train_end) for place in range(1, int(end))]
    for epoch in (drawn[: len(samples)], drawn[len(samples) : 2 * len(samples)]):
        assert sorted(map(tuple, epoch.tolist())) == wanted
    np.testing.assert_array_equal(samples.at(0, count), drawn[:count])  # after later epochs
    requests = samples.requests(drawn[:count])
    for (user, place), history, target in zip(drawn[:count], requests.histories, requests.targets, strict=True):
        events = sequences.training(int(user))
        np.testing.assert_array_equal(history, events[max(0, place - 4) : place])
        assert target == events[place]


def test_a_log_without_histories_is_an_error(tiny_data: PreparedData) -> None:
    single = replace(tiny_data.sequences, train_end=np.minimum(tiny_data.sequences.train_end, 1))
    with pytest.raises(DataError, match="no history to roll out behind"):
        Samples(single, seed=1, limit=4)


def test_items_are_available_between_their_bounds_at_the_newest_training_event(tiny_data: PreparedData) -> None:
    sequences = tiny_data.sequences
    ends = sequences.offsets[:-1] + sequences.train_end - 1
    now = int(sequences.times[ends[sequences.train_end > 0]].max())
    bounds = {"available_from": [None, now, now + 1, None, None], "available_until": [None, None, None, now, now + 1]}
    rest = [None] * (tiny_data.items.num_rows - 5)
    table = tiny_data.items
    for name, values in bounds.items():
        table = table.append_column(name, pa.array(values + rest, pa.int64()))
    found = available_items(replace(tiny_data, items=table))
    assert found[:5].tolist() == [True, True, False, False, True]
    assert found[5:].all()
    assert available_items(tiny_data).all()
