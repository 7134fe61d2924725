"""Policy, divergence and losses against enumeration of a tiny catalogue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from recsys.errors import ConfigError
from training.rere.losses import Clip, averaged, exact_divergence, k3, policy_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.rere.losses import LossKind
    from training.rere.policy import Policy

HISTORIES = [np.array([2, 0, 4]), np.array([], np.int64), np.array([6])]
DISTINCT = torch.tensor([0, 1, 2, 3, 4, 5])  # one item per semantic ID
SHAPES = [{}, {"item_rows": False, "fusion": "concat"}, {"shape": "token", "item_rows": False}]


def over_items(policy: Policy) -> torch.Tensor:
    """(3, 6, L) of every semantic ID behind every history."""
    return policy.item_log_probs(policy.states(HISTORIES), DISTINCT.expand(3, -1))


@pytest.mark.parametrize("shape", SHAPES, ids=["rows", "codes", "token"])
def test_probabilities_of_all_semantic_ids_sum_to_one(
    make_policy: Callable[..., Policy], shape: dict[str, object]
) -> None:
    found = over_items(make_policy(**shape))
    assert found.shape == (3, 6, 3)
    torch.testing.assert_close(found.sum(dim=2).exp().sum(dim=1), torch.ones(3))


def test_children_sum_to_one_and_hold_the_items_own_codes(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    states, items = policy.states(HISTORIES), DISTINCT.expand(3, -1)
    children = policy.child_log_probs(states, items)
    own = policy.item_log_probs(states, items)
    nodes = policy.normaliser.item_node
    for level, log_probs in enumerate(children):
        torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones(log_probs.shape[:2]))
        parents = nodes[DISTINCT, level - 1] if level else torch.zeros(6, dtype=torch.int64)
        slots = nodes[DISTINCT, level] - policy.normaliser.get_buffer(f"start{level}")[parents]
        chosen = log_probs.expand(-1, 6, -1).gather(2, slots.expand(3, -1)[..., None])[..., 0]
        torch.testing.assert_close(chosen, own[:, :, level])


def test_both_divergences_have_the_enumerated_one_as_their_mean(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    reference = policy.reference()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    ours, theirs = over_items(policy), over_items(reference)
    weights = ours.sum(dim=2).exp()
    wanted = (weights * (ours - theirs).sum(dim=2)).sum(dim=1)
    items = DISTINCT.expand(3, -1)
    children = [one.child_log_probs(one.states(HISTORIES), items) for one in (policy, reference)]
    for divergence in (k3(ours, theirs), exact_divergence(*children)):
        assert (divergence > -1e-6).all()
        torch.testing.assert_close((weights * divergence.sum(dim=2)).sum(dim=1), wanted, rtol=1e-4, atol=1e-5)
    assert (wanted > 0.01).all()


def test_the_reference_stays_when_the_policy_moves(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    before = over_items(policy).detach()
    reference = policy.reference()
    torch.nn.init.zeros_(policy.model.head.outputs[0].get_parameter("weight"))
    torch.testing.assert_close(over_items(reference), before)
    assert not torch.allclose(over_items(policy), before)
    assert not over_items(reference).requires_grad


@pytest.mark.parametrize("kind", ["grpo", "dapo", "gspo"])
def test_the_loss_of_all_pairs_has_the_gradient_of_the_expected_reward(
    make_policy: Callable[..., Policy], kind: LossKind
) -> None:
    """Groups of two independent draws, every pair by its probability: -(L G / (G - 1)) grad loss = grad E[R]."""
    policy = make_policy()
    worth = torch.tensor([1.0, 0.0, 0.3, -0.2, 0.0, 0.5])
    log_probs = policy.item_log_probs(policy.states(HISTORIES[:1]), DISTINCT[None])[0]  # (6, L)
    weights = list(policy.model.head.parameters())
    expected = (log_probs.sum(dim=1).exp() * worth).sum()
    wanted = torch.autograd.grad(expected, weights, retain_graph=True)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))  # (36, 2)
    chance = log_probs.detach().sum(dim=1).exp()[pairs].prod(dim=1)
    advantages = worth[pairs] - worth[pairs].mean(dim=1, keepdim=True)
    paths = log_probs[pairs]  # (36, 2, L)
    learned = torch.ones_like(paths, dtype=torch.bool)
    scaled = advantages * chance[:, None] * len(pairs)
    loss = policy_loss(paths, paths.detach(), scaled, learned, kind=kind, clip=Clip(0.2, 0.2))
    found = torch.autograd.grad(loss, weights)
    levels, group = paths.shape[2], paths.shape[1]
    factor = -levels * group / (group - 1)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(factor * one, other, rtol=1e-3, atol=1e-6)
    assert max(float(one.abs().max()) for one in wanted) > 0.01


def looped_loss(change: np.ndarray, gain: np.ndarray, learned: np.ndarray, kind: str, clip: Clip) -> float:
    """The formula, one rollout after the other."""
    tokens, means = [], []
    for row, place in zip(*np.nonzero(learned.any(axis=2)), strict=True):
        kept = change[row, place][learned[row, place]]
        ratios = {"gspo": np.full(len(kept), math.exp(kept.mean()))}.get(kind, np.exp(kept))
        terms = [min(r * gain[row, place], min(max(r, 1 - clip.low), 1 + clip.high) * gain[row, place]) for r in ratios]
        tokens += terms
        means.append(np.mean(terms))
    return -float(np.mean({"dapo": tokens}.get(kind, means)))


@pytest.mark.parametrize("kind", ["grpo", "dapo", "gspo"])
def test_losses_equal_their_formulas(kind: LossKind) -> None:
    rng = np.random.default_rng(2)
    change, gain = rng.normal(0, 0.4, (5, 4, 3)), rng.normal(0, 1, (5, 4))
    learned = rng.random((5, 4, 3)) < 0.7
    clip = Clip(0.2, 0.28)
    before = torch.from_numpy(rng.normal(-2, 1, change.shape))
    tensors = (before + torch.from_numpy(change), before, torch.from_numpy(gain), torch.from_numpy(learned))
    found = policy_loss(*tensors, kind=kind, clip=clip)
    assert float(found) == pytest.approx(looped_loss(change, gain, learned, kind, clip))


def test_dapo_counts_codes_and_grpo_rollouts() -> None:
    values = torch.tensor([[[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]]])
    learned = torch.tensor([[[True, True, True], [True, False, False]]])
    assert float(averaged(values, learned, kind="grpo")) == 2.5
    assert float(averaged(values, learned, kind="dapo")) == 7 / 4


def test_a_gain_behind_the_clip_has_no_gradient_and_hinted_codes_never_have() -> None:
    before = torch.zeros(1, 2, 3)
    now = torch.tensor([[[0.5, 0.0, 0.1], [0.5, 0.0, -0.1]]], requires_grad=True)
    learned = torch.tensor([[[True, True, True], [False, True, True]]])
    policy_loss(now, before, torch.tensor([[1.0, 1.0]]), learned, kind="grpo", clip=Clip(0.2, 0.2)).backward()  # type: ignore[no-untyped-call]
    assert now.grad is not None
    moved = now.grad != 0
    assert moved.tolist() == [[[False, True, True], [False, True, True]]]


def test_what_cannot_be_a_policy_is_named(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ConfigError, match="children of a prefix"):
        make_policy(whole_codebook=True, item_rows=False)
    with pytest.raises(ConfigError, match="draft head"):
        make_policy(shape="flat", item_rows=False)
