"""The catalog's attributes as arrays: which items a filter and the clock allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.catalog.arrays import load_array, load_json, save_array
from recsys.catalog.filters import CatalogFilter, MaskCache
from recsys.catalog.index import ItemIndex
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

CATALOG_FILES: Final = (
    "item_ids.npy",
    "category.npy",
    "brand.npy",
    "price_micros.npy",
    "available_from.npy",
    "available_until.npy",
    "vocabulary.json",
)
_LOWEST: Final = np.iinfo(np.int64).min
_HIGHEST: Final = np.iinfo(np.int64).max
_CACHE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class _Availability:
    """The mask of available items, true for start <= now < end."""

    mask: npt.NDArray[np.bool_] | None
    start: int
    end: int


@dataclass(slots=True)
class Catalog:
    """Items by index, with what filters need.

    Categories are numbered in the order of their paths, so that the paths below any ancestor are one range of
    numbers and a filter on an ancestor is two comparisons.

    Attributes:
        index: item ids.
        category: (I,) int32 number of the item's whole path, -1 = none.
        brand: (I,) int32, -1 = none.
        price_micros: (I,) int64, the lowest int64 = unknown.
        available_from: (I,) int64 UTC microseconds, inclusive.
        available_until: (I,) int64 UTC microseconds, exclusive.
        categories: every path and every ancestor of one, sorted; their position is the category's number.
        brands: sorted names; their position is the brand's number.
    """

    index: ItemIndex
    category: npt.NDArray[np.int32]
    brand: npt.NDArray[np.int32]
    price_micros: npt.NDArray[np.int64]
    available_from: npt.NDArray[np.int64]
    available_until: npt.NDArray[np.int64]
    categories: list[tuple[str, ...]]
    brands: list[str]
    _ranges: dict[tuple[str, ...], tuple[int, int]] = field(init=False, repr=False)
    _brand_numbers: dict[str, int] = field(init=False, repr=False)
    _masks: MaskCache = field(init=False, repr=False)
    _availability: _Availability | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self._ranges = _subtree_ranges(self.categories)
        self._brand_numbers = {name: number for number, name in enumerate(self.brands)}
        self._masks = MaskCache(_CACHE_BYTES)

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def build(cls, items: pa.Table) -> Catalog:
        """Make the catalog of an items table (`recsys.records.ITEMS`), row r = item index r.

        Raises:
            DataError: the ids cannot be indexed (see `ItemIndex.build`).
        """
        paths = [tuple(path or ()) for path in items["category_path"].to_pylist()]
        categories = sorted({path[:depth] for path in paths for depth in range(1, len(path) + 1)})
        brand_column = items["brand"].to_pylist()
        brands = sorted({brand for brand in brand_column if brand})
        return cls(
            index=ItemIndex.build(items["item_id"].to_pylist()),
            category=_numbers(paths, categories),
            brand=_numbers(brand_column, brands),
            price_micros=_filled(items["price_micros"], _LOWEST),
            available_from=_filled(items["available_from"], _LOWEST),
            available_until=_filled(items["available_until"], _HIGHEST),
            categories=categories,
            brands=brands,
        )

    def save(self, directory: Path) -> None:
        """Write `CATALOG_FILES` into an existing directory."""
        save_array(directory / "item_ids.npy", self.index.keys)
        for name in ("category", "brand", "price_micros", "available_from", "available_until"):
            save_array(directory / f"{name}.npy", getattr(self, name))
        write_json_atomically(directory / "vocabulary.json", {"categories": self.categories, "brands": self.brands})

    @classmethod
    def open(cls, directory: Path) -> Catalog:
        """Map what `save` wrote.

        Raises:
            CorruptionError: a file is missing or unreadable.
        """
        vocabulary = load_json(directory / "vocabulary.json")
        return cls(
            index=ItemIndex(load_array(directory / "item_ids.npy")),
            category=load_array(directory / "category.npy"),
            brand=load_array(directory / "brand.npy"),
            price_micros=load_array(directory / "price_micros.npy"),
            available_from=load_array(directory / "available_from.npy"),
            available_until=load_array(directory / "available_until.npy"),
            categories=[tuple(path) for path in vocabulary["categories"]],
            brands=vocabulary["brands"],
        )

    def matching(self, conditions: CatalogFilter) -> npt.NDArray[np.bool_] | None:
        """The items that match a filter.

        Returns:
            (I,) read-only bool, kept for the next request with the same filter; None = every item. A category
            or brand that no item has matches nothing.
        """
        if conditions.empty:
            return None
        mask = self._masks.get(conditions)
        if mask is None:
            mask = self._evaluate(conditions)
            mask.flags.writeable = False
            self._masks.put(conditions, mask, key_bytes=conditions.nbytes)
        return mask

    def available(self, now: int) -> npt.NDArray[np.bool_] | None:
        """The items available at a time: available_from <= now < available_until.

        Args:
            now: UTC microseconds.

        Returns:
            (I,) read-only bool, None = every item. It is computed again only when an item begins or ends.
        """
        return self._window(now).mask

    def eligible(self, conditions: CatalogFilter, now: int) -> npt.NDArray[np.bool_] | None:
        """The items that match a filter and are available at `now`.

        Returns:
            (I,) read-only bool, None = every item. Between two changes of availability the same filter gives the
            same array, so that what a decoder derives from it can be kept too.
        """
        matching, window = self.matching(conditions), self._window(now)
        if matching is None or window.mask is None:
            return window.mask if matching is None else matching
        key = (conditions, window.start)
        kept = self._masks.get(key)
        if kept is None:
            kept = matching & window.mask
            kept.flags.writeable = False
            self._masks.put(key, kept, key_bytes=conditions.nbytes)
        return kept

    def _window(self, now: int) -> _Availability:
        known = self._availability
        if known is None or not known.start <= now < known.end:
            known = self._availability = self._availability_at(now)
        return known

    def _evaluate(self, conditions: CatalogFilter) -> npt.NDArray[np.bool_]:
        mask = np.ones(len(self), dtype=np.bool_)
        if conditions.categories:
            inside = np.zeros(len(self), dtype=np.bool_)
            for path in conditions.categories:
                low, high = self._ranges.get(path, (0, 0))
                inside |= (self.category >= low) & (self.category < high)
            mask &= inside
        if conditions.brands:
            numbers = [self._brand_numbers[name] for name in conditions.brands if name in self._brand_numbers]
            mask &= np.isin(self.brand, np.array(numbers, dtype=np.int32))
        if conditions.price_min_micros is not None or conditions.price_max_micros is not None:
            mask &= self.price_micros != _LOWEST
        if conditions.price_min_micros is not None:
            mask &= self.price_micros >= conditions.price_min_micros
        if conditions.price_max_micros is not None:
            mask &= self.price_micros <= conditions.price_max_micros
        return mask

    def _availability_at(self, now: int) -> _Availability:
        mask = (self.available_from <= now) & (self.available_until > now)
        mask.flags.writeable = False
        changes = np.concatenate([self.available_from, self.available_until])
        return _Availability(
            mask=None if mask.all() else mask,
            start=int(changes[changes <= now].max(initial=_LOWEST)),
            end=int(changes[changes > now].min(initial=_HIGHEST)),
        )


def _subtree_ranges(categories: list[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """The numbers [low, high) of each path and everything below it."""
    ends: dict[tuple[str, ...], int] = {}
    for number, path in enumerate(categories):
        for depth in range(1, len(path) + 1):
            ends[path[:depth]] = number + 1
    return {path: (number, ends[path]) for number, path in enumerate(categories)}


def _numbers(values: list[Any], vocabulary: list[Any]) -> npt.NDArray[np.int32]:
    number = {value: place for place, value in enumerate(vocabulary)}
    return np.fromiter((number.get(value, -1) for value in values), dtype=np.int32, count=len(values))


def _filled(column: pa.ChunkedArray, missing: int) -> npt.NDArray[np.int64]:
    filled: npt.NDArray[np.int64] = column.fill_null(int(missing)).to_numpy().astype(np.int64)
    return filled
