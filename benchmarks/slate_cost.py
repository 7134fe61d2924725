"""What caps, diversity and paging cost behind the decoder.

`python -m benchmarks.slate_cost` prints microseconds per slate, the same ranked candidates laid out in four ways in
turn: as they are, under caps, with diversity, with both. The items are made up: vectors of 64 and 384 dimensions, 1,000
brands, 600 categories in three levels; one in ten has no collaborative vector, so that both kinds are compared.

A second table shows what every answer pays for its next page: whether there is one, without a filter and with one that
half of the items match, and the cursor that names what was shown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from recsys.catalog import Catalog, ItemIndex
from recsys.catalog.live_rows import LiveRows
from serving.arranging import arranged, opened
from serving.engine import EngineRequest
from serving.layout import Layout
from serving.paging import Page
from serving.slate import Slate

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from serving.live_items import LiveItems

_BRANDS, _LEAVES, _GROUPS = 1_000, 600, 20
_LAYOUTS: Final = {
    "as ranked": Layout(),
    "caps": Layout(brand_cap=2, category_cap=3),
    "diversity": Layout(diversity=0.3),
    "both": Layout(brand_cap=2, category_cap=3, diversity=0.3),
}


@dataclass
class _Items:
    """In the place of a bundle and its live items: what a layout reads of them."""

    collaborative: npt.NDArray[np.float32]
    text: npt.NDArray[np.float32]
    rows: LiveRows


def _made(items: int) -> _Items:
    rng = np.random.default_rng(7)
    leaves = [("All", f"Group {leaf % _GROUPS:02d}", f"Leaf {leaf:03d}") for leaf in range(_LEAVES)]
    paths = sorted({path[:depth] for path in leaves for depth in (1, 2, 3)})
    places = np.array([number for number, path in enumerate(paths) if len(path) == 3], dtype=np.int32)
    longest = np.iinfo(np.int64)
    catalog = Catalog(
        index=ItemIndex(np.array([f"{number:08d}" for number in range(items)], dtype=np.bytes_)),
        category=places[rng.integers(0, _LEAVES, items)],
        brand=rng.zipf(1.3, items).clip(max=_BRANDS).astype(np.int32) - 1,
        price_micros=np.zeros(items, dtype=np.int64),
        available_from=np.full(items, longest.min),
        available_until=np.full(items, longest.max),
        categories=paths,
        brands=[f"Brand {number:04d}" for number in range(_BRANDS)],
    )
    collaborative, text = (rng.standard_normal((items, width), dtype=np.float32) for width in (64, 384))
    collaborative[rng.random(items) < 0.1] = 0
    return _Items(collaborative, text, LiveRows(catalog))


def _microseconds(made: _Items, layout: Layout, n: int, ranked: npt.NDArray[np.int32]) -> float:
    """One slate of what the decoder has ranked for it."""
    bundle, live = cast("Bundle", made), cast("LiveItems", made)
    request = EngineRequest(history=(), n=n, time=0, layout=layout)
    wanted, none = layout.candidates(n), np.empty(0, dtype=np.int32)
    scores = -np.arange(wanted, dtype=np.float32)
    started = time.perf_counter()
    slate = opened(request, None, none, live)
    slate.add(ranked[:wanted], scores, "nezha")
    if layout.diversity:
        slate = arranged(slate, request, bundle, live)
    seconds = time.perf_counter() - started
    if len(slate.items) < n // 2:
        raise RuntimeError(f"the caps let only {len(slate.items)} of {n} in: nothing to compare")
    return seconds * 1e6


def _paging(items: int, n: int, rounds: int) -> list[float]:
    """Medians of looking for more without and with a mask, and of a cursor; microseconds."""
    rng = np.random.default_rng(9)
    excluded = rng.choice(items, 50, replace=False).astype(np.int32)
    slates = [Slate(n, mask, excluded, list(range(n))) for mask in (None, rng.random(items) < 0.5)]
    popular = rng.permutation(items).astype(np.int32)
    page = Page(f"{rng.integers(2**62):032x}")
    shown = [f"B{number:09d}" for number in rng.integers(0, 10**9, n).tolist()]
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        marks = [time.perf_counter()]
        for slate in slates:
            slate.leaves_any(popular, items)
            marks.append(time.perf_counter())
        following = page.next(shown)
        if following is not None:
            following.cursor()
        marks.append(time.perf_counter())
        for column, (before, after) in zip(times, pairwise(marks), strict=True):
            column.append((after - before) * 1e6)
    return [median(values[rounds // 10 :]) for values in times]


def main(
    rounds: Annotated[int, typer.Option(min=10, help="Slates per layout and length.")] = 500,
    items: Annotated[int, typer.Option(min=1_000, help="Items of the catalogue.")] = 100_000,
) -> None:
    """Time the same candidates laid out in four ways."""
    made, rng = _made(items), np.random.default_rng(8)
    table = Table("items", "candidates", *(f"{name}, µs" for name in _LAYOUTS))
    for n in (10, 20, 50, 100):
        times: dict[str, list[float]] = {name: [] for name in _LAYOUTS}
        for _ in range(rounds):
            ranked: npt.NDArray[Any] = rng.choice(items, size=500, replace=False).astype(np.int32)
            for name, layout in _LAYOUTS.items():
                times[name].append(_microseconds(made, layout, n, ranked))
        figures = [f"{median(values[rounds // 10 :]):.0f}" for values in times.values()]
        table.add_row(str(n), str(_LAYOUTS["both"].candidates(n)), *figures)
    pages = Table("items", "more, no filter, µs", "more, filter, µs", "cursor, µs")
    for n in (10, 20, 50, 100):
        pages.add_row(str(n), *(f"{value:.1f}" for value in _paging(items, n, rounds)))
    console = Console(highlight=False)
    console.print(table)
    console.print(pages)


if __name__ == "__main__":
    typer.run(main)
