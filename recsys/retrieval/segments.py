"""What an index holds at one moment: a built segment with tombstones, and a fresh one; neither ever changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recsys.decoding.packed import Bools
    from recsys.retrieval.checks import Rows, Vectors
    from recsys.retrieval.kinds import Positions, Proposer


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """The segment that a faiss index searches.

    Attributes:
        proposer: over the vectors; None where there are none.
        rows: (n,) strictly rising catalogue rows.
        vectors: (n, D).
    """

    proposer: Proposer | None
    rows: Rows
    vectors: Vectors

    @property
    def dense(self) -> bool:
        """Whether row r stands at position r."""
        return not len(self.rows) or int(self.rows[-1]) == len(self.rows) - 1

    def places(self, rows: Rows) -> tuple[Positions, Positions]:
        """Which of (m,) rows are here, by their place in `rows`, and the positions where they stand.

        In time that hardly grows with the segment: a change of one item must not look at all of them.
        """
        if not len(self.rows):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        near = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)  # (m,)
        here = np.flatnonzero(self.rows[near] == rows)
        return here, near[here]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What an index holds at one moment.

    Attributes:
        built: the built segment.
        dead: (n,) its tombstones; None = no item is gone.
        rows: (m,) catalogue rows of the fresh segment, in the order in which they came.
        vectors: (m, D) theirs.
        numbers: (m,) int64 of the change that brought each, rising.
        last: number of the newest change.
    """

    built: Built
    dead: Bools | None
    rows: Rows
    vectors: Vectors
    numbers: Rows
    last: int = 0

    @classmethod
    def of(cls, built: Built) -> State:
        """Nothing fresh, nothing gone."""
        none = np.empty(0, dtype=np.int64)
        return cls(built, None, none, np.empty((0, built.vectors.shape[1]), dtype=np.float32), none)

    def living(self) -> Positions:
        """(n',) positions of the built segment that are not gone."""
        return np.arange(len(self.built.rows)) if self.dead is None else np.flatnonzero(~self.dead)

    def without(self, rows: Rows) -> State:
        """These rows taken out, where they are."""
        dead = np.zeros(len(self.built.rows), dtype=np.bool_) if self.dead is None else self.dead.copy()
        dead[self.built.places(rows)[1]] = True
        kept = ~np.isin(self.rows, rows, assume_unique=True)
        return replace(
            self,
            dead=dead if dead.any() else None,
            rows=self.rows[kept],
            vectors=self.vectors[kept],
            numbers=self.numbers[kept],
        )

    def holds(self, rows: Rows) -> Bools:
        """(m,) whether each row has a vector."""
        held: Bools = np.isin(rows, self.rows)
        asked, places = self.built.places(rows)
        held[asked] |= True if self.dead is None else ~self.dead[places]
        return held
