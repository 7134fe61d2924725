"""Beam search over the draft head for one request, in NumPy and compiled loops.

Beams are kept in the order of their trie nodes, so their children come out in that order too: ties fall to the smaller
packed semantic ID without sorting, and only the last level is sorted by score. A beam below which a single semantic ID
is left is *closed*: its remaining conditional probabilities are 1, and it needs neither logits nor a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recsys.decoding import kernels
from recsys.decoding.head_cell import HeadCell, product
from recsys.decoding.verifier import listing
from recsys.errors import DataError
from recsys.models.head import prefix_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.head_weights import HeadWeights
    from recsys.decoding.trie import SidTrie
    from recsys.decoding.verifier import Structure, Verifier

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

# A compiled dot product costs about as much as this many columns of a dense product (measured, H = 128, 256).
_GATHER_COST = 5
_NONE = np.empty(0, dtype=np.bool_)


class _Level(NamedTuple):
    """Trie and output layer between depth d and depth d + 1.

    Attributes:
        children: of the nodes of depth d.
        opened: (n_d,) whether a node is open.
        hidden: (H, T) output weight of the hidden state; None where it is added to the beam's state first.
        state: (H, T) output weight of the beam's state, or of the sum.
        state_rows: (T, H) the same for rows to be gathered.
        bias: (T,), or (0,) for none.
        node_rows: (n_{d+1}, H) output weight of the sum per node of depth d + 1, (n_{d+1}, 2H) of the concatenation;
            None where a code says all.
        node_bias: (n_{d+1},), or (0,) for none.
    """

    children: Verifier
    opened: Bools
    hidden: torch.Tensor | None
    state: torch.Tensor
    state_rows: Floats
    bias: Floats
    node_rows: Floats | None
    node_bias: Floats


class _Beams(NamedTuple):
    """The prefixes kept at a depth.

    Attributes:
        nodes: (M,) ascending.
        scores: (M,).
        opened: (M,) which of them have a state.
        state: (M', H), M' = opened.sum().
    """

    nodes: Ints
    scores: Floats
    opened: Bools
    state: Floats


class HeadBeam:
    """A draft head and its trie, laid out for search; safe to share between threads.

    Args:
        weights: the head.
        trie: the prefixes; its children are the normaliser.
        whole_codebook: normalise over all codes of a level instead, and use the trie as a mask only (an ablation).
        structure: that holds the children; the answers are the same.

    Raises:
        DataError: the head's codebooks or items and the trie's differ.
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
        if weights.item_output is not None and len(weights.item_output) != trie.items:
            raise DataError(
                f"the head has rows of {len(weights.item_output)} items, the trie holds {trie.items}",
                field="item_output",
                value=weights.item_output.shape,
                remedy="use the model with the tokenizer it was trained with",
            )
        self._whole_codebook = whole_codebook
        below, children = _leaves_below(trie), listing(trie, structure)
        self._levels = [
            _lay_out(weights, level, trie, children[level], below[level] > (0 if whole_codebook else 1))
            for level in range(trie.levels)
        ]
        self._root = self._levels[0].children.rows(np.zeros(1, dtype=np.int64))
        self._cells = [HeadCell(weights, level) for level in range(trie.levels - 1)]
        self._compile()

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
        beams = self._start(hidden)
        last = len(self._levels) - 1
        for level in range(last):
            beams = self._step(level, beams, hidden, width, mask)
        nodes, scores, _, _ = self._step(last, beams, hidden, min(width, leaves), mask)
        order = np.argsort(-scores, kind="stable")
        return nodes[order], scores[order]

    def draft(
        self, hidden: Floats, nodes: Ints, codes: Ints, scores: Floats, *, width: int, mask: RequestMask
    ) -> list[Ints]:
        """What the head would write behind given first codes.

        Args:
            hidden: (L + 1, H) hidden states h_0..h_L.
            nodes: (M,) of depth 1, ascending.
            codes: (M,) their codes.
            scores: (M,) by whatever model.
            width: prefixes kept per level.
            mask: what the request may show.

        Returns:
            For depths 2..L-1 (m,) nodes, ascending.
        """
        start = self._start(hidden)
        opened = self._levels[1].opened.take(nodes)
        row = np.zeros(int(opened.sum()), dtype=np.int64)
        state = self._cells[0].advance(start.state, row, codes[opened]) if len(row) else hidden[:0]
        beams = _Beams(nodes, scores, opened, state)
        drafted = []
        for level in range(1, len(self._levels) - 1):
            beams = self._step(level, beams, hidden, width, mask)
            drafted.append(beams.nodes)
        return drafted

    def _compile(self) -> None:
        """Compile both ways to a row's logits now: which one a search takes depends on its beams."""
        layer, (degree, _, codes) = self._levels[0], self._root
        state = np.zeros((1, layer.state_rows.shape[1]), dtype=layer.state_rows.dtype)
        kernels.dotted(state, layer.state_rows, layer.bias, degree, codes, layer.opened)
        kernels.gathered(product(state, layer.state), degree, codes, layer.opened)

    def _start(self, hidden: Floats) -> _Beams:
        opened = self._levels[0].opened
        state = hidden[:1] if opened[0] else hidden[:0]
        return _Beams(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=hidden.dtype), opened, state)

    def _step(self, level: int, beams: _Beams, hidden: Floats, width: int, mask: RequestMask) -> _Beams:
        """Extend every prefix by one code and keep the best."""
        layer = self._levels[level]
        degree, child, codes = layer.children.rows(beams.nodes) if level else self._root  # (M,), (C,) ascending, (C,)
        prior = mask.log_prior
        if prior is not None and level:  # the parents' bounds give way to the children's
            beams = beams._replace(scores=beams.scores - _like(prior.bounds[level - 1][beams.nodes], beams.scores))
        totals = self._totals(layer, hidden[level + 1], beams, child, codes, degree)  # (C,)
        if prior is not None:
            totals = totals + _like(prior.bounds[level][child], totals)
        alive = mask.live.alive
        kernels.hide(totals, child, alive[level] if alive else _NONE, mask.dead[level])
        last = level == len(self._levels) - 1
        opens = _NONE if last else self._levels[level + 1].opened
        nodes, scores, opened, row, letters = kernels.pick(
            totals, _threshold(totals, width), width, degree, child, codes, beams.opened, opens
        )
        state = beams.state if last else self._cells[level].advance(beams.state, row, letters)
        return _Beams(nodes, scores, opened, state)

    def _totals(self, layer: _Level, hidden: Floats, beams: _Beams, child: Ints, codes: Ints, degree: Ints) -> Floats:
        """(C,) score of every child: the beam's score plus log p(code | prefix)."""
        _, scores, opened, state = beams
        if layer.node_rows is not None:
            if layer.hidden is None:
                state = state + hidden
            else:
                state = np.concatenate([np.broadcast_to(hidden, state.shape), state], axis=1)
            values = kernels.dotted(state, layer.node_rows, layer.node_bias, degree, child, opened)
            kernels.add_up(values, np.exp(values), degree, scores)
            return values
        count, size = len(state), layer.state.shape[1]
        shared = layer.bias  # (T,) what all beams have in common, or (0,)
        if layer.hidden is None:
            state = state + hidden
        else:
            common = product(hidden[None], layer.hidden)[0]
            shared = common + shared if len(shared) else common
        if not self._whole_codebook and len(codes) * _GATHER_COST < count * size:
            values = kernels.dotted(state, layer.state_rows, shared, degree, codes, opened)
        else:
            dense = product(state, layer.state)  # (M', T)
            if len(shared):
                dense += shared
            if self._whole_codebook:
                logits: Floats = torch.from_numpy(dense).log_softmax(dim=1).numpy()
                return np.repeat(scores, degree) + logits[np.repeat(np.arange(count), degree), codes]
            values = kernels.gathered(dense, degree, codes, opened)
        kernels.add_up(values, np.exp(values), degree, scores)
        return values


