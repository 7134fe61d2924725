"""The last look at a slate: every item against the request, by other code and other data than chose it.

The stages work on the catalog's bitsets; this reads the rows of the items table and compares value by value, so that
a fault in the one shows in the other.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from recsys.catalog import CatalogFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from recsys.catalog.live_rows import ItemRow
    from serving.engine import EngineRequest
    from serving.layout import Layout

_ALWAYS: Final = frozenset({"item_id", "title", "available_from", "available_until"})
_CAPPED: Final = frozenset({"category_path", "brand"})
_FILTERED: Final = frozenset({"category_path", "brand", "price_micros"})
_NO_FILTER: Final = CatalogFilter()
_AT_HAND: Final = 20_000  # rows of the table that are kept as Python objects, some 10 MB


class Row(NamedTuple):
    """What is looked at of an item, with the names of the items table; None also where nothing asks for a value."""

    item_id: str
    title: str | None
    category_path: Sequence[str] | None
    brand: str | None
    price_micros: int | None
    available_from: int | None
    available_until: int | None


_NOWHERE: Final = Row("", None, None, None, None, None, None)  # of an index that is no item's


class CheckedRow(NamedTuple):
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
        columns = {name: _one_chunk(items[name]) for name in Row._fields}
        # A column without a value, as of the times of a catalogue where nothing ends, need not be read item by item.
        self._columns = {name: column for name, column in columns.items() if column.null_count < len(column)}
        self._count, self._changed = items.num_rows, changed
        self._known: dict[frozenset[str], dict[int, Row]] = {}  # by the columns that were read

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
        table, rows = self._read(indices, look.columns), []
        for item in indices:
            change = self._changed(item)
            if change is None:
                row = table.get(item, _NOWHERE)
                live = row is not _NOWHERE
            else:
                row, live = Row(*(getattr(change, name) for name in Row._fields)), change.live
            eligible = live and look.takes(row)
            rows.append(CheckedRow(row.item_id, row.title, eligible))
        return rows

    def _read(self, indices: Sequence[int], columns: frozenset[str]) -> dict[int, Row]:
        """The table's rows of at least these items; those that were read before are at hand."""
        known = self._known.setdefault(columns, {})
        if len(known) > _AT_HAND:
            known.clear()
        missing = [item for item in indices if item not in known and item < self._count]
        if missing:
            taken = pa.array(missing, type=pa.int32())
            values = [self._values(name, taken, columns) for name in Row._fields]
            known.update(zip(missing, map(Row, *values), strict=True))
        return known

    def _values(self, name: str, taken: pa.Array, columns: frozenset[str]) -> Iterable[Any]:
        column = self._columns.get(name)
        if column is None or name not in columns:
            return repeat(None, len(taken))
        values: list[Any] = column.take(taken).to_pylist()
        return values


class Look:
    """What is known of a slate that is looked at part by part.

    Args:
        request: what was asked.

    Attributes:
        passed_over: items that only the caps keep out.
        columns: of the items table that it asks for.
    """

    def __init__(self, request: EngineRequest) -> None:
        self._time, self._conditions, layout = request.time, request.conditions, request.layout
        self._allow = None if request.allow is None else frozenset(request.allow)
        self._refused = {*request.deny, *request.shown}
        if request.exclude_seen:
            self._refused.update(request.history)
        self._filtered = request.conditions != _NO_FILTER
        capped = layout.brand_cap is not None or layout.category_cap is not None
        self._tally = _Tally(layout) if capped else None
        self.columns = _ALWAYS | (_FILTERED if self._filtered else _CAPPED if capped else frozenset())
        self.passed_over = 0

    def takes(self, row: Row) -> bool:
        """Whether the next item may be shown."""
        item, now, refused = row.item_id, self._time, self._refused
        fits = (
            item not in refused
            and (self._allow is None or item in self._allow)
            and (row.available_from is None or row.available_from <= now)
            and (row.available_until is None or now < row.available_until)
            and (not self._filtered or _matches(row, self._conditions))
        )
        refused.add(item)  # a second appearance is as wrong as a denied item
        if self._tally is None:
            return fits
        taken = fits and self._tally.takes(row)
        self.passed_over += fits and not taken
        return taken


class _Tally:
    """Counts a slate's items by the names of their brands and categories."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._brands: Counter[str] = Counter()
        self._categories: Counter[tuple[str, ...]] = Counter()

    def takes(self, row: Row) -> bool:
        """Whether the caps allow an item behind those before; it is counted then."""
        layout, brand = self._layout, row.brand or None
        path = tuple(row.category_path or ())[: layout.category_depth]
        few = layout.brand_cap is None or brand is None or self._brands[brand] < layout.brand_cap
        if not few or (layout.category_cap is not None and path and self._categories[path] >= layout.category_cap):
            return False
        self._brands.update([brand] if brand is not None else [])
        self._categories.update([path] if path else [])
        return True


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A mapped column stays where it is; joining would copy it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _matches(row: Row, conditions: CatalogFilter) -> bool:
    path, brand, price = tuple(row.category_path or ()), row.brand, row.price_micros
    low, high = conditions.price_min_micros, conditions.price_max_micros
    return (
        (not conditions.categories or any(path[: len(wanted)] == wanted for wanted in conditions.categories))
        and (not conditions.brands or brand in conditions.brands)
        and (low is None or (price is not None and price >= low))
        and (high is None or (price is not None and price <= high))
    )
