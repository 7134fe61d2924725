from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import CatalogFilter
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.ladder.cache import LARGEST, AnswerCache
from serving.schemas import ServedBy

VERSIONS = EngineVersions("b1", "b1.7", "nezha")
ASKED = EngineRequest(history=["i1", "i2"], n=2, time=1, scene="home", deny=["i9"])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answer(*items: str) -> EngineAnswer:
    listed = [SlateItem(item, -1.0 - place, "nezha", None) for place, item in enumerate(items)]
    return EngineAnswer(listed, ServedBy.NEZHA, "nezha", "b1", "b1.7", False, EngineCounts(0, 0, 0, 0))


def keep(cache: AnswerCache, user: str, *items: str, scene: str | None = None, asked: float = 100.0) -> None:
    cache.put(user, scene, answer(*items), None, asked)


def shown(cache: AnswerCache, user: str, scene: str | None = None) -> list[str] | None:
    items = cache.last(user, scene)
    return None if items is None else [item.item_id for item in items]


def test_the_last_answer_of_a_user_in_a_scene_is_kept(clock: Clock) -> None:
    cache = AnswerCache(most=9, age=60.0, clock=clock)
    keep(cache, "ann", "i1", "i2")
    keep(cache, "ann", "i3", scene="cart")
    keep(cache, "ann", "i4", "i1")
    keep(cache, "bob", "i5")
    assert (shown(cache, "ann"), shown(cache, "ann", "cart"), shown(cache, "bob")) == (["i4", "i1"], ["i3"], ["i5"])
    assert (shown(cache, "bob", "cart"), shown(cache, "eve"), len(cache)) == (None, None, 3)
    assert cache.last("bob", None) == answer("i5").items


def test_an_old_answer_is_gone(clock: Clock) -> None:
    cache = AnswerCache(most=9, age=60.0, clock=clock)
    keep(cache, "ann", "i1")
    clock.now += 60.0
    assert shown(cache, "ann") == ["i1"]
    clock.now += 0.1
    assert (shown(cache, "ann"), len(cache)) == (None, 0)


def test_nothing_is_kept_where_nothing_may_be(clock: Clock) -> None:
    cache = AnswerCache(most=0, age=60.0, fresh=5.0, clock=clock)
    keep(cache, "ann", "i1")
    assert (len(cache), cache.answers_again) == (0, False)


def test_an_answer_that_is_too_large_is_not_kept(clock: Clock) -> None:
    cache = AnswerCache(most=9, age=60.0, clock=clock)
    keep(cache, "ann", *[f"item-{n:0200}" for n in range(LARGEST // 200)])
    assert len(cache) == 0


def test_a_forgotten_user_has_nothing_and_gets_nothing_from_before(clock: Clock) -> None:
    cache = AnswerCache(most=9, age=60.0, clock=clock)
    for user, scene in (("ann", None), ("ann", "cart"), ("bob", None)):
        keep(cache, user, "i1", scene=scene)
    clock.now += 1
    assert (cache.forget("ann"), cache.forget("eve")) == (2, 0)
    assert (shown(cache, "ann"), shown(cache, "ann", "cart"), shown(cache, "bob")) == (None, None, ["i1"])
    keep(cache, "ann", "i2", asked=100.5)  # was under way meanwhile
    assert shown(cache, "ann") is None
    keep(cache, "ann", "i3", asked=101.5)
    assert shown(cache, "ann") == ["i3"]


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, history=["i1"]),
        replace(ASKED, history=["i2", "i1"]),
        replace(ASKED, n=3),
        replace(ASKED, scene="cart"),
        replace(ASKED, allow=[]),
        replace(ASKED, deny=[]),
        replace(ASKED, exclude_seen=False),
        replace(ASKED, conditions=CatalogFilter(brands=("A",))),
        replace(ASKED, conditions=CatalogFilter(categories=(("A",),))),
        replace(ASKED, conditions=CatalogFilter(price_max_micros=1)),
    ],
)
def test_only_the_same_question_has_the_same_answer(clock: Clock, other: EngineRequest) -> None:
    cache = AnswerCache(most=9, age=60.0, fresh=5.0, clock=clock)
    cache.put("ann", "home", answer("i3"), cache.fingerprint(ASKED, VERSIONS), 100.0)
    assert cache.again("ann", "home", cache.fingerprint(other, VERSIONS)) is None
    same = replace(ASKED, time=2, deadline=3.0, small=True)
    assert cache.again("ann", "home", cache.fingerprint(same, VERSIONS)) == answer("i3").items


def test_another_bundle_catalogue_user_or_moment_is_another_question(clock: Clock) -> None:
    cache = AnswerCache(most=9, age=60.0, fresh=5.0, clock=clock)
    cache.put("ann", "home", answer("i3"), cache.fingerprint(ASKED, VERSIONS), 100.0)
    for versions in (EngineVersions("b2", "b1.7", "nezha"), EngineVersions("b1", "b1.8", "nezha")):
        assert cache.again("ann", "home", cache.fingerprint(ASKED, versions)) is None
    same = cache.fingerprint(ASKED, VERSIONS)
    assert cache.again("bob", "home", same) is None
    assert cache.again("ann", "home", same) is not None
    clock.now += 5.1
    assert cache.again("ann", "home", same) is None
    assert cache.last("ann", "home") is not None


@given(
    st.lists(st.tuples(st.sampled_from("pgf"), st.sampled_from("abc"), st.sampled_from(["x", "y", None])), max_size=40),
    st.integers(1, 4),
)
def test_it_is_a_dictionary_of_the_most_recently_used(steps: list[tuple[str, str, str | None]], most: int) -> None:
    cache, model = AnswerCache(most=most, age=60.0, clock=Clock()), OrderedDict[tuple[str, str | None], str]()

    def put(user: str, scene: str | None, number: int) -> None:
        keep(cache, user, str(number), scene=scene, asked=200.0)
        model[user, scene] = str(number)
        model.move_to_end((user, scene))
        list(map(model.pop, list(model)[: max(0, len(model) - most)]))

    def get(user: str, scene: str | None, _: int) -> None:
        held = model.get((user, scene))
        assert shown(cache, user, scene) == (None if held is None else [held])
        list(map(model.move_to_end, [(user, scene)] * (held is not None)))

    def forget(user: str, _: str | None, __: int) -> None:
        gone = [key for key in model if key[0] == user]
        assert cache.forget(user) == len(gone)
        list(map(model.pop, gone))

    for number, (what, user, scene) in enumerate(steps):
        {"p": put, "g": get, "f": forget}[what](user, scene, number)
        assert len(cache) == len(model) <= most
