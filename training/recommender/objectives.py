"""What each shape is trained to do: summed losses and the counts they are divided by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from recsys.models.compact import FlatRecommender
from recsys.models.token import TokenRecommender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from recsys.models import Recommender
    from recsys.models.compact import CompactRecommender
    from recsys.models.normaliser import Normaliser


class Distilled(NamedTuple):
    """The teacher's word for a batch of targets.

    Attributes:
        items: (N, M) sampled items.
        spoken: (N,) bool.
        weight: share of the loss that follows the teacher where it speaks.
    """

    items: Tensor
    spoken: Tensor
    weight: float


class Smoothing(NamedTuple):
    """Label smoothing by one item per target, drawn evenly: its expectation is the uniform distribution.

    Attributes:
        items: (N,).
        share: of the loss.
    """

    items: Tensor
    share: float


class PathLevel(NamedTuple):
    """What the head scores one level of N * M paths with.

    Attributes:
        logits: (N, T_1) at the first level, where the candidates of a row share them, else (N * M, T_level).
        own: the states and rows that are scored by prefix beside the codes, or None.
    """

    logits: Tensor
    own: tuple[Tensor, Tensor] | None


def path_levels(
    model: CompactRecommender | TokenRecommender, normaliser: Normaliser, hidden: Tensor, items: Tensor
) -> Iterator[PathLevel]:
    """The head along the semantic IDs of items, level by level; arguments as `path_log_prob`."""
    head = model.head
    columns, flat = items.shape[1], items.reshape(-1)
    state = head.start(hidden)  # (N, H)
    yield PathLevel(head.logits(0, hidden, state), None)
    hidden = hidden.repeat_interleave(columns, dim=0)
    state = state.repeat_interleave(columns, dim=0)
    for level in range(1, model.config.levels):
        state = head.advance(level - 1, state, normaliser.item_codes(level - 1, flat))
        fused, own = head.fuse(level, hidden, state), None
        if head.item_output is not None:
            own = head.dropout(fused), normaliser.prefix_rows(level, head.item_output.weight)
        yield PathLevel(head.outputs[level](fused), own)


def path_log_probs(
    model: CompactRecommender | TokenRecommender, normaliser: Normaliser, hidden: Tensor, items: Tensor
) -> list[Tensor]:
    """As `path_log_prob`, the levels apart: L tensors (N, M)."""
    found = []
    for level, (logits, own) in enumerate(path_levels(model, normaliser, hidden, items)):
        if level == 0:
            found.append(normaliser.first_log_prob(logits, items))
        else:
            found.append(normaliser.log_prob(level, logits, items.reshape(-1), own).view_as(items))
    return found


def path_log_prob(
    model: CompactRecommender | TokenRecommender, normaliser: Normaliser, hidden: Tensor, items: Tensor
) -> Tensor:
    """Log-probability of whole semantic IDs under the head.

    Args:
        model: whose head writes.
        normaliser: of the model's trie.
        hidden: (N, L+1, H).
        items: (N, M) candidate items per row.

    Returns:
        (N, M) float32.
    """
    first, *later = path_log_probs(model, normaliser, hidden, items)
    return sum(later, first)


def draft_loss(
    model: CompactRecommender | TokenRecommender,
    normaliser: Normaliser,
    hidden: Tensor,
    targets: Tensor,
    distilled: Distilled | None,
    smoothing: Smoothing | None = None,
) -> Tensor:
    """Summed negative log-likelihood of the targets under the head, mixed with the teacher's samples.

    Args:
        model: whose head writes.
        normaliser: of the model's trie.
        hidden: (N, L+1, H) states that predict the targets.
        targets: (N,) items.
        distilled: the teacher's samples, or None.
        smoothing: items drawn evenly, or None.
    """
    columns = [targets[:, None]]
    if distilled is not None:
        columns.append(distilled.items)
    if smoothing is not None:
        columns.append(smoothing.items[:, None])
    log_prob = path_log_prob(model, normaliser, hidden, torch.cat(columns, dim=1))  # (N, 1 + M + drawn)
    hit = log_prob[:, 0]
    if distilled is not None:
        share = distilled.weight * distilled.spoken.float()
        hit = (1 - share) * hit + share * log_prob[:, 1 : 1 + distilled.items.shape[1]].mean(dim=1)
    if smoothing is not None:
        hit = (1 - smoothing.share) * hit + smoothing.share * log_prob[:, -1]
    return -hit.sum()


def token_loss(
    model: TokenRecommender,
    normaliser: Normaliser,
    items: Tensor,
    target: Tensor,
    distilled: Distilled | None,
    backbone_weight: float,
    smoothing: Smoothing | None,
) -> Tensor:
    """The head's loss and beside it the backbone's own next-token loss, both over the normaliser.

    The backbone follows the teacher through the first item drawn per target.
    """
    drawn = None
    if distilled is not None:
        drawn = torch.zeros_like(items)
        drawn[target] = distilled.items[:, 0]
    states = model.states(items, drawn)
    chosen = items[target]  # (N,)
    loss = draft_loss(model, normaliser, states.head[target], chosen, distilled, smoothing)
    own = _backbone_log_prob(model, normaliser, states.backbone[target], chosen)
    if distilled is not None and states.branch is not None:
        share = distilled.weight * distilled.spoken.float()
        taught = _backbone_log_prob(model, normaliser, states.branch[target], distilled.items[:, 0])
        own = (1 - share) * own + share * taught
    return loss - backbone_weight * own.sum()


def _backbone_log_prob(model: TokenRecommender, normaliser: Normaliser, hidden: Tensor, items: Tensor) -> Tensor:
    """States (N, L, H) and items (N,) -> (N,)."""
    total = torch.zeros(len(items), device=items.device)
    for level in range(model.config.levels):
        total = total + normaliser.log_prob(level, model.token_logits(level, hidden[:, level]), items)
    return total


def flat_loss(
    model: FlatRecommender, hidden: Tensor, targets: Tensor, distilled: Distilled | None, smoothing: Smoothing | None
) -> Tensor:
    """Summed cross-entropy over all items, mixed with the teacher's samples."""
    logits = (model.output(hidden) @ model.item_vectors().T).float()  # (N, I)
    log_prob = logits.log_softmax(dim=1)
    hit = log_prob.gather(1, targets[:, None])[:, 0]
    if distilled is not None:
        share = distilled.weight * distilled.spoken.float()
        hit = (1 - share) * hit + share * log_prob.gather(1, distilled.items).mean(dim=1)
    if smoothing is not None:
        hit = (1 - smoothing.share) * hit + smoothing.share * log_prob.gather(1, smoothing.items[:, None])[:, 0]
    total: Tensor = -hit.sum()
    return total


def batch_loss(
    model: Recommender,
    normaliser: Normaliser,
    items: Tensor,
    target: Tensor,
    distilled: Distilled | None,
    *,
    backbone_weight: float = 1.0,
    smoothing: Smoothing | None = None,
) -> Tensor:
    """Summed loss of one batch of windows, every target position trained in one pass.

    Args:
        model: any shape.
        normaliser: of the model's trie.
        items: (B, n) events, padded on the right with -1.
        target: (B, n) bool, which events are targets.
        distilled: the teacher's samples for the targets in row-major order, or None.
        backbone_weight: token shape only, of the backbone's next-token loss.
        smoothing: items drawn evenly for the targets in row-major order, or None.
    """
    if isinstance(model, TokenRecommender):
        return token_loss(model, normaliser, items, target, distilled, backbone_weight, smoothing)
    hidden = model.trunk(items[:, :-1])  # (B, n, H): position j has read j events and predicts event j
    chosen = hidden[target]  # (N, H)
    if isinstance(model, FlatRecommender):
        return flat_loss(model, chosen, items[target], distilled, smoothing)
    return draft_loss(model, normaliser, model.expand(chosen), items[target], distilled, smoothing)
