"""Item-to-item similarity as a table, and the score that it gives to the candidates of a request.

s(j) = sum over the newest items i of the history of decay^age(i) * similarity(i, j), age 0 for the newest. The table is
a sparse matrix with few entries per row; a request reads the rows of its history and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.decoding.packed import compiled_long
from recsys.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

_TYPES: Final = {"offsets": np.int64, "items": np.int32, "similarity": np.float32}
_REMEDY: Final = "fit the table again with `windfire train fusion`"


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The neighbours of every item.

    Attributes:
        offsets: (I + 1,) int64; item i owns items[offsets[i]:offsets[i + 1]].
        items: (E,) int32 neighbours, ascending for each item.
        similarity: (E,) float32, positive.

    Raises:
        DataError: the arrays do not fit together. The entries are looked at by `check` only.
    """

    offsets: Ints
    items: npt.NDArray[np.int32]
    similarity: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind:
                value = (array.shape, str(array.dtype))
                raise DataError(f"must be one row of {np.dtype(kind)}", field=name, value=value, remedy=_REMEDY)
        entries, offsets = len(self.items), self.offsets
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != entries or (np.diff(offsets) < 0).any():
            raise DataError(f"must rise from 0 to {entries}", field="offsets", value=offsets[-1:], remedy=_REMEDY)
        if len(self.similarity) != entries:
            found = len(self.similarity)
            raise DataError(f"must have {entries} entries", field="similarity", value=found, remedy=_REMEDY)

    @property
    def count(self) -> int:
        """I, the number of items that have a row."""
        return len(self.offsets) - 1

    def check(self) -> None:
        """Look at every entry, once.

        Raises:
            DataError: neighbours of an item that do not ascend, an index outside 0..I-1, or a similarity that is not
                positive and finite.
        """
        wrong = _first_wrong(self.offsets, self.items, self.similarity)
        if wrong >= 0:
            item = int(np.searchsorted(self.offsets, wrong, side="right")) - 1
            raise DataError(
                f"entry {wrong} of the neighbours, of item {item}, is out of order or out of range",
                field="items, similarity",
                value=(int(self.items[wrong]), float(self.similarity[wrong])),
                remedy=_REMEDY,
            )

    def scores(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        candidates: Sequence[npt.NDArray[np.integer]],
        *,
        decay: float,
        max_history: int,
    ) -> list[Floats]:
        """The score s of every candidate.

        Work per request: the entries of its history's rows and its candidates once per item of the history.

        Args:
            histories: B arrays of items, oldest first; may be empty; repetitions add up.
            candidates: B arrays of items in any order; those at I and beyond have no row and score 0.
            decay: weight of an item per step back in the history.
            max_history: newest items that count.

        Returns:
            B arrays, (m,) float64, in the order of the candidates.

        Raises:
            InputError: an item of a history outside 0..I-1, or another number of candidates than of histories.
        """
        if len(histories) != len(candidates):
            raise InputError(
                f"one list of candidates for each of {len(histories)} histories",
                field="candidates",
                value=len(candidates),
            )
        newest = [np.asarray(history)[-max_history:] for history in histories]
        items, ends = _flat(newest)
        wrong = np.flatnonzero((items < 0) | (items >= self.count))
        if len(wrong):
            value = int(items[wrong[0]])
            raise InputError(f"items of a history must lie in 0..{self.count - 1}", field="histories", value=value)
        wanted, bounds = _flat(candidates)
        request = np.repeat(np.arange(len(candidates)), np.diff(bounds))
        order = np.lexsort((wanted, request))
        weights = decay ** np.arange(max((len(history) for history in newest), default=0), dtype=np.float64)
        found = np.empty(len(wanted))
        found[order] = _merged(
            self.offsets, self.items, self.similarity, items, ends, weights, np.take(wanted, order), bounds
        )
        return [found[start:stop] for start, stop in pairwise(bounds)]


def _flat(rows: Sequence[npt.NDArray[np.integer]]) -> tuple[Ints, Ints]:
    """All rows behind one another, and (B + 1,) where each begins."""
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    return np.concatenate([np.empty(0, dtype=np.int64), *rows]).astype(np.int64), bounds


@compiled_long
def _merged(
    offsets: Ints,
    items: npt.NDArray[np.int32],
    similarity: npt.NDArray[np.float32],
    history: Ints,
    history_bounds: Ints,
    weights: Floats,
    candidates: Ints,
    candidate_bounds: Ints,
) -> Floats:
    """(C,) scores of candidates that ascend in each request: every row of the history is merged with them."""
    scores = np.zeros(len(candidates))
    for request in range(len(history_bounds) - 1):
        first, last = candidate_bounds[request], candidate_bounds[request + 1]
        newest = history_bounds[request + 1] - 1
        for place in range(history_bounds[request], newest + 1):
            weight = weights[newest - place]
            entry, end = offsets[history[place]], offsets[history[place] + 1]
            at = first
            while entry < end and at < last:
                if items[entry] < candidates[at]:
                    entry += 1
                    continue
                if items[entry] == candidates[at]:
                    scores[at] += weight * similarity[entry]
                at += 1  # not the entry: a candidate may be named twice
    return scores


@compiled_long
def _first_wrong(offsets: Ints, items: npt.NDArray[np.int32], similarity: npt.NDArray[np.float32]) -> int:
    """The first entry that may not be, -1 where there is none."""
    count = len(offsets) - 1
    for item in range(count):
        before = -1
        for entry in range(offsets[item], offsets[item + 1]):
            if items[entry] <= before or items[entry] >= count:
                return entry
            if not (similarity[entry] > 0 and similarity[entry] < np.inf):
                return entry
            before = items[entry]
    return -1
