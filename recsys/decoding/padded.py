"""The trie as padded rows of tensors: one beam step for a batch of requests on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.decoding.buckets import Found

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.added import Newcomers
    from recsys.decoding.eligibility import LivePrefixes, RequestMask
    from recsys.decoding.log_prior import Bounds, LogPrior
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
        self._code = [torch.from_numpy(code.astype(_signed(code))).to(device) for code in trie.node_code]
        self._widest = [int(np.diff(start).max(initial=1)) for start in trie.child_start]
        self._alive: tuple[LivePrefixes, int, list[Tensor]] | None = None  # a copy, and the change it stands at
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
        codes = self._code[level][child].long()
        values = logits.gather(2, codes)
        if own is not None:
            values = values + _products(*own, child)
        values = values.masked_fill(~exists, -torch.inf)
        norm = (logits if self._whole_codebook else values).logsumexp(dim=2, keepdim=True)
        bounds = masks[0].bounds
        scores = beams.scores
        if bounds is not None and level:  # the parents' bounds give way to the children's
            scores = scores - self._below(bounds, level, beams.nodes, scores.dtype)
        totals = (values - norm + scores[..., None]).flatten(1)  # (B, M * W)
        child = child.flatten(1)
        if bounds is not None:
            totals = totals + self._below(bounds, level + 1, child, totals.dtype)
        self._hide(totals, child, level, masks)
        at = _best(totals, min(width, totals.shape[1]))
        return Beams(child.gather(1, at), totals.gather(1, at), at // len(offset), codes.flatten(1).gather(1, at))

    def report(self, depth: int, beams: Beams, newcomers: Sequence[Newcomers | None]) -> None:
        """Tell each request's newcomers which prefixes of a depth are kept; nothing leaves the device without them."""
        if not any(newcomers):
            return
        nodes = beams.nodes.cpu().numpy()
        scores = beams.scores.to(torch.promote_types(beams.scores.dtype, torch.float32)).cpu().numpy()
        for row, newcomer in enumerate(newcomers):
            kept = scores[row] > -np.inf
            if newcomer is not None:
                newcomer.kept(depth, nodes[row, kept], scores[row, kept])

    def found(self, beams: Beams, newcomers: Sequence[Newcomers | None]) -> list[Found]:
        """Leaves and scores of each request, best first, ties to the smaller leaf, and its newcomers."""
        scores, order = beams.scores.sort(dim=1, descending=True, stable=True)
        leaves = beams.nodes.gather(1, order).cpu().numpy()
        values = scores.cpu().numpy()
        counts = (values > -np.inf).sum(axis=1)
        return [
            Found(leaves[row, :count], values[row, :count], newcomers[row]) for row, count in enumerate(counts.tolist())
        ]

    def _hide(self, totals: Tensor, child: Tensor, level: int, masks: Sequence[RequestMask]) -> None:
        alive = self._alive_nodes(masks[0].live)
        if alive is not None:
            totals.masked_fill_((alive[level][child >> 3] >> (child & 7)) & 1 == 0, -torch.inf)
        longest = max(len(mask.dead[level]) for mask in masks)
        if longest:
            dead = np.full((len(masks), longest), np.iinfo(np.int64).max)  # sorted rows, the filler matches no node
            for row, mask in enumerate(masks):
                dead[row, : len(mask.dead[level])] = mask.dead[level]
            table = torch.from_numpy(dead).to(self.device)
            at = torch.searchsorted(table, child).clamp_(max=longest - 1)
            totals.masked_fill_(table.gather(1, at) == child, -torch.inf)

    def _below(self, bounds: Bounds, depth: int, nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """The largest log-prior below nodes of a depth, in their shape."""
        if not bounds.frozen:  # what added items raise is looked up beside the device
            values = bounds.below(depth, nodes.cpu().numpy().ravel())
            return torch.from_numpy(values).to(self.device, dtype).view(nodes.shape)
        prior, known = bounds.prior, self._bounds
        if known is None or known[0] is not prior or known[1][0].dtype != dtype:
            known = self._bounds = (prior, [torch.from_numpy(b).to(self.device, dtype) for b in prior.bounds])
        return known[1][depth - 1][nodes]

    def _alive_nodes(self, live: LivePrefixes) -> list[Tensor] | None:
        """The live nodes as bits on the device; of a copy that is there, what has changed since is brought."""
        if not live.alive:
            return None
        known = self._alive
        changes = live.changes
        if known is None or known[0] is not live:
            copies = [torch.from_numpy(alive).to(self.device, copy=True) for alive in live.alive]
        elif known[1] != changes:
            copies = self._caught_up(known, live)
        else:
            return known[2]
        self._alive = (live, changes, copies)
        return copies

    def _caught_up(self, copied: tuple[LivePrefixes, int, list[Tensor]], live: LivePrefixes) -> list[Tensor]:
        _, seen, copies = copied
        known = [(change, nodes) for change, nodes in tuple(live.journal) if change > seen]
        newer = [nodes for _, nodes in known]
        if not known or known[0][0] != seen + 1:  # more than the journal holds
            return [torch.from_numpy(alive).to(self.device, copy=True) for alive in live.alive]
        for depth, (alive, copy) in enumerate(zip(live.alive, copies, strict=True)):
            nodes = np.concatenate([node[depth] for node in newer])
            places = np.unique(nodes[nodes >= 0] >> 3)
            copy[torch.from_numpy(places).to(self.device)] = torch.from_numpy(alive[places]).to(self.device)
        return copies


def _signed(code: npt.NDArray[np.unsignedinteger]) -> type[np.signedinteger]:
    """A type torch can gather that holds the codes."""
    return np.int16 if code.max(initial=0) <= np.iinfo(np.int16).max else np.int32


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
