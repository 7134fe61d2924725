"""The frozen normaliser: log-probabilities over the children that a prefix has in the model's own trie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from recsys.models.head import prefix_rows

if TYPE_CHECKING:
    from recsys.decoding.trie import SidTrie


class Normaliser(nn.Module):
    """The trie on the model's device, for training.

    Args:
        trie: of the tokenizer's assignment.
        whole_codebook: softmax over the whole codebook instead (the released NEZHA's objective).
    """

    item_node: Tensor
    absent: Tensor

    def __init__(self, trie: SidTrie, *, whole_codebook: bool = False) -> None:
        super().__init__()
        self.whole_codebook = whole_codebook
        self.levels = trie.levels
        self.degrees = [int((start[1:] - start[:-1]).max()) for start in trie.child_start]
        for depth, start in enumerate(trie.child_start):
            self.register_buffer(f"start{depth}", torch.from_numpy(start), persistent=False)
            codes = torch.from_numpy(trie.node_code[depth].astype("int64"))
            self.register_buffer(f"code{depth}", codes, persistent=False)
        self.register_buffer("item_node", torch.from_numpy(trie.item_node), persistent=False)
        absent = torch.full((trie.sizes[0],), 0.0 if whole_codebook else -torch.inf)
        absent[torch.from_numpy(trie.node_code[0].astype("int64"))] = 0.0
        self.register_buffer("absent", absent, persistent=False)  # (T_1,)

    def item_codes(self, level: int, items: Tensor) -> Tensor:
        """The level's code of each item: (N,) -> (N,)."""
        codes: Tensor = self.get_buffer(f"code{level}")[self.item_node[items, level]]
        return codes

    def first_log_prob(self, logits: Tensor, items: Tensor) -> Tensor:
        """Log-probability of the items' first codes, the softmax computed once per row.

        Args:
            logits: (N, T_1).
            items: (N, M).

        Returns:
            (N, M) float32.
        """
        logits = logits.float()
        codes = self.item_codes(0, items.flatten()).view_as(items)
        return logits.gather(1, codes) - (logits + self.absent).logsumexp(dim=1, keepdim=True)

    def prefix_rows(self, level: int, item_rows: Tensor) -> Tensor:
        """Mean row of the items below each prefix of `level` + 1 codes: (I, F) -> (n, F)."""
        return prefix_rows(item_rows, self.item_node[:, level], len(self.get_buffer(f"code{level}")))

    def log_prob(self, level: int, logits: Tensor, items: Tensor, own: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Log-probability of the item's code at `level` given its prefix.

        Args:
            level: from 0.
            logits: (N, T_level).
            items: (N,) target items.
            own: from level 1 on, what is scored by prefix beside the codes: states (N, F) and rows (n, F).

        Returns:
            (N,) float32.
        """
        if level == 0:
            return self.first_log_prob(logits, items[:, None])[:, 0]
        logits = logits.float()
        if self.whole_codebook:
            return logits.gather(1, self.item_codes(level, items)[:, None])[:, 0] - logits.logsumexp(dim=1)
        parent = self.item_node[items, level - 1]
        gathered, allowed, first = self._children(level, logits, parent, own)
        target = gathered.gather(1, (self.item_node[items, level] - first)[:, None])[:, 0]  # (N,)
        return target - gathered.masked_fill(~allowed, -torch.inf).logsumexp(dim=1)

    def child_log_probs(
        self, level: int, logits: Tensor, parent: Tensor, own: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all children of prefixes.

        Args:
            level: of the children, from 0.
            logits: (N, T_level).
            parent: (N,) nodes of depth `level`; 0 is the root.
            own: see `log_prob`.

        Returns:
            (N, widest) float32, minus infinity behind the last child, and (N, widest) the children's nodes, there the
            last node of their depth.
        """
        logits = logits.float()
        gathered, allowed, first = self._children(level, logits, parent, own)
        masked = gathered.masked_fill(~allowed, -torch.inf)
        total = (logits if self.whole_codebook else masked).logsumexp(dim=1, keepdim=True)
        child = first[:, None] + torch.arange(self.degrees[level], device=logits.device)
        return masked - total, child.clamp(max=len(self.get_buffer(f"code{level}")) - 1)

    def node_codes(self, level: int, nodes: Tensor) -> Tensor:
        """The last code of nodes of depth `level` + 1: (N,) -> (N,)."""
        codes: Tensor = self.get_buffer(f"code{level}")[nodes]
        return codes

    def _children(
        self, level: int, logits: Tensor, parent: Tensor, own: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the children (N, widest), which of them exist, and (N,) the first child's node."""
        codes, start = self.get_buffer(f"code{level}"), self.get_buffer(f"start{level}")
        first, end = start[parent], start[parent + 1]  # (N,)
        child = first[:, None] + torch.arange(self.degrees[level], device=logits.device)  # (N, widest)
        allowed = child < end[:, None]
        gathered = logits.gather(1, codes[child.clamp(max=len(codes) - 1)])
        if own is not None:
            gathered = gathered + self._with_children(level, parent, *own)
        return gathered, allowed, first

    def _with_children(self, level: int, parent: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Products of states with the rows of their prefixes' children; 0 for only children, void behind the last.

        Prefixes with about as many children are computed together, so that little is computed for nothing.

        Args:
            level: of the children.
            parent: (N,).
            states: (N, F).
            rows: (n, F).

        Returns:
            (N, widest).
        """
        start, widest = self.get_buffer(f"start{level}"), self.degrees[level]
        degree = start[parent + 1] - start[parent]
        products = torch.zeros(len(parent), widest, device=parent.device)
        width = 1
        while width < widest:
            narrower, width = width, min(2 * width, widest)
            place = torch.nonzero((degree > narrower) & (degree <= width))[:, 0]
            if len(place):
                found = _by_parent(start, parent[place], states[place], rows, width)
                products = products.index_copy(0, place, F.pad(found.float(), (0, widest - width)))
        return products


def _by_parent(start: Tensor, parent: Tensor, states: Tensor, rows: Tensor, width: int) -> Tensor:
    """Products of states (N, F) with the rows of their parents' (N,) first `width` children: (N, width).

    The states of one parent are multiplied together, in blocks of equal height: its children's rows are then gathered
    once per block and not once per state.
    """
    order = parent.argsort(stable=True)
    ordered = parent[order]
    place = torch.arange(len(order), device=order.device)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    height = len(order) // int(new.sum())  # what a parent has on average
    slot = (place - place.where(new, 0).cummax(0).values) % height  # (N,) in its block
    begins = slot == 0
    at = (begins.cumsum(0) - 1) * height + slot  # (N,)
    tops = ordered[begins]  # (blocks,)
    child = start[tops][:, None] + torch.arange(width, device=tops.device)
    blocks = states.new_zeros(len(tops) * height, states.shape[1]).index_copy(0, at, states[order])
    below = F.embedding(child.clamp(max=len(rows) - 1), rows)  # (blocks, width, F)
    products = torch.bmm(blocks.view(len(tops), height, -1), below.transpose(1, 2))
    return products.flatten(0, 1)[at[order.argsort()]]
