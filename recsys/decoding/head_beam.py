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
from recsys.decoding.head_cell import FEW, HeadCell, product
from recsys.decoding.verifier import Rows, listing
from recsys.errors import DataError
from recsys.models.head import prefix_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.added import Newcomers
    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.head_weights import HeadWeights
    from recsys.decoding.trie import SidTrie
    from recsys.decoding.verifier import Structure, Verifier

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Bits = npt.NDArray[np.uint8]

# A compiled dot product costs about as much as this many columns of a dense product (measured, H = 128, 256).
_GATHER_COST = 5
_NONE = np.empty(0, dtype=np.bool_)
_EVERY = np.empty(0, dtype=np.uint8)
_NO_NODES = np.empty(0, dtype=np.int64)


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

    def search(
        self, hidden: Floats, *, width: int, leaves: int, mask: RequestMask, newcomers: Newcomers | None = None
    ) -> tuple[Ints, Floats]:
        """The best complete semantic IDs.

        Args:
            hidden: (L + 1, H) hidden states h_0..h_L.
            width: prefixes kept per level.
            leaves: semantic IDs wanted; the last level keeps at most `width` of them.
            mask: what the request may show.
            newcomers: takes the prefixes that are kept.

        Returns:
            (m,) leaves of the trie and (m,) scores, best first, ties to the smaller leaf.
        """
        beams = self._start(hidden)
        last = len(self._levels) - 1
        for level in range(last):
            beams = self._step(level, beams, hidden, width, mask)
            if newcomers is not None:
                newcomers.kept(level + 1, beams.nodes, beams.scores)
        nodes, scores, _, _ = self._step(last, beams, hidden, min(width, leaves), mask)
        if newcomers is not None:
            newcomers.kept(last + 1, nodes, scores)
        return kernels.ranked(nodes, scores)

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
        at = np.zeros(int(opened.sum()), dtype=np.int64)
        state = self._cells[0].advance(start.state, at[:1], at, codes[opened]) if len(at) else hidden[:0]
        beams = _Beams(nodes, scores, opened, state)
        drafted = []
        for level in range(1, len(self._levels) - 1):
            beams = self._step(level, beams, hidden, width, mask)
            drafted.append(beams.nodes)
        return drafted

    def _compile(self) -> None:
        """Compile now all the ways that a search may take, by what its beams ask for."""
        width = self._levels[0].state_rows.shape[1]
        hidden = np.zeros((len(self._levels) + 1, width), dtype=self._levels[0].state_rows.dtype)
        state, rows, opened = hidden[:2], self._root, np.ones(1, dtype=np.bool_)
        for cell in self._cells[:1]:
            for parents in (self._root.codes[:1] * 0, np.zeros(FEW + 1, dtype=np.int64)):
                cell.advance(state, parents, parents[:1], parents[:1])
        if not self._whole_codebook:
            layer = self._levels[0]
            values = kernels.gathered(product(state, layer.state), rows.degree, rows.codes, opened)
            kernels.choose(values, hidden[0, :1], rows, opened, (_EVERY, _NO_NODES), hidden[0, :0], 1, _NONE)

    def _start(self, hidden: Floats) -> _Beams:
        opened = self._levels[0].opened
        state = hidden[:1] if opened[0] else hidden[:0]
        return _Beams(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=hidden.dtype), opened, state)

    def _step(self, level: int, beams: _Beams, hidden: Floats, width: int, mask: RequestMask) -> _Beams:
        """Extend every prefix by one code and keep the best."""
        layer = self._levels[level]
        degree, child, codes = layer.children.rows(beams.nodes) if level else self._root  # (M,), (C,) ascending, (C,)
        prior = mask.bounds
        if prior is not None and level:  # the parents' bounds give way to the children's
            beams = beams._replace(scores=beams.scores - _like(prior.below(level, beams.nodes), beams.scores))
        last = level == len(self._levels) - 1
        opens = _NONE if last else self._levels[level + 1].opened
        shown = (mask.live.alive[level] if mask.live.alive else _EVERY, mask.dead[level])
        bounds = hidden[0, :0] if prior is None else _like(prior.below(level + 1, child), hidden)  # (C,)
        chosen = self._chosen(layer, hidden[level + 1], beams, Rows(degree, child, codes), shown, bounds, width, opens)
        nodes, scores, opened, parents, at, letters = chosen
        state = beams.state if last else self._cells[level].advance(beams.state, parents, at, letters)
        return _Beams(nodes, scores, opened, state)

    def _chosen(
        self,
        layer: _Level,
        hidden: Floats,
        beams: _Beams,
        rows: Rows,
        shown: tuple[Bits, Ints],
        bounds: Floats,
        width: int,
        opens: Bools,
    ) -> tuple[Ints, Floats, Bools, Ints, Ints, Ints]:
        """See `kernels.choose`; hidden (H,) is the level's."""
        _, scores, opened, state = beams
        if self._whole_codebook:
            totals = _over_codebook(layer, hidden, beams, rows)
            kernels.hide(totals, rows.child, *shown)
            if len(bounds):
                totals += bounds
            return kernels.pick(totals, width, *rows, opened, opens)
        if layer.node_rows is not None:
            if layer.hidden is not None:
                state, hidden = np.concatenate([np.broadcast_to(hidden, state.shape), state], axis=1), hidden[:0]
            by_node, output, shared = True, layer.node_rows, layer.node_bias
        else:
            state, hidden, shared = _fused(layer, hidden, state)
            if len(state) > 1 and len(rows.codes) * _GATHER_COST >= len(state) * layer.state.shape[1]:
                values = kernels.gathered(_dense(layer, hidden, state, shared), rows.degree, rows.codes, opened)
                return kernels.choose(values, scores, rows, opened, shown, bounds, width, opens)
            by_node, output = False, layer.state_rows
        return kernels.extend(state, hidden, output, shared, by_node, scores, rows, opened, shown, bounds, width, opens)


def _over_codebook(layer: _Level, hidden: Floats, beams: _Beams, rows: Rows) -> Floats:
    """(C,) total of every child: the beam's score plus log p(code) among all codes of the level."""
    state, hidden, shared = _fused(layer, hidden, beams.state)
    dense = torch.from_numpy(_dense(layer, hidden, state, shared))
    logits: Floats = dense.log_softmax(dim=1).numpy()  # (M, T): with the whole codebook every beam is open
    return np.repeat(beams.scores, rows.degree) + logits[np.repeat(np.arange(len(state)), rows.degree), rows.codes]


def _fused(layer: _Level, hidden: Floats, state: Floats) -> tuple[Floats, Floats, Floats]:
    """(M', H) states, (H,) what is added to each or (0,), and (T,) what is added to their logits or (0,)."""
    if layer.hidden is None:
        return state, hidden, layer.bias
    common = product(hidden[None], layer.hidden)[0]
    return state, hidden[:0], common + layer.bias if len(layer.bias) else common


def _dense(layer: _Level, hidden: Floats, state: Floats, shared: Floats) -> Floats:
    """(M', T) logits over the whole codebook."""
    dense = product(state + hidden if len(hidden) else state, layer.state)
    if len(shared):
        dense += shared
    return dense


def _like(values: Floats, other: Floats) -> Floats:
    """Values in the precision of others."""
    return values.astype(other.dtype, copy=False)


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
