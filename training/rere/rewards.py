"""Rewards and advantages of groups of rollouts.

Torch-free, so that a process that only judges starts at once.

Source: ReRe, arXiv:2510.12211, and its released code. With k = 1..G the place of a rollout in its group, e its item and
e* the target:

    rule      1[e = e*]
    ranking   a miss at place k loses its share of 1 / log(k + 1): of the sum over all places (the code), or over the
              places of misses (the paper); a hit loses nothing
    advantage (R - mean R) / (std R + 1e-4), the standard deviation unbiased
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from training.rere.groups import NO_ITEM, has_hit

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]

Reward = Literal["rule", "rank", "rank_only"]
RankNormaliser = Literal["code", "paper"]
WithoutHit = Literal["zero", "keep"]

_EPSILON: Final = 1e-4


def rewards(
    items: Ints,
    targets: Ints,
    *,
    kind: Reward = "rule",
    normaliser: RankNormaliser = "code",
    without_hit: WithoutHit = "zero",
) -> Floats:
    """Rewards of rollouts.

    Args:
        items: (n, G) in beam order, -1 = none.
        targets: (n,).
        kind: `rule`, `rank` (rule and ranking together) or `rank_only`.
        normaliser: of the ranking reward.
        without_hit: `zero` takes the ranking reward from groups without a hit, as the released code does; `keep`
            leaves it, so that such groups push their misses apart.

    Returns:
        (n, G) float32, 0 where there is no item.
    """
    hit = items == targets[:, None]
    total = np.zeros(items.shape, dtype=np.float64)
    if kind != "rank_only":
        total += hit
    if kind != "rule":
        ranking = ranking_reward(items, targets, normaliser=normaliser)
        if without_hit == "zero":
            ranking[~has_hit(items, targets)] = 0.0
        total += ranking
    return total.astype(np.float32)


def judged(
    items: Ints,
    targets: Ints,
    rng: np.random.Generator,
    *,
    kind: Reward,
    normaliser: RankNormaliser,
    without_hit: WithoutHit,
    noise: float,
) -> tuple[Floats, Floats]:
    """Rewards and advantages of groups.

    Args:
        items: (n, G) in beam order, -1 = none.
        targets: (n,).
        rng: of the noise; one draw per group, where there is noise.
        kind: see `rewards`.
        normaliser: see `rewards`.
        without_hit: see `rewards`.
        noise: share of groups that are turned round, see `flip_groups`.

    Returns:
        (n, G) rewards and (n, G) advantages.
    """
    values = rewards(items, targets, kind=kind, normaliser=normaliser, without_hit=without_hit)
    if noise:
        values = flip_groups(values, items, rate=noise, rng=rng)
    return values, group_advantages(values, items)


def ranking_reward(items: Ints, targets: Ints, *, normaliser: RankNormaliser = "code") -> npt.NDArray[np.float64]:
    """What misses lose by their place, (n, G), at most 0; arguments as `rewards`."""
    valid, hit = items != NO_ITEM, items == targets[:, None]
    place = 1.0 / np.log2(np.arange(items.shape[1]) + 2.0)  # (G,)
    counted = valid if normaliser == "code" else valid & ~hit
    total = (place * counted).sum(axis=1, keepdims=True)
    return np.where(valid & ~hit, -place / np.where(total > 0, total, 1.0), 0.0)


def flip_groups(values: Floats, items: Ints, *, rate: float, rng: np.random.Generator) -> Floats:
    """Turn the rewards of whole groups round, r to 1 - r, each group with probability `rate`.

    A turned group has the negative advantages, so the expected advantage shrinks by 1 - 2 `rate`
    (noisy rewards, arXiv:2505.22653).

    Args:
        values: (n, G) rewards.
        items: (n, G), -1 = none.
        rate: from 0 to 1.
        rng: of the draws, one per group.
    """
    turned = rng.random(len(values)) < rate
    return np.where(turned[:, None] & (items != NO_ITEM), 1 - values, values).astype(np.float32)


def group_advantages(values: Floats, items: Ints) -> Floats:
    """Advantages inside each group; 0 for a group of one, of equal rewards, and where there is no item.

    Args:
        values: (n, G) rewards.
        items: (n, G), -1 = none.

    Returns:
        (n, G) float32.
    """
    valid, exact = items != NO_ITEM, values.astype(np.float64)
    count = valid.sum(axis=1, keepdims=True)
    mean = (exact * valid).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    off = np.where(valid, exact - mean, 0.0)
    off[np.abs(off).max(axis=1) < _EPSILON**2] = 0.0  # rounding of the mean is no advantage
    deviation = np.sqrt((off**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
    found: Floats = (off / (deviation + _EPSILON)).astype(np.float32)
    return found
