"""The places of one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Items = npt.NDArray[np.int32]


@dataclass(slots=True)
class Slate:
    """The places of one answer, filled source by source.

    Attributes:
        size: places.
        shared: (I,) bool, None = every item may be shown.
        excluded: items that may not be shown besides.
        items: chosen so far.
        scores: theirs.
        sources: theirs.
    """

    size: int
    shared: npt.NDArray[np.bool_] | None
    excluded: Items
    items: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    @property
    def open(self) -> int:
        """Places still empty."""
        return self.size - len(self.items)

    def add(self, items: Items, scores: npt.NDArray[np.floating], source: str) -> None:
        """Fill open places with the eligible items of a source, in its order.

        Args:
            items: (m,) without repetition, best first.
            scores: (m,) non-increasing.
            source: its name.
        """
        allowed = ~np.isin(items, self.excluded) & ~np.isin(items, self.items)
        if self.shared is not None:
            allowed &= self.shared[items]
        chosen = np.flatnonzero(allowed)[: self.open]
        self.items += items[chosen].tolist()
        self.scores += scores[chosen].tolist()
        self.sources += [source] * len(chosen)

    def complete(self) -> bool:
        """Whether no source could add anything: no place is open or no eligible item is left."""
        if not self.open:
            return True
        if self.shared is None:
            return False  # then the catalog is either large enough or quickly walked through
        eligible = int(np.count_nonzero(self.shared)) - int(self.shared[np.unique(self.excluded)].sum())
        return len(self.items) >= eligible
