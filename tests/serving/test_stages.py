from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle, load_indexes
from recsys.catalog import CatalogFilter
from recsys.decoding.decoder import DecodeResult, Ranked, Spent
from serving.engine import EngineAnswer, EngineRequest
from serving.schemas import ServedBy
from serving.seeking import fill_from_history
from serving.slate import Slate
from serving.stages import BundleRecommender

NOW = 2_000_000_000_000_000
GONE, FAR = 1_000, 4_000_000_000_000_000  # see `served_work`
ITEMS = [f"item-{n:02d}" for n in range(48)]
AVAILABLE = set(ITEMS[5:])  # 0-3 are gone, 4 is still to come


def ask(recommender: BundleRecommender, history: list[str], n: int = 10, **rest: Any) -> EngineAnswer:
    return recommender.recommend([EngineRequest(history=history, n=n, time=NOW, **rest)])[0]


def ids(answer: EngineAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


def sources(answer: EngineAnswer) -> list[str]:
    return [item.source for item in answer.items]


def test_a_history_is_answered_by_the_decoder(recommender: BundleRecommender) -> None:
    answer = ask(recommender, ["item-11", "item-12"])
    assert (answer.served_by, answer.decoder, answer.truncated, answer.ineligible) == ("nezha", "nezha", False, 0)
    assert sources(answer) == ["nezha"] * 10
    assert [item.title for item in answer.items] == [f"Title {int(item[-2:])}" for item in ids(answer)]


def test_a_request_for_everything_is_truncated(recommender: BundleRecommender) -> None:
    answer = ask(recommender, ["item-11", "item-12"], n=500)
    assert set(ids(answer)) == AVAILABLE - {"item-11", "item-12"}
    assert answer.truncated


def test_exactly_all_eligible_items_are_not_truncated(recommender: BundleRecommender) -> None:
    assert not ask(recommender, ["item-11"], n=42).truncated
    assert ask(recommender, ["item-11"], n=43).truncated


@pytest.mark.parametrize("history", [[], ["nobody", "", "item-1", "\ud800", "item-11\0"]])
@pytest.mark.parametrize(
    ("scene", "tier"),
    [("home", "popular_scene"), (None, "popular_scene"), ("unheard of", "popular_memory")],
)
def test_nothing_known_is_answered_by_popularity(
    recommender: BundleRecommender, served_bundle: Bundle, history: list[str], scene: str | None, tier: str
) -> None:
    answer = ask(recommender, history, n=5, scene=scene)
    expected = [item for item in served_bundle.popular(scene).tolist() if item > 4][:5]
    assert ids(answer) == [ITEMS[item] for item in expected]
    assert (answer.served_by, answer.decoder) == (tier, None)
    assert answer.counts.history_unknown == len(history)


def test_popularity_continues_with_all_other_items(recommender: BundleRecommender) -> None:
    answer = ask(recommender, [], n=43, scene="home")
    assert sources(answer) == ["popular_scene"] * 5 + ["popular_memory"] * 38
    assert set(ids(answer)) == AVAILABLE
    assert not answer.truncated


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ({"allow": ["item-07", "item-02", "nobody"]}, {"item-07"}),
        ({"allow": []}, set()),
        ({"deny": ITEMS[:40]}, set(ITEMS[40:])),
        ({"conditions": CatalogFilter(brands=("Brand 1",))}, {item for item in ITEMS[6:] if int(item[-2:]) % 4 == 1}),
        ({"conditions": CatalogFilter(price_max_micros=7_000_000)}, {"item-06", "item-07"}),
        ({"conditions": CatalogFilter(categories=(("Group 1",),))}, set()),
        (
            {"conditions": CatalogFilter(categories=(("All", "Group 1"),), price_min_micros=40_000_000)},
            {"item-40", "item-43", "item-46"},
        ),
        ({"conditions": CatalogFilter(brands=("Brand 1",)), "allow": ["item-08", "item-09"]}, {"item-09"}),
    ],
)
@pytest.mark.parametrize("history", [[], ["item-00"]])
def test_filters_hold_in_every_tier(
    recommender: BundleRecommender, history: list[str], rest: dict[str, Any], expected: set[str]
) -> None:
    answer = ask(recommender, history, n=500, **rest)
    assert set(ids(answer)) == expected
    assert answer.truncated
    assert answer.ineligible == 0


def test_seen_items_come_back_only_when_asked_for(recommender: BundleRecommender) -> None:
    history = ["item-11", "item-12"]
    assert not set(history) & set(ids(ask(recommender, history, n=500)))
    assert set(history) <= set(ids(ask(recommender, history, n=500, exclude_seen=False)))


