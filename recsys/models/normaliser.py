"""The frozen normaliser: log-probabilities over the children that a prefix has in the model's own trie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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

    def log_prob(self, level: int, logits: Tensor, items: Tensor) -> Tensor:
        """Log-probability of the item's code at `level` given its prefix.

        Args:
            level: from 0.
            logits: (N, T_level).
            items: (N,) target items.

        Returns:
            (N,) float32.
        """
        if level == 0:
            return self.first_log_prob(logits, items[:, None])[:, 0]
        logits = logits.float()
        target = logits.gather(1, self.item_codes(level, items)[:, None])[:, 0]  # (N,)
        if self.whole_codebook:
            return target - logits.logsumexp(dim=1)
        codes = self.get_buffer(f"code{level}")
        parent = self.item_node[items, level - 1]
        start = self.get_buffer(f"start{level}")
        first, end = start[parent], start[parent + 1]  # (N,)
        child = first[:, None] + torch.arange(self.degrees[level], device=logits.device)  # (N, widest)
        allowed = child < end[:, None]
        gathered = logits.gather(1, codes[child.clamp(max=len(codes) - 1)])
        return target - gathered.masked_fill(~allowed, -torch.inf).logsumexp(dim=1)
