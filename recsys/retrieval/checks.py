"""What an index takes: finite vectors of one dimension, rows that stand once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
    Rows = npt.NDArray[np.int64]

_AT_ONCE = 2**16  # vectors looked at together, so that a large table needs no second one


def check_vectors(vectors: npt.NDArray[Any], dimension: int | None = None, *, field: str = "vectors") -> Vectors:
    """Vectors as an index takes them.

    Args:
        vectors: (N, D) numbers.
        dimension: D; None takes what is there.
        field: named by an error.

    Returns:
        (N, D) float32, contiguous; the same array where it is so already.

    Raises:
        InputError: not a matrix of numbers, of another dimension, or NaN or infinite; names the first such row.
    """
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or (vectors.shape[1] == 0 and dimension is None):
        raise InputError(
            "vectors are a matrix of numbers, one row per item, with at least one column",
            field=field,
            value=f"shape {vectors.shape}, dtype {vectors.dtype}",
            remedy="give an array of shape (items, dimension)",
        )
    if dimension is not None and vectors.shape[1] != dimension:
        raise InputError(
            f"the index holds vectors of dimension {dimension}",
            field=f"{field}.dimension",
            value=vectors.shape[1],
            remedy="encode with the model that the index was built with, or build it again",
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused for it
        taken = np.ascontiguousarray(vectors, dtype=np.float32)
    for begin in range(0, len(taken), _AT_ONCE):
        wrong = np.flatnonzero(~np.isfinite(taken[begin : begin + _AT_ONCE]).all(axis=1))
        if wrong.size:
            row = begin + int(wrong[0])
            bad = taken[row][~np.isfinite(taken[row])][0]
            raise InputError(
                f"row {row} is not finite",
                field=f"{field}[{row}]",
                value=float(bad),
                remedy="leave the item out, or encode it again",
            )
    return taken


def check_rows(rows: npt.NDArray[np.integer], count: int) -> Rows:
    """Catalogue rows of vectors.

    Args:
        rows: (N,) in any order.
        count: N, the number of vectors.

    Raises:
        InputError: another number of rows than of vectors, a row that is no integer or is negative, or one that stands
            twice.
    """
    if rows.size and rows.dtype.kind not in "iu":
        raise InputError("a row is the index of an item", field="rows", value=str(rows.dtype), remedy="give integers")
    if rows.shape != (count,):
        raise InputError(
            f"{count} vectors need one row each", field="rows", value=rows.shape, remedy="give as many rows as vectors"
        )
    taken = rows.astype(np.int64)
    if count and taken.min() < 0:
        raise InputError("a row is the index of an item", field="rows", value=int(taken.min()), remedy="leave it out")
    values, times = np.unique(taken, return_counts=True)
    if len(values) < count:
        raise InputError(
            "an item stands twice", field="rows", value=int(values[times > 1][0]), remedy="give each item once"
        )
    return taken


def unit_length(vectors: Vectors) -> Vectors:
    """(N, D) rows of length 1; a zero row stays zero."""
    scaled = np.zeros_like(vectors)
    for begin in range(0, len(vectors), _AT_ONCE):
        # float64: the square of a large float32 would be infinite, that of a small one 0
        part = vectors[begin : begin + _AT_ONCE].astype(np.float64)
        length = np.linalg.norm(part, axis=1, keepdims=True)
        scaled[begin : begin + _AT_ONCE] = np.divide(part, length, out=np.zeros_like(part), where=length > 0)
    return scaled