def test_a_long_history_is_cut_but_nothing_seen_comes_back(recommender: BundleRecommender) -> None:
    answer = ask(recommender, ["item-11", "item-12", "nobody", *["item-13"] * 1_500], n=500)
    assert (answer.counts.history, answer.counts.history_unknown, answer.counts.history_cut) == (1_503, 1, 502)
    assert not {"item-11", "item-12", "item-13"} & set(ids(answer))


def test_a_batch_answers_like_single_requests(recommender: BundleRecommender) -> None:
    requests = [
        EngineRequest(history=history, n=n, time=NOW, conditions=conditions)
        for history in ([], ["item-20"], ["item-30", "item-31", "item-20"])
        for n in (1, 10)
        for conditions in (CatalogFilter(), CatalogFilter(brands=("Brand 1",)))
    ]
    together = recommender.recommend(requests)
    alone = [recommender.recommend([request])[0] for request in requests]
    assert [ids(answer) for answer in together] == [ids(answer) for answer in alone]
    scores = [item.score for answer in together for item in answer.items]
    assert scores == pytest.approx([item.score for answer in alone for item in answer.items], abs=1e-5)


class FewItems:
    """A decoder that knows one item only."""

    name = "nezha"

    def __init__(self, decoder: Any, items: int) -> None:
        self._decoder, self._items = decoder, items

    def decode(self, *arguments: Any, k: int, **rest: Any) -> Any:
        return self._decoder.decode(*arguments, k=min(k, self._items), **rest)


class Noting:
    """A decoder that remembers how wide it was asked to search."""

    name = "nezha"

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.beams: list[int] = []

    def decode(self, *arguments: Any, beam: int, **rest: Any) -> Any:
        self.beams.append(beam)
        return self._decoder.decode(*arguments, beam=beam, **rest)


def test_a_small_request_is_decoded_with_the_small_beam(served_bundle: Bundle, recommender: BundleRecommender) -> None:
    noting = Noting(recommender._decoder)
    tested = BundleRecommender(served_bundle, noting, beam=12, small_beam=3)
    asked = [ask(tested, ["item-29"], n=2, small=small) for small in (False, True)]
    assert [answer.served_by for answer in asked] == ["nezha", "nezha_small"]
    assert {source for answer in asked for source in sources(answer)} == {"nezha"}
    assert ask(tested, ["item-29"], n=7, small=True).served_by == "nezha_small"
    assert noting.beams == [12, 3, 7]  # never fewer than items are wanted
    assert ask(tested, [], small=True).served_by == "popular_scene"


def test_a_decoder_that_falls_short_is_filled_up(served_bundle: Bundle, recommender: BundleRecommender) -> None:
    few = BundleRecommender(served_bundle, FewItems(recommender._decoder, 1), beam=10, retrieval=None)
    answer = ask(few, ["item-29", "item-31"], n=43, scene="home", exclude_seen=False)
    assert answer.served_by == "nezha"
    tiers = list(dict.fromkeys(sources(answer)))
    assert tiers == ["nezha", "item_to_item", "popular_scene", "popular_memory"]
    assert set(ids(answer)) == AVAILABLE
    neighbours = [item.item_id for item in answer.items if item.source == "item_to_item"]
    # item-32 stands behind both: 1 from item-31, .8 * 1/3 from item-29
    assert set(neighbours) | {answer.items[0].item_id} >= {"item-30", "item-31", "item-32", "item-33", "item-34"}


def test_the_indexes_fill_what_decoder_and_item_to_item_left_open(
    served_bundle: Bundle, recommender: BundleRecommender
) -> None:
    few = BundleRecommender(
        served_bundle, FewItems(recommender._decoder, 1), beam=10, retrieval=load_indexes(served_bundle)
    )
    answer = ask(few, ["item-29", "item-31"], n=30, scene="home")
    assert list(dict.fromkeys(sources(answer))) == ["nezha", "item_to_item", "index"]
    assert len(set(ids(answer))) == 30
    vectors = served_bundle.collaborative / np.linalg.norm(served_bundle.collaborative, axis=1, keepdims=True)
    scores = vectors @ (vectors[31] + 0.8 * vectors[29])
    before = {item.item_id for item in answer.items if item.source != "index"} | {"item-29", "item-31"}
    left = sorted(AVAILABLE - before, key=lambda item: -round(float(scores[int(item[-2:])]), 6))
    near = [item.item_id for item in answer.items if item.source == "index"]
    assert near == left[: len(near)]


def test_what_is_chosen_or_excluded_already_takes_no_place_of_the_indexes(served_bundle: Bundle) -> None:
    retrieval = load_indexes(served_bundle)
    assert retrieval is not None
    shared = np.ones(48, dtype=np.bool_)
    shared[20:28] = False
    for mask in (None, shared):
        slate = Slate(6, mask, np.array([31, 33], dtype=np.int32), [30], [0.5], ["nezha"])
        fill_from_history(slate, np.array([29, 31], dtype=np.int32), retrieval, items=48)
        assert len(set(slate.items)) == 6
        assert slate.sources == ["nezha"] + ["index"] * 5
        assert not {31, 33} & set(slate.items)
        assert mask is None or mask[slate.items].all()
    empty = Slate(6, None, np.array([], dtype=np.int32))
    fill_from_history(empty, np.array([], dtype=np.int32), retrieval, items=48)
    assert empty.items == []


