"""Compiled loops of the draft head's cells: few products, and the gates of many children.

See `recsys.decoding.kernels`. Shared words: P parents, M' states, n children, T codes, H width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.decoding.kernels import compiled, power

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]


@compiled
def _tanh(x: Any) -> Any:
    one = type(x)(1)
    return (one + one) / (one + power(-(x + x))) - one


@compiled
def times(state: Floats, rows: Ints, weight: Floats) -> Floats:
    """(P, G) products of some rows of (M, H) with (H, G): for few rows a matrix library takes longer to begin."""
    width, size = weight.shape
    result = np.zeros((len(rows), size), state.dtype)
    for column in range(width):
        given = weight[column]
        for row in range(len(rows)):
            factor, into = state[rows[row], column], result[row]
            for place in range(size):
                into[place] += factor * given[place]
    return result


@compiled
def rnn(products: Floats, at: Ints, given: Floats, codes: Ints) -> Floats:
    """(n, H) states tanh(U h + what the code gives).

    Args:
        products: (P, H) U h of the parents.
        at: (n,) each child's parent among them.
        given: (T, H) with all biases.
        codes: (n,).
    """
    width = products.shape[1]
    fresh = np.empty((len(at), width), products.dtype)
    for row in range(len(at)):
        source, code = at[row], codes[row]
        for column in range(width):
            fresh[row, column] = _tanh(products[source, column] + given[code, column])
    return fresh


@compiled
def gru(state: Floats, parents: Ints, products: Floats, at: Ints, given: Floats, bias: Floats, codes: Ints) -> Floats:
    """(n, H) states of a GRU: n + z * (h - n), n = tanh(given + r * (U h + b)).

    Args:
        state: (M', H).
        parents: (P,) rows of the parents.
        products: (P, 3H) U h of the parents, the gates r, z, n side by side.
        at: (n,) each child's parent among them.
        given: (T, 3H) what each code adds, with every bias that is only added.
        bias: (H,) b, which the reset gate multiplies.
        codes: (n,).
    """
    width = state.shape[1]
    one = state.dtype.type(1)
    fresh = np.empty((len(at), width), state.dtype)
    gates = np.empty(2 * width, state.dtype)
    # short loops over slices: with more arrays, or computed column numbers, the compiler makes no vector code
    for row in range(len(at)):
        new, old = fresh[row], state[parents[at[row]]]
        by_code, by_state = given[codes[row]], products[at[row]]
        for column in range(2 * width):
            gates[column] = one / (one + power(-(by_state[column] + by_code[column])))
        code, recurrent = by_code[2 * width :], by_state[2 * width :]
        for column in range(width):
            new[column] = _tanh(code[column] + gates[column] * (recurrent[column] + bias[column]))
        update = gates[width:]
        for column in range(width):
            new[column] += update[column] * (old[column] - new[column])
    return fresh


@compiled
def few_rnn(state: Floats, parents: Ints, weight: Floats, at: Ints, given: Floats, codes: Ints) -> Floats:
    """`times` and `rnn`."""
    return rnn(times(state, parents, weight), at, given, codes)


@compiled
def few_gru(state: Floats, parents: Ints, weight: Floats, at: Ints, given: Floats, bias: Floats, codes: Ints) -> Floats:
    """`times` and `gru`."""
    return gru(state, parents, times(state, parents, weight), at, given, bias, codes)
