"""Beam search over the draft head for one request, in NumPy.

Beams are kept in the order of their trie nodes, so their children come out in that order too: ties fall to the smaller
packed semantic ID without sorting, and only the last level is sorted by score. A beam below which a single semantic ID
is left is *closed*: its remaining conditional probabilities are 1, and it needs neither logits nor a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recsys.decoding.head_cell import HeadCell, product
from recsys.decoding.ragged import best, segment_log_sum_exp
from recsys.decoding.verifier import listing
from recsys.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.head_weights import HeadWeights
    from recsys.decoding.trie import SidTrie
    from recsys.decoding.verifier import Structure, Verifier

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

# A dot product over gathered rows costs about as much as this many columns of a dense product (measured, H = 128, 256).
_GATHER_COST = 12


class _Level(NamedTuple):
    """Trie and output layer between depth d and depth d + 1.

    Attributes:
        children: of the nodes of depth d.
        opened: (n_d,) whether a node is open.
        hidden: (H, T) output weight of the hidden state; None where it is added to the beam's state first.
        state: (H, T) output weight of the beam's state, or of the sum.
        state_rows: (T, H) the same for rows to be gathered.
        bias: (1, T) or None.
    """

    children: Verifier
    opened: Bools
    hidden: torch.Tensor | None
    state: torch.Tensor
    state_rows: Floats
    bias: Floats | None


class HeadBeam:
    """A draft head and its trie, laid out for search; safe to share between threads.

    Args:
        weights: the head.
        trie: the prefixes; its children are the normaliser.
        whole_codebook: normalise over all codes of a level instead, and use the trie as a mask only (an ablation).
        structure: that holds the children; the answers are the same.

    Raises:
        DataError: the head's codebooks and the trie's differ.
    """

    def __init__(
        self, weights: HeadWeights, trie: SidTrie, *, whole_codebook: bool = False, structure: Structure = "csr"
    ) -> None:
        if weights.sizes != trie.sizes:
            raise DataError(
                f"the head has codebooks {weights.sizes}, the trie {trie.sizes}",
                field="sizes",
                value=weights.sizes,
                remedy="use the model with the tokenizer it was trained with",
            )
        self._whole_codebook = whole_codebook
        below, children = _leaves_below(trie), listing(trie, structure)
        self._levels = [
            _lay_out(weights, level, children[level], below[level] > (0 if whole_codebook else 1))
            for level in range(trie.levels)
        ]
        self._root = self._levels[0].children.rows(np.zeros(1, dtype=np.int64))
        self._cells = [HeadCell(weights, level) for level in range(trie.levels - 1)]

    def search(self, hidden: Floats, *, width: int, leaves: int, mask: RequestMask) -> tuple[Ints, Floats]:
        """The best complete semantic IDs.

        Args:
            hidden: (L + 1, H) hidden states h_0..h_L.
            width: prefixes kept per level.
            leaves: semantic IDs wanted; the last level keeps at most `width` of them.
            mask: what the request may show.

        Returns:
            (m,) leaves of the trie and (m,) scores, best first, ties to the smaller leaf.
        """
        nodes = np.zeros(1, dtype=np.int64)  # (M,) ascending
        scores = np.zeros(1, dtype=hidden.dtype)  # (M,)
        opened = self._levels[0].opened  # (M,)
        state = hidden[:1] if opened[0] else hidden[:0]  # (M', H), M' = opened.sum()
        last = len(self._levels) - 1
        for level, layer in enumerate(self._levels):
            degree, child, codes = layer.children.rows(nodes) if level else self._root  # (M,), (C,) ascending, (C,)
            totals = self._totals(layer, hidden[level + 1 : level + 2], state, scores, codes, degree, opened)
            _hide(totals, child, level, mask)
            chosen = best(totals, min(width, leaves) if level == last else width)
            nodes, scores = child.take(chosen), totals.take(chosen)
            if level < last:
                following = self._levels[level + 1].opened.take(nodes)
                kept = chosen[following]
                parent = np.searchsorted(degree.cumsum(), kept, side="right") if level else np.zeros_like(kept)
                # an open child has an open parent, whose state stands at the number of open beams before it
                row = parent if len(state) == len(opened) else (opened.cumsum() - 1).take(parent)
                state = self._cells[level].advance(state, row, codes.take(kept))
                opened = following
        order = np.argsort(-scores, kind="stable")
        return nodes[order], scores[order]

    def _totals(
        self,
        layer: _Level,
        hidden: Floats,
        state: Floats,
        scores: Floats,
        codes: Ints,
        degree: Ints,
        opened: Bools,
    ) -> Floats:
        """(C,) score of every child: the beam's score plus log p(code | prefix)."""
        if len(state) == len(opened):
            return self._open_totals(layer, hidden, state, scores, codes, degree)
        totals = np.repeat(scores, degree)
        if len(state):
            at = np.flatnonzero(np.repeat(opened, degree))
            totals[at] = self._open_totals(layer, hidden, state, scores[opened], codes.take(at), degree[opened])
        return totals

    def _open_totals(
        self, layer: _Level, hidden: Floats, state: Floats, scores: Floats, codes: Ints, degree: Ints
    ) -> Floats:
        """`_totals` of open beams, which all have a state."""
        count, size = len(state), layer.state.shape[1]
        shared: Floats | None = None
        if layer.hidden is None:
            state = state + hidden
        else:
            shared = product(hidden, layer.hidden)  # (1, T) what all beams have in common
        if layer.bias is not None:
            shared = layer.bias if shared is None else shared + layer.bias
        values: Floats
        if not self._whole_codebook and len(codes) * _GATHER_COST < count * size:
            row = np.repeat(np.arange(count), degree)
            values = np.einsum("ch,ch->c", state.take(row, axis=0), layer.state_rows.take(codes, axis=0))
            if shared is not None:
                values += shared.take(codes)
            norm = segment_log_sum_exp(values, degree)
        else:
            dense = product(state, layer.state)  # (M', T)
            if shared is not None:
                dense += shared
            at = codes if count == 1 else codes + np.repeat(np.arange(0, count * size, size), degree)
            values = dense.ravel().take(at)
            if self._whole_codebook:
                norm = segment_log_sum_exp(dense.ravel(), np.full(count, size))
            else:
                norm = segment_log_sum_exp(values, degree)
        values += np.repeat(scores - norm, degree)
        return values


