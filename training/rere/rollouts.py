"""Rollouts: G items behind every history, by constrained beam, by independent draws, or by dynamic sampling.

Source: ReRe, arXiv:2510.12211. A beam gives distinct items and is the method; the other two are its ablations.

A group without a hit teaches nothing under the rule reward. A hint (StepHint, arXiv:2507.02841, on the trie) then gives
the first codes of the target and rolls out the rest below that prefix; one more code as long as there is no hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from recsys.decoding.buckets import Found
from recsys.decoding.nezha import HeadRanker
from training.rere.groups import NO_ITEM, has_hit
from training.rere.sampling import draw_leaves

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from recsys.decoding.eligibility import RequestMask
    from training.rere.candidates import Candidates, Requests
    from training.rere.policy import Policy

    Ints = npt.NDArray[np.int64]

RolloutKind = Literal["beam", "independent", "dynamic"]


class Plan(NamedTuple):
    """How to roll out.

    Attributes:
        kind: of the rollouts.
        group: G.
        beam: prefixes kept per level, for `beam`.
        hint_levels: at most so many codes are given to groups without a hit; 0 = no hints.
    """

    kind: RolloutKind
    group: int
    beam: int
    hint_levels: int = 0


class Rolled(NamedTuple):
    """What came of it.

    Attributes:
        items: (n, G) the policy's most probable first, -1 = none.
        hinted: (n,) codes that were given.
    """

    items: Ints
    hinted: Ints


@torch.no_grad()
def roll_out(
    policy: Policy, candidates: Candidates, requests: Requests, plan: Plan, generator: torch.Generator
) -> Rolled:
    """Roll out from the policy's weights as they are now.

    Args:
        policy: to draw from.
        candidates: what may be shown.
        requests: n histories and their targets.
        plan: how.
        generator: of the draws, on the policy's device; a beam draws nothing.
    """
    states = policy.states(requests.histories)
    # the ranker copies the head's weights: one per call, for they change from call to call
    ranker = HeadRanker(policy.model.head, policy.trie) if plan.kind == "beam" else None
    found = np.full((len(requests.targets), plan.group), NO_ITEM, dtype=np.int64)
    hinted = np.zeros(len(found), dtype=np.int64)
    for hint in range(plan.hint_levels + 1):
        rows = np.flatnonzero(~has_hit(found, requests.targets)) if hint else np.arange(len(found))
        if not len(rows):
            break
        some = requests.some(rows)
        masks = candidates.masks(some, hint)
        if ranker is not None:
            items = _beam(ranker, states[rows], masks, plan)
        else:
            items = _sampled(policy, states[rows], masks, some, plan, generator)
        better = has_hit(items, some.targets) | (hint == 0)  # a hint that does not help is not given
        found[rows[better]], hinted[rows[better]] = items[better], hint
    return Rolled(found, hinted)


def _beam(ranker: HeadRanker, states: Tensor, masks: Sequence[RequestMask], plan: Plan) -> Ints:
    items = np.full((len(masks), plan.group), NO_ITEM, dtype=np.int64)
    ranked, _ = ranker.rank(states, masks, k=plan.group, beam=plan.beam)
    for row, answer in enumerate(ranked):
        items[row, : len(answer.items)] = answer.items
    return items


def _sampled(
    policy: Policy,
    states: Tensor,
    masks: Sequence[RequestMask],
    requests: Requests,
    plan: Plan,
    generator: torch.Generator,
) -> Ints:
    items = np.full((len(masks), plan.group), NO_ITEM, dtype=np.int64)
    open_rows = np.array([row for row, mask in enumerate(masks) if mask.eligible], dtype=np.int64)
    if not len(open_rows):
        return items
    states, masks = states[open_rows], [masks[row] for row in open_rows]
    draws = plan.group if plan.kind == "independent" else -(-3 * plan.group // 2)
    leaves = draw_leaves(policy, states, masks, draws, generator)  # (n', S)
    drawn = np.stack([_items_of(policy, row, mask) for row, mask in zip(leaves, masks, strict=True)])
    if plan.kind == "dynamic":
        targets = requests.targets[open_rows]
        chosen = [dynamic_choice(row, int(target), plan.group) for row, target in zip(drawn, targets, strict=True)]
        drawn = np.stack(chosen)
    log_probs = policy.item_log_probs(states, torch.from_numpy(drawn).to(states.device)).sum(dim=2)
    order = log_probs.argsort(dim=1, descending=True, stable=True).cpu().numpy()
    items[open_rows] = np.take_along_axis(drawn, order, axis=1)
    return items


def _items_of(policy: Policy, leaves: Ints, mask: RequestMask) -> Ints:
    """(S,) the first item below each leaf that may be shown."""
    distinct, place = np.unique(leaves, return_inverse=True)
    score = np.zeros(1, dtype=np.float32)
    first = [policy.buckets.expand(Found(distinct[i : i + 1], score), mask, 1).items[0] for i in range(len(distinct))]
    return np.asarray(first, dtype=np.int64)[place]


def dynamic_choice(drawn: Ints, target: int, group: int) -> Ints:
    """G of the draws: every copy of the target, then others by turns, the most frequent first.

    Args:
        drawn: (S,) items, S >= G.
        target: an item.
        group: G.
    """
    hits = drawn[drawn == target][:group]
    others, first, counts = np.unique(drawn[drawn != target], return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    turns = np.concatenate(
        [others[order][counts[order] > turn] for turn in range(int(counts.max(initial=0)))] or [hits]
    )
    return np.concatenate([hits, turns])[:group]
