"""Loops over ragged rows of children, compiled: what would be five to ten NumPy calls is one pass over the memory.

Compiled at the first call for each floating type and kept on the disk beside the source (or where NUMBA_CACHE_DIR
says). Exponentials and tanh stay in NumPy, whose vector forms are faster than compiled scalar ones.

Shared words: M beams, C their children in ascending order of trie nodes, M' the beams that are open, T codes, H width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

# Sums may be taken in any order; infinities keep their meaning.
_FAST: Final = frozenset({"reassoc", "contract", "arcp"})


def _compiled(function: _Function) -> _Function:
    return cast("_Function", numba.njit(cache=True, nogil=True, fastmath=set(_FAST))(function))


@_compiled
def csr_rows(start: Ints, code: npt.NDArray[np.integer], nodes: Ints) -> tuple[Ints, Ints, Ints]:
    """Children of (M,) nodes, node r's being start[r]..start[r + 1] - 1: (M,) degree, (C,) child, (C,) code."""
    degree = np.empty(len(nodes), np.int64)
    total = 0
    for row, node in enumerate(nodes):
        degree[row] = start[node + 1] - start[node]
        total += degree[row]
    child, codes = np.empty(total, np.int64), np.empty(total, np.int64)
    at = 0
    for node in nodes:
        for one in range(start[node], start[node + 1]):
            child[at], codes[at] = one, code[one]
            at += 1
    return degree, child, codes


@_compiled
def _lowered(values: Floats, degree: Ints, opened: Bools) -> Floats:
    """The same (C,) minus the highest of each row that is open, in place."""
    at = 0
    for beam, count in enumerate(degree):
        if opened[beam] and count:
            highest = values[at]
            for place in range(at + 1, at + count):
                highest = max(highest, values[place])
            for place in range(at, at + count):
                values[place] -= highest
        at += count
    return values


@_compiled
def gathered(dense: Floats, degree: Ints, codes: Ints, opened: Bools) -> Floats:
    """(C,) logits of the children minus the highest of their row, from all logits (M', T); 0 in rows not open."""
    values = np.zeros(len(codes), dense.dtype)
    at = row = 0
    for beam, count in enumerate(degree):
        if opened[beam]:
            for place in range(at, at + count):
                values[place] = dense[row, codes[place]]
            row += 1
        at += count
    return _lowered(values, degree, opened)


@_compiled
def dotted(state: Floats, weight: Floats, shared: Floats, degree: Ints, codes: Ints, opened: Bools) -> Floats:
    """As `gathered`, from the states (M', H), the output weight (T, H) and what all beams share, (T,) or (0,)."""
    values = np.zeros(len(codes), state.dtype)
    at = row = 0
    for beam, count in enumerate(degree):
        if opened[beam]:
            for place in range(at, at + count):
                value = state.dtype.type(0)
                for column in range(state.shape[1]):
                    value += state[row, column] * weight[codes[place], column]
                values[place] = value + (shared[codes[place]] if len(shared) else state.dtype.type(0))
            row += 1
        at += count
    return _lowered(values, degree, opened)


@_compiled
def add_up(values: Floats, powers: Floats, degree: Ints, scores: Floats) -> None:
    """Turn (C,) shifted logits into totals in place: the beam's score plus log-softmax over its row.

    Args:
        values: (C,) logits up to a constant per row.
        powers: (C,) their exponentials.
        degree: (M,) children per beam.
        scores: (M,) of the beams.
    """
    at = 0
    for beam, count in enumerate(degree):
        if count > 1:
            total = powers[at]
            for place in range(at + 1, at + count):
                total += powers[place]
            base = scores[beam] - np.log(total)
            for place in range(at, at + count):
                values[place] += base
        elif count == 1:
            values[at] = scores[beam]
        at += count


@_compiled
def hide(values: Floats, child: Ints, alive: Bools, dead: Ints) -> None:
    """Minus infinity for children that are not alive ((n,) by node; (0,) = all are) or in `dead` (ascending)."""
    if len(alive):
        for place, node in enumerate(child):
            if not alive[node]:
                values[place] = -np.inf
    if len(dead) and len(child):
        place = np.searchsorted(child, dead[0])
        for node in dead:
            while place < len(child) and child[place] < node:
                place += 1
            if place < len(child) and child[place] == node:
                values[place] = -np.inf


