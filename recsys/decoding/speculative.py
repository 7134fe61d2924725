"""The `speculative` decoder: what `beam` answers, in fewer forwards of the backbone.

The draft head writes prefixes ahead of the backbone; one forward under a tree mask computes the states of all of them;
the backbone's own scores then choose each level's beam exactly as `beam` does. Where a chosen prefix was not drafted,
only the missing ones are run, behind what is already there.

Source: AtSpeed's N-to-K verification of beams (arXiv:2410.05165), with NEZHA's head as the draft model. The first level
needs no draft: its scores stand at the end of the prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from recsys.decoding.added import Newcomers
from recsys.decoding.beam import TokenWriter, select
from recsys.decoding.buckets import Buckets, Found, fill
from recsys.decoding.decoder import DecodeResult, Spent, check_finite, check_request, extend
from recsys.decoding.eligibility import EligibilityIndex
from recsys.decoding.head_beam import HeadBeam
from recsys.decoding.head_weights import HeadWeights
from recsys.decoding.histories import counts, pad_histories
from recsys.decoding.padded import Beams, PaddedTrie

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from recsys.decoding.eligibility import Eligibility, RequestMask
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.trie import SidTrie
    from recsys.models.backbone import KVCache
    from recsys.models.head import DraftHead
    from recsys.models.token import Prompt

    Ints = npt.NDArray[np.int64]


class DraftingWriter(TokenWriter, Protocol):
    """A model whose backbone writes semantic IDs, and whose head drafts them."""

    @property
    def head(self) -> DraftHead:
        """Its draft head."""

    def encode_with_prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Prompt]:
        """Histories (B, n) padded with -1, lengths (B,) -> the head's states (B, L + 1, H) and the prompt."""


