"""Loops over ragged rows of children, compiled: what would be five to ten NumPy calls is one pass over the memory.

Compiled at the first call for each floating type and kept on the disk beside the source (or where NUMBA_CACHE_DIR
says). In float32 exponentials are a polynomial, which the compiler turns into vector code (a call of the C library per
number would cost fifteen times as much).

Shared words: M beams, C their children in ascending order of trie nodes, M' the beams that are open, T codes, H width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.extending import overload

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Bits = npt.NDArray[np.uint8]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

# Sums may be taken in any order; infinities keep their meaning.
_FAST: Final = frozenset({"reassoc", "contract", "arcp"})


# exp in single precision: e^x = 2^n e^r, r = x - n (_HIGH + _LOW), |r| <= ln 2 / 2; coefficients of the Cephes library.
_LOG2_E: Final = np.float32(1.44269504088896341)
_HIGH, _LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)  # the result stays a normal number
_ONE, _HALF = np.float32(1), np.float32(0.5)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_STEPS: Final = 1_024


def compiled(function: _Function) -> _Function:
    """Compile at the first call, without the interpreter's lock while it runs; kept on the disk."""
    return cast("_Function", numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=set(_FAST))(function))


def power(x: Any) -> Any:
    """e^x inside compiled loops; float32 within 2e-7 relative for x in -87..88, the nearer bound's value outside."""
    raise TypeError(f"for compiled loops only, got {x!r}")


@overload(power, jit_options={"fastmath": set(_FAST)})
def _power(x: Any) -> Any:
    def double(x: Any) -> Any:
        return np.exp(x)

    def single(x: Any) -> Any:
        x = min(max(x, _LEAST), _MOST)
        n = np.floor(x * _LOG2_E + _HALF)
        r = (x - n * _HIGH) - n * _LOW
        tail = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
        scale = np.int32((np.int32(n) + _BIAS) << _MANTISSA).view(np.float32)
        return (tail * r * r + r + _ONE) * scale

    return single if x == types.float32 else double


@compiled
def csr_rows(start: npt.NDArray[np.integer], code: npt.NDArray[np.integer], nodes: Ints) -> tuple[Ints, Ints, Ints]:
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


@compiled
def gathered(dense: Floats, degree: Ints, codes: Ints, opened: Bools) -> Floats:
    """(C,) logits of the children, from all logits (M', T); 0 in rows not open."""
    values = np.zeros(len(codes), dense.dtype)
    at = row = 0
    for beam, count in enumerate(degree):
        if opened[beam]:
            for place in range(at, at + count):
                values[place] = dense[row, codes[place]]
            row += 1
        at += count
    return values


@compiled
def dotted(
    state: Floats, hidden: Floats, weight: Floats, shared: Floats, degree: Ints, rows: Ints, opened: Bools
) -> Floats:
    """(C,) logits of the children; 0 in rows not open, and where an only child has probability 1 anyway.

    Args:
        state: (M', H).
        hidden: (H,) added to every state, or (0,).
        weight: (n, H) output rows.
        shared: (n,) added to their products, or (0,).
        degree: (M,) children per beam.
        rows: (C,) which output row each child has.
        opened: (M,) which beams have a state.
    """
    values = np.zeros(len(rows), state.dtype)
    width = state.shape[1]
    query = np.empty(width, state.dtype)
    at = row = 0
    for beam, count in enumerate(degree):
        if opened[beam]:
            if count > 1:
                for column in range(width):
                    query[column] = state[row, column]
                for column in range(len(hidden)):
                    query[column] += hidden[column]
                for place in range(at, at + count):
                    output = rows[place]
                    value = state.dtype.type(0)
                    for column in range(width):
                        value += query[column] * weight[output, column]
                    values[place] = value
                if len(shared):
                    for place in range(at, at + count):
                        values[place] += shared[rows[place]]
            row += 1
        at += count
    return values


@compiled
def add_up(values: Floats, degree: Ints, scores: Floats, child: Ints, alive: Bits, dead: Ints) -> None:
    """Turn (C,) logits into totals in place: the beam's score plus log-softmax over its row; minus infinity if hidden.

    Args:
        values: (C,) logits.
        degree: (M,) children per beam.
        scores: (M,) of the beams.
        child: (C,) nodes, ascending.
        alive: a bit per node, which may be shown; (0,) = all.
        dead: (m,) ascending, nodes that may not.
    """
    at = 0
    for count in degree:
        if count > 1:
            highest = values[at]
            for place in range(at + 1, at + count):
                highest = max(highest, values[place])
            for place in range(at, at + count):
                values[place] -= highest
        at += count
    powers = np.empty_like(values)
    for place in range(len(values)):
        powers[place] = power(values[place])
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
    hide(values, child, alive, dead)


@compiled
def hide(values: Floats, child: Ints, alive: Bits, dead: Ints) -> None:
    """Minus infinity for children that are not alive (a bit per node; (0,) = all are) or in `dead` (ascending)."""
    if len(alive):
        for place, node in enumerate(child):
            if not (alive[node >> 3] >> (node & 7)) & 1:
                values[place] = -np.inf
    if len(dead) and len(child):
        place = np.searchsorted(child, dead[0])
        for node in dead:
            while place < len(child) and child[place] < node:
                place += 1
            if place < len(child) and child[place] == node:
                values[place] = -np.inf


