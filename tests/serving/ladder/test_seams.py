"""What an answer without the engine owes to the parts around the ladder: arms, time, pages, one catalogue, erasure."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feature_store.reading import Reading, Reason, missing
from recsys.bundle import Bundle, Registry
from recsys.bundle.pointers import Share
from recsys.catalog.changes import Delete, Expire
from recsys.catalog.log import CatalogLog
from recsys.errors import OverloadedError
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.ladder.deadline import Deadline
from serving.ladder.door import Door
from serving.ladder.fallback import Fallback, Loaded, load_tables
from serving.ladder.ladder import Ladder
from serving.ladder.metrics import LadderMetrics
from serving.layout import Layout
from serving.schemas import ServedBy
from serving.settings import Settings
from serving.worker_values import Registry as MetricRegistry

NOW = 2_000_000
KNOWN = ["item-11", "item-12", "item-13"]
MODEL = ["item-30", "item-31", "item-32"]
CANARY = Share("the-next", 0.5, "salt")
IN_IT = next(f"user-{n}" for n in range(100) if CANARY.takes(f"user-{n}"))
OUT_OF_IT = next(f"user-{n}" for n in range(100) if not CANARY.takes(f"user-{n}"))


class Engine:
    """Answers MODEL, or raises `fails`; a canary runs."""

    def __init__(self, bundle: Bundle) -> None:
        version = bundle.manifest.version
        self.versions: EngineVersions | None = EngineVersions(
            version, f"{version}.0", "nezha", CANARY.version, canary_share=CANARY
        )
        self.fails: Exception | None = None
        self.stalls = False
        self.asked = 0

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        self.asked += 1
        if self.stalls:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        items = [SlateItem(item, -float(place), "nezha", None) for place, item in enumerate(MODEL[: request.n])]
        counts = EngineCounts(len(request.history), 0, 0, 0)
        arms = {"bundle": "from-the-engine"}
        return EngineAnswer(items, ServedBy.NEZHA, "nezha", "b", "b.0", False, counts, arms=arms)


class NoHistories:
    """Of nobody."""

    deadline = 1.0

    async def of(self, user_id: str, within: float = 1.0) -> Reading:
        return missing(Reason.ABSENT)


@pytest.fixture
def log(tmp_path: Path) -> CatalogLog:
    return CatalogLog(tmp_path / "catalog_log")


@pytest.fixture
def tables(served_registry: Registry, tmp_path: Path, log: CatalogLog) -> Loaded:
    version = served_registry.current()
    assert version is not None
    return load_tables(served_registry, version, markers=tmp_path / "verified", log=log)


@pytest.fixture
def engine(served_bundle: Bundle) -> Engine:
    return Engine(served_bundle)


@pytest.fixture
def ladder(server_settings: Settings, engine: Engine, tables: Loaded) -> Iterator[Ladder]:
    fallback = Fallback(minimum=0.0)
    fallback.swap(tables)
    settings = server_settings.model_copy(update={"cache_fresh": timedelta(minutes=5), "breaker_failures": 1_000})
    yield Ladder(settings, LadderMetrics(MetricRegistry()), engine, NoHistories(), fallback)
    fallback.close()


def asked(n: int = 3, **rest: Any) -> EngineRequest:
    return EngineRequest(history=KNOWN, n=n, time=NOW, **rest)


def answered(ladder: Ladder, user: str | None, *, waited: float = 0.0, n: int = 3) -> EngineAnswer:
    now = time.monotonic()
    deadline = Deadline(now + 60, now + 59, now - waited)
    request = replace(asked(n), deadline=deadline.engine, unit=user or "a-request")
    return asyncio.run(ladder.recommend(request, deadline, user_id=user))


def test_the_assigned_arm_is_named_whatever_tier_answers(ladder: Ladder, engine: Engine) -> None:
    engine.fails = OverloadedError("too many")
    assert answered(ladder, IN_IT).arms == {"bundle": "canary"}
    assert answered(ladder, OUT_OF_IT).arms == {"bundle": "control"}
    before, engine.versions = engine.versions, None  # the engine has gone: as it was
    assert answered(ladder, IN_IT).arms == {"bundle": "canary"}
    assert before is not None
    engine.versions = msgspec.structs.replace(before, canary=None, canary_share=None)
    assert answered(ladder, IN_IT).arms == {}


def test_an_answer_given_again_names_the_arm_and_belongs_to_one_canary(ladder: Ladder, engine: Engine) -> None:
    first, again = answered(ladder, IN_IT), answered(ladder, IN_IT)
    assert (first.served_by, again.served_by, again.arms) == ("nezha", "cached", {"bundle": "canary"})
    assert engine.versions is not None
    engine.versions = msgspec.structs.replace(engine.versions, canary_share=replace(CANARY, salt="another"))
    assert (answered(ladder, IN_IT).served_by, engine.asked) == ("nezha", 2)


def test_what_ended_while_the_engine_was_waited_for_is_not_shown(
    ladder: Ladder, engine: Engine, log: CatalogLog
) -> None:
    answered(ladder, "ann")
    engine.fails = OverloadedError("too many")
    with log.writing() as writer:
        writer.append([Expire(item_id=MODEL[0], time=1, until=NOW + 1_000_000)])
    assert [item.item_id for item in answered(ladder, "ann", n=2).items] == MODEL[:2]
    assert [item.item_id for item in answered(ladder, "ann", n=2, waited=1.5).items] == MODEL[1:]


def test_nothing_is_kept_of_a_history_that_was_read_before_its_user_was_forgotten(ladder: Ladder) -> None:
    began = time.monotonic()
    ladder.forget("ann")  # while the history was read
    deadline = Deadline(began + 60, began + 59, began)
    request = replace(asked(), deadline=deadline.engine)
    assert asyncio.run(ladder.recommend(request, deadline, user_id="ann")).served_by == "nezha"
    assert len(ladder.cache) == 0


class Rush(Door):
    """More come than can be answered."""

    standing = True


@pytest.fixture
def rushed(server_settings: Settings, engine: Engine, tables: Loaded) -> Iterator[Ladder]:
    """In a rush; two failures open the breaker, half a second is a fair deadline."""
    fallback = Fallback(minimum=0.0)
    fallback.swap(tables)
    settings = server_settings.model_copy(update={"breaker_failures": 2, "deadline": timedelta(seconds=0.1)})
    yield Ladder(settings, LadderMetrics(MetricRegistry()), engine, NoHistories(), fallback, Rush(0.1))
    fallback.close()


def test_in_a_rush_the_tables_are_not_asked(ladder: Ladder, rushed: Ladder, engine: Engine) -> None:
    assert answered(rushed, None).served_by == "nezha"
    engine.fails = OverloadedError("too many")
    assert answered(ladder, None).served_by == "item_to_item"
    assert answered(rushed, None).served_by == "popular_memory"


def test_in_a_rush_an_answer_that_nobody_had_time_to_read_is_no_failure(rushed: Ladder, engine: Engine) -> None:
    engine.stalls = True
    for _ in range(3):
        now = time.monotonic()
        deadline = Deadline(now + 60, now + 0.06, now)
        request = replace(asked(), deadline=deadline.engine)
        assert asyncio.run(rushed.recommend(request, deadline)).served_by == "popular_memory"
    assert engine.asked == 3


def test_the_memory_s_rows_are_made_beforehand(tables: Loaded) -> None:
    first, again = tables.memory.answer(asked(20)).items, tables.memory.answer(asked(20)).items
    assert [id(item) for item in first] == [id(item) for item in again]


def test_the_memory_has_pages(tables: Loaded) -> None:
    every = [item.item_id for item in tables.memory.answer(asked(48)).items]
    shown: list[str] = []
    more = True
    while more:
        page = tables.memory.answer(asked(10, shown=tuple(shown)))
        shown += [item.item_id for item in page.items]
        more = page.more
    assert shown == every
    assert len(shown) > 10


@pytest.mark.parametrize("layout", [Layout(1), Layout(None, 2, 1), Layout(2, 3, 1), Layout(1, 1, 1)])
@pytest.mark.parametrize("n", [2, 48])
def test_the_memory_takes_every_item_that_the_caps_let_in(
    tables: Loaded, served_bundle: Bundle, layout: Layout, n: int
) -> None:
    rows = {row["item_id"]: row for row in served_bundle.items.to_pylist()}
    answer = tables.memory.answer(asked(n, layout=layout))
    brands: Counter[str | None] = Counter({None: -1_000})
    categories: Counter[str] = Counter({"": -1_000})
    chosen = []
    for item in tables.memory.answer(asked(48)).items:
        row = rows[item.item_id]
        brand, category = row["brand"], "".join((row["category_path"] or [])[: layout.category_depth])
        fits = brands[brand] < (layout.brand_cap or 99) and categories[category] < (layout.category_cap or 99)
        chosen += [item.item_id] * fits
        brands[brand] += fits
        categories[category] += fits
    assert [item.item_id for item in answer.items] == chosen[:n]
    assert answer.truncated == (len(chosen) < n)
    assert answer.more  # what was passed over stands on the next page


class Hook(list[str]):
    """Ids; `happens` is called when they are read."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self.happens = happens

    def __iter__(self) -> Iterator[str]:
        self.happens()
        return super().__iter__()


def test_an_answer_from_memory_holds_one_catalogue(tables: Loaded, log: CatalogLog) -> None:
    def change() -> None:
        with log.writing() as writer:
            writer.append([Delete(item_id=best, time=1)])
        tables.follow()

    before = tables.memory.answer(asked())
    best = before.items[0].item_id
    meanwhile = tables.memory.answer(asked(deny=Hook(change)))
    assert (meanwhile.items, meanwhile.catalog_version) == (before.items, before.catalog_version)
    after = tables.memory.answer(asked())
    assert best not in [item.item_id for item in after.items]
    assert after.catalog_version == f"{before.bundle_version}.1"
