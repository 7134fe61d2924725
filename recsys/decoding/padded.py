"""The trie as padded rows of tensors: one beam step for a batch of requests on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.eligibility import LivePrefixes, RequestMask
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.trie import SidTrie


_GATHERED: Final = 2**26  # numbers of rows that stand in memory at once


class Beams(NamedTuple):
    """The prefixes that a batch of requests holds after a step; ascending nodes, padding at minus infinity.

    Attributes:
        nodes: (B, M) int64 trie nodes.
        scores: (B, M).
        parents: (B, M) int64 places in the step before.
        codes: (B, M) int64 the codes written by the step.
    """

    nodes: Tensor
    scores: Tensor
    parents: Tensor
    codes: Tensor


class PaddedTrie:
    """A trie's children on a device.

    Args:
        trie: the model's trie.
        device: where the tensors live.
        whole_codebook: normalise over all codes of a level and use the trie as a mask only (an ablation).
    """

    def __init__(self, trie: SidTrie, device: torch.device, *, whole_codebook: bool = False) -> None:
        self.device = device
        self.levels = trie.levels
        self._whole_codebook = whole_codebook
        self._start = [torch.from_numpy(start).to(device) for start in trie.child_start]
        self._code = [torch.from_numpy(code.astype(np.int64)).to(device) for code in trie.node_code]
        self._widest = [int(np.diff(start).max(initial=1)) for start in trie.child_start]
        self._alive: tuple[LivePrefixes, int, list[Tensor]] | None = None
        self._bounds: tuple[LogPrior, list[Tensor]] | None = None

    def root(self, batch: int, dtype: torch.dtype) -> Beams:
        """The empty prefix of each request, score 0."""
        zero = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        return Beams(zero, torch.zeros(batch, 1, dtype=dtype, device=self.device), zero, zero)

    def step(
        self,
        level: int,
        beams: Beams,
        logits: Tensor,
        width: int,
        masks: Sequence[RequestMask],
        own: tuple[Tensor, Tensor] | None = None,
    ) -> Beams:
        """Extend every prefix by one code and keep the best.

        Args:
            level: 0..L-1.
            beams: prefixes of `level` codes, (B, M).
            logits: (B, M, T_level).
            width: prefixes to keep per request.
            masks: what each request may show; their log-prior is the first one's.
            own: what is scored by node beside the codes: states (B, M, F) and rows (n_{level+1}, F).

        Returns:
            (B, M') beams, M' <= width; ties at the cut go to the smaller node.
        """
        first = self._start[level][beams.nodes]  # (B, M)
        degree = self._start[level][beams.nodes + 1] - first
        offset = torch.arange(self._widest[level], device=self.device)  # (W,)
        exists = offset < degree[..., None]  # (B, M, W)
        child = torch.where(exists, first[..., None] + offset, 0)
        codes = self._code[level][child]
        values = logits.gather(2, codes)
        if own is not None:
            values = values + _products(*own, child)
        values = values.masked_fill(~exists, -torch.inf)
        norm = (logits if self._whole_codebook else values).logsumexp(dim=2, keepdim=True)
        bounds = self._bounds_of(masks[0].log_prior, beams.scores.dtype)
        scores = beams.scores
        if bounds and level:  # the parents' bounds give way to the children's
            scores = scores - bounds[level - 1][beams.nodes]
        totals = (values - norm + scores[..., None]).flatten(1)  # (B, M * W)
        child = child.flatten(1)
        if bounds:
            totals = totals + bounds[level][child]
        self._hide(totals, child, level, masks)
        at = _best(totals, min(width, totals.shape[1]))
        return Beams(child.gather(1, at), totals.gather(1, at), at // len(offset), codes.flatten(1).gather(1, at))

    def found(self, beams: Beams) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]]:
        """Leaves and scores of each request, best first, ties to the smaller leaf."""
        scores, order = beams.scores.sort(dim=1, descending=True, stable=True)
        leaves = beams.nodes.gather(1, order).cpu().numpy()
        values = scores.cpu().numpy()
        counts = (values > -np.inf).sum(axis=1)
        return [(leaves[row, :count], values[row, :count]) for row, count in enumerate(counts)]

    def _hide(self, totals: Tensor, child: Tensor, level: int, masks: Sequence[RequestMask]) -> None:
        alive = self._alive_nodes(masks[0].live)
        if alive is not None:
            totals.masked_fill_(~alive[level][child], -torch.inf)
        longest = max(len(mask.dead[level]) for mask in masks)
        if longest:
            dead = np.full((len(masks), longest), np.iinfo(np.int64).max)  # sorted rows, the filler matches no node
            for row, mask in enumerate(masks):
                dead[row, : len(mask.dead[level])] = mask.dead[level]
            table = torch.from_numpy(dead).to(self.device)
            at = torch.searchsorted(table, child).clamp_(max=longest - 1)
            totals.masked_fill_(table.gather(1, at) == child, -torch.inf)

    def _bounds_of(self, prior: LogPrior | None, dtype: torch.dtype) -> list[Tensor]:
        if prior is None:
            return []
        known = self._bounds
        if known is None or known[0] is not prior or known[1][0].dtype != dtype:
            known = self._bounds = (prior, [torch.from_numpy(b).to(self.device, dtype) for b in prior.bounds])
        return known[1]

    def _alive_nodes(self, live: LivePrefixes) -> list[Tensor] | None:
        if not live.alive:
            return None
        known = self._alive
        changes = live.changes
        if known is None or known[0] is not live or known[1] != changes:
            copies = [torch.from_numpy(alive).to(self.device, copy=True) for alive in live.alive]
            known = self._alive = (live, changes, copies)
        return known[2]


def _products(states: Tensor, rows: Tensor, child: Tensor) -> Tensor:
    """States (B, M, F) with the rows (n, F) of their children (B, M, W): (B, M, W), some beams at a time."""
    at_once = max(1, _GATHERED // (child[:, 0].numel() * rows.shape[1]))
    pieces = zip(torch.split(states, at_once, dim=1), torch.split(child, at_once, dim=1), strict=True)
    return torch.cat([(rows[nodes] @ some[..., None])[..., 0] for some, nodes in pieces], dim=1)


def _best(totals: Tensor, width: int) -> Tensor:
    """Ascending places of the `width` largest of each row, ties to the smaller place: (B, n) -> (B, width)."""
    top = totals.topk(width, dim=1, sorted=False)
    edge = top.values.amin(dim=1, keepdim=True)
    tied = totals == edge
    # `topk` chooses among ties at will. Elsewhere than on the CPU asking whether there are any would cost a wait.
    if totals.device.type == "cpu" and torch.equal(tied.sum(), (top.values == edge).sum()):
        return top.indices.sort(dim=1).values
    above = totals > edge
    chosen = above | (tied & (tied.cumsum(dim=1) <= width - above.sum(dim=1, keepdim=True)))
    place = torch.arange(totals.shape[1], device=totals.device)
    return torch.where(chosen, place, totals.shape[1]).topk(width, dim=1, largest=False).values
