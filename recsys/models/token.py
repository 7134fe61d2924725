"""The token shape, NEZHA's own: L tokens per item, placeholders behind the history, a backbone that writes too.

Source: NEZHA (arXiv:2511.18793), prompt and placeholders. One training pass covers every position of a sequence:
behind the real tokens stand, per position, a set of placeholders and, where a teacher speaks, the tokens of the item
it drew; a block mask shows each of them the history before its position and its own predecessors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from recsys.models.compact import own_backbone
from recsys.models.head import DraftHead
from recsys.models.item_input import ItemFeatures, ItemInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from recsys.models.backbone import KVCache, MakeEngine
    from recsys.models.compact import MakeBackbone
    from recsys.models.config import RecommenderConfig


class TokenStates(NamedTuple):
    """Hidden states of one training pass.

    Attributes:
        head: (B, n, L+1, H), for the draft head at every position.
        backbone: (B, n, L, H), states that predict the L codes of the event at every position.
        branch: (B, n, L, H), the same for the teacher's item, or None.
    """

    head: Tensor
    backbone: Tensor
    branch: Tensor | None


class Prompt(NamedTuple):
    """A history that a beam can be continued from.

    Attributes:
        last: (B, H) hidden state of the newest token.
        cache: keys and values of the prompt's m tokens.
        real: (B, m) bool, False at padding.
        following: (B,) position of the next token.
    """

    last: Tensor
    cache: KVCache
    real: Tensor
    following: Tensor


def training_mask(count: int, levels: int, *, branches: bool, placeholders: bool = True) -> Tensor:
    """The block mask of one training pass over `count` events, (N, N) bool, True = may attend.

    Order of the tokens: start and `count * levels` real tokens, with `placeholders` `count` blocks of `levels` of
    them, and with `branches` `count` blocks of `levels - 1` tokens of the teacher's items.
    """
    real = 1 + count * levels
    blocks = [levels] * (count if placeholders else 0) + [levels - 1] * (count if branches else 0)
    total = real + sum(blocks)
    mask = torch.zeros(total, total, dtype=torch.bool)
    mask[:real, :real] = torch.ones(real, real, dtype=torch.bool).tril()
    row = real
    for index, size in enumerate(blocks):
        rows = slice(row, row + size)
        mask[rows, : (index % count) * levels + 1] = True
        mask[rows, rows] = torch.ones(size, size, dtype=torch.bool).tril()
        row += size
    return mask


class TokenRecommender(nn.Module):
    """Backbone over item tokens; `beam` reads its own next-token distribution, `nezha` the head's."""

    def __init__(
        self, config: RecommenderConfig, features: ItemFeatures, make_backbone: MakeBackbone = own_backbone
    ) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.input = ItemInput(config, features)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.placeholder = nn.Parameter(torch.randn(config.levels, width) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone = make_backbone(config)
        self.head = DraftHead(config)
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=False) for size in config.codebook_sizes)

    def freeze(self, make_engine: MakeEngine | None = None) -> None:
        """See `CompactRecommender.freeze`."""
        self.input.freeze(with_codes=False)
        self.backbone.freeze(make_engine)

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> None:
        """See `recsys.models.item_input.ItemInput.add_items`."""
        self.input.add_items(codes, text)

    def embed_codes(self, level: int, codes: Tensor) -> Tensor:
        """Tokens of a level (from 0) before the item is complete: codes (...) -> (..., H)."""
        return self.input.embed_code(level, codes)

    def token_logits(self, level: int, hidden: Tensor) -> Tensor:
        """The backbone's own next-token scores: (N, H) -> (N, T_level)."""
        logits: Tensor = self.outputs[level](hidden)
        return logits

    def embed_items(self, items: Tensor) -> Tensor:
        """Items (B, n) -> tokens (B, n * L, H); ID, text and collaboration enter with the last code."""
        codes = self.input.codes_of(items)  # (B, n, L)
        tokens = [self.embed_codes(level, codes[..., level]) for level in range(self.config.levels)]
        tokens[-1] = tokens[-1] + self.input.embed_rest(items)
        return torch.stack(tokens, dim=2).flatten(1, 2)

    def states(self, items: Tensor, drawn: Tensor | None) -> TokenStates:
        """One training pass.

        Args:
            items: (B, n) int64 events, padded on the right with -1; every one is also a target.
            drawn: (B, n) the teacher's item at each position, or None.
        """
        levels = self.config.levels
        batch, count = items.shape
        real = torch.cat([self.start.expand(batch, 1, -1), self.embed_items(items.clamp(min=0))], dim=1)
        parts = [real]
        step = torch.arange(count, device=items.device) * levels
        positions = [torch.arange(1 + count * levels, device=items.device)]
        if self.config.placeholders:
            parts.append(self.placeholder.repeat(count, 1).expand(batch, -1, -1))
            positions.append((step[:, None] + torch.arange(1, levels + 1, device=items.device)).flatten())
        if drawn is not None:
            codes = self.input.codes[drawn]  # (B, n, L)
            branch = [self.embed_codes(level, codes[..., level]) for level in range(levels - 1)]
            parts.append(torch.stack(branch, dim=2).flatten(1, 2))
            positions.append((step[:, None] + torch.arange(1, levels, device=items.device)).flatten())
        mask = training_mask(count, levels, branches=drawn is not None, placeholders=self.config.placeholders)
        mask = mask.to(items.device)
        x = self.dropout(torch.cat(parts, dim=1))
        hidden, _ = self.backbone(x, positions=torch.cat(positions).expand(batch, -1), mask=mask[None, None])
        return self._split(hidden, count, branches=drawn is not None)

    def _split(self, hidden: Tensor, count: int, *, branches: bool) -> TokenStates:
        levels = self.config.levels
        batch, _, width = hidden.shape
        end = 1 + count * levels
        first = hidden[:, : end - 1 : levels]  # (B, n, H): what has read all events before the position
        own = hidden[:, : end - 1].view(batch, count, levels, width)
        head = first[:, :, None].expand(-1, -1, levels + 1, -1)
        if self.config.placeholders:
            placed = hidden[:, end : end + count * levels].view(batch, count, levels, width)
            head = torch.cat([first[:, :, None], placed], dim=2)
            end += count * levels
        branch = None
        if branches:
            tail = hidden[:, end:].view(batch, count, levels - 1, width)
            branch = torch.cat([first[:, :, None], tail], dim=2)
        return TokenStates(head, own, branch)

    def positions(self, counts: Sequence[int], *, placeholders: bool) -> int:
        """Sequence positions of a batch of histories of `counts` items: L each, the start, and the placeholders."""
        levels = self.config.levels
        extra = levels if placeholders and self.config.placeholders else 0
        return sum(counts) * levels + len(counts) * (1 + extra)

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """One forward of prompt and placeholders.

        Args:
            items: (B, n) int64 histories, oldest first, padded on the right with -1.
            lengths: (B,) items per history.

        Returns:
            (B, L+1, H): the newest token and the placeholders; without placeholders the newest token L + 1 times.
        """
        levels = self.config.levels
        if not self.config.placeholders:
            return self.read(items, lengths)[:, None].expand(-1, levels + 1, -1)
        x, last = self._prompt_and_placeholders(items, lengths)
        return self.backbone.tail(x, ends=last + levels, count=levels + 1)

    def encode_with_prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Prompt]:
        """`encode` and `encode_prompt` in one forward, for `speculative`; the cache holds the placeholders, hidden."""
        levels = self.config.levels
        if not self.config.placeholders:
            prompt = self.encode_prompt(items, lengths)
            return prompt.last[:, None].expand(-1, levels + 1, -1), prompt
        x, last = self._prompt_and_placeholders(items, lengths)
        states, cache = self.backbone.prefill(x, ends=last + levels, count=levels + 1)
        real = torch.arange(x.shape[1], device=items.device) <= last[:, None]
        return states, Prompt(states[:, 0], cache, real, last + 1)

    def _prompt_and_placeholders(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1 + n * L + L, H), each row's placeholders behind its own end, and (B,) that end."""
        levels = self.config.levels
        last = lengths * levels
        prompt = self._prompt(items)
        placeholder = self.placeholder.expand(len(items), -1, -1).to(prompt.dtype)
        x = torch.cat([prompt, placeholder], dim=1)  # (B, 1 + n * L + L, H)
        if len(items) > 1 or int(lengths) < items.shape[1]:  # before each row's padding
            places = last[:, None] + torch.arange(1, levels + 1, device=items.device)
            x[torch.arange(len(items), device=items.device)[:, None], places] = placeholder
        return x, last

    def read(self, items: Tensor, lengths: Tensor) -> Tensor:
        """The history alone: items (B, n) padded with -1, lengths (B,) -> (B, H), the state of the newest token."""
        return self.backbone.tail(self._prompt(items), ends=lengths * self.config.levels, count=1)[:, 0]

    def encode_prompt(self, items: Tensor, lengths: Tensor) -> Prompt:
        """The prompt alone, for `beam`: items (B, n) padded with -1, lengths (B,)."""
        prompt = self._prompt(items)
        last = lengths * self.config.levels
        state, cache = self.backbone.prefill(prompt, ends=last, count=1)
        real = torch.arange(prompt.shape[1], device=items.device) <= last[:, None]
        return Prompt(state[:, 0], cache, real, last + 1)

    def extend(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Run further tokens behind a cache.

        Args:
            tokens: (B, k, H) embedded.
            positions: (B, k).
            mask: (B, 1, k, m + k) bool.
            cache: of m tokens.
        """
        hidden, extended = self.backbone(tokens, positions=positions, mask=mask, cache=cache)
        return hidden, extended

    def _prompt(self, items: Tensor) -> Tensor:
        """(B, 1 + n * L, H)."""
        tokens = self.embed_items(items.clamp(min=0))
        return torch.cat([self.start.expand(len(items), 1, -1).to(tokens.dtype), tokens], dim=1)
