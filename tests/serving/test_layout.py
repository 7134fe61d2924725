"""Caps and diversity against brute force: on their own, and in answers of the real recommender."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle, load_decoder
from recsys.catalog import CatalogFilter
from serving.diversity import mmr, similarities
from serving.engine import EngineAnswer, EngineRequest
from serving.layout import Caps, Layout
from serving.live_items import LiveItems
from serving.slate import Slate
from serving.stages import BundleRecommender

NOW = 2_000_000_000_000_000
ITEMS = [f"item-{n:02d}" for n in range(48)]
AVAILABLE = range(5, 48)  # see `served_work`; 5 has neither brand nor category
limits = st.none() | st.integers(1, 5)
layouts = st.builds(Layout, limits, limits, st.none() | st.integers(1, 3))


def brand_of(item: int) -> str | None:
    return None if item == 5 else f"Brand {item % 4}"


def path_of(item: int, depth: int | None) -> tuple[str, ...]:
    return () if item == 5 else ("All", f"Group {item % 3}")[:depth]


class Tally:
    """The definition of caps, by names."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.brands, self.paths = layout, Counter[Any](), Counter[Any]()

    def fits(self, item: int) -> bool:
        brand, path = brand_of(item), path_of(item, self.layout.category_depth)
        brand_cap, category_cap = self.layout.brand_cap or 10**9, self.layout.category_cap or 10**9
        return (brand is None or self.brands[brand] < brand_cap) and (not path or self.paths[path] < category_cap)

    def take(self, item: int) -> bool:
        fits = self.fits(item)
        self.brands[brand_of(item)] += fits
        self.paths[path_of(item, self.layout.category_depth)] += fits
        return fits


def greedy(candidates: list[int], n: int, layout: Layout) -> list[int]:
    tally = Tally(layout)
    return [item for item in candidates if tally.take(item)][:n]


