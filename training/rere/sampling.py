"""Independent draws of semantic IDs from a policy, code by code down the trie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys.decoding.packed import bools_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from recsys.decoding.eligibility import RequestMask
    from training.rere.policy import Policy


@torch.no_grad()
def draw_leaves(
    policy: Policy, states: Tensor, masks: Sequence[RequestMask], draws: int, generator: torch.Generator
) -> npt.NDArray[np.int64]:
    """Draw semantic IDs; where something may not be shown, from the policy over the prefixes that lead to something.

    Args:
        policy: to draw from.
        states: (n, L + 1, H) behind the histories.
        masks: of the n requests, each with something to show.
        draws: per request, S.
        generator: on the states' device.

    Returns:
        (n, S) leaves of the trie.
    """
    head, normaliser, levels = policy.model.head, policy.normaliser, policy.trie.levels
    count = len(states)
    hidden = states.repeat_interleave(draws, dim=0)  # (n * S, L + 1, H)
    row = torch.arange(count, device=states.device).repeat_interleave(draws)
    state = head.start(hidden)
    nodes = torch.zeros(count * draws, dtype=torch.int64, device=states.device)
    for level in range(levels):
        if level:
            state = head.advance(level - 1, state, normaliser.node_codes(level - 1, nodes))
        fused, own = head.fuse(level, hidden, state), None
        if level and head.item_output is not None:
            own = fused, normaliser.prefix_rows(level, head.item_output.weight)
        log_probs, child = normaliser.child_log_probs(level, head.outputs[level](fused), nodes, own)
        living = _living(policy, masks, level + 1, row, child)
        weights = log_probs.masked_fill(~living, -torch.inf).softmax(dim=1)  # (n * S, W)
        slot = torch.multinomial(weights, 1, generator=generator)
        nodes = child.gather(1, slot)[:, 0]
    return nodes.view(count, draws).cpu().numpy()


def _living(policy: Policy, masks: Sequence[RequestMask], depth: int, row: Tensor, child: Tensor) -> Tensor:
    """Whether nodes lead to something that their request may show: rows (N,), nodes (N, W) of `depth` -> (N, W)."""
    size = policy.trie.nodes(depth)
    dead = [request * size + np.asarray(mask.dead[depth - 1], dtype=np.int64) for request, mask in enumerate(masks)]
    gone = torch.from_numpy(np.concatenate(dead)).to(child.device)
    living = ~torch.isin(row[:, None] * size + child, gone)
    which: dict[int, int] = {}  # requests that share a set of live items share its table
    tables: list[npt.NDArray[np.bool_]] = []
    for mask in masks:
        if id(mask.live) not in which:
            which[id(mask.live)] = len(tables)
            alive = mask.live.alive
            tables.append(bools_of(alive[depth - 1], size) if alive else np.ones(size, dtype=np.bool_))
    table = torch.from_numpy(np.stack(tables)).to(child.device)  # (sets, n_depth)
    own = torch.tensor([which[id(mask.live)] for mask in masks], device=child.device)
    return living & table[own[row][:, None], child]
