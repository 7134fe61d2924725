"""The places of one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from serving.layout import Caps

    Items = npt.NDArray[np.int32]

_PROBED: Final = 1_024  # popular items that are looked at before all
_SET: Final = 512  # items and excluded ones, so few that a set is faster than an array
_FEW: Final = 16_384  # eligible items that are looked at one by one to find that the caps let none of them in


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
        caps: what the slate may hold of one kind; None = any number.
    """

    size: int
    shared: npt.NDArray[np.bool_] | None
    excluded: Items
    items: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    caps: Caps | None = None

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
        places = np.arange(len(items)) if self.shared is None else np.flatnonzero(self.shared[items])
        places = places[self._new(items[places])]
        chosen = places[: self.open] if self.caps is None else places[self.caps.choose(items[places], self.open)]
        self.items += items[chosen].tolist()
        self.scores += scores[chosen].tolist()
        self.sources += [source] * len(chosen)

    def complete(self) -> bool:
        """Whether no source could add anything: no place is open, or no eligible item is left that the caps let in."""
        if not self.open:
            return True
        if self.shared is None:
            return False  # then the catalog is either large enough or quickly walked through
        left = self._left_of(self.shared)
        if self.caps is None or left <= 0 or left > _FEW:
            return left <= 0
        items = np.flatnonzero(self.shared).astype(np.int32)
        return not self.caps.open(items[self._new(items)]).any()

    def leaves_any(self, popular: Items, count: int) -> bool:
        """Whether an item is left that may be shown, whatever the caps say.

        Args:
            popular: items, those first that are likely to be left.
            count: I, of the catalogue.
        """
        taken = len(self.excluded) + len(self.items)
        if self.shared is None:
            return count > taken or count > len(np.unique(self.excluded)) + len(self.items)
        likely = popular[:_PROBED]
        likely = likely[self.shared[likely]]
        return len(likely) > taken or bool(self._new(likely).any()) or self._left_of(self.shared) > 0

    def _new(self, items: Items) -> npt.NDArray[np.bool_]:
        """(m,) which items are neither excluded nor chosen."""
        if len(items) + len(self.excluded) <= _SET:
            hidden = {*self.excluded.tolist(), *self.items}
            return np.fromiter((item not in hidden for item in items.tolist()), dtype=np.bool_, count=len(items))
        new: npt.NDArray[np.bool_] = ~np.isin(items, self.excluded) & ~np.isin(items, self.items)
        return new

    def _left_of(self, shared: npt.NDArray[np.bool_]) -> int:
        """How many items of a mask are neither excluded nor chosen."""
        hidden = int(shared[np.unique(self.excluded)].sum())
        return int(np.count_nonzero(shared)) - hidden - len(self.items)
