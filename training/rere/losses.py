"""Policy losses over groups of rollouts, and the divergence from the reference.

Sources: GRPO, arXiv:2402.03300 (mean over a rollout's tokens, then over rollouts); DAPO, arXiv:2503.14476 (mean over
all tokens, a higher upper clip); GSPO, arXiv:2507.18071 (one ratio per rollout, the geometric mean of its tokens'
ratios). ReRe's released code has all three. A token is one code of a semantic ID; codes that a hint gave do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

LossKind = Literal["grpo", "dapo", "gspo"]


class Clip(NamedTuple):
    """How far the ratio to the rollout's policy may carry a gain: from 1 - `low` to 1 + `high`."""

    low: float
    high: float


def policy_loss(
    log_probs: Tensor, before: Tensor, advantages: Tensor, learned: Tensor, *, kind: LossKind, clip: Clip
) -> Tensor:
    """The clipped loss of a batch of groups; rollouts without a learned code do not count.

    Args:
        log_probs: (n, G, L) of the policy.
        before: (n, G, L) of the policy that rolled out.
        advantages: (n, G).
        learned: (n, G, L) bool.
        kind: of the loss.
        clip: of the ratio.

    Returns:
        A scalar.
    """
    change = torch.where(learned, log_probs - before, 0.0)
    if kind == "gspo":
        change = change.sum(dim=2, keepdim=True) / learned.sum(dim=2, keepdim=True).clamp(min=1)  # (n, G, 1)
    ratio = change.exp()
    gain = advantages[:, :, None]
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    surrogate = torch.minimum(ratio * gain, clipped * gain).expand_as(log_probs)
    return -averaged(surrogate, learned, kind=kind)


def averaged(values: Tensor, learned: Tensor, *, kind: LossKind) -> Tensor:
    """Mean of values (n, G, L) over the learned codes: over all of them (DAPO), else over rollouts of their means."""
    kept = torch.where(learned, values, 0.0)
    counts = learned.sum(dim=2)  # (n, G)
    if kind == "dapo":
        return kept.sum() / counts.sum().clamp(min=1)
    means = kept.sum(dim=2) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimate of the divergence per code, never negative: exp(d) - d - 1 with d = reference - policy."""
    off = reference - log_probs
    return off.exp() - off - 1


def exact_divergence(own: list[Tensor], reference: list[Tensor]) -> Tensor:
    """KL(policy || reference) over the children at each prefix of the paths.

    Args:
        own: per level (n, G, W) log-probabilities of the children, or (n, 1, W) where the group shares them.
        reference: the same of the reference.

    Returns:
        (n, G, L).
    """
    levels = []
    for ours, theirs in zip(own, reference, strict=True):
        real = ours > -torch.inf
        off = ours.masked_fill(~real, 0.0) - theirs.masked_fill(~real, 0.0)
        levels.append((ours.exp() * off).sum(dim=2))
    group = own[-1].shape[1]
    return torch.stack([level.expand(-1, group) for level in levels], dim=2)
