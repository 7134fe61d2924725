"""The whole way over HTTP, above an engine that does what a test says; every tier and every reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from feature_store.reading import Reading, Reason, missing
from recsys.bundle import Bundle
from recsys.catalog.changes import Delete
from recsys.catalog.log import CatalogLog
from recsys.errors import InputError, OverloadedError, UnavailableError
from recsys.event_log import read_exposures
from serving.app import create_app
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.histories import Histories
from serving.schemas import ServedBy
from serving.settings import Settings

KNOWN = ["item-11", "item-12", "item-13"]
MODEL = ["item-30", "item-31", "item-32", "item-33", "item-34"]


class FakeEngine:
    """Answers MODEL; `does` is awaited first and may raise, or take its time.

    Attributes:
        asked: the requests that came.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.versions: EngineVersions | None = EngineVersions(
            bundle.manifest.version, bundle.manifest.catalog_version, "nezha"
        )
        self.asked: list[EngineRequest] = []
        self.does: Callable[[], Awaitable[None]] = self.nothing

    async def nothing(self) -> None:
        """Be well."""

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        self.asked.append(request)
        await self.does()
        assert self.versions is not None
        items = [SlateItem(item, -float(place), "nezha", None) for place, item in enumerate(MODEL[: request.n])]
        counts = EngineCounts(len(request.history), 0, 0, 0)
        return EngineAnswer(items, ServedBy.NEZHA, "nezha", self.versions.bundle, self.versions.catalog, False, counts)


def raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def does() -> None:
        raise error

    return does


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def engine(served_bundle: Bundle) -> FakeEngine:
    return FakeEngine(served_bundle)


@pytest.fixture
def ladder_settings(server_settings: Settings) -> Settings:
    """A short deadline with much of it for the tables, and a breaker that does not open by itself."""
    times = {"deadline": timedelta(seconds=2), "fallback_reserve": timedelta(seconds=1)}  # a quarter of the first holds
    return server_settings.model_copy(update={**times, "breaker_failures": 1_000})


Started = Callable[..., TestClient]


@pytest.fixture
def started(ladder_settings: Settings, engine: FakeEngine) -> Iterator[Started]:
    """Starts the application with other settings."""
    clients = []

    def start(**other: Any) -> TestClient:
        client = TestClient(create_app(ladder_settings.model_copy(update=other), engine=engine))
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def ask(client: TestClient, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommend", json={"n": 5, **body}, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def shown(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def counted(client: TestClient, name: str) -> float:
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[-1]) if found else 0.0


def fallbacks(client: TestClient, tier: str, reason: str) -> float:
    return counted(client, f'windfire_fallback_total{{reason="{reason}",tier="{tier}"}}')


FAILURES = {
    "overloaded": raising(OverloadedError("too many requests wait for the model")),
    "unavailable": raising(UnavailableError("the engine went away before its answer")),
    "fault": raising(ValueError("secret")),
    "timeout": for_ever,
}


@pytest.mark.parametrize("reason", FAILURES)
def test_whatever_the_engine_does_there_is_an_answer_in_time(started: Started, engine: FakeEngine, reason: str) -> None:
    client = started()
    assert ask(client, history=KNOWN)["served_by"] == "nezha"
    engine.does = FAILURES[reason]
    near = ask(client, history=KNOWN)
    assert (near["served_by"], near["decoder"], len(near["items"])) == ("item_to_item", None, 5)
    assert ask(client, scene="home")["served_by"] == "popular_scene"
    assert ask(client, scene="nowhere")["served_by"] == "popular_memory"
    assert "secret" not in str(near)
    for tier in ("item_to_item", "popular_scene", "popular_memory"):
        assert fallbacks(client, tier, reason) == 1
    assert (
        counted(client, 'windfire_request_seconds_count{route="/v1/recommend",status="200",tier="item_to_item"}') == 1
    )
    assert counted(client, "windfire_ineligible_items_total") == 0


def test_a_request_that_cannot_travel_is_answered_all_the_same(started: Started, engine: FakeEngine) -> None:
    client = started(breaker_failures=1)
    engine.does = raising(InputError("too large to travel"))
    assert ask(client, history=KNOWN)["served_by"] == "item_to_item"
    engine.does = engine.nothing
    assert ask(client, history=KNOWN)["served_by"] == "nezha"  # which says nothing about the engine