def labels_of(brands: list[int], paths: list[int]) -> Any:
    """Numbers as the catalogue gives them; a category's depth halves its number."""
    brand, path = np.array(brands, dtype=np.int32), np.array(paths, dtype=np.int32)
    return SimpleNamespace(
        brand=lambda items: brand[items],
        category=lambda items, depth: path[items] if depth is None else np.where(path < 0, -1, path // 2)[items],
    )


@given(
    kinds=st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 5)), min_size=1, max_size=300),
    layout=layouts.filter(lambda layout: layout.capped),
    room=st.integers(0, 40),
    cut=st.integers(0, 300),
)
def test_caps_take_the_first_that_fit(kinds: list[tuple[int, int]], layout: Layout, room: int, cut: int) -> None:
    caps = Caps(layout, labels_of(*map(list, zip(*kinds, strict=True))))
    items = np.arange(len(kinds), dtype=np.int32)
    parts = [items[:cut], items[cut:]]  # of two sources
    chosen: list[int] = []
    for part in parts:
        chosen += part[caps.choose(part, room - len(chosen))].tolist()
    counts, expected = (Counter[int](), Counter[int]()), []
    bounds = layout.brand_cap or 10**9, layout.category_cap or 10**9
    for item, (brand, path) in enumerate(kinds):
        groups = brand, path if layout.category_depth is None or path < 0 else path // 2
        fits = all(group < 0 or of[group] < most for group, of, most in zip(groups, counts, bounds, strict=True))
        expected += [item] * fits
        for group, of in zip(groups, counts, strict=True):
            of[group] += fits and len(expected) <= room
    assert chosen == expected[:room]
    shut = ~caps.open(items)
    full = [
        {group for group, count in of.items() if group >= 0 and count >= most}
        for of, most in zip(counts, bounds, strict=True)
    ]
    depth = layout.category_depth
    assert shut.tolist() == [
        brand in full[0] or (path if depth is None else path // 2) in full[1] for brand, path in kinds
    ]


def ask(recommender: BundleRecommender, history: list[str], n: int, **rest: Any) -> EngineAnswer:
    return recommender.recommend([EngineRequest(history=history, n=n, time=NOW, **rest)])[0]


def indices(answer: EngineAnswer) -> list[int]:
    return [int(item.item_id[-2:]) for item in answer.items]


histories = st.lists(st.sampled_from([*ITEMS, "nobody"]), max_size=6)
conditions = st.sampled_from(
    [CatalogFilter(), CatalogFilter(brands=("Brand 1",)), CatalogFilter(categories=(("All", "Group 2"),))]
)


@settings(max_examples=150)
@given(
    history=histories,
    n=st.integers(1, 45),
    layout=layouts,
    conditions=conditions,
    shown=st.lists(st.sampled_from(ITEMS), max_size=20),
    scene=st.sampled_from([None, "home"]),
)
def test_no_slate_breaks_a_cap_and_the_order_of_the_sources_stays(
    recommender: BundleRecommender, history: list[str], n: int, layout: Layout, scene: str | None, **rest: Any
) -> None:
    answer = ask(recommender, history, n, layout=layout, scene=scene, **rest)
    found = indices(answer)
    # as many candidates, so that the decoder is asked the same
    first = indices(ask(recommender, history, layout.candidates(n), scene=scene, **rest))
    expected = greedy(first, n, layout)
    assert found[: len(expected)] == expected
    assert answer.ineligible == 0
    tally = Tally(layout)
    assert all(tally.take(item) for item in found)
    everything = indices(ask(recommender, history, 500, scene=scene, **rest))
    left = set(everything) - set(found)
    assert set(found) <= set(everything)
    assert len(found) == n or not any(tally.fits(item) for item in left)
    assert answer.truncated == (len(found) < n)
    assert answer.more == bool(left)
    assert not set(rest["shown"]) & {ITEMS[item] for item in found}


def test_caps_pass_over_most_of_a_long_list(recommender: BundleRecommender) -> None:
    answer = ask(recommender, [], 20, layout=Layout(brand_cap=1))
    assert sorted(brand_of(item) or "" for item in indices(answer)) == ["", "Brand 0", "Brand 1", "Brand 2", "Brand 3"]
    assert (answer.truncated, answer.more) == (True, True)


def test_a_slate_that_the_caps_shut_is_complete_without_another_source() -> None:
    caps = Caps(Layout(brand_cap=1), labels_of([0, 0, 1, 0], [-1] * 4))
    slate = Slate(3, np.array([True, True, False, True]), np.empty(0, dtype=np.int32), caps=caps)
    assert not slate.complete()
    slate.add(np.array([1, 0], dtype=np.int32), np.array([2.0, 1.0]), "nezha")
    assert slate.items == [1]
    assert slate.complete()
    assert slate.leaves_any(np.array([0, 1, 2, 3], dtype=np.int32), 4)


@given(
    excluded=st.lists(st.integers(0, 9), max_size=12),
    mask=st.none() | st.lists(st.booleans(), min_size=10, max_size=10),
    size=st.integers(1, 10),
    popular=st.permutations(range(10)).flatmap(lambda order: st.integers(0, 10).map(lambda cut: order[:cut])),
)
def test_whether_anything_is_left(excluded: list[int], mask: list[bool] | None, size: int, popular: list[int]) -> None:
    shared = None if mask is None else np.array(mask)
    slate = Slate(size, shared, np.array(excluded, dtype=np.int32))
    slate.add(np.arange(10, dtype=np.int32), np.zeros(10), "nezha")
    eligible = {item for item in range(10) if (mask is None or mask[item]) and item not in excluded}
    left = slate.leaves_any(np.array(popular, dtype=np.int32), 10)
    assert left == (len(eligible) > len(slate.items))


def naive_mmr(alike: npt.NDArray[Any], diversity: float, wanted: int, chosen: list[int], fits: Any) -> list[float]:
    """The value of every place, behind what is chosen; -inf where it may not come."""
    values = []
    for place in range(len(alike)):
        nearest = max((float(alike[place, other]) for other in chosen), default=0.0)
        value = (1 - diversity) * (1 - place / wanted) - diversity * nearest
        values.append(value if place not in chosen and fits(place) else -np.inf)
    return values


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 25),
    n=st.integers(1, 30),
    diversity=st.floats(0.01, 1.0),
    cap=st.none() | st.integers(1, 4),
)
def test_each_item_has_the_highest_marginal_relevance(
    seed: int, count: int, n: int, diversity: float, cap: int | None
) -> None:
    rng = np.random.default_rng(seed)
    one_way = rng.random((count, count)).astype(np.float32)
    alike = (one_way + one_way.T) / np.float32(2)
    brands = rng.integers(-1, 4, count).tolist()
    caps = None if cap is None else Caps(Layout(brand_cap=cap), labels_of(brands, [-1] * count))
    items = np.arange(count, dtype=np.int32)
    found = mmr(alike, diversity=diversity, wanted=30, n=n, caps=caps, items=items)

    def fits(place: int) -> bool:
        same = [brands[other] for other in before].count(brands[place])
        return cap is None or brands[place] < 0 or same < cap

    for position, place in enumerate(found):
        before = found[:position]
        values = naive_mmr(alike, diversity, 30, before, fits)
        assert values[place] > max(values) - 1e-5
    before = found
    assert len(found) == n or not any(np.isfinite(naive_mmr(alike, diversity, 30, found, fits)))


