"""The recommender whose slates the log shows, with the exact probability of every slot.

At each request it knows what the user wanted a step ago (in the search scene: what is searched for), the lasting
interests and a blurred taste; it does not know the present wish. Its candidates are the shelves of a few leaves
and the popular items. Slots are filled from the top without replacement. With probability 1 - epsilon a slot takes
a candidate by softmax of the scores over the candidates that are left (Plackett-Luce, drawn by the Gumbel trick);
with probability epsilon it takes any item on sale that is not yet in the slate, uniformly. The logged propensity
of item a at position p, given the items above it, is therefore

    (1 - epsilon) * softmax(scores of the candidates left)[a] + epsilon / (items on sale - p)

with the first term 0 for an item that is no candidate; where no candidate is left, the slot explores for sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.datasets.marketplace.catalog import BEST, SHELF
from recsys.datasets.marketplace.settings import STYLE, Bools, Doubles, Indices, Ints, Scene

if TYPE_CHECKING:
    from recsys.datasets.marketplace.catalog import Catalog, Shelves
    from recsys.datasets.marketplace.people import Moments

_LEAVES: Final = 3  # shelves per request
_APPEAL_WEIGHT = 0.4
_STYLE_WEIGHT = 1.2
_LEAF_BONUS = (1.6, 0.9, 0.4)  # for the first, second and third shelf
_POPULAR_PENALTY = -1.0


@dataclass(frozen=True, slots=True)
class Slates:
    """What was shown; every array is (n, k).

    Attributes:
        items: item indices, position 0 first; -1 where nothing was left to show.
        propensities: float64, probability of the item at its position given those above it; 0 where empty.
        explored: the slot was filled by exploration.
    """

    items: Indices
    propensities: Doubles
    explored: Bools


def candidates(catalog: Catalog, shelves: Shelves, moments: Moments, scene: Ints) -> tuple[Indices, Doubles]:
    """What the logged recommender considers for each moment: items (n, C) with -1 for none, and scores (n, C)."""
    leaves = _shelves_for(catalog, moments, scene)
    reached = np.where(leaves[:, :, None] >= 0, shelves.leaves[np.maximum(leaves, 0)], -1)
    popular = np.broadcast_to(shelves.popular, (len(leaves), BEST))
    on_shelf = (catalog.leaf[popular][:, :, None] == leaves[:, None, :]).any(axis=2)
    popular = np.where(on_shelf, -1, popular)
    items = np.concatenate([reached.reshape(len(leaves), _LEAVES * SHELF), popular], axis=1).astype(np.int32)
    known = np.maximum(items, 0)
    bonus = np.concatenate([np.repeat(_LEAF_BONUS, SHELF), np.full(BEST, _POPULAR_PENALTY)])
    taste = np.einsum("nd,nmd->nm", moments.taste, catalog.style[known]).astype(np.float64) / np.sqrt(STYLE)
    scores = bonus + _APPEAL_WEIGHT * catalog.appeal[known] + _STYLE_WEIGHT * taste
    return items, np.where(items >= 0, scores, -np.inf)


def choose_slates(
    catalog: Catalog,
    shelves: Shelves,
    moments: Moments,
    scene: Ints,
    rng: np.random.Generator,
    *,
    length: int,
    exploration: float,
) -> Slates:
    """Draw one slate per moment and write down how probable each slot was.

    Args:
        catalog: the items.
        shelves: what can be shown on the moments' day.
        moments: (n,) whom to show it to.
        scene: (n,) where.
        rng: where the draws come from.
        length: slots per slate.
        exploration: epsilon, in [0, 1].
    """
    items, scores = candidates(catalog, shelves, moments, scene)
    noisy = scores + rng.gumbel(size=scores.shape)
    weights = np.exp(scores - np.maximum(scores.max(axis=1, keepdims=True, initial=-np.inf), -1e300))
    rows = np.arange(len(items))
    shown = np.full((len(items), length), -1, dtype=np.int32)
    propensities = np.zeros((len(items), length))
    explored = np.zeros((len(items), length), dtype=np.bool_)
    for position in range(min(length, shelves.available)):
        left = weights.sum(axis=1)
        best = noisy.argmax(axis=1)
        explore = (rng.random(len(items)) < exploration) | (left <= 0)
        item = items[rows, best].copy()
        item[explore] = _anything(catalog, shelves, shown[explore, :position], rng)
        same = items == item[:, None]
        uniform = 1.0 / (shelves.available - position)
        share = np.where(same, weights, 0.0).sum(axis=1) / np.where(left > 0, left, 1.0)
        rate = np.where(left > 0, exploration, 1.0)
        shown[:, position] = item
        propensities[:, position] = (1.0 - rate) * share + rate * uniform
        explored[:, position] = explore
        weights[same] = 0.0
        noisy[same] = -np.inf
    return Slates(shown, propensities, explored)


def _shelves_for(catalog: Catalog, moments: Moments, scene: Ints) -> Indices:
    """(n, 3) leaves to look at, -1 for none, without repetition."""
    previous = moments.previous
    after = catalog.tree.successors[previous]
    nothing = np.full(len(previous), -1, dtype=np.int32)
    plans = {
        Scene.HOME: (previous, moments.interests[:, 0], moments.interests[:, 1]),
        Scene.SEARCH: (moments.intent, nothing, nothing),
        Scene.ITEM: (previous, after[:, 0], after[:, 1]),
        Scene.CART: (after[:, 0], after[:, 1], previous),
        Scene.BROWSE: (previous, nothing, nothing),
    }
    leaves = np.full((len(previous), _LEAVES), -1, dtype=np.int32)
    for name, plan in plans.items():
        leaves = np.where((scene == name)[:, None], np.stack(plan, axis=1), leaves)
    for place in range(1, _LEAVES):
        repeated = (leaves[:, :place] == leaves[:, place : place + 1]).any(axis=1)
        leaves[repeated, place] = -1
    return leaves


def _anything(catalog: Catalog, shelves: Shelves, above: Indices, rng: np.random.Generator) -> Indices:
    """For each row, uniformly one of the items on sale that is not in the row of `above`; by rejection."""
    drawn = np.full(len(above), -1, dtype=np.int32)
    open_rows = np.arange(len(above))
    while len(open_rows):
        proposal = rng.integers(0, shelves.created, size=len(open_rows)).astype(np.int32)
        fits = catalog.available(proposal, shelves.day) & (above[open_rows] != proposal[:, None]).all(axis=1)
        drawn[open_rows[fits]] = proposal[fits]
        open_rows = open_rows[~fits]
    return drawn
