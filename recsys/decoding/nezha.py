"""The `nezha` decoder: one forward of the backbone, then a beam over the draft head.

Source: NEZHA, arXiv:2511.18793, sections 4.2 and 4.3. Unlike its released code, the softmax is over the children that a
prefix has in the model's trie, and the trie prunes before the cut to the beam, not after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from recsys.decoding.added import Newcomers
from recsys.decoding.buckets import Buckets, Found, fill
from recsys.decoding.decoder import DecodeResult, Spent, check_finite, check_request, extend
from recsys.decoding.eligibility import EligibilityIndex
from recsys.decoding.head_beam import HeadBeam
from recsys.decoding.head_weights import HeadWeights
from recsys.decoding.histories import counts, pad_histories
from recsys.decoding.padded import PaddedTrie
from recsys.models.head import prefix_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from recsys.decoding.decoder import Ranked
    from recsys.decoding.eligibility import Eligibility, RequestMask
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.trie import SidTrie
    from recsys.decoding.verifier import Structure
    from recsys.models.config import RecommenderConfig
    from recsys.models.head import DraftHead


_HALF: Final = (torch.bfloat16, torch.float16)  # NumPy has no bfloat16, and computes slowly in float16


class SelfDrafting(Protocol):
    """A model with a draft head."""

    @property
    def config(self) -> RecommenderConfig:
        """Its sizes and switches."""

    @property
    def head(self) -> DraftHead:
        """Its draft head."""

    def positions(self, counts: Sequence[int], *, placeholders: bool) -> int:
        """Sequence positions of a batch of prompts by their items, with or without placeholders."""

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Histories (B, n) padded with -1, lengths (B,) -> (B, L + 1, H)."""


class HeadRanker:
    """From hidden states to ranked items: the beam over the head, buckets, widening. It has no backbone.

    The head's weights are copied on construction: make a new one after the model has been trained further.

    Args:
        head: the draft head.
        trie: of the tokenizer the model was trained with.
        whole_codebook: of the model's configuration.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
        batched: search a batch at once in torch; the default does so everywhere but on the CPU, where one request
            after the other in NumPy is faster.
        structure: that holds the children; the answers are the same.

    Raises:
        DataError: the head's codebooks and the trie's differ.
    """

    def __init__(
        self,
        head: DraftHead,
        trie: SidTrie,
        *,
        whole_codebook: bool = False,
        prior: npt.NDArray[np.number] | None = None,
        batched: bool | None = None,
        structure: Structure = "csr",
    ) -> None:
        self._head = head
        self.device = next(head.parameters()).device
        self._widest = max(trie.nodes(depth) for depth in range(1, trie.levels + 1))
        self._buckets = Buckets(trie, prior)
        self._index = EligibilityIndex(trie)
        self._numpy = HeadBeam(HeadWeights.of(head), trie, whole_codebook=whole_codebook, structure=structure)
        in_torch = self.device.type != "cpu" if batched is None else batched
        self._padded = PaddedTrie(trie, self.device, whole_codebook=whole_codebook) if in_torch else None
        self._node_rows = node_rows(head, trie) if in_torch else []

    def masks(self, eligibility: Eligibility, requests: int, log_prior: LogPrior | None = None) -> list[RequestMask]:
        """See `EligibilityIndex.masks`."""
        return self._index.masks(eligibility, requests, log_prior)

    def rank(self, hidden: Tensor, masks: Sequence[RequestMask], *, k: int, beam: int) -> tuple[list[Ranked], int]:
        """Rank items behind each row of states.

        Args:
            hidden: (B, L + 1, H) hidden states h_0..h_L.
            masks: what each row may show.
            k: items wanted per row.
            beam: prefixes kept per level.

        Returns:
            One answer per row, and how many searches had to be repeated with a wider beam.

        Raises:
            DataError: the states are not finite.
        """
        search = self._searcher(hidden, masks, k)
        return fill(search, self._buckets, masks, k=k, beam=min(beam, self._widest), widest=self._widest)

    def _searcher(
        self, hidden: Tensor, masks: Sequence[RequestMask], k: int
    ) -> Callable[[list[int], int], Sequence[Found]]:
        padded = self._padded
        if padded is not None:
            check_finite(hidden)
            return lambda rows, width: beam_over_head(
                self._head,
                padded,
                hidden[rows],
                width=width,
                masks=[masks[row] for row in rows],
                node_rows=self._node_rows,
            )
        if hidden.dtype in _HALF:
            hidden = hidden.float()
        states = hidden.cpu().numpy()  # (B, L + 1, H)
        check_finite(states)
        # behind a log-prior the best k leaves need not hold the best k items
        leaves = self._widest if any(mask.log_prior is not None for mask in masks) else k

        def search(row: int, width: int) -> Found:
            newcomers = Newcomers.of(masks[row])
            found = self._numpy.search(states[row], width=width, leaves=leaves, mask=masks[row], newcomers=newcomers)
            return Found(*found, newcomers)

        return lambda rows, width: [search(row, width) for row in rows]