def naive_similarity(bundle: Bundle, live: LiveItems, one: int, other: int) -> float:
    for vectors in (bundle.collaborative, bundle.text):
        a, b = (vectors[item].astype(np.float64) if item < len(vectors) else np.zeros(1) for item in (one, other))
        if a.any() and b.any():
            return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    levels = [(of[0], of[1]) for of in live.prefixes(np.array([one, other], dtype=np.int32))]
    codes = sum(a == b >= 0 for a, b in levels) / len(levels)
    rows = [live.row(live.rows.ids([item])[0]) for item in (one, other)]
    first, second = (row.category_path for row in rows if row is not None)
    common = next((depth for depth, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    common = min(len(first), len(second)) if common is None else common
    return float(codes + common / max(len(first), len(second), 1)) / 2


def test_items_are_alike_by_the_first_vectors_that_both_have(served_bundle: Bundle) -> None:
    collaborative, text = np.array(served_bundle.collaborative), np.array(served_bundle.text)
    collaborative[[7, 8, 9, 20]] = 0
    text[[8, 9, 21, 5]] = 0
    bundle = replace(served_bundle, collaborative=collaborative, text=text)
    live = LiveItems(bundle, load_decoder(bundle))
    items = np.array([6, 7, 8, 9, 20, 21, 5, 40], dtype=np.int32)
    found = similarities(items, bundle, live)
    expected = [[naive_similarity(bundle, live, one, other) for other in items.tolist()] for one in items.tolist()]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert found.min() >= 0.0
    assert found.max() <= 1.0


@settings(max_examples=60)
@given(history=histories, n=st.integers(1, 30), layout=layouts, diversity=st.sampled_from([0.1, 0.5, 1.0]))
def test_a_diverse_answer_is_chosen_among_the_first_candidates(
    recommender: BundleRecommender,
    served_bundle: Bundle,
    history: list[str],
    n: int,
    layout: Layout,
    diversity: float,
) -> None:
    wanted = Layout(layout.brand_cap, layout.category_cap, layout.category_depth, diversity)
    answer = ask(recommender, history, n, layout=wanted)
    pool = ask(recommender, history, wanted.candidates(n))
    scored = {item.item_id: (item.score, item.source) for item in pool.items}
    first = indices(pool)
    alike = similarities(np.array(first, dtype=np.int32), served_bundle, recommender.items)
    tally, chosen = Tally(layout), list[int]()
    for item in [item for item in answer.items if item.item_id in scored]:
        assert (item.score, item.source) == pytest.approx(scored[item.item_id])
        place = first.index(int(item.item_id[-2:]))
        values = naive_mmr(alike, diversity, wanted.candidates(n), chosen, lambda other: tally.fits(first[other]))
        assert values[place] > max(values) - 1e-5
        tally.take(first[place])
        chosen.append(place)
    found = indices(answer)
    rest = [item for item in found if item not in first]
    assert found[len(chosen) :] == rest  # behind the pool come further items, where the caps shut the pool
    assert all(tally.take(item) for item in rest)
    everything = indices(ask(recommender, history, 500))
    assert len(found) == n or not any(tally.fits(item) for item in set(everything) - set(found))
    assert answer.ineligible == 0


def test_full_diversity_parts_what_is_alike(recommender: BundleRecommender, served_bundle: Bundle) -> None:
    def closest(answer: EngineAnswer) -> float:
        items = np.array(indices(answer), dtype=np.int32)
        return float(np.triu(similarities(items, served_bundle, recommender.items), 1).sum())

    plain, diverse = (ask(recommender, ["item-11"], 10, layout=Layout(diversity=value)) for value in (0.0, 1.0))
    assert closest(diverse) < 0.7 * closest(plain)
    assert diverse.items[0] == plain.items[0]
    scores = [item.score for item in diverse.items]
    assert any(above < below for above, below in pairwise(scores))


def test_a_batch_of_different_layouts_answers_like_single_requests(recommender: BundleRecommender) -> None:
    several = Layout(), Layout(brand_cap=1), Layout(category_cap=3), Layout(diversity=0.5), Layout(2, 2, 1, 1.0)
    requests = [EngineRequest(["item-20"], 10, NOW, layout=layout) for layout in several]
    together = recommender.recommend(requests)
    alone = [recommender.recommend([request])[0] for request in requests]
    assert [indices(answer) for answer in together] == [indices(answer) for answer in alone]
