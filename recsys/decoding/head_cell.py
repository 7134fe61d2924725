"""The draft head's recurrent cell in NumPy, laid out for few passes over contiguous memory.

torch would need fewer calls, but between two requests an operation's code leaves the caches, and torch's is the longer
way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys.decoding import kernels

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.head_weights import HeadWeights

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]


class HeadCell:
    """The state behind one more code: a tanh RNN cell, a GRU cell, or the state itself.

    Of the GRU, sigmoid(x) is computed as (1 + tanh(x / 2)) / 2, which cannot overflow; the halves are in the weights.

    Args:
        weights: the head.
        level: of the code, 0..L-2.
    """

    def __init__(self, weights: HeadWeights, level: int) -> None:
        self.transition = weights.transition
        if self.transition == "none":
            return
        # (T, G) what each code adds, with every bias that is only added
        given = weights.codes[level] @ weights.input_weight[level].T + weights.input_bias[level]
        recurrent, bias = weights.state_weight[level], weights.state_bias[level]
        width = recurrent.shape[1]
        gates = len(recurrent) - width  # 2H of a GRU, reset and update; none of an RNN
        self._given_gates = np.ascontiguousarray((given + bias)[:, :gates]) * 0.5
        self._gates = _right_side(recurrent[:gates] * 0.5)
        self._fresh = _right_side(recurrent[gates:])
        self._bias = bias[gates:]
        # the reset gate multiplies this bias of a GRU: it cannot stand in the table
        self._given_fresh = np.ascontiguousarray(given[:, gates:] + (self._bias if gates == 0 else 0))

    def advance(self, state: Floats, row: Ints, codes: Ints) -> Floats:
        """The states of children.

        Args:
            state: (M, H) of the parents.
            row: (n,) each child's parent.
            codes: (n,) the code each child has written.

        Returns:
            (n, H).
        """
        if self.transition == "none":
            return state.take(row, axis=0)
        # one product per parent where there are fewer of them than children
        few = len(state) < len(row)
        source = state if few else state.take(row, axis=0)
        at = row if few else np.arange(len(row))
        if self.transition == "rnn":
            fresh = kernels.spread(product(source, self._fresh), at, self._given_fresh, codes)
            return np.tanh(fresh, out=fresh)
        gates = kernels.spread(product(source, self._gates), at, self._given_gates, codes)
        np.tanh(gates, out=gates)  # (n, 2H)
        fresh = kernels.reset(product(source, self._fresh), at, self._bias, gates, self._given_fresh, codes)
        np.tanh(fresh, out=fresh)
        kernels.blend(state, row, gates, fresh)
        return fresh


def _right_side(weight: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(weight.T))


def product(left: Floats, right: torch.Tensor) -> Floats:
    """Matrix product by torch: NumPy's BLAS has a thread pool of its own, which fights torch's for the cores."""
    result: Floats = torch.mm(torch.from_numpy(left), right).numpy()
    return result
