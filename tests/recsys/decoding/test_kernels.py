"""Compiled loops against the same in plain NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.decoding import cell_kernels, kernels
from recsys.decoding.packed import bits_of
from recsys.decoding.ragged import best, ranges

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
T, H = 7, 5
NO_NODES, NO_DEAD = np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


class Ragged(NamedTuple):
    """Rows of children as a beam has them: those not open have one child and no state."""

    rng: np.random.Generator
    degree: Ints
    codes: Ints
    opened: npt.NDArray[np.bool_]

    @property
    def row(self) -> Ints:
        """(C,) row among the states."""
        return np.repeat(np.cumsum(self.opened) - self.opened, self.degree)

    @property
    def open_children(self) -> npt.NDArray[np.bool_]:
        return np.repeat(self.opened, self.degree)


@st.composite
def ragged(draw: st.DrawFn) -> Ragged:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    opened = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=6)))
    degree = np.where(opened, rng.integers(1, T + 1, len(opened)), 1)
    codes = np.concatenate([np.sort(rng.permutation(T)[:count]) for count in degree])
    return Ragged(rng, degree, codes, opened)


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_rows_are_ranges(counts: list[int], seed: int) -> None:
    start = np.concatenate([[0], np.cumsum(counts)])
    code = np.random.default_rng(seed).integers(T, size=start[-1])
    nodes = np.random.default_rng(seed).integers(len(counts), size=5)
    degree, child, codes = kernels.csr_rows(start, code, nodes)
    np.testing.assert_array_equal(degree, np.array(counts)[nodes])
    np.testing.assert_array_equal(child, ranges(start[nodes], degree))
    np.testing.assert_array_equal(codes, code[child])


@TYPES
@given(rows=ragged(), shared=st.booleans())
def test_totals_are_log_softmaxes_over_children(dtype: type[np.floating], rows: Ragged, shared: bool) -> None:
    state = rows.rng.standard_normal((rows.opened.sum(), H)).astype(dtype)
    weight = 20 * rows.rng.standard_normal((T, H)).astype(dtype)
    bias = rows.rng.standard_normal(T * shared).astype(dtype)
    scores = rows.rng.standard_normal(len(rows.degree)).astype(dtype)
    dense = state @ weight.T + (bias if shared else 0)
    logits = np.zeros(len(rows.codes))
    at = rows.open_children
    logits[at] = dense[rows.row[at], rows.codes[at]]
    beam = np.repeat(np.arange(len(rows.degree)), rows.degree)
    norm = np.array([np.logaddexp.reduce(logits[beam == one]) for one in range(len(rows.degree))])
    for values in (
        kernels.gathered(dense, rows.degree, rows.codes, rows.opened),
        kernels.dotted(state - 1, np.ones(H, dtype), weight, bias, rows.degree, rows.codes, rows.opened),
    ):
        kernels.add_up(values, rows.degree, scores, np.arange(len(values)), NO_NODES, NO_DEAD)
        assert values.dtype == dtype
        near = 300 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(values, (scores - norm)[beam] + logits, rtol=near, atol=near)


def test_a_row_far_below_the_others_keeps_its_precision() -> None:
    dense = np.array([[0.0, 1.0], [-1e4, -1e4 + 1]], dtype=np.float32)
    degree, codes, opened = np.array([2, 2]), np.array([0, 1, 0, 1]), np.ones(2, dtype=bool)
    values = kernels.gathered(dense, degree, codes, opened)
    kernels.add_up(values, degree, np.zeros(2, np.float32), np.arange(4), NO_NODES, NO_DEAD)
    np.testing.assert_array_equal(values[:2], values[2:])


@given(seed=st.integers(0, 10_000), some=st.booleans())
def test_hidden_children_are_minus_infinity(seed: int, some: bool) -> None:
    rng = np.random.default_rng(seed)
    child = np.sort(rng.permutation(30)[: rng.integers(0, 12)])
    dead = np.sort(rng.permutation(30)[: rng.integers(0, 12)])
    alive = rng.random(30) < 0.7
    values = np.zeros(len(child))
    kernels.hide(values, child, bits_of(alive if some else alive[:0]), dead)
    shown = ~np.isin(child, dead) & (alive[child] if some else True)
    np.testing.assert_array_equal(values, np.where(shown, 0, -np.inf))


@TYPES
@given(rows=ragged(), width=st.integers(1, 12), levels=st.sampled_from([2, 50]), last=st.booleans())
def test_the_best_are_picked_in_order(
    dtype: type[np.floating], rows: Ragged, width: int, levels: int, last: bool
) -> None:
    count = len(rows.codes)
    child = np.arange(count) * 2
    values = rows.rng.integers(levels, size=count).astype(dtype)  # few levels: many ties
    values[rows.rng.random(count) < 0.2] = -np.inf
    opens = rows.rng.random(2 * count) < 0.5
    opens[child[~rows.open_children]] = False  # below a beam that is not open nothing is
    nodes, totals, flags, parents, places, codes = kernels.pick(
        values, width, rows.degree, child, rows.codes, rows.opened, opens[:0] if last else opens
    )
    expected = best(values, width)
    following = np.zeros(len(expected), dtype=bool) if last else opens[child[expected]]
    np.testing.assert_array_equal(nodes, child[expected])
    np.testing.assert_array_equal(totals, values[expected])
    np.testing.assert_array_equal(flags, following)
    np.testing.assert_array_equal(parents[places], rows.row[expected][following])
    np.testing.assert_array_equal(parents, np.unique(parents[places]))
    np.testing.assert_array_equal(codes, rows.codes[expected][following])


def cell_parts(cell: torch.nn.RNNCellBase, embedded: torch.Tensor) -> tuple[Floats, Floats]:
    """What each code adds, (T, G), and the bias that the reset gate multiplies, or all of it."""
    gates = len(cell.bias_hh) - H
    split = torch.tensor([True] * gates + [gates == 0] * H)
    given = embedded @ cell.weight_ih.T + cell.bias_ih + cell.bias_hh * split
    return given.detach().numpy(), cell.bias_hh[gates:].detach().numpy()


@TYPES
@given(seed=st.integers(0, 10_000))
def test_cells_are_those_of_torch(dtype: type[np.floating], seed: int) -> None:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    state = rng.standard_normal((3, H)).astype(dtype)
    at, codes = np.sort(rng.integers(3, size=6)), rng.integers(T, size=6)
    precision = torch.from_numpy(state).dtype
    embedded = torch.randn(T, H, generator=generator, dtype=precision)
    near = 30 * float(np.finfo(dtype).eps)
    rnn, gru = torch.nn.RNNCell(H, H, dtype=precision), torch.nn.GRUCell(H, H, dtype=precision)
    products = (state @ rnn.weight_hh.detach().numpy().T).astype(dtype)
    found = cell_kernels.rnn(products, at, cell_parts(rnn, embedded)[0], codes)
    expected = rnn(embedded[codes], torch.from_numpy(state[at])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=near, atol=near)
    products = (state @ gru.weight_hh.detach().numpy().T).astype(dtype)
    found = cell_kernels.gru(state, np.arange(3), products, at, *cell_parts(gru, embedded), codes)
    expected = gru(embedded[codes], torch.from_numpy(state[at])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=near, atol=near)


def test_powers_are_those_of_numpy() -> None:
    x = np.linspace(-86, 87, 20_001, dtype=np.float32)
    degree = np.array([2])
    for one in x[::500]:  # two children: the total of the first is -log(1 + e^x)
        values = np.array([0, one], dtype=np.float32)
        kernels.add_up(values, degree, np.zeros(1, np.float32), np.arange(2), NO_NODES, NO_DEAD)
        np.testing.assert_allclose(values, np.array([0, one]) - np.logaddexp(0, float(one)), rtol=3e-7, atol=3e-7)


@TYPES
@given(
    values=st.lists(st.sampled_from([-np.inf, -3.0, -1e-3, 0.0, 5.0, 1e6]) | st.floats(-9, 9, width=32), min_size=1),
    width=st.integers(1, 20),
)
def test_the_threshold_is_the_widths_largest(dtype: type[np.floating], values: list[float], width: int) -> None:
    array = np.array(values, dtype=dtype)
    padded = np.sort(np.concatenate([array, np.full(width, -np.inf, dtype)]))  # too few are filled up
    expected = padded[-width] if len(array) > width else -np.inf
    assert kernels.threshold(array, width) == expected


@TYPES
@given(count=st.integers(0, 4), seed=st.integers(0, 99))
def test_products_of_few_rows(dtype: type[np.floating], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state, weight = rng.standard_normal((5, H)).astype(dtype), rng.standard_normal((H, T)).astype(dtype)
    rows = rng.integers(5, size=count)
    near = 20 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(cell_kernels.times(state, rows, weight), state[rows] @ weight, rtol=near, atol=near)


def test_ranks_break_ties_by_node() -> None:
    nodes, totals = kernels.ranked(np.array([2, 4, 6, 8]), np.array([1.0, 3.0, 1.0, 3.0]))
    np.testing.assert_array_equal(nodes, [4, 8, 2, 6])
    np.testing.assert_array_equal(totals, [3, 3, 1, 1])
