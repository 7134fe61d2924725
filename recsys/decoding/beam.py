"""The `beam` decoder: exact constrained beam search over the backbone of the token shape.

The prompt's keys and values are never copied per beam: the beams' tokens are further tokens of one sequence, and a
tree mask shows each of them the prompt, its own ancestors and itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from recsys.decoding.added import Newcomers
from recsys.decoding.buckets import Buckets, Found, fill
from recsys.decoding.decoder import DecodeResult, Spent, check_finite, check_request, extend
from recsys.decoding.eligibility import EligibilityIndex
from recsys.decoding.histories import counts, pad_histories
from recsys.decoding.padded import PaddedTrie

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from recsys.decoding.eligibility import Eligibility, RequestMask
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.trie import SidTrie
    from recsys.models.backbone import KVCache
    from recsys.models.config import RecommenderConfig
    from recsys.models.token import Prompt


class TokenWriter(Protocol):
    """A model whose backbone writes semantic IDs token by token."""

    @property
    def config(self) -> RecommenderConfig:
        """Its sizes and switches."""

    @property
    def start(self) -> Tensor:
        """Any parameter: tells device and precision."""

    def positions(self, counts: Sequence[int], *, placeholders: bool) -> int:
        """Sequence positions of a batch of prompts by their items, with or without placeholders."""

    def encode_prompt(self, items: Tensor, lengths: Tensor) -> Prompt:
        """Histories (B, n) padded with -1 and lengths (B,) -> the prompt's states."""

    def embed_codes(self, level: int, codes: Tensor) -> Tensor:
        """Codes (...) of a level -> (..., H)."""

    def token_logits(self, level: int, hidden: Tensor) -> Tensor:
        """States (N, H) -> (N, T_level)."""

    def extend(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Run tokens (B, k, H) behind a cache."""


class BeamDecoder:
    """One forward of the prompt, then one of the beams' tokens per further level.

    Args:
        model: in evaluation mode.
        trie: of the tokenizer the model was trained with.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
    """

    name = "beam"

    def __init__(self, model: TokenWriter, trie: SidTrie, *, prior: npt.NDArray[np.number] | None = None) -> None:
        self._model = model
        self._device = model.start.device
        self._items = model.config.num_items
        self._limit = model.config.max_history
        self._widest = max(trie.nodes(depth) for depth in range(1, trie.levels + 1))
        self._buckets = Buckets(trie, prior)
        self._index = EligibilityIndex(trie)
        self._trie = PaddedTrie(trie, self._device, whole_codebook=model.config.whole_codebook)

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
        """See `recsys.decoding.decoder.ExtendsItems`."""
        added = extend(self._model, codes, text)
        self._items += len(codes) if added else 0
        return added

    @torch.inference_mode()
    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`."""
        check_request(k, beam)
        masks = self._index.masks(eligibility, len(histories), log_prior)
        items, lengths = pad_histories(histories, items=self._items, limit=self._limit, device=self._device)
        prompt = self._model.encode_prompt(items, lengths)
        check_finite(prompt.last)
        levels = self._trie.levels
        spent = [1, self._model.positions(counts(histories, self._limit), placeholders=False)]

        def search(rows: list[int], width: int) -> list[Found]:
            found, tokens = self._search(select(prompt, rows), [masks[row] for row in rows], width)
            spent[0] += levels - 1
            spent[1] += tokens
            return found

        ranked, widened = fill(search, self._buckets, masks, k=k, beam=min(beam, self._widest), widest=self._widest)
        return DecodeResult(ranked, Spent(spent[0], spent[1], widened))

    def _search(self, prompt: Prompt, masks: Sequence[RequestMask], width: int) -> tuple[list[Found], int]:
        model, trie = self._model, self._trie
        batch, size = prompt.last.shape
        beams = trie.root(batch, prompt.last.dtype)
        newcomers = [Newcomers.of(mask) for mask in masks]
        hidden = prompt.last[:, None]  # (B, M, H)
        cache = prompt.cache
        ancestors = prompt.real.new_zeros(batch, 1, 0)  # (B, M, beam tokens so far)
        tokens = 0
        for level in range(trie.levels):
            if level:
                count = beams.nodes.shape[1]
                own = torch.eye(count, dtype=torch.bool, device=self._device).expand(batch, -1, -1)
                inherited = ancestors.gather(1, beams.parents[..., None].expand(-1, -1, ancestors.shape[2]))
                ancestors = torch.cat([inherited, own], dim=2)
                mask = torch.cat([prompt.real[:, None].expand(-1, count, -1), ancestors], dim=2)[:, None]
                positions = (prompt.following + level - 1)[:, None].expand(-1, count)
                embedded = model.embed_codes(level - 1, beams.codes)
                hidden, cache = model.extend(embedded, positions, mask, cache)
                tokens += batch * count
            count = hidden.shape[1]
            logits = model.token_logits(level, hidden.reshape(-1, size)).view(batch, count, -1)
            beams = trie.step(level, beams, logits, width, masks)
            trie.report(level + 1, beams, newcomers)
        return trie.found(beams, newcomers), tokens


def select(prompt: Prompt, rows: list[int]) -> Prompt:
    """The prompts of some rows of a batch."""
    if rows == list(range(len(prompt.last))):
        return prompt
    keys = tuple(tensor[rows] for tensor in prompt.cache.keys)
    values = tuple(tensor[rows] for tensor in prompt.cache.values)
    return type(prompt)(prompt.last[rows], type(prompt.cache)(keys, values), prompt.real[rows], prompt.following[rows])