class _Run(NamedTuple):
    """Prefixes of one depth that went through the backbone.

    Attributes:
        nodes: (r,) in the order they were run.
        hidden: (r, H).
        columns: (r, depth) places in the cache of each one's ancestors and of itself.
    """

    nodes: Ints
    hidden: Tensor
    columns: Ints

    def find(self, nodes: Ints) -> Ints:
        """(n,) rows of nodes, -1 for those that were not run."""
        if not len(self.nodes):
            return np.full(len(nodes), -1)
        order = np.argsort(self.nodes)
        at = np.minimum(np.searchsorted(self.nodes[order], nodes), len(order) - 1)
        return np.where(self.nodes[order[at]] == nodes, order[at], -1)

    def joined(self, other: _Run) -> _Run:
        """These and then the other ones."""
        return _Run(
            np.concatenate([self.nodes, other.nodes]),
            torch.cat([self.hidden, other.hidden]),
            np.concatenate([self.columns, other.columns]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Tools:
    """What every request is searched with.

    Attributes:
        model: backbone and embeddings.
        trie: for the exact steps.
        head: the draft model.
        parents: for depth d in 1..L-1 (index d - 1), (n_d,) each node's parent.
        codes: for depth d in 1..L, each node's last code.
        device: of the model.
        draft: prefixes drafted per level, as a multiple of the beam.
    """

    model: DraftingWriter
    trie: PaddedTrie
    head: HeadBeam
    parents: tuple[Ints, ...]
    codes: tuple[npt.NDArray[np.unsignedinteger], ...]
    device: torch.device
    draft: float


class SpeculativeDecoder:
    """Answers as `BeamDecoder`; requests of a batch share the prompt's forward and are verified one by one.

    Args:
        model: in evaluation mode; of the token shape.
        trie: of the tokenizer the model was trained with.
        prior: (I,) order of preference among items that share a semantic ID; None means item index.
        draft: prefixes drafted per level, as a multiple of the beam.
    """

    name = "speculative"

    def __init__(
        self,
        model: DraftingWriter,
        trie: SidTrie,
        *,
        prior: npt.NDArray[np.number] | None = None,
        draft: float = 1.5,
    ) -> None:
        self._config = model.config
        self._items = model.config.num_items
        self._widest = max(trie.nodes(depth) for depth in range(1, trie.levels + 1))
        self._buckets = Buckets(trie, prior)
        self._index = EligibilityIndex(trie)
        device, whole = model.start.device, model.config.whole_codebook
        self._tools = _Tools(
            model,
            PaddedTrie(trie, device, whole_codebook=whole),
            HeadBeam(HeadWeights.of(model.head), trie, whole_codebook=whole),
            tuple(np.repeat(np.arange(len(start) - 1), np.diff(start)) for start in trie.child_start[:-1]),
            trie.node_code,
            device,
            draft,
        )

    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> bool:
        """See `recsys.decoding.decoder.ExtendsItems`."""
        added = extend(self._tools.model, codes, text)
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
        config, tools = self._config, self._tools
        items, lengths = pad_histories(histories, items=self._items, limit=config.max_history, device=tools.device)
        hidden, prompt = tools.model.encode_with_prompt(items, lengths)
        check_finite(hidden)
        states = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).cpu().numpy()  # (B, L + 1, H)
        read = tools.model.positions(counts(histories, config.max_history), placeholders=True)
        searched: list[_Request] = []

        def search(rows: list[int], width: int) -> list[Found]:
            new = [_Request(tools, select(prompt, [row]), states[row], masks[row], width) for row in rows]
            searched.extend(new)
            return [request.search() for request in new]

        ranked, widened = fill(search, self._buckets, masks, k=k, beam=min(beam, self._widest), widest=self._widest)
        spent = Spent(
            1 + sum(request.forwards for request in searched),
            read + sum(request.tokens for request in searched),
            widened,
            tuple(np.sum([request.wanted for request in searched], axis=0, dtype=int).tolist()) if searched else (),
            tuple(np.sum([request.drafted for request in searched], axis=0, dtype=int).tolist()) if searched else (),
        )
        return DecodeResult(ranked, spent)


class _Request:
    """The search of one request at one width.

    Attributes:
        forwards: of the backbone, behind the prompt's.
        tokens: that went through them.
        wanted: per level from the second to the last but one, prefixes that the backbone chose.
        drafted: of those, how many the draft held.
    """

    def __init__(
        self, tools: _Tools, prompt: Prompt, states: npt.NDArray[np.floating], mask: RequestMask, width: int
    ) -> None:
        self._tools, self._prompt, self._states, self._mask, self._width = tools, prompt, states, mask, width
        self._cache: KVCache = prompt.cache
        self._real = prompt.real[0].cpu().numpy()  # (m,) columns of the prompt
        self._columns = len(self._real)
        nothing = np.empty(0, dtype=np.int64)
        self._runs = {
            depth: _Run(nothing, prompt.last[:0], np.empty((0, depth), dtype=np.int64))
            for depth in range(1, tools.trie.levels)
        }
        self.forwards = self.tokens = 0
        self.wanted = [0] * (tools.trie.levels - 2)
        self.drafted = [0] * (tools.trie.levels - 2)

    def search(self) -> Found:
        """Leaves and scores, best first."""
        model, trie = self._tools.model, self._tools.trie
        beams = trie.root(1, self._prompt.last.dtype)
        newcomers = [Newcomers.of(self._mask)]
        hidden = self._prompt.last  # (M, H)
        for level in range(trie.levels):
            if level:
                hidden = self._states_of(level, beams)
            logits = model.token_logits(level, hidden)[None]  # (1, M, T)
            beams = trie.step(level, beams, logits, self._width, [self._mask])
            trie.report(level + 1, beams, newcomers)
        return trie.found(beams, newcomers)[0]

    def _states_of(self, depth: int, beams: Beams) -> Tensor:
        """(M, H) states of the beams' newest codes; what was not drafted is run now."""
        nodes = beams.nodes[0].cpu().numpy()
        live = beams.scores[0].cpu() > -torch.inf  # the others are padding
        chosen = nodes[live.numpy()]
        if depth == 1:
            self._forward({1: chosen} | self._drafts(beams, live))
        else:
            missing = chosen[self._runs[depth].find(chosen) < 0]
            self.wanted[depth - 2] += len(chosen)
            self.drafted[depth - 2] += len(chosen) - len(missing)
            self._forward({depth: missing})
        run = self._runs[depth]
        if not len(run.nodes):  # every prefix is dead: what is left hangs above
            return run.hidden.new_zeros(len(nodes), run.hidden.shape[1])
        rows = np.maximum(run.find(nodes), 0)  # whatever stands at padding stays at minus infinity
        return run.hidden[torch.from_numpy(rows).to(run.hidden.device)]

    def _drafts(self, beams: Beams, live: Tensor) -> dict[int, Ints]:
        """Per depth from 2 the prefixes that the head writes behind the first level's beam."""
        scores = beams.scores[0].to(torch.promote_types(beams.scores.dtype, torch.float32)).cpu()[live]
        drafts = self._tools.head.draft(
            self._states,
            beams.nodes[0].cpu()[live].numpy(),
            beams.codes[0].cpu()[live].numpy(),
            scores.numpy(),
            width=math.ceil(self._tools.draft * self._width),
            mask=self._mask,
        )
        return dict(enumerate(drafts, start=2))

    def _forward(self, wanted: dict[int, Ints]) -> None:
        """Run prefixes, ascending per depth; the parents of each are among them or were run before."""
        tools, before = self._tools, self._columns
        columns: dict[int, Ints] = {}
        embedded, depths = [], []
        for depth, nodes in sorted(wanted.items()):
            own = self._columns + np.arange(len(nodes))[:, None]
            columns[depth] = np.concatenate([self._above(depth, nodes, wanted, columns), own], axis=1)
            codes = torch.from_numpy(tools.codes[depth - 1][nodes].astype(np.int64)).to(tools.device)
            embedded.append(tools.model.embed_codes(depth - 1, codes))
            depths.append(np.full(len(nodes), depth))
            self._columns += len(nodes)
        count = self._columns - before
        if not count:
            return
        seen = np.zeros((count, self._columns), dtype=bool)
        seen[:, : len(self._real)] = self._real
        for places in columns.values():
            seen[places[:, -1:] - before, places] = True
        hidden, self._cache = tools.model.extend(
            torch.cat(embedded)[None],
            self._prompt.following[:, None] + torch.from_numpy(np.concatenate(depths) - 1).to(tools.device),
            torch.from_numpy(seen).to(tools.device)[None, None],
            self._cache,
        )
        self.forwards += 1
        self.tokens += count
        parts = torch.split(hidden[0], [len(nodes) for _, nodes in sorted(wanted.items())])
        for (depth, nodes), part in zip(sorted(wanted.items()), parts, strict=True):
            self._runs[depth] = self._runs[depth].joined(_Run(nodes, part, columns[depth]))

    def _above(self, depth: int, nodes: Ints, wanted: dict[int, Ints], columns: dict[int, Ints]) -> Ints:
        """(n, depth - 1) columns of the ancestors of nodes."""
        if depth == 1:
            return np.empty((len(nodes), 0), dtype=np.int64)
        parents = self._tools.parents[depth - 1][nodes]
        above = wanted.get(depth - 1)
        if above is not None:
            return columns[depth - 1][np.searchsorted(above, parents)]
        run = self._runs[depth - 1]
        return run.columns[run.find(parents)]