def test_the_user_s_last_answer_comes_before_the_other_tiers(
    started: Started, engine: FakeEngine, server_settings: Settings
) -> None:
    client = started()
    assert shown(ask(client, user_id="ann", history=KNOWN)) == MODEL
    engine.does = FAILURES["overloaded"]
    again = ask(client, user_id="ann", history=KNOWN, n=7)
    assert (again["served_by"], shown(again)[:5], len(shown(again))) == ("cached", MODEL, 7)
    assert {item["source"] for item in again["items"][:5]} == {"cached"}
    assert ask(client, user_id="ann", history=KNOWN, scene="home")["served_by"] == "item_to_item"
    assert ask(client, user_id="bob", history=KNOWN)["served_by"] == "item_to_item"
    assert counted(client, "windfire_cache_answers") == 1
    with CatalogLog(server_settings.catalog_directory).writing() as writer:
        writer.append([Delete(item_id=MODEL[0], time=1)])
    filters = {"deny": [MODEL[1]]}
    later = ask(client, user_id="ann", history=[*KNOWN, MODEL[2]], filters=filters, n=2)
    assert (later["served_by"], shown(later)) == ("cached", MODEL[3:])
    assert later["catalog_version"].endswith(".1")


def test_the_exposure_log_says_the_tier(started: Started, engine: FakeEngine, ladder_settings: Settings) -> None:
    client = started(exposure_sync=True)
    ask(client, user_id="ann", history=KNOWN)
    engine.does = FAILURES["overloaded"]
    ask(client, user_id="ann", history=KNOWN)
    ask(client, scene="home")
    exposures = list(read_exposures(ladder_settings.state / "exposures"))
    assert [(each.served_by, set(each.sources)) for _, each in exposures] == [
        ("nezha", {"nezha"}), ("cached", {"cached"}), ("popular_scene", {"popular_scene"}),
    ]  # fmt: skip


def test_an_old_answer_is_not_shown_again(started: Started, engine: FakeEngine) -> None:
    client = started(cache_age=timedelta(microseconds=1))
    ask(client, user_id="ann", history=KNOWN)
    engine.does = FAILURES["overloaded"]
    assert ask(client, user_id="ann", history=KNOWN)["served_by"] == "item_to_item"


def test_a_forgotten_user_has_no_last_answer(started: Started, engine: FakeEngine) -> None:
    client = started()
    ask(client, user_id="ann", history=KNOWN)
    assert client.app_state["services"].ladder.forget("ann") == 1
    engine.does = FAILURES["overloaded"]
    assert ask(client, user_id="ann", history=KNOWN)["served_by"] == "item_to_item"


def test_the_same_question_is_answered_from_the_cache_only_where_that_is_wanted(
    started: Started, engine: FakeEngine, server_settings: Settings
) -> None:
    client = started(cache_fresh=timedelta(minutes=1))
    first, again = (ask(client, user_id="ann", history=KNOWN) for _ in range(2))
    assert (first["served_by"], again["served_by"], shown(again)) == ("nezha", "cached", MODEL)
    assert [item["score"] for item in again["items"]] == [item["score"] for item in first["items"]]
    assert fallbacks(client, "cached", "fresh") == 1
    for other in ({"n": 4}, {"history": KNOWN[:2]}, {"scene": "home"}, {"exclude_seen": False}):
        changed: dict[str, Any] = {"user_id": "ann", "history": KNOWN, **other}
        assert ask(client, None, **changed)["served_by"] == "nezha"
    ask(client, user_id="ann", history=KNOWN)
    asked = len(engine.asked)
    with CatalogLog(server_settings.catalog_directory).writing() as writer:
        writer.append([Delete(item_id=MODEL[1], time=1)])
    assert ask(client, user_id="ann", history=KNOWN)["served_by"] == "nezha"  # not all of it may be shown
    assert len(engine.asked) == asked + 1


def test_by_default_the_engine_is_asked_every_time(started: Started, engine: FakeEngine) -> None:
    client = started()
    assert [ask(client, user_id="ann", history=KNOWN)["served_by"] for _ in range(3)] == ["nezha"] * 3
    assert len(engine.asked) == 3


def test_an_engine_that_fails_again_and_again_is_left_alone_and_then_tried(
    started: Started, engine: FakeEngine
) -> None:
    client = started(breaker_failures=2, breaker_pause=timedelta(minutes=5))
    state = 'windfire_breaker_state{dependency="engine"}'
    assert counted(client, state) == 0
    engine.does = FAILURES["unavailable"]
    for _ in range(4):
        assert ask(client, history=KNOWN)["served_by"] == "item_to_item"
    assert (len(engine.asked), counted(client, state)) == (2, 2)
    assert fallbacks(client, "item_to_item", "breaker") == 2
    assert counted(client, 'windfire_skipped_calls_total{dependency="engine",reason="breaker"}') == 2
    assert client.post("/v1/similar", json={"item_id": "item-11"}).status_code == 503


