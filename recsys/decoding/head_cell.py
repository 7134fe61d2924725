"""The draft head's recurrent cell: one matrix product over the parents, and one compiled loop over the children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from recsys.decoding import cell_kernels

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.head_weights import HeadWeights

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]

FEW: Final = 8  # parents; measured, H = 128 and 256


class HeadCell:
    """The state behind one more code: a tanh RNN cell, a GRU cell, or the state itself.

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
        gates = len(recurrent) - recurrent.shape[1]  # 2H of a GRU, reset and update; none of an RNN
        # the reset gate multiplies the last third of a GRU's bias: it cannot stand in the table
        added = np.concatenate([bias[:gates], np.zeros_like(bias[gates:])]) if gates else bias
        self._given = np.ascontiguousarray(given + added)
        self._bias = np.ascontiguousarray(bias[gates:])
        self._recurrent = np.ascontiguousarray(recurrent.T)  # (H, G)

    def advance(self, state: Floats, parents: Ints, at: Ints, codes: Ints) -> Floats:
        """The states of children.

        Args:
            state: (M, H) of the beams.
            parents: (P,) rows of the beams that have children, ascending.
            at: (n,) each child's place among the parents.
            codes: (n,) the code each child has written.

        Returns:
            (n, H).
        """
        if self.transition == "none":
            return state.take(parents, axis=0).take(at, axis=0)
        few, rnn = len(parents) <= FEW, self.transition == "rnn"
        if few and rnn:
            return cell_kernels.few_rnn(state, parents, self._recurrent, at, self._given, codes)
        if few:
            return cell_kernels.few_gru(state, parents, self._recurrent, at, self._given, self._bias, codes)
        source = state if len(parents) == len(state) else state.take(parents, axis=0)  # (P, H)
        products = product(source, torch.from_numpy(self._recurrent))  # (P, G)
        if rnn:
            return cell_kernels.rnn(products, at, self._given, codes)
        return cell_kernels.gru(state, parents, products, at, self._given, self._bias, codes)


def product(left: Floats, right: torch.Tensor) -> Floats:
    """Matrix product by torch: NumPy's BLAS has a thread pool of its own, which fights torch's for the cores."""
    result: Floats = torch.mm(torch.from_numpy(left), right).numpy()
    return result