def _lay_out(weights: HeadWeights, level: int, children: Verifier, opened: Bools) -> _Level:
    output = weights.output[level]
    hidden, state = None, output
    if weights.fusion == "concat":  # W [h ; s] = W_h h + W_s s
        left, state = np.hsplit(output, 2)
        hidden = torch.from_numpy(np.ascontiguousarray(left.T))
    return _Level(
        children,
        opened,
        hidden,
        torch.from_numpy(np.ascontiguousarray(state.T)),
        np.ascontiguousarray(state),
        None if weights.output_bias is None else weights.output_bias[level][None],
    )


def _hide(totals: Floats, child: Ints, level: int, mask: RequestMask) -> None:
    """Set the scores of children without an eligible item to minus infinity."""
    if mask.live.alive is not None:
        np.copyto(totals, -np.inf, where=~mask.live.alive[level].take(child))
    dead = mask.dead[level]
    if len(dead) and len(child):
        at = np.minimum(np.searchsorted(child, dead), len(child) - 1)
        totals[at[child[at] == dead]] = -np.inf


def _leaves_below(trie: SidTrie) -> list[Ints]:
    """For depth 0..L-1, (n_d,) number of complete semantic IDs below each node."""
    start = np.arange(trie.nodes(trie.levels) + 1)
    below = []
    for depth in range(trie.levels - 1, -1, -1):
        start = start[trie.child_start[depth]]
        below.append(np.diff(start))
    return below[::-1]