def test_an_engine_that_is_back_is_found_by_one_probe(started: Started, engine: FakeEngine) -> None:
    client = started(breaker_failures=1, breaker_pause=timedelta(microseconds=1))
    engine.does = FAILURES["fault"]
    assert ask(client, history=KNOWN)["served_by"] == "item_to_item"
    engine.does = engine.nothing
    assert ask(client, history=KNOWN)["served_by"] == "nezha"
    assert counted(client, 'windfire_breaker_state{dependency="engine"}') == 0


def test_an_engine_that_has_too_much_to_do_is_no_reason_for_the_breaker(started: Started, engine: FakeEngine) -> None:
    client = started(breaker_failures=1)
    engine.does = FAILURES["overloaded"]
    for _ in range(3):
        ask(client, history=KNOWN)
    assert len(engine.asked) == 3
    assert counted(client, "windfire_engine_limit") < 32


def test_beyond_the_limit_of_the_engine_the_other_tiers_answer(started: Started, engine: FakeEngine) -> None:
    client = started(engine_calls=1, deadline=timedelta(seconds=20))
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await gate.wait()

    engine.does = wait
    ladder = client.app_state["services"].ladder

    async def scenario() -> tuple[str, str]:
        async def one() -> EngineAnswer:
            answer: EngineAnswer = await ladder.recommend(*wanted(20.0))
            return answer

        first = asyncio.create_task(one())
        await entered.wait()
        second = await one()
        gate.set()
        return (await first).served_by, second.served_by

    assert client.portal is not None
    assert client.portal.call(scenario) == ("nezha", "item_to_item")
    assert fallbacks(client, "item_to_item", "limit") == 1