@_compiled
def recount(counts: npt.NDArray[np.int32], alive: Bools, nodes: Ints, step: Ints) -> None:
    """Add a step to the count of each node, one after the other, and keep (n,) `alive` at counts > 0."""
    for place, node in enumerate(nodes):
        counts[node] += step[place]
        alive[node] = counts[node] > 0


@_compiled
def pick(
    values: Floats,
    threshold: Floats,
    width: int,
    degree: Ints,
    child: Ints,
    codes: Ints,
    opened: Bools,
    opens: Bools,
) -> tuple[Ints, Floats, Bools, Ints, Ints]:
    """The `width` best children in ascending order of nodes, ties to the smaller node; never minus infinity.

    Args:
        values: (C,) totals.
        threshold: (1,) the width-th largest of them, minus infinity where there are no more than `width`.
        width: at most so many.
        degree: (M,).
        child: (C,) nodes.
        codes: (C,).
        opened: (M,) which beams have a row among the states.
        opens: (n,) by node of the children's depth, whether it is open; (0,) = none is.

    Returns:
        (m,) nodes, (m,) totals, (m,) whether each is open, and of the open ones the parent's row and the code.
    """
    limit = threshold[0]
    equal = width  # how many at the threshold are wanted
    for value in values:
        if value > limit:
            equal -= 1
    nodes, totals = np.empty(width, np.int64), np.empty(width, values.dtype)
    flags = np.empty(width, np.bool_)
    rows, letters = np.empty(width, np.int64), np.empty(width, np.int64)
    at = row = found = open_found = 0
    for beam, count in enumerate(degree):
        for place in range(at, at + count):
            value = values[place]
            if value > limit or (value == limit and equal > 0 and value > -np.inf):
                if value == limit:
                    equal -= 1
                nodes[found], totals[found] = child[place], value
                flag = len(opens) > 0 and opens[child[place]]
                flags[found] = flag
                if flag:
                    rows[open_found], letters[open_found] = row, codes[place]
                    open_found += 1
                found += 1
        if opened[beam]:
            row += 1
        at += count
    return nodes[:found], totals[:found], flags[:found], rows[:open_found], letters[:open_found]


@_compiled
def spread(products: Floats, at: Ints, table: Floats, codes: Ints) -> Floats:
    """(n, G): row at[i] of the products (M', G) plus row codes[i] of a table (T, G)."""
    width = products.shape[1]
    result = np.empty((len(at), width), products.dtype)
    for row in range(len(at)):
        source, given = at[row], codes[row]
        for column in range(width):
            result[row, column] = products[source, column] + table[given, column]
    return result


@_compiled
def reset(products: Floats, at: Ints, bias: Floats, gates: Floats, table: Floats, codes: Ints) -> Floats:
    """(n, H) input of a GRU's candidate: r * (U h + b) + what the code gives.

    Args:
        products: (M', H) U h of the parents.
        at: (n,) row of each child's parent among them.
        bias: (H,).
        gates: (n, 2H) tanh of half the gates' inputs, reset first.
        table: (T, H).
        codes: (n,).
    """
    width = products.shape[1]
    result = np.empty((len(at), width), products.dtype)
    half = products.dtype.type(0.5)
    for row in range(len(at)):
        source, given = at[row], codes[row]
        for column in range(width):
            gate = half * gates[row, column] + half
            result[row, column] = gate * (products[source, column] + bias[column]) + table[given, column]
    return result


@_compiled
def blend(state: Floats, rows: Ints, gates: Floats, fresh: Floats) -> None:
    """A GRU's new state in place of its candidate: fresh + z * (old - fresh).

    Args:
        state: (M', H) of the parents.
        rows: (n,) each child's parent.
        gates: (n, 2H) as for `reset`, update second.
        fresh: (n, H) the candidates.
    """
    width = state.shape[1]
    half = state.dtype.type(0.5)
    for row in range(len(rows)):
        source = rows[row]
        for column in range(width):
            gate = half * gates[row, width + column] + half
            fresh[row, column] += gate * (state[source, column] - fresh[row, column])
