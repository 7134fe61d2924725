"""Off-policy policy-gradient losses for groups that older weights rolled out.

With lp the log-probability of a token now, lp_old at rollout, r = exp(lp - lp_old), A the advantage of its sample and
sg the stopped gradient, each loss is the mean over the tokens that count. On policy (r = 1) the gradient of each of the
five is the one of `vanilla`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from recsys.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["vanilla", "ppo-clip", "tis", "topr", "cispo"]


def vanilla(now: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE without a correction: -A lp (Williams 1992). Biased off policy.

    Args:
        now: log-probabilities under the weights being trained. (n, G, L)
        old: log-probabilities at rollout; unused. (n, G, L)
        advantages: one per sample. (n, G)

    Returns:
        The loss of each token. (n, G, L)
    """
    del old
    return -advantages[..., None] * now


def ppo_clip(now: Tensor, old: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's clipped surrogate: -min(r A, clip(r, 1 - low, 1 + high) A) (Schulman 2017, equation 7).

    `high` above `low` is DAPO's clip-higher (2503.14476). Shapes as in `vanilla`.
    """
    ratio = (now - old.detach()).exp()  # (n, G, L)
    weight = advantages[..., None]  # (n, G, 1)
    return -torch.minimum(ratio * weight, ratio.clamp(1 - low, 1 + high) * weight)


def tis(now: Tensor, old: Tensor, advantages: Tensor, *, cap: float = 1.0) -> Tensor:
    """Truncated importance sampling: -sg(min(r, cap)) A lp (Espeholt 2018, IMPALA; cap 1 in ROLL Flash, 2510.11345).

    With an infinite cap and one token per sample its gradient is unbiased; a cap trades variance for bias.
    Shapes as in `vanilla`.
    """
    return -_ratio(now, old).clamp(max=cap) * advantages[..., None] * now


def topr(now: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """Tapered off-policy REINFORCE: -A lp where A > 0, -sg(min(r, 1)) A lp elsewhere (2503.14286).

    Good samples are imitated whoever drew them, bad ones count less the rarer they have become. The paper's ratio is of
    the whole sample, as here: r = exp of the summed differences; masked tokens must have equal log-probabilities in
    both, which `policy_loss` sees to. Shapes as in `vanilla`.
    """
    taper = (now - old).detach().sum(-1, keepdim=True).exp().clamp(max=1.0)  # (n, G, 1)
    weight = advantages[..., None]
    return -torch.where(weight > 0, torch.ones_like(taper), taper) * weight * now


def cispo(now: Tensor, old: Tensor, advantages: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """Clipped importance weights: -sg(clip(r, 1 - low, 1 + high)) A lp (MiniMax-M1, 2506.13585, equation 4).

    Unlike `ppo_clip` no token loses its gradient. Shapes as in `vanilla`.
    """
    return -_ratio(now, old).clamp(1 - low, 1 + high) * advantages[..., None] * now


def policy_loss(name: LossName, now: Tensor, old: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """One of the losses, with its own defaults, averaged over the tokens that `mask` keeps.

    Args:
        name: which.
        now: log-probabilities under the weights being trained. (n, G, L)
        old: log-probabilities at rollout. (n, G, L)
        advantages: one per sample. (n, G)
        mask: True where a token counts; all when absent. (n, G, L)

    Returns:
        A scalar.

    Raises:
        DataError: an unknown name, shapes that do not fit, or a mask that keeps nothing.
    """
    if name not in _LOSSES:
        raise DataError("unknown loss", field="loss", value=name, remedy=f"choose of {', '.join(get_args(LossName))}")
    if now.shape != old.shape or now.shape[:-1] != advantages.shape:
        shapes = f"{tuple(now.shape)}, {tuple(old.shape)}, {tuple(advantages.shape)}"
        raise DataError(
            "shapes differ", field="log-probs, old, advantages", value=shapes, remedy="give (n, G, L) and (n, G)"
        )
    if mask is None:
        return _LOSSES[name](now, old, advantages).mean()
    kept = mask.sum()
    if kept == 0:
        raise DataError("keeps no token", field="mask", value=str(tuple(mask.shape)), remedy="leave empty batches out")
    zero = torch.zeros((), dtype=now.dtype, device=now.device)
    losses = _LOSSES[name](torch.where(mask, now, zero), torch.where(mask, old, zero), advantages)
    return torch.where(mask, losses, zero).sum() / kept


def _ratio(now: Tensor, old: Tensor) -> Tensor:
    return (now - old).detach().exp()  # (n, G, L)


_LOSSES = {"vanilla": vanilla, "ppo-clip": ppo_clip, "tis": tis, "topr": topr, "cispo": cispo}