@compiled
def threshold(values: Floats, width: int) -> float:
    """The width-th largest of (C,) values, minus infinity where there are no more than `width`.

    Counts the values by equal steps between the smallest and the largest and sorts one step's only: three passes.
    """
    count = len(values)
    if count <= width:
        return -np.inf
    highest, lowest = values[0], np.inf
    for value in values:
        highest = max(highest, value)
        if value > -np.inf:
            lowest = min(lowest, value)
    if not lowest < highest:  # all alike, or none finite
        finite_count = 0
        for value in values:
            finite_count += value > -np.inf
        return highest if finite_count >= width else -np.inf
    scale = (_STEPS - 1) / (highest - lowest)
    step = np.empty(count, np.int32)
    for place in range(count):
        offset = (highest - values[place]) * scale
        step[place] = np.int32(offset) if offset < _STEPS else _STEPS  # the last step: minus infinity, and no number
    sizes = np.zeros(_STEPS + 1, np.int64)
    for place in range(count):
        sizes[step[place]] += 1
    at = before = 0
    while before + sizes[at] < width:
        before += sizes[at]
        at += 1
    within = np.empty(sizes[at], values.dtype)
    found = 0
    for place in range(count):
        if step[place] == at:
            within[found] = values[place]
            found += 1
    within.sort()
    return float(within[found - (width - before)])


@compiled
def choose(
    values: Floats,
    scores: Floats,
    rows: tuple[Ints, Ints, Ints],
    opened: Bools,
    shown: tuple[Bits, Ints],
    prior: Floats,
    width: int,
    opens: Bools,
) -> tuple[Ints, Floats, Bools, Ints, Ints, Ints]:
    """From logits to the best children: `add_up`, the prior's bounds, `pick`.

    Args:
        values: (C,) logits; overwritten.
        scores: (M,) of the beams.
        rows: see `recsys.decoding.verifier.Rows`.
        opened: (M,) which beams have a state.
        shown: see `hide`, alive and dead.
        prior: (C,) added to the totals; (0,) = nothing.
        width: children kept.
        opens: (n,) by node, whether it is open; (0,) = none is.
    """
    degree, child, codes = rows
    add_up(values, degree, scores, child, shown[0], shown[1])
    if len(prior):
        for place in range(len(values)):
            values[place] += prior[place]
    return pick(values, width, degree, child, codes, opened, opens)


@compiled
def extend(
    state: Floats,
    hidden: Floats,
    weight: Floats,
    shared: Floats,
    by_node: bool,
    scores: Floats,
    rows: tuple[Ints, Ints, Ints],
    opened: Bools,
    shown: tuple[Bits, Ints],
    prior: Floats,
    width: int,
    opens: Bools,
) -> tuple[Ints, Floats, Bools, Ints, Ints, Ints]:
    """`dotted`, with one output row per node or per code, and `choose`."""
    output = rows[1] if by_node else rows[2]
    values = dotted(state, hidden, weight, shared, rows[0], output, opened)
    return choose(values, scores, rows, opened, shown, prior, width, opens)


@compiled
def pick(
    values: Floats, width: int, degree: Ints, child: Ints, codes: Ints, opened: Bools, opens: Bools
) -> tuple[Ints, Floats, Bools, Ints, Ints, Ints]:
    """The `width` best children in ascending order of nodes, ties to the smaller node; never minus infinity.

    Args:
        values: (C,) totals.
        width: at most so many.
        degree: (M,).
        child: (C,) nodes.
        codes: (C,).
        opened: (M,) which beams have a row among the states.
        opens: (n,) by node of the children's depth, whether it is open; (0,) = none is.

    Returns:
        (m,) nodes, (m,) totals, (m,) whether each is open; (P,) rows of the parents that have an open child; and of
        each open child the parent's place among these and the code.
    """
    width = min(width, len(values))
    limit = threshold(values, width)
    above = 0
    for value in values:
        above += value > limit
    equal = width - above  # how many at the threshold are wanted
    nodes, totals = np.empty(width, np.int64), np.empty(width, values.dtype)
    flags = np.empty(width, np.bool_)
    parents, places, letters = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    at = row = found = open_found = parent_found = 0
    for beam, count in enumerate(degree):
        counted = False
        for place in range(at, at + count):
            value = values[place]
            if value >= limit and value > -np.inf and (value > limit or equal > 0):
                if value == limit:
                    equal -= 1
                nodes[found], totals[found] = child[place], value
                flag = len(opens) > 0 and opens[child[place]]
                flags[found] = flag
                if flag:
                    if not counted:
                        parents[parent_found] = row
                        parent_found += 1
                        counted = True
                    places[open_found], letters[open_found] = parent_found - 1, codes[place]
                    open_found += 1
                found += 1
        if opened[beam]:
            row += 1
        at += count
    return (
        nodes[:found],
        totals[:found],
        flags[:found],
        parents[:parent_found],
        places[:open_found],
        letters[:open_found],
    )


@compiled
def ranked(nodes: Ints, totals: Floats) -> tuple[Ints, Floats]:
    """Nodes (m,), ascending, and their totals (m,), best first, ties to the smaller node."""
    order = np.argsort(-totals, kind="mergesort")
    return nodes[order], totals[order]
