"""The items that changed since a bundle's snapshot: their rows, and what a filter allows of them.

The snapshot's arrays stay as they are; a changed item has a row here that wins. Work is in proportion to the rows, the
next bundle takes them in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.catalog.changes import Delete, Expire, Stock, Upsert
from recsys.catalog.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from recsys.catalog.catalog import Catalog
    from recsys.catalog.changes import Change
    from recsys.catalog.filters import CatalogFilter

    Bools = npt.NDArray[np.bool_]

NO_ITEMS: Final[npt.NDArray[np.int32]] = np.empty(0, dtype=np.int32)
_LOWEST: Final = np.iinfo(np.int64).min
_HIGHEST: Final = np.iinfo(np.int64).max
_AT_HAND: Final = 50_000  # ids whose index is kept in a dictionary, some 7 MB
_KEPT: Final = 64  # masks
_KEPT_BYTES: Final = 256 << 20  # of all of them, as in `Catalog`


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One item as it is now; fields as in `recsys.records.ITEMS`.

    Attributes:
        item_id: of the item.
        title: as shown.
        category_path: from the root.
        brand: exact name.
        price_micros: None = unknown.
        text: further text.
        available_from: UTC microseconds, inclusive.
        available_until: UTC microseconds, exclusive.
        stock: pieces; None = not counted.
        deleted: whether it is gone.
    """

    item_id: str
    title: str | None = None
    category_path: tuple[str, ...] = ()
    brand: str | None = None
    price_micros: int | None = None
    text: str | None = None
    available_from: int | None = None
    available_until: int | None = None
    stock: int | None = None
    deleted: bool = False

    @property
    def live(self) -> bool:
        """Whether it may be shown at some time."""
        return not self.deleted and self.stock != 0

    def after(self, change: Change) -> ItemRow:
        """What a change makes of it."""
        match change:
            case Upsert():
                return ItemRow(
                    item_id=self.item_id,
                    title=change.title,
                    category_path=change.category_path,
                    brand=change.brand,
                    price_micros=change.price_micros,
                    text=change.text,
                    available_from=change.available_from,
                    available_until=change.available_until,
                    stock=change.stock,
                )
            case Expire():
                return replace(self, available_until=change.until)
            case Stock():
                return replace(self, stock=change.stock)
            case Delete():
                return replace(self, deleted=True)


@dataclass(slots=True, eq=False)
class LiveMask:
    """What one filter allows at a time.

    Attributes:
        items: (I + A,) read-only bool.
        whole: nothing is hidden but what is gone or out of stock.
        base: the snapshot's part it was made of.
        start: it holds from this time on, UTC microseconds.
        end: it holds before this time.
    """

    items: Bools
    whole: bool
    base: Bools | None
    start: int
    end: int


