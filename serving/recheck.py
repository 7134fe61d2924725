"""The last look at a slate: every item against the request, by other code and other data than chose it.

The stages work on the catalog's bitsets; this reads the rows of the items table and compares value by value, so that
a fault in the one shows in the other.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recsys.catalog import CatalogFilter
    from recsys.catalog.live_rows import ItemRow
    from serving.engine import EngineRequest
    from serving.layout import Layout

_COLUMNS: Final = (
    "item_id",
    "title",
    "category_path",
    "brand",
    "price_micros",
    "available_from",
    "available_until",
)


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """An item of a slate: what an answer shows of it, and whether it may be shown."""

    item_id: str
    title: str | None
    eligible: bool


class SlateCheck:
    """Judges slates by the rows of the items table, and by those that the catalogue log has put in their place.

    Args:
        items: `recsys.records.ITEMS`, row r = item index r.
        changed: the row of a changed or added item index, None where the table's holds.
    """

    def __init__(self, items: pa.Table, changed: Callable[[int], ItemRow | None] = lambda _: None) -> None:
        self._columns = {name: _one_chunk(items[name]) for name in _COLUMNS}
        self._count, self._changed = items.num_rows, changed

    def after(self, changed: Callable[[int], ItemRow | None]) -> SlateCheck:
        """The same table with other changes."""
        other = copy(self)
        other._changed = changed  # noqa: SLF001
        return other

    def rows(self, request: EngineRequest, indices: Sequence[int], look: Look | None = None) -> list[CheckedRow]:
        """Look at every item of a slate.

        Args:
            request: what was asked.
            indices: item indices in the order of the slate.
            look: at the items of the same slate before these; None = there are none.
        """
        look = Look(request) if look is None else look
        newer = [self._changed(item) for item in indices]
        taken = pa.array([item if item < self._count else None for item in indices], type=pa.int32())
        columns = {name: column.take(taken).to_pylist() for name, column in self._columns.items()}
        rows = []
        for change, values in zip(newer, zip(*columns.values(), strict=True), strict=True):
            row = dict(zip(_COLUMNS, values, strict=True))
            if change is not None:
                row = {name: getattr(change, name) for name in _COLUMNS}
            eligible = (change is None or change.live) and look.takes(row)
            rows.append(CheckedRow(row["item_id"], row["title"], eligible))
        return rows


class Look:
    """What is known of a slate that is looked at part by part.

    Args:
        request: what was asked.

    Attributes:
        passed_over: items that only the caps keep out.
    """

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._allow = None if request.allow is None else frozenset(request.allow)
        self._refused = {*request.deny, *request.shown}
        if request.exclude_seen:
            self._refused.update(request.history)
        self._tally = _Tally(request.layout)
        self.passed_over = 0

    def takes(self, row: dict[str, Any]) -> bool:
        """Whether the next item may be shown."""
        request, item = self._request, row["item_id"]
        fits = (
            item not in self._refused
            and (self._allow is None or item in self._allow)
            and _available(row, request.time)
            and _matches(row, request.conditions)
        )
        self._refused.add(item)  # a second appearance is as wrong as a denied item
        taken = fits and self._tally.takes(row)
        self.passed_over += fits and not taken
        return taken


class _Tally:
    """Counts a slate's items by the names of their brands and categories."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._brands: Counter[str] = Counter()
        self._categories: Counter[tuple[str, ...]] = Counter()

    def takes(self, row: dict[str, Any]) -> bool:
        """Whether the caps allow an item behind those before; it is counted then."""
        layout, brand = self._layout, row["brand"] or None
        path = tuple(row["category_path"] or ())[: layout.category_depth]
        few = layout.brand_cap is None or brand is None or self._brands[brand] < layout.brand_cap
        if not few or (layout.category_cap is not None and path and self._categories[path] >= layout.category_cap):
            return False
        self._brands.update([brand] if brand is not None else [])
        self._categories.update([path] if path else [])
        return True


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A mapped column stays where it is; joining would copy it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _available(row: dict[str, Any], now: int) -> bool:
    begins, ends = row["available_from"], row["available_until"]
    return (begins is None or begins <= now) and (ends is None or now < ends)


def _matches(row: dict[str, Any], conditions: CatalogFilter) -> bool:
    path, brand, price = tuple(row["category_path"] or ()), row["brand"], row["price_micros"]
    low, high = conditions.price_min_micros, conditions.price_max_micros
    return (
        (not conditions.categories or any(path[: len(wanted)] == wanted for wanted in conditions.categories))
        and (not conditions.brands or brand in conditions.brands)
        and (low is None or (price is not None and price >= low))
        and (high is None or (price is not None and price <= high))
    )
