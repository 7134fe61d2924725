"""One batch's way: samples to groups, groups to rewards and advantages, groups to an update of the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from training.rere.groups import NO_ITEM, Groups
from training.rere.losses import averaged, exact_divergence, k3, policy_loss
from training.rere.rewards import judged
from training.rere.rollouts import roll_out

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from training.rere.candidates import Candidates, Requests
    from training.rere.policy import Policy
    from training.rere.settings import RereSettings


def rolled_groups(
    policy: Policy,
    candidates: Candidates,
    requests: Requests,
    samples: npt.NDArray[np.int64],
    settings: RereSettings,
    generator: torch.Generator,
) -> Groups:
    """Roll out behind n samples; rewards and advantages are 0 as yet.

    Args:
        policy: to roll out from.
        candidates: what may be shown.
        requests: histories and targets of the samples.
        samples: (n, 2) ids.
        settings: of the run.
        generator: of the draws, on the policy's device.
    """
    items, hinted = roll_out(policy, candidates, requests, settings.plan, generator)
    with torch.no_grad():
        found = policy.item_log_probs(policy.states(requests.histories), places(policy, items))
    log_probs = np.where((items == NO_ITEM)[:, :, None], 0.0, found.cpu().numpy()).astype(np.float32)
    nothing = np.zeros(items.shape, dtype=np.float32)
    return Groups(samples, requests.targets, items, hinted, log_probs, nothing, nothing)


def rewarded(groups: Groups, settings: RereSettings, rng: np.random.Generator) -> Groups:
    """The same groups with their rewards and advantages; `rng` is of the reward noise."""
    values, advantages = judged(groups.items, groups.targets, rng, **settings.judging)
    return replace(groups, rewards=values, advantages=advantages)


class Reference(NamedTuple):
    """What the reference says of a batch of groups.

    Attributes:
        log_probs: (n, G, L).
        children: of `Policy.child_log_probs`; empty for the estimate along the codes.
    """

    log_probs: Tensor
    children: list[Tensor]


@torch.no_grad()
def referenced(reference: Policy, requests: Requests, groups: Groups, settings: RereSettings) -> Reference:
    """Ask the reference."""
    states, items = reference.states(requests.histories), places(reference, groups.items)
    children = reference.child_log_probs(states, items) if settings.kl == "exact" else []
    return Reference(reference.item_log_probs(states, items), children)


class Losses(NamedTuple):
    """Of one update.

    Attributes:
        total: what is descended.
        divergence: from the reference, mean per code, without a gradient.
    """

    total: Tensor
    divergence: Tensor


def group_losses(
    policy: Policy, requests: Requests, groups: Groups, reference: Reference, settings: RereSettings
) -> Losses:
    """The policy's loss on a batch of groups, differentiable.

    Args:
        policy: to be trained.
        requests: histories and targets of the groups' samples.
        groups: with advantages.
        reference: what it says of the groups.
        settings: of the run.
    """
    device = policy.device
    states, items = policy.states(requests.histories), places(policy, groups.items)
    learned = torch.from_numpy(groups.learned).to(device)
    log_probs = policy.item_log_probs(states, items)
    before = torch.from_numpy(groups.log_probs).to(device)
    advantages = torch.from_numpy(groups.advantages).to(device)
    total = policy_loss(log_probs, before, advantages, learned, kind=settings.loss, clip=settings.ratio_clip)
    if settings.kl == "exact":
        divergence = exact_divergence(policy.child_log_probs(states, items), reference.children)
    else:
        divergence = k3(torch.where(learned, log_probs, reference.log_probs), reference.log_probs)
    mean = averaged(divergence, learned, kind=settings.loss)
    if settings.kl_weight:
        total = total + settings.kl_weight * mean
    if settings.target_weight:
        targets = torch.from_numpy(requests.targets).to(device)[:, None]
        total = total - settings.target_weight * policy.item_log_probs(states, targets).sum(dim=2).mean()
    return Losses(total, mean.detach())


def update(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    requests: Requests,
    groups: Groups,
    reference: Reference,
    settings: RereSettings,
) -> Losses:
    """Move the policy along a batch of groups, `updates` times.

    Returns:
        The last update's losses, without gradients.
    """
    losses = group_losses(policy, requests, groups, reference, settings)
    for left in reversed(range(settings.updates)):
        optimiser.zero_grad(set_to_none=False)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), settings.clip)
        optimiser.step()
        if left:
            losses = group_losses(policy, requests, groups, reference, settings)
    return Losses(losses.total.detach(), losses.divergence)


def places(policy: Policy, items: npt.NDArray[np.int64]) -> Tensor:
    """(n, G) items on the policy's device; item 0 stands where there is none, and is masked wherever it is read."""
    return torch.from_numpy(np.where(items == NO_ITEM, 0, items)).to(policy.device)