identifiers = st.sampled_from([*ITEMS, "nobody", "", "Item-11", "\u00eftem-12", "\U0001f525"])


@st.composite
def requests(draw: st.DrawFn) -> EngineRequest:
    price = st.none() | st.integers(0, 50_000_000)
    categories = st.sampled_from([("All",), ("All", "Group 1"), ("All", "Group 2"), ("None",)])
    return EngineRequest(
        history=draw(st.lists(identifiers, max_size=30)),
        n=draw(st.integers(1, 60)),
        time=draw(st.sampled_from([1, GONE - 1, GONE, NOW, FAR - 1, FAR])),
        scene=draw(st.sampled_from([None, "home", "cart"])),
        conditions=CatalogFilter(
            categories=tuple(draw(st.lists(categories, max_size=2))),
            brands=tuple(draw(st.lists(st.sampled_from(["Brand 1", "Brand 2", "Brand"]), max_size=2))),
            price_min_micros=draw(price),
            price_max_micros=draw(price),
        ),
        allow=draw(st.none() | st.lists(identifiers, max_size=30)),
        deny=draw(st.lists(identifiers, max_size=30)),
        exclude_seen=draw(st.booleans()),
    )


def naive_eligible(bundle: Bundle, request: EngineRequest) -> set[str]:
    """The definition, row by row."""
    conditions = request.conditions
    refused = {*request.deny, *(request.history if request.exclude_seen else ())}
    return {
        row["item_id"]
        for row in bundle.items.to_pylist()
        if row["item_id"] not in refused
        and (request.allow is None or row["item_id"] in request.allow)
        and (row["available_from"] or 0) <= request.time < (row["available_until"] or FAR + 1)
        and (not conditions.brands or row["brand"] in conditions.brands)
        and (
            not conditions.categories
            or any(tuple((row["category_path"] or [])[: len(path)]) == path for path in conditions.categories)
        )
        and (
            conditions.price_min_micros is None
            or (-1 if row["price_micros"] is None else row["price_micros"]) >= conditions.price_min_micros
        )
        and (
            conditions.price_max_micros is None
            or (-1 if row["price_micros"] is None else row["price_micros"]) in range(conditions.price_max_micros + 1)
        )
    }


@settings(max_examples=200)
@given(request=requests())
def test_slates_hold_distinct_eligible_items_as_many_as_there_are(
    recommender: BundleRecommender, served_bundle: Bundle, request: EngineRequest
) -> None:
    answer = recommender.recommend([request])[0]
    eligible = naive_eligible(served_bundle, request)
    assert answer.ineligible == 0
    assert set(ids(answer)) <= eligible
    assert len(set(ids(answer))) == len(answer.items) == min(request.n, len(eligible))
    assert answer.truncated == (len(eligible) < request.n)
    for source in set(sources(answer)):
        scores = [item.score for item in answer.items if item.source == source]
        assert scores == sorted(scores, reverse=True)
    known = [item for item in request.history if item in set(ITEMS)]
    assert answer.counts.history_unknown == len(request.history) - len(known)
    assert (answer.decoder is None) == (not known)


def test_the_last_look_takes_out_what_a_faulty_source_lets_through(served_bundle: Bundle) -> None:
    class Faulty:
        """Ranks a denied item, a seen one, one that is gone, and one twice."""

        name = "nezha"

        def decode(self, histories: Any, **rest: Any) -> DecodeResult:
            items, scores = np.array([40, 11, 2, 20, 20], np.int32), np.arange(5, 0, -1, dtype=np.float32)
            return DecodeResult([Ranked(items, scores)], Spent(1, 1))

    class Careless(BundleRecommender):
        def _plan(self, request: EngineRequest) -> Any:
            plan = super()._plan(request)
            plan.slate.shared, plan.slate.excluded = None, np.empty(0, np.int32)
            return plan

    faulty = Careless(served_bundle, Faulty(), beam=10)
    answer = ask(faulty, ["item-11"], n=5, deny=["item-40"])
    assert ids(answer) == ["item-20"]
    assert (answer.ineligible, answer.truncated, answer.served_by) == (4, True, ServedBy.NEZHA)


def test_an_answer_takes_little_time(recommender: BundleRecommender) -> None:
    ask(recommender, ["item-11"])
    started = time.perf_counter()
    for _ in range(20):
        ask(recommender, ["item-11"])
    assert (time.perf_counter() - started) / 20 < 0.1