def wanted(seconds: float) -> tuple[EngineRequest, Any]:
    from serving.ladder.deadline import Deadline

    now = time.monotonic()
    deadline = Deadline(now + seconds, now + seconds - 0.02, now)
    return EngineRequest(history=KNOWN, n=5, time=time.time_ns() // 1_000, deadline=deadline.engine), deadline


def test_beyond_the_hard_limit_there_is_a_503_with_retry_after(started: Started) -> None:
    client = started(request_limit=1)
    ladder = client.app_state["services"].ladder
    ladder._answering = 1
    response = client.post("/v1/recommend", json={})
    assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (503, "unavailable", "1")
    assert client.post("/v1/similar", json={"item_id": "item-11"}).status_code == 503
    assert counted(client, "windfire_requests_refused_total") == 2
    ladder._answering = 0
    assert ask(client)["items"]
    assert counted(client, "windfire_requests_answering") == 0


def test_without_any_bundle_the_engine_s_word_is_the_answer(
    started: Started, engine: FakeEngine, tmp_path: Path
) -> None:
    client = started(registry=tmp_path / "empty")
    engine.does = FAILURES["unavailable"]
    response = client.post("/v1/recommend", json={})
    assert (response.status_code, response.json()["message"]) == (503, "the engine went away before its answer")
    engine.does = FAILURES["fault"]
    assert client.post("/v1/recommend", json={}).status_code == 500


def test_the_lower_of_header_and_settings_is_the_deadline(started: Started, engine: FakeEngine) -> None:
    client = started(deadline=timedelta(seconds=100), fallback_reserve=timedelta(seconds=0.02))
    for wanted_ms, seconds in (("5000", 5.0), ("1000000000000000000000", 100.0), (None, 100.0)):
        before = time.monotonic()
        ask(client, {"X-Deadline-Ms": wanted_ms} if wanted_ms else {}, history=KNOWN)
        deadline = engine.asked[-1].deadline
        assert deadline is not None
        assert before + seconds - 0.02 <= deadline <= time.monotonic() + seconds - 0.02
    engine.does = for_ever
    began = time.monotonic()
    assert ask(client, {"X-Deadline-Ms": "80"}, history=KNOWN)["served_by"] in ("item_to_item", "popular_memory")
    assert time.monotonic() - began < 50
    assert client.post("/v1/similar", json={"item_id": "item-11"}, headers={"X-Deadline-Ms": "80"}).status_code == 503


def test_an_engine_without_its_minimum_of_time_is_not_asked(started: Started, engine: FakeEngine) -> None:
    client = started(engine_minimum=timedelta(seconds=2), deadline=timedelta(seconds=100))
    assert ask(client, {"X-Deadline-Ms": "1900"}, history=KNOWN)["served_by"] == "item_to_item"
    assert not engine.asked
    assert counted(client, 'windfire_skipped_calls_total{dependency="engine",reason="no_time"}') == 1
    assert ask(client, {"X-Deadline-Ms": "9000"}, history=KNOWN)["served_by"] == "nezha"


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/similar", "/v1/search"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "1e3", "1_0", "+5", "nan", " ", "٣"])
def test_a_malformed_deadline_is_named(started: Started, path: str, value: str) -> None:
    body = {"/v1/similar": {"item_id": "item-11"}, "/v1/search": {"text": "x"}}.get(path, {})
    response = started().post(path, json=body, headers={b"X-Deadline-Ms": value.encode()})
    assert response.status_code == 422, response.text
    error = response.json()
    assert (error["code"], error["field"], error["retryable"]) == ("malformed", "header.X-Deadline-Ms", False)


def test_tight_clients_say_nothing_about_the_engine(started: Started, engine: FakeEngine) -> None:
    client = started(breaker_failures=1, deadline=timedelta(seconds=100))
    engine.does = for_ever
    for _ in range(3):
        ask(client, {"X-Deadline-Ms": "60"}, history=KNOWN)
    assert len(engine.asked) == 3
    assert counted(client, "windfire_engine_limit") == 32


@pytest.fixture
def stalled_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Reads of histories end by their deadline; how long each was given. Emptied and ended by `None`."""
    given: list[float] = []
    original = Histories.of

    async def of(self: Histories, user_id: str, within: float = 1e9) -> Reading:
        given.append(min(self.deadline, within))
        return missing(Reason.DEADLINE)

    monkeypatch.setattr(Histories, "of", of)
    yield given
    monkeypatch.setattr(Histories, "of", original)


def test_a_store_that_stalls_is_skipped_after_a_few_reads(
    started: Started, engine: FakeEngine, stalled_store: list[float]
) -> None:
    client = started(breaker_failures=3, breaker_pause=timedelta(minutes=5))
    said = [ask(client, user_id="ann")["history_missing"] for _ in range(5)]
    assert said == ["deadline"] * 3 + ["unavailable"] * 2
    assert stalled_store == [0.05] * 3
    assert counted(client, 'windfire_breaker_state{dependency="history"}') == 2
    assert counted(client, 'windfire_skipped_calls_total{dependency="history",reason="breaker"}') == 2
    assert counted(client, 'windfire_breaker_state{dependency="engine"}') == 0


def test_a_read_gets_what_time_there_is_and_none_below_its_minimum(
    started: Started, stalled_store: list[float]
) -> None:
    client = started(
        breaker_failures=1, history_minimum=timedelta(milliseconds=10), history_deadline=timedelta(seconds=50),
        deadline=timedelta(seconds=100),
    )  # fmt: skip
    for wanted_ms in ("12", "4000"):
        assert ask(client, {"X-Deadline-Ms": wanted_ms}, user_id="ann")["history_missing"] == "deadline"
    (given,) = stalled_store
    assert 0 < given < 4
    assert counted(client, 'windfire_skipped_calls_total{dependency="history",reason="no_time"}') == 1
    assert counted(client, 'windfire_breaker_state{dependency="history"}') == 0  # it had less than its deadline


def test_a_user_whose_history_cannot_be_read_gets_the_last_answer(
    started: Started, engine: FakeEngine, stalled_store: list[float]
) -> None:
    client = started()
    ask(client, user_id="ann", history=KNOWN)
    asked = len(engine.asked)
    answer = ask(client, user_id="ann")
    assert (answer["served_by"], answer["history_missing"], shown(answer)) == ("cached", "deadline", MODEL)
    assert (len(engine.asked), fallbacks(client, "cached", "no_history")) == (asked, 1)
    assert ask(client, user_id="bob")["served_by"] == "nezha"  # has none: the engine is asked


def test_the_store_s_word_on_a_user_it_does_not_know_is_no_failure(started: Started) -> None:
    client = started(breaker_failures=1)
    said = [ask(client, user_id=f"user-{number}")["history_missing"] for number in range(3)]
    assert said == ["absent"] * 3


def has_tables(client: TestClient) -> bool:
    return client.app_state["services"].ladder._fallback.loaded is not None


def test_the_front_end_follows_the_engine_s_bundle(started: Started, engine: FakeEngine, served_bundle: Bundle) -> None:
    engine.versions = None
    client = started()
    assert not has_tables(client)
    engine.versions = EngineVersions(served_bundle.manifest.version, "x.0", "nezha")
    ends = time.monotonic() + 20
    while not has_tables(client):
        assert time.monotonic() < ends
        time.sleep(0.02)
    engine.versions = None
    answer = ask(client, history=KNOWN)
    assert (answer["served_by"], answer["bundle_version"]) == ("item_to_item", served_bundle.manifest.version)
    assert fallbacks(client, "item_to_item", "not_loaded") == 1
