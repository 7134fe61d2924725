"""Beam search over the draft head for one request, in NumPy.

Beams are kept in the order of their trie nodes, so their children come out in that order too: ties fall to the smaller
packed semantic ID without sorting, and only the last level is sorted by score. A beam below which a single semantic ID
is left needs no logits and no state: all its remaining conditional probabilities are 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.head_weights import HeadWeights, cell
from recsys.decoding.ragged import best, ranges, segment_log_sum_exp
from recsys.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.trie import SidTrie

# One dot product over gathered rows costs about as much as this many columns of a dense product (measured, H = 128).
_GATHER_COST = 12


class HeadBeam:
    """A draft head and its trie, laid out for search.

    Safe to share between threads.

    Args:
        weights: the head.
        trie: the prefixes; its children are the normaliser.
        whole_codebook: normalise over all codes of a level instead, and use the trie as a mask only (an ablation).

    Raises:
        DataError: the head's codebooks and the trie's differ.
    """

    def __init__(self, weights: HeadWeights, trie: SidTrie, *, whole_codebook: bool = False) -> None:
        if weights.sizes != trie.sizes:
            raise DataError(
                f"the head has codebooks {weights.sizes}, the trie {trie.sizes}",
                field="sizes",
                value=weights.sizes,
                remedy="use the model with the tokenizer it was trained with",
            )
        self._weights = weights
        self._trie = trie
        self._whole_codebook = whole_codebook
        width = weights.output[0].shape[1] // (2 if weights.fusion == "concat" else 1)
        # f(h, s) = h + s is the concatenation with the same columns twice
        self._hidden_output = tuple(np.ascontiguousarray(weight[:, :width]) for weight in weights.output)
        self._state_output = tuple(np.ascontiguousarray(weight[:, -width:]) for weight in weights.output)
        self._given = tuple(
            np.ascontiguousarray(codes @ weight.T + bias)
            for codes, weight, bias in zip(weights.codes, weights.input_weight, weights.input_bias, strict=True)
        )
        self._recurrent = tuple(np.ascontiguousarray(weight.T) for weight in weights.state_weight)
        self._open = tuple(count > 1 for count in _leaves_below(trie))

    def search(
        self, hidden: npt.NDArray[np.floating], *, width: int, leaves: int, mask: RequestMask
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]:
        """The best complete semantic IDs.

        Args:
            hidden: (L + 1, H) hidden states h_0..h_L.
            width: prefixes kept per level.
            leaves: semantic IDs kept at the last level, at most `width` of them.
            mask: what the request may show.

        Returns:
            (m,) leaves of the trie and (m,) scores, best first, ties to the smaller leaf.
        """
        trie = self._trie
        nodes = np.zeros(1, dtype=np.int64)  # (M,) ascending
        scores = np.zeros(1, dtype=hidden.dtype)  # (M,)
        state = hidden[:1]  # (M', H) of the open beams only
        for level in range(trie.levels):
            first = trie.child_start[level][nodes]
            degree = trie.child_start[level][nodes + 1] - first
            child = ranges(first, degree)  # (C,) ascending
            parent = np.repeat(np.arange(len(nodes)), degree)  # (C,)
            codes = trie.node_code[level][child]
            is_open = self._is_open(level, nodes)  # (M,)
            totals = scores[parent]
            if is_open.any():
                self._add_log_probabilities(level, hidden, state, totals, codes, parent, degree, is_open)
            _hide(totals, child, level, mask)
            last = level == trie.levels - 1
            chosen = best(totals, min(width, leaves) if last else width)
            if not last:
                state = self._advance(level, state, codes, parent, child, is_open, chosen)
            nodes, scores = child[chosen], totals[chosen]
        order = np.argsort(-scores, kind="stable")
        return nodes[order], scores[order]

    def _is_open(self, level: int, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if self._whole_codebook:
            return np.ones(len(nodes), dtype=bool)
        return self._open[level][nodes]

    def _add_log_probabilities(
        self,
        level: int,
        hidden: npt.NDArray[np.floating],
        state: npt.NDArray[np.floating],
        totals: npt.NDArray[np.floating],
        codes: npt.NDArray[np.int32],
        parent: npt.NDArray[np.int64],
        degree: npt.NDArray[np.int64],
        is_open: npt.NDArray[np.bool_],
    ) -> None:
        """Add log p(code | prefix) to `totals`, which hold the score of the parent; closed beams add nothing."""
        everything = len(state) == len(is_open)
        at = slice(None) if everything else np.flatnonzero(is_open[parent])
        counts = degree if everything else degree[is_open]
        codes = codes[at]
        row = np.repeat(np.arange(len(state)), counts)  # (C',) row of `state` of each candidate
        shared = self._hidden_output[level] @ hidden[level + 1]  # (T,) the part all beams have in common
        if self._weights.output_bias is not None:
            shared = shared + self._weights.output_bias[level]
        weight = self._state_output[level]
        if not self._whole_codebook and len(codes) * _GATHER_COST < len(state) * len(weight):
            values = np.einsum("ch,ch->c", state[row], weight[codes])
            values += shared[codes]
            norm = segment_log_sum_exp(values, counts)
        else:
            dense = state @ weight.T
            dense += shared
            values = dense.ravel()[row * len(weight) + codes]
            if self._whole_codebook:
                norm = segment_log_sum_exp(dense.ravel(), np.full(len(state), len(weight)))
            else:
                norm = segment_log_sum_exp(values, counts)
        values -= norm[row]
        totals[at] += values

    def _advance(
        self,
        level: int,
        state: npt.NDArray[np.floating],
        codes: npt.NDArray[np.int32],
        parent: npt.NDArray[np.int64],
        child: npt.NDArray[np.int64],
        is_open: npt.NDArray[np.bool_],
        chosen: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.floating]:
        """The states of the chosen children that are open themselves; their parents are open, so have a state."""
        kept = chosen[self._is_open(level + 1, child[chosen])]
        row = parent[kept] if len(state) == len(is_open) else (np.cumsum(is_open) - 1)[parent[kept]]
        if self._weights.transition == "none":
            return state[row]
        given = self._given[level][codes[kept]]
        # the state's product once per parent, not once per child
        recurrent = (state @ self._recurrent[level])[row]
        return cell(self._weights.transition, given, recurrent, self._weights.state_bias[level], state[row])


def _hide(totals: npt.NDArray[np.floating], child: npt.NDArray[np.int64], level: int, mask: RequestMask) -> None:
    """Set the scores of children without an eligible item to minus infinity."""
    if mask.live.alive is not None:
        totals[~mask.live.alive[level][child]] = -np.inf
    dead = mask.dead[level]
    if len(dead) and len(child):
        at = np.minimum(np.searchsorted(child, dead), len(child) - 1)
        totals[at[child[at] == dead]] = -np.inf


def _leaves_below(trie: SidTrie) -> list[npt.NDArray[np.int64]]:
    """For depth 0..L-1, (n_d,) number of complete semantic IDs below each node."""
    start = np.arange(trie.nodes(trie.levels) + 1)
    below = []
    for depth in range(trie.levels - 1, -1, -1):
        start = start[trie.child_start[depth]]
        below.append(np.diff(start))
    return below[::-1]
