"""What the head learns: the backbone's own distribution over semantic IDs, and what users did next.

The divergence of the head q from the backbone p over whole semantic IDs is a sum over levels, because both are products
of distributions over children:

    KL(p || q) = sum over levels l of  E over prefixes t_<l ~ p of  KL(p(. | t_<l) || q(. | t_<l))

The first level is computed exactly, the others from prefixes that the backbone draws; at each of them the whole
distribution over its children is compared, not the one child that was drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from recsys.decoding.trie import SidTrie
    from recsys.models import PromptedRecommender
    from recsys.models.token import Prompt


class Children(nn.Module):
    """A trie's children as padded rows; W is the largest number of children at a level.

    Args:
        trie: of the model's semantic IDs.
    """

    item_node: Tensor

    def __init__(self, trie: SidTrie) -> None:
        super().__init__()
        self.levels = trie.levels
        self.widest = [int((start[1:] - start[:-1]).max()) for start in trie.child_start]
        for level, start in enumerate(trie.child_start):
            self.register_buffer(f"start{level}", torch.from_numpy(start), persistent=False)
            codes = torch.from_numpy(trie.node_code[level].astype("int64"))
            self.register_buffer(f"code{level}", codes, persistent=False)
        self.register_buffer("item_node", torch.from_numpy(trie.item_node), persistent=False)

    def first(self, level: int, nodes: Tensor) -> Tensor:
        """(N,) nodes of depth `level` -> (N,) their first children."""
        found: Tensor = self.get_buffer(f"start{level}")[nodes]
        return found

    def codes(self, level: int, children: Tensor) -> Tensor:
        """Nodes of depth `level` + 1 (...) -> their codes (...)."""
        found: Tensor = self.get_buffer(f"code{level}")[children]
        return found

    def log_probs(self, level: int, nodes: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities of the children of nodes.

        Args:
            level: from 0.
            nodes: (N,) of depth `level`.
            logits: (N, T_level).

        Returns:
            (N, W), minus infinity behind the last child.
        """
        start, codes = self.get_buffer(f"start{level}"), self.get_buffer(f"code{level}")
        child = start[nodes][:, None] + torch.arange(self.widest[level], device=logits.device)
        exists = child < start[nodes + 1][:, None]
        values = logits.gather(1, codes[child.clamp(max=len(codes) - 1)])
        found: Tensor = values.masked_fill(~exists, -torch.inf).log_softmax(dim=1)
        return found


class Lesson(NamedTuple):
    """What the backbone says behind a batch of prompts, along K paths each; the first path is the data's next item.

    Attributes:
        log_probs: per level, (B, 1, W) for the first, else (B, K, W).
        slots: per level, (B, K) which child each path takes.
        nodes: per level, (B, K) that child's node.
    """

    log_probs: list[Tensor]
    slots: list[Tensor]
    nodes: list[Tensor]


@torch.no_grad()
def draw_lesson(
    model: PromptedRecommender,
    children: Children,
    prompt: Prompt,
    targets: Tensor,
    *,
    samples: int,
    generator: torch.Generator,
) -> Lesson:
    """Let the backbone draw semantic IDs.

    Args:
        model: whose backbone speaks.
        children: of its trie.
        prompt: of B histories.
        targets: (B,) the data's next items.
        samples: paths drawn per history; K is one more.
        generator: on the model's device.
    """
    batch, paths = len(targets), samples + 1
    lesson = Lesson([], [], [])
    logits = model.token_logits(0, prompt.last)
    nodes = torch.zeros(batch, paths, dtype=torch.int64, device=logits.device)
    cache, seen = prompt.cache, prompt.real[:, None].expand(-1, paths, -1)
    own = torch.eye(paths, dtype=torch.bool, device=logits.device).expand(batch, -1, -1)
    for level in range(children.levels):
        if level:
            seen = torch.cat([seen, own], dim=2)
            tokens = model.embed_codes(level - 1, children.codes(level - 1, nodes))
            positions = (prompt.following + level - 1)[:, None].expand(-1, paths)
            hidden, cache = model.extend(tokens, positions, seen[:, None], cache)
            logits = model.token_logits(level, hidden.flatten(0, 1))
        parents = nodes.flatten() if level else nodes[:, 0]
        log_probs = children.log_probs(level, parents, logits).view(batch, -1, children.widest[level])
        first = children.first(level, nodes)  # (B, K)
        slots = _drawn(log_probs, paths, generator)
        slots[:, 0] = children.item_node[targets, level] - first[:, 0]
        nodes = first + slots
        lesson.log_probs.append(log_probs)
        lesson.slots.append(slots)
        lesson.nodes.append(nodes)
    return lesson


def _drawn(log_probs: Tensor, paths: int, generator: torch.Generator) -> Tensor:
    """(B, K) a child per path from (B, K, W), or from (B, 1, W) shared by all."""
    batch, rows, width = log_probs.shape
    weights = log_probs.exp().view(-1, width)
    if rows == 1:
        return torch.multinomial(weights, paths, replacement=True, generator=generator)
    return torch.multinomial(weights, 1, generator=generator).view(batch, paths)


def head_loss(
    model: PromptedRecommender, children: Children, hidden: Tensor, lesson: Lesson, *, data_weight: float
) -> Tensor:
    """Mean over a batch of the divergence from the backbone, mixed with the data's negative log-likelihood.

    Args:
        model: whose head learns.
        children: of its trie.
        hidden: (B, L+1, H).
        lesson: of the backbone.
        data_weight: share of the data.
    """
    head, (batch, paths) = model.head, lesson.nodes[0].shape
    state = head.start(hidden)
    root = torch.zeros(batch, dtype=torch.int64, device=hidden.device)
    own = [children.log_probs(0, root, head.logits(0, hidden, state))[:, None]]
    wide = hidden.repeat_interleave(paths, dim=0)
    state = state.repeat_interleave(paths, dim=0)
    for level in range(1, children.levels):
        parents = lesson.nodes[level - 1].flatten()
        state = head.advance(level - 1, state, children.codes(level - 1, parents))
        logits = head.logits(level, wide, state)
        own.append(children.log_probs(level, parents, logits).view(batch, paths, -1))
    total = hidden.new_zeros(())
    for level, (theirs, ours) in enumerate(zip(lesson.log_probs, own, strict=True)):
        drawn = slice(1, None) if level else slice(None)
        total = total + (1 - data_weight) * _divergence(theirs[:, drawn], ours[:, drawn])
        if data_weight:
            total = total - data_weight * ours[:, 0].gather(1, lesson.slots[level][:, :1]).mean()
    return total


def _divergence(theirs: Tensor, ours: Tensor) -> Tensor:
    """Mean of KL(theirs || ours) over rows of log-probabilities (..., W)."""
    real = theirs > -torch.inf
    terms = theirs.exp() * (theirs.masked_fill(~real, 0) - ours.masked_fill(~real, 0))
    return terms.sum(dim=-1).mean()
