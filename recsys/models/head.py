"""NEZHA's draft head: a small autoregressive cell that writes a semantic ID from L + 1 hidden states.

Source: NEZHA (arXiv:2511.18793), the head's equations: s_1 = h_0, p_l = softmax(W_l f(h_l, s_l)),
s_{l+1} = cell_l(E_l[t_l], s_l). f adds (as released) or concatenates (as written in the paper).

Beyond the paper, for the compact shape: every item has an output row of its own. A prefix is scored with the row of its
last code plus the mean row of the items below it, so that two items with similar codes need not have similar scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from recsys.models.config import RecommenderConfig

_CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell}


class DraftHead(nn.Module):
    """The head; levels count from 0 here.

    Attributes:
        code_embedding: E_l for every level but the last, (T_l, H).
        cells: the transition per level but the last; empty for transition `none`.
        outputs: W_l per level, (T_l, H), or (T_l, 2H) for fusion `concat`.
        item_output: (I, H), or (I, 2H), the items' own rows; None without.
        dropout: on what meets the items' own rows, in training.
    """

    def __init__(self, config: RecommenderConfig, *, item_rows: bool = False) -> None:
        super().__init__()
        width, sizes = config.d_model, config.codebook_sizes
        self.fusion = config.fusion
        self.transition = config.transition
        recurrent = sizes[:-1] if config.transition != "none" else ()
        tables = [nn.Embedding(size, width) for size in recurrent]
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.code_embedding = nn.ModuleList(tables)
        self.cells = nn.ModuleList(_CELLS[config.transition](width, width) for _ in recurrent)
        fused = width * (2 if config.fusion == "concat" else 1)
        self.outputs = nn.ModuleList(nn.Linear(fused, size, bias=False) for size in sizes)
        self.item_output: nn.Embedding | None = None
        self.dropout = nn.Dropout(config.dropout)
        if item_rows:
            self.item_output = nn.Embedding(config.num_items, fused)
            nn.init.zeros_(self.item_output.weight)

    def start(self, hidden: Tensor) -> Tensor:
        """s_1 = h_0: (N, L+1, H) -> (N, H)."""
        return hidden[:, 0]

    def fuse(self, level: int, hidden: Tensor, state: Tensor) -> Tensor:
        """f(h_l, s_l): hidden (N, L+1, H), state (N, H) -> (N, H) or (N, 2H)."""
        placed = hidden[:, level + 1]
        return torch.cat([placed, state], dim=-1) if self.fusion == "concat" else placed + state

    def logits(self, level: int, hidden: Tensor, state: Tensor) -> Tensor:
        """By code alone, over the level's whole codebook: hidden (N, L+1, H), state (N, H) -> (N, T_level)."""
        scores: Tensor = self.outputs[level](self.fuse(level, hidden, state))
        return scores

    def advance(self, level: int, state: Tensor, codes: Tensor) -> Tensor:
        """s_{l+1} from s_l (N, H) and the chosen codes (N,)."""
        if self.transition == "none":
            return state
        following: Tensor = self.cells[level](self.code_embedding[level](codes), state)
        return following


def prefix_rows(rows: Tensor, nodes: Tensor, count: int) -> Tensor:
    """Mean row of the items below each prefix.

    Args:
        rows: (I, F) of the items.
        nodes: (I,) int64 the prefix of each.
        count: of prefixes, n; each has an item.

    Returns:
        (n, F).
    """
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, nodes, rows)
    return total / torch.bincount(nodes, minlength=count)[:, None]
