"""Off-policy losses by hand, and their gradients against the true one on policies that can be enumerated."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from recsys.errors import DataError
from training.rl.losses import LossName, cispo, policy_loss, ppo_clip, tis, topr, vanilla

NAMES: tuple[LossName, ...] = get_args(LossName)
ADVANTAGES = torch.tensor([[2.0, -1.0]], dtype=torch.float64)  # (1, 2)


def tokens(ratios: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities now, all -1, and at rollout, with these ratios. (1, 2, L)"""
    now = torch.full((1, len(ratios), len(ratios[0])), -1.0, dtype=torch.float64, requires_grad=True)
    return now, now.detach() - torch.tensor([ratios], dtype=torch.float64).log()


def slopes(name: LossName, ratios: list[list[float]]) -> list[list[float]]:
    """Of the summed loss by each token's log-probability, rounded."""
    now, old = tokens(ratios)
    (gradient,) = torch.autograd.grad(policy_loss(name, now, old, ADVANTAGES) * now.numel(), now)
    return [[round(value, 9) for value in row] for row in gradient[0].tolist()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # -A r, with r bounded as each loss says; A = 2 for the first sample, -1 for the second
        ("vanilla", [[-2, -2], [1, 1]]),
        ("ppo-clip", [[-1.0, 0.0], [0.0, 1.5]]),
        ("tis", [[-1.0, -2.0], [0.5, 1.0]]),
        ("topr", [[-2.0, -2.0], [0.75, 0.75]]),
        ("cispo", [[-1.6, -2.4], [0.8, 1.2]]),
    ],
)
def test_gradients_by_hand(name: LossName, expected: list[list[float]]) -> None:
    assert slopes(name, [[0.5, 1.5], [0.5, 1.5]]) == expected


def test_values_by_hand() -> None:
    now, old = tokens([[0.5], [1.5]])
    assert vanilla(now, old, ADVANTAGES).flatten().tolist() == [2.0, -1.0]
    assert ppo_clip(now, old, ADVANTAGES).flatten().tolist() == pytest.approx([-1.0, 1.5])
    assert tis(now, old, ADVANTAGES).flatten().tolist() == pytest.approx([1.0, -1.0])
    assert topr(now, old, ADVANTAGES).flatten().tolist() == pytest.approx([2.0, -1.0])
    assert cispo(now, old, ADVANTAGES).flatten().tolist() == pytest.approx([1.6, -1.2])


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_all_have_the_gradient_of_vanilla(name: LossName) -> None:
    assert slopes(name, [[1.0, 1.0], [1.0, 1.0]]) == [[-2, -2], [1, 1]]


def enumerated(
    loss: str, now_logits: list[float], old_logits: list[float], rewards: list[float], cap: float = math.inf
) -> tuple[torch.Tensor, torch.Tensor]:
    """The expected gradient of a loss when the old policy draws, and the gradient of -E[reward]. (items,) each"""
    logits = torch.tensor(now_logits, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(0)
    old = torch.tensor(old_logits, dtype=torch.float64).log_softmax(0)
    reward = torch.tensor(rewards, dtype=torch.float64)
    (true,) = torch.autograd.grad(-(log_probs.exp() * reward).sum(), logits, retain_graph=True)
    form = {"tis": lambda *given: tis(*given, cap=cap), "vanilla": vanilla, "topr": topr}[loss]
    losses = form(log_probs[:, None, None], old[:, None, None], reward[:, None])[:, 0, 0]
    (found,) = torch.autograd.grad((old.exp() * losses).sum(), logits)
    return found, true


POLICIES = ([0.3, -1.0, 0.8, 0.0], [1.0, 0.2, -0.7, 0.1], [1.0, -2.0, 0.5, 3.0])


def test_uncapped_importance_weights_are_unbiased() -> None:
    found, true = enumerated("tis", *POLICIES)
    torch.testing.assert_close(found, true)


def test_a_cap_that_binds_and_no_correction_are_biased() -> None:
    for found, true in (enumerated("tis", *POLICIES, cap=1.0), enumerated("vanilla", *POLICIES)):
        assert (found - true).abs().max() > 0.05


@pytest.mark.parametrize("loss", ["tis", "vanilla", "topr"])
def test_without_staleness_every_expectation_is_the_true_gradient(loss: str) -> None:
    now, _, rewards = POLICIES
    found, true = enumerated(loss, now, now, rewards, cap=1.0)
    torch.testing.assert_close(found, true)


def test_topr_imitates_good_samples_and_tapers_bad_ones_as_a_whole() -> None:
    now, old = tokens([[0.1, 0.1], [0.5, 1.5]])
    weight = topr(now, old, ADVANTAGES) / (-ADVANTAGES[..., None] * now)
    torch.testing.assert_close(weight[0].detach(), torch.tensor([[1.0, 1.0], [0.75, 0.75]], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_have_no_say(name: LossName) -> None:
    now, old = tokens([[0.5, 1.5], [0.9, 1.2]])
    mask = torch.tensor([[[True, False], [True, False]]])
    spoiled = old.masked_fill(~mask, -math.inf)
    kept = policy_loss(name, now, spoiled, ADVANTAGES, mask)
    torch.testing.assert_close(kept, policy_loss(name, now[..., :1], old[..., :1], ADVANTAGES))
    (gradient,) = torch.autograd.grad(kept, now)
    assert gradient.isfinite().all()
    assert gradient[..., 1].abs().sum() == 0


def test_bad_input_is_named() -> None:
    now, old = tokens([[1.0], [1.0]])
    with pytest.raises(DataError, match="unknown loss"):
        policy_loss("reinforce", now, old, ADVANTAGES)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shapes differ"):
        policy_loss("tis", now, old, ADVANTAGES[:, :1])
    with pytest.raises(DataError, match="keeps no token"):
        policy_loss("tis", now, old, ADVANTAGES, torch.zeros_like(now, dtype=torch.bool))
