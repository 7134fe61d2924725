"""What the marketplace sells: a tree of sub-categories with successors, brands, items, and shelves by day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.datasets.marketplace.settings import (
    DAY,
    NEVER,
    START,
    STYLE,
    SUCCESSORS,
    Bools,
    Doubles,
    Floats,
    Indices,
    Ints,
    Stream,
    WorldSize,
    stream,
)
from recsys.datasets.marketplace.words import BRAND_HEADS, BRAND_MIDDLES, BRAND_TAILS, DEPARTMENTS, MODIFIERS

BEST: Final = 10  # places of a shelf for the day's assortment of a sub-category
NEWEST: Final = 2  # places of a shelf for its newest items
SHELF: Final = BEST + NEWEST
_BEFORE = 0.75  # share of items from before day 0
_ATTENTION = 0.6  # how much more easily an appealing item is come across
_ASSORTMENT = 0.7  # weight of the appeal beside standard normal noise when a day's shelves are filled
_EXPIRING = 0.06  # share of items that are taken off sale


@dataclass(frozen=True, slots=True)
class CategoryTree:
    """Sub-categories ("leaves") below kinds of product below departments; a department's leaves are adjacent.

    Attributes:
        department: (C,) department of each leaf.
        kind: (C,) kind of product, counted within the department.
        modifier: (C,) index into `words.MODIFIERS`.
        popularity: (C,) float64, sums to one: how often people are interested in the leaf.
        price_level: (C,) float64, natural logarithm of the median price in currency units.
        successors: (C, 3) leaves that the wish for this leaf leads to, most likely first.
        first: (D + 1,) department d owns leaves first[d]..first[d + 1] - 1.
    """

    department: Indices
    kind: Indices
    modifier: Indices
    popularity: Doubles
    price_level: Doubles
    successors: Indices
    first: Ints

    @property
    def leaves(self) -> int:
        """Number of sub-categories."""
        return len(self.department)

    def path(self, leaf: int) -> list[str]:
        """The names from the department to the leaf."""
        department = list(DEPARTMENTS)[self.department[leaf]]
        kind = DEPARTMENTS[department][self.kind[leaf]]
        return [department, kind, f"{MODIFIERS[self.modifier[leaf]]} {kind}"]

    def draw(self, departments: Indices, rng: np.random.Generator) -> Indices:
        """A leaf from each given department, by popularity."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.popularity)])
        low, high = cumulative[self.first[departments]], cumulative[self.first[departments + 1]]
        drawn = np.searchsorted(cumulative, low + (high - low) * rng.random(len(departments)), side="right") - 1
        chosen: Indices = np.clip(drawn, self.first[departments], self.first[departments + 1] - 1).astype(np.int32)
        return chosen


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every item of the world in the order of its creation, so that those of a moment are a prefix.

    Attributes:
        tree: the sub-categories.
        brand_names: (B,) names.
        leaf: (I,) sub-category.
        brand: (I,) brand.
        style: (I, 8) float32, about standard normal; desires live in the same space.
        appeal: (I,) float32, what everybody likes about the item; includes the brand's quality.
        price_position: (I,) float32, standard deviations of the log price from the leaf's median.
        price_micros: (I,) int64.
        created_at: (I,) int64 microseconds, rising.
        available_until: (I,) int64 microseconds; `NEVER` without an end.
        by_leaf: (I,) items sorted by leaf, the newest of each leaf first.
        leaf_first: (C + 1,) leaf c owns by_leaf[leaf_first[c]:leaf_first[c + 1]].
        attention: (I + 1,) float64, running sum over `by_leaf` of how easily an item is come across.
    """

    tree: CategoryTree
    brand_names: tuple[str, ...]
    leaf: Indices
    brand: Indices
    style: Floats
    appeal: Floats
    price_position: Floats
    price_micros: Ints
    created_at: Ints
    available_until: Ints
    by_leaf: Indices
    leaf_first: Ints
    attention: Doubles

    def __len__(self) -> int:
        return len(self.leaf)

    def created_before(self, time: int) -> int:
        """Number of items that exist at a time; they are items 0 .. n - 1."""
        return int(np.searchsorted(self.created_at, time, side="right"))

    def available(self, items: Indices, day: int) -> Bools:
        """Whether items are on sale from the first to the last microsecond of a day; any shape."""
        begin = START + day * DAY
        return (self.created_at[items] <= begin) & (self.available_until[items] >= begin + DAY)


@dataclass(frozen=True, slots=True)
class Shelves:
    """What the logged recommender can reach on one day; -1 stands for an empty place.

    Attributes:
        day: the day number.
        leaves: (C, 12) ten items of each leaf, drawn for the day in favour of the appealing ones, then its two
            newest; items that are on sale for the whole day only.
        popular: (10,) the most appealing of all items on the first ten places of the shelves.
        created: items that exist when the day begins.
        available: items that are on sale for the whole day.
    """

    day: int
    leaves: Indices
    popular: Indices
    created: int
    available: int


def build_catalog(size: WorldSize, seed: int) -> Catalog:
    """The catalog of a world: a pure function of size and seed."""
    tree = _build_tree(size, seed)
    rng = stream(seed, Stream.ITEMS)
    before = round(_BEFORE * size.items)
    during = size.items - before
    total = size.items + during
    brands = _Brands.build(size.items, seed)
    weights = tree.popularity**0.7
    leaf = rng.choice(tree.leaves, size=total, p=weights / weights.sum()).astype(np.int32)
    brand = brands.draw(tree.department[leaf], rng)
    style = (0.6 * brands.style[brand] + 0.8 * rng.standard_normal((total, STYLE))).astype(np.float32)
    appeal = (0.8 * rng.standard_normal(total) + 0.5 * brands.quality[brand]).astype(np.float32)
    position = (0.8 * brands.price[brand] + 0.6 * rng.standard_normal(total)).astype(np.float32)
    price = np.exp(tree.price_level[leaf] + 0.5 * position)
    created = np.concatenate(
        [
            START - np.sort(rng.integers(1, 360 * DAY, size=before))[::-1],
            START + np.sort(rng.integers(0, size.days * DAY, size=during)),
            START + size.days * DAY + np.sort(rng.integers(0, size.days * DAY, size=during)),
        ]
    )
    expiring = rng.random(total) < _EXPIRING
    until = np.maximum(created, START) + rng.integers(5 * DAY, 120 * DAY, size=total)
    by_leaf = np.lexsort((-np.arange(total), leaf)).astype(np.int32)
    return Catalog(
        tree=tree,
        brand_names=brands.names,
        leaf=leaf,
        brand=brand,
        style=style,
        appeal=appeal,
        price_position=position,
        price_micros=(np.maximum(np.round(price * 100), 50) * 10_000).astype(np.int64),
        created_at=created.astype(np.int64),
        available_until=np.where(expiring, until, NEVER).astype(np.int64),
        by_leaf=by_leaf,
        leaf_first=np.concatenate([[0], np.cumsum(np.bincount(leaf, minlength=tree.leaves))]).astype(np.int64),
        attention=np.concatenate([[0.0], np.cumsum(np.exp(_ATTENTION * appeal[by_leaf].astype(np.float64)))]),
    )


def stock_shelves(catalog: Catalog, day: int, rng: np.random.Generator) -> Shelves:
    """Draw the shelves of a day; O(I log I)."""
    on_sale = catalog.by_leaf[catalog.available(catalog.by_leaf, day)]
    merit = _ASSORTMENT * catalog.appeal[on_sale] + rng.standard_normal(len(on_sale))
    leaves = np.full((catalog.tree.leaves, SHELF), -1, dtype=np.int32)
    best, rank = _head_of_leaves(catalog, on_sale[np.lexsort((-merit, catalog.leaf[on_sale]))], BEST)
    leaves[catalog.leaf[best], rank] = best
    newest, age = _head_of_leaves(catalog, on_sale, NEWEST)
    new = ~np.isin(newest, best)
    leaves[catalog.leaf[newest[new]], BEST + age[new]] = newest[new]
    popular = np.full(BEST, -1, dtype=np.int32)
    ranked = best[np.lexsort((best, -catalog.appeal[best]))][:BEST]
    popular[: len(ranked)] = ranked
    return Shelves(day, leaves, popular, catalog.created_before(START + day * DAY), len(on_sale))


def _head_of_leaves(catalog: Catalog, items: Indices, count: int) -> tuple[Indices, Ints]:
    """The first items of every leaf in an order that keeps leaves together, with their rank from 0."""
    leaf = catalog.leaf[items]
    first = np.searchsorted(leaf, np.arange(catalog.tree.leaves))
    rank = np.arange(len(items)) - first[leaf]
    return items[rank < count], rank[rank < count]


def _build_tree(size: WorldSize, seed: int) -> CategoryTree:
    rng = stream(seed, Stream.TREE)
    departments = len(DEPARTMENTS)
    per_department = size.kinds * size.modifiers
    leaves = departments * per_department
    kinds = np.stack([rng.permutation(6)[: size.kinds] for _ in range(departments)])
    modifiers = np.stack([rng.permutation(len(MODIFIERS))[: size.modifiers] for _ in range(departments * size.kinds)])
    popularity = rng.permutation(1.0 / np.arange(1, leaves + 1) ** 0.6)
    base = rng.normal(np.log(35.0), 0.6, size=departments * size.kinds)
    return CategoryTree(
        department=np.repeat(np.arange(departments), per_department).astype(np.int32),
        kind=np.repeat(kinds.ravel(), size.modifiers).astype(np.int32),
        modifier=modifiers.ravel().astype(np.int32),
        popularity=popularity / popularity.sum(),
        price_level=np.repeat(base, size.modifiers) + rng.normal(0.0, 0.2, size=leaves),
        successors=_draw_successors(departments, per_department, rng),
        first=np.arange(departments + 1, dtype=np.int64) * per_department,
    )


def _draw_successors(departments: int, width: int, rng: np.random.Generator) -> Indices:
    """Three distinct other leaves for each leaf: two of its department where it is wide enough, one of another."""
    leaves = departments * width
    successors = np.empty((leaves, SUCCESSORS), dtype=np.int32)
    linked = rng.permutation(departments)
    for leaf in range(leaves):
        department = leaf // width
        near = department * width + (leaf % width + 1 + rng.permutation(width - 1)[:2]) % width
        far = linked[department] if linked[department] != department else (department + 1) % departments
        following = (leaf + 1 + np.arange(SUCCESSORS)) % leaves  # only narrow trees need them
        ranked = np.concatenate([near, far * width + rng.permutation(width)[:1], following])
        successors[leaf] = list(dict.fromkeys(ranked.tolist()))[:SUCCESSORS]
    return successors


@dataclass(frozen=True, slots=True)
class _Brands:
    """Brand b belongs to department b modulo the number of departments.

    Attributes:
        names: (B,).
        quality: (B,) standard normal.
        price: (B,) standard normal, follows quality.
        style: (B, 8) standard normal.
    """

    names: tuple[str, ...]
    quality: Doubles
    price: Doubles
    style: Doubles

    @classmethod
    def build(cls, items: int, seed: int) -> _Brands:
        rng = stream(seed, Stream.BRANDS)
        departments = len(DEPARTMENTS)
        names = len(BRAND_HEADS) * len(BRAND_MIDDLES) * len(BRAND_TAILS)
        per_department = int(np.clip(np.sqrt(items) / 6, 4, names // departments))
        count = departments * per_department
        heads, rest = np.divmod(rng.permutation(names)[:count], len(BRAND_MIDDLES) * len(BRAND_TAILS))
        middles, tails = np.divmod(rest, len(BRAND_TAILS))
        quality = rng.standard_normal(count)
        return cls(
            names=tuple(
                BRAND_HEADS[head] + BRAND_MIDDLES[middle] + BRAND_TAILS[tail]
                for head, middle, tail in zip(heads, middles, tails, strict=True)
            ),
            quality=quality,
            price=0.6 * quality + 0.8 * rng.standard_normal(count),
            style=rng.standard_normal((count, STYLE)),
        )

    def draw(self, departments: Indices, rng: np.random.Generator) -> Indices:
        """A brand for each item, the department's first brands most often."""
        per_department = len(self.names) // len(DEPARTMENTS)
        weights = 1.0 / np.arange(1, per_department + 1)
        ranks = rng.choice(per_department, size=len(departments), p=weights / weights.sum())
        return (departments + len(DEPARTMENTS) * ranks).astype(np.int32)
