"""How a slate is laid out: at most so many items of one brand and category, and how unlike each other they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.catalog.labels import Labels

    Items = npt.NDArray[np.int32]
    Places = npt.NDArray[np.intp]

MOST_CANDIDATES: Final = 500
_WIDER: Final = 4  # candidates per item wanted, where some will be passed over
_AT_ONCE: Final = 64  # candidates that are counted one by one before those of full groups are dropped again


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """What one slate may look like; the default leaves everything in the order of the sources.

    Attributes:
        brand_cap: items of one brand, at least 1; None = any number. Items without a brand are not counted.
        category_cap: the same of one category.
        category_depth: names from the root that make a category; None = the whole path.
        diversity: 0..1, the weight of being unlike the items above over that of standing high in the sources.
    """

    brand_cap: int | None = None
    category_cap: int | None = None
    category_depth: int | None = None
    diversity: float = 0.0

    @property
    def capped(self) -> bool:
        """Whether an item may be passed over because of those above it."""
        return self.brand_cap is not None or self.category_cap is not None

    def candidates(self, n: int) -> int:
        """How many a source is asked for, n items being wanted: more, up to 500, where some may be passed over."""
        return max(n, min(_WIDER * n, MOST_CANDIDATES)) if self.capped or self.diversity else n

    def described(self) -> dict[str, int]:
        """The caps by the names of the API; empty where there are none."""
        named = {"brand": self.brand_cap, "category": self.category_cap, "category_depth": self.category_depth}
        return {name: value for name, value in named.items() if value is not None} if self.capped else {}


class Caps:
    """What a slate has of every brand and category, and what it may still take.

    Args:
        layout: with the caps.
        labels: of the items.
    """

    def __init__(self, layout: Layout, labels: Labels) -> None:
        self._layout, self._labels = layout, labels
        limits = (layout.brand_cap, layout.category_cap)
        self._limits = [limit for limit in limits if limit is not None]
        self._counts: list[dict[int, int]] = [{} for _ in self._limits]
        self._full: list[list[int]] = [[] for _ in self._limits]

    def numbers(self, items: Items) -> list[npt.NDArray[np.int32]]:
        """For each cap (m,), the number of every item's group; -1 = none."""
        layout, labels = self._layout, self._labels
        brand = [] if layout.brand_cap is None else [labels.brand(items)]
        return brand if layout.category_cap is None else [*brand, labels.category(items, layout.category_depth)]

    def open(self, items: Items) -> npt.NDArray[np.bool_]:
        """(m,) whether the slate may take each item next."""
        return self._open(self.numbers(items))

    def choose(self, items: Items, room: int) -> Places:
        """Take the first items that may be taken, one after the other.

        Args:
            items: (m,) without repetition, best first.
            room: places of the slate.

        Returns:
            Their places in `items`, rising; at most `room`.
        """
        numbers = self.numbers(items)
        chosen: list[int] = []
        rest = np.arange(len(items))
        while len(rest) and len(chosen) < room:
            rest = rest[self._open([of[rest] for of in numbers])]
            head, rest = rest[:_AT_ONCE], rest[_AT_ONCE:]
            for place, groups in zip(
                head.tolist(), zip(*(of[head].tolist() for of in numbers), strict=True), strict=True
            ):
                if len(chosen) < room and self.take(groups):
                    chosen.append(place)
        return np.array(chosen, dtype=np.intp)

    def take(self, groups: tuple[int, ...]) -> bool:
        """Count an item of these groups; False, and nothing is counted, where one of them is full."""
        if any(self.full(groups)):
            return False
        for group, limit, of, full in zip(groups, self._limits, self._counts, self._full, strict=True):
            if group >= 0:
                of[group] = of.get(group, 0) + 1
                if of[group] == limit:
                    full.append(group)
        return True

    def full(self, groups: tuple[int, ...]) -> list[bool]:
        """Whether each of an item's groups has its share."""
        return [of.get(group, 0) >= limit for group, limit, of in zip(groups, self._limits, self._counts, strict=True)]

    def _open(self, numbers: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.bool_]:
        taken = [np.isin(of, full) for of, full in zip(numbers, self._full, strict=True)]
        shut: npt.NDArray[np.bool_] = np.logical_or.reduce(taken)
        return ~shut
