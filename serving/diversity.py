"""Maximal marginal relevance: the next item is one that stands high in the sources and is unlike those above it.

    value(i) = (1 - diversity) * (1 - rank(i) / wanted) - diversity * max over the chosen j of similarity(i, j)

Ranks and not scores, because scores of two sources do not compare.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from serving.layout import Caps
    from serving.live_items import LiveItems

    Bools = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float32]
    Items = npt.NDArray[np.int32]


def similarities(items: Items, bundle: Bundle, live: LiveItems) -> Floats:
    """How alike items are, each pair by the first of three that both items have.

    The cosine of their collaborative vectors, that of their text vectors (where it is below 0, both count as 0), else
    the mean of two shares that they have in common from the beginning: of the levels of a semantic ID, and of the names
    of the longer category path. New items have neither vector.

    Args:
        items: (m,) item indices.
        bundle: with the vectors of the snapshot's items.
        live: the items as they are now.

    Returns:
        (m, m) float32 in 0..1.
    """
    unit, has = _unit(items, bundle.collaborative)
    alike = _cosines(unit, unit)
    lacking = np.flatnonzero(~has)
    if len(lacking):
        unit, has = _unit(items, bundle.text)
        rows = _cosines(unit[lacking], unit)
        both = has[lacking][:, None] & has[None, :]
        if not both.all():
            np.copyto(rows, _overlap(items, lacking, live), where=~both)
        alike[lacking], alike[:, lacking] = rows, rows.T
    return alike


def mmr(alike: Floats, *, diversity: float, wanted: int, n: int, caps: Caps | None, items: Items) -> list[int]:
    """Choose greedily; ties go to the better rank.

    Args:
        alike: (m, m), see `similarities`.
        diversity: 0..1.
        wanted: candidates that were asked for, at least m; ranks are counted in it.
        n: items to choose.
        caps: of an empty slate; count what is chosen. None = none.
        items: (m,) item indices, best first.

    Returns:
        Places in `items`, at most n; fewer where the caps let no other in.
    """
    value = ((1.0 - diversity) * (1.0 - np.arange(len(items)) / wanted)).astype(np.float32)
    nearest = np.zeros(len(items), dtype=np.float32)
    numbers = [] if caps is None else caps.numbers(items)
    chosen: list[int] = []
    while len(chosen) < min(n, len(items)):
        place = int(np.argmax(value - np.float32(diversity) * nearest))
        if value[place] == -np.inf:
            break
        value[place] = -np.inf
        chosen.append(place)
        np.maximum(nearest, alike[place], out=nearest)
        if caps is not None:
            groups = tuple(int(of[place]) for of in numbers)
            caps.take(groups)
            for of, group, full in zip(numbers, groups, caps.full(groups), strict=True):
                if full:
                    value[of == group] = -np.inf
    return chosen


def _unit(items: Items, vectors: Floats) -> tuple[Floats, Bools]:
    """(m, D) of length 1, and (m,) which are there: a zero vector says that an item has none."""
    known = items < len(vectors)
    rows = np.zeros((len(items), vectors.shape[1]), dtype=np.float32)
    rows[known] = vectors[items[known]]
    length = np.sqrt(np.einsum("md,md->m", rows, rows))
    rows /= np.where(length > 0, length, np.float32(1))[:, None]
    return rows, length > 0


def _cosines(some: Floats, unit: Floats) -> Floats:
    """(k, m) of (k, D) and (m, D) of length 1, in 0..1; in place, as fresh memory costs more than the numbers."""
    found: Floats = some @ unit.T
    np.clip(found, 0.0, 1.0, out=found)
    return found


def _overlap(items: Items, some: npt.NDArray[np.intp], live: LiveItems) -> Floats:
    """(k, m) of k of the items and all m."""
    levels = live.prefixes(items)
    codes = _common(levels, some) / np.float32(len(levels))
    labels = live.rows.labels
    names = [labels.category(items, depth) for depth in range(1, labels.deepest + 1)]
    if not names:
        return codes
    # of a path that ends before a depth, the label is that of its end: it repeats the depth above, and does not count
    ended = [np.zeros(len(items), dtype=np.bool_), *(above == below for above, below in pairwise(names))]
    proper = [np.where(end, -1, of) for end, of in zip(ended, names, strict=True)]
    lengths = np.sum([of >= 0 for of in proper], axis=0)
    longer = np.maximum(lengths[some][:, None], lengths[None, :])
    paths = _common(proper, some) / np.maximum(longer, 1).astype(np.float32)
    mean: Floats = (codes + paths) / np.float32(2)
    return mean


def _common(levels: Sequence[npt.NDArray[np.integer]], some: npt.NDArray[np.intp]) -> Floats:
    """(k, m) of how many levels each pair shares; a negative number is shared with nobody."""
    shared = np.zeros((len(some), len(levels[0])), dtype=np.float32)
    for level in levels:
        own = level[some]
        shared += (own[:, None] == level[None, :]) & (own >= 0)[:, None]
    return shared