class NezhaDecoder:
    """Self-drafted decoding; one forward per batch.

    The head's weights are copied on construction: make a new decoder after the model has been trained further.

    Args:
        model: in evaluation mode.
        trie: of the tokenizer the model was trained with.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
        batched: see `HeadRanker`.
        structure: see `HeadRanker`.

    Raises:
        DataError: the model's codebooks and the trie's differ.
    """

    name = "nezha"

    def __init__(
        self,
        model: SelfDrafting,
        trie: SidTrie,
        *,
        prior: npt.NDArray[np.number] | None = None,
        batched: bool | None = None,
        structure: Structure = "csr",
    ) -> None:
        self._model = model
        self._items = model.config.num_items
        self._limit = model.config.max_history
        whole = model.config.whole_codebook
        self._ranker = HeadRanker(
            model.head, trie, whole_codebook=whole, prior=prior, batched=batched, structure=structure
        )

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
        ranker = self._ranker
        masks = ranker.masks(eligibility, len(histories), log_prior)
        items, lengths = pad_histories(histories, items=self._items, limit=self._limit, device=ranker.device)
        hidden = self._model.encode(items, lengths)  # (B, L + 1, H)
        ranked, widened = ranker.rank(hidden, masks, k=k, beam=beam)
        read = self._model.positions(counts(histories, self._limit), placeholders=True)
        return DecodeResult(ranked, Spent(1, read, widened))


def beam_over_head(
    head: DraftHead,
    trie: PaddedTrie,
    hidden: Tensor,
    *,
    width: int,
    masks: Sequence[RequestMask],
    node_rows: Sequence[Tensor | None] = (),
) -> list[Found]:
    """Beam search over the draft head for a batch, in torch.

    Args:
        head: the draft head.
        trie: its trie on the same device.
        hidden: (B, L + 1, H).
        width: prefixes kept per level.
        masks: what each request may show.
        node_rows: see `node_rows`; empty for a head without rows of items.

    Returns:
        Per request leaves and scores, best first.
    """
    batch, _, size = hidden.shape
    beams = trie.root(batch, hidden.dtype)
    newcomers = [Newcomers.of(mask) for mask in masks]
    state = head.start(hidden)[:, None]  # (B, M, H)
    for level in range(trie.levels):
        if level:
            inherited = state.gather(1, beams.parents[..., None].expand(-1, -1, size))
            state = head.advance(level - 1, inherited.flatten(0, 1), beams.codes.flatten()).view(batch, -1, size)
        count = state.shape[1]
        fused = head.fuse(level, hidden.repeat_interleave(count, dim=0), state.flatten(0, 1))
        logits = head.outputs[level](fused).view(batch, count, -1)
        rows = node_rows[level] if node_rows else None
        own = None if rows is None else (fused.view(batch, count, -1), rows)
        beams = trie.step(level, beams, logits, width, masks, own)
        trie.report(level + 1, beams, newcomers)
    return trie.found(beams, newcomers)


@torch.inference_mode()
def node_rows(head: DraftHead, trie: SidTrie) -> list[Tensor | None]:
    """Per level the mean row of the items below each node of the depth it leads to, (n, F).

    None for the first level, where a code is a node; empty for a head without rows of items.
    """
    if head.item_output is None:
        return []
    table = head.item_output.weight
    nodes = torch.from_numpy(trie.item_node).to(table.device)  # (I, L)
    later = [prefix_rows(table, nodes[:, level], trie.nodes(level + 1)) for level in range(1, trie.levels)]
    return [None, *later]