def _like(values: Floats, other: Floats) -> Floats:
    """Values in the precision of others."""
    return values.astype(other.dtype, copy=False)


def _threshold(totals: Floats, width: int) -> Floats:
    """(1,) the width-th largest."""
    surplus = len(totals) - width
    if surplus <= 0:
        return np.full(1, -np.inf, dtype=totals.dtype)
    ordered: Floats = np.partition(totals, surplus)
    return ordered[surplus : surplus + 1]


def _lay_out(weights: HeadWeights, level: int, trie: SidTrie, children: Verifier, opened: Bools) -> _Level:
    output = weights.output[level]
    bias = output[0, :0] if weights.output_bias is None else weights.output_bias[level]
    node_rows, node_bias = None, bias[:0]
    if level and weights.item_output is not None:
        codes = trie.node_code[level]
        nodes = torch.from_numpy(trie.item_node[:, level])
        node_rows = output[codes] + prefix_rows(torch.from_numpy(weights.item_output), nodes, len(codes)).numpy()
        node_bias = bias[codes] if len(bias) else bias
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
        bias,
        node_rows,
        node_bias,
    )


def _leaves_below(trie: SidTrie) -> list[Ints]:
    """For depth 0..L-1, (n_d,) number of complete semantic IDs below each node."""
    start = np.arange(trie.nodes(trie.levels) + 1)
    below = []
    for depth in range(trie.levels - 1, -1, -1):
        start = start[trie.child_start[depth]]
        below.append(np.diff(start))
    return below[::-1]