class LiveRows:
    """Rows of changed and of added items; one thread at a time.

    Args:
        catalog: the snapshot.
        kept_bytes: of masks that are kept; the newest is whatever its size.

    Attributes:
        added: A, items that the snapshot does not have; they have the indices I..I + A - 1.
        labels: brand and category of every item as it is now.
    """

    def __init__(self, catalog: Catalog, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._catalog, self._kept_bytes = catalog, kept_bytes
        self.added = 0
        self.labels = Labels(catalog)
        self._rows: list[ItemRow] = []
        self._place: dict[int, int] = {}  # of a row, by item index
        self._new: dict[str, int] = {}  # index of an added item
        self._known: dict[str, int] = {}  # the snapshot's, of ids that were asked for
        self._numbers: dict[object, int] = {}  # of brands and of category paths
        self._paths: list[tuple[int, tuple[str, ...]]] = []
        self._table = np.empty((7, 0), dtype=np.int64)  # (7, room): index, live, path, brand, price, from, until
        self._bounds: npt.NDArray[np.int64] | None = None
        self._masks: dict[CatalogFilter, LiveMask] = {}

    def __len__(self) -> int:
        return len(self._catalog) + self.added

    @property
    def changed(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def lookup(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """(n,) item indices of n ids, those of deleted items too; -1 where an id was never given."""
        known, added = self._known, self._new
        items = [known.get(each, -1) for each in ids]
        if -1 in items:
            missing = [place for place, item in enumerate(items) if item < 0]
            found = self._catalog.index.lookup([ids[place] for place in missing]).tolist()
            if len(known) > _AT_HAND:
                known.clear()
            for place, item in zip(missing, found, strict=True):
                if item >= 0:
                    known[ids[place]] = item
                items[place] = item if item >= 0 else added.get(ids[place], -1)
        return np.array(items, dtype=np.int32)

    def found(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """(m,) the item indices of those of n ids that were ever given, in their order."""
        if not ids:
            return NO_ITEMS
        items = self.lookup(ids)
        return items[items >= 0]

    def ids(self, items: Iterable[int]) -> list[str]:
        """The ids of item indices."""
        return [
            self._rows[self._place[item]].item_id
            if item >= len(self._catalog)
            else self._catalog.index.ids(np.array([item]))[0]
            for item in items
        ]

    def row(self, item: int) -> ItemRow | None:
        """The row of an item index; None where the snapshot's holds still."""
        place = self._place.get(item)
        return None if place is None else self._rows[place]

    def add(self, row: ItemRow) -> int:
        """Take in an item that has no index; gives it one."""
        item = len(self)
        self._new[row.item_id] = item
        self.added += 1
        self.put(item, row)
        return item

    def put(self, item: int, row: ItemRow) -> None:
        """Replace the row of an item index."""
        place = self._place.setdefault(item, len(self._rows))
        if place == len(self._rows):
            self._rows.append(row)
        else:
            self._rows[place] = row
        if place >= self._table.shape[1]:
            grown = np.zeros((len(self._table), max(64, 2 * place)), dtype=np.int64)
            grown[:, : self._table.shape[1]] = self._table
            self._table = grown
        self._table[:, place] = (
            item,
            row.live,
            self._path_number(row.category_path),
            -1 if row.brand is None else self._numbers.setdefault(("brand", row.brand), len(self._numbers)),
            _LOWEST if row.price_micros is None else row.price_micros,
            _LOWEST if row.available_from is None else row.available_from,
            _HIGHEST if row.available_until is None else row.available_until,
        )
        self.labels.put(item, row.brand, row.category_path)
        self._bounds = None
        self._masks.clear()

    def mask(self, conditions: CatalogFilter, now: int) -> LiveMask | None:
        """The items that match a filter and may be shown at a time, UTC microseconds.

        Returns:
            None where no row is here: what the snapshot says (`Catalog.eligible`) holds. Else a mask that is kept
            until a row changes or an item begins or ends.
        """
        if not self._rows:
            return None
        base = self._catalog.eligible(conditions, now)
        known = self._masks.get(conditions)
        if known is None or known.base is not base or not known.start <= now < known.end:
            known = self._masks[conditions] = self._evaluated(conditions, base, now)
            while len(self._masks) > min(_KEPT, max(1, self._kept_bytes // len(self))):
                del self._masks[next(iter(self._masks))]
        return known

    def _evaluated(self, conditions: CatalogFilter, base: Bools | None, now: int) -> LiveMask:
        index, live, path, brand, price, begins, ends = self._table[:, : len(self._rows)]
        shown = (begins <= now) & (now < ends)
        matching = live.astype(np.bool_) & shown & self._matching(conditions, path, brand, price)
        items = np.zeros(len(self), dtype=np.bool_)
        items[: len(self._catalog)] = True if base is None else base
        items[index] = matching
        items.flags.writeable = False
        start, end = self._window(begins, ends, now)
        return LiveMask(items, base is None and conditions.empty and bool(shown.all()), base, start, end)

    def _window(self, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], now: int) -> tuple[int, int]:
        """The times between which no row begins or ends."""
        if self._bounds is None:
            self._bounds = np.unique(np.concatenate([[_LOWEST], begins, ends, [_HIGHEST]]))
        place = int(np.searchsorted(self._bounds, now, side="right"))
        return int(self._bounds[place - 1]), int(self._bounds[place])

    def _matching(
        self,
        conditions: CatalogFilter,
        path: npt.NDArray[np.int64],
        brand: npt.NDArray[np.int64],
        price: npt.NDArray[np.int64],
    ) -> Bools:
        mask = np.ones(len(path), dtype=np.bool_)
        if conditions.categories:
            below = [
                number
                for number, names in self._paths
                if any(wanted and names[: len(wanted)] == wanted for wanted in conditions.categories)
            ]
            mask &= np.isin(path, below)
        if conditions.brands:
            wanted = [self._numbers.get(("brand", name), -2) for name in conditions.brands]
            mask &= np.isin(brand, wanted)
        low, high = conditions.price_min_micros, conditions.price_max_micros
        if low is not None or high is not None:
            mask &= price != _LOWEST
        if low is not None:
            mask &= price >= low
        if high is not None:
            mask &= price <= high
        return mask

    def _path_number(self, names: tuple[str, ...]) -> int:
        key = ("path", names)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._paths.append((self._numbers[key], names))
        return self._numbers[key]
