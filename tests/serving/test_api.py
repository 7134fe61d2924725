from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

from recsys.catalog.index import MAX_ID_BYTES
from recsys.errors import UnavailableError
from recsys.event_log import read_exposures
from serving.app import create_app
from serving.engine import EngineAnswer, EngineRequest, EngineVersions
from serving.schemas import EventsAnswer, Readiness, RecommendAnswer
from serving.settings import Settings

KNOWN = ["item-11", "item-12", "item-13"]


@pytest.fixture
def no_engine() -> None:
    """In the place of an engine process."""


@pytest.fixture(params=["in process", "over a socket"])
def client(request: pytest.FixtureRequest, server_settings: Settings) -> Iterator[TestClient]:
    """The real application on the real tiny bundle, decoded here or by an engine process."""
    fixture = {"in process": "no_engine", "over a socket": "shared_engine"}[request.param]
    engine = request.getfixturevalue(fixture)
    settings = server_settings.model_copy(update={"engine_socket": engine and engine.socket})
    with TestClient(create_app(settings)) as client:
        yield client


def post(client: TestClient, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.headers["content-type"] == "application/json"
    assert len(response.headers["x-request-id"]) == 32
    body: dict[str, Any] = orjson.loads(response.content)
    return response.status_code, body


def recommend(client: TestClient, **body: Any) -> RecommendAnswer:
    status, answer = post(client, "/v1/recommend", orjson.dumps(body))
    assert status == 200, answer
    return RecommendAnswer.model_validate(answer)


def click(event_id: str, user_id: str, item_id: str, **rest: Any) -> dict[str, Any]:
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "action": "click", **rest}


def send(client: TestClient, *events: dict[str, Any]) -> EventsAnswer:
    status, answer = post(client, "/v1/events", orjson.dumps({"events": events}))
    assert status == 200, answer
    return EventsAnswer.model_validate(answer)


def test_an_inline_history_is_answered_with_titles_and_versions(client: TestClient) -> None:
    answer = recommend(client, history=[*KNOWN, "nobody"], n=5)
    assert (answer.served_by, answer.decoder, answer.truncated, answer.arms) == ("nezha", "nezha", False, {})
    assert answer.catalog_version == f"{answer.bundle_version}.0"
    assert [item.position for item in answer.items] == [0, 1, 2, 3, 4]
    assert {item.source for item in answer.items} == {"nezha"}
    assert all(item.title == f"Title {int(item.item_id[-2:])}" for item in answer.items)
    counts = answer.counts.model_dump()
    assert counts == {
        "requested": 5, "returned": 5, "history": 4, "history_unknown": 1, "history_cut": 0, "filter_unknown": 0,
    }  # fmt: skip


def test_an_item_without_a_title_carries_none(client: TestClient) -> None:
    _, answer = post(client, "/v1/recommend", orjson.dumps({"filters": {"allow": ["item-05"]}}))
    assert [sorted(item) for item in answer["items"]] == [["item_id", "position", "score", "source"]]


@pytest.mark.parametrize("body", [{}, {"user_id": "nobody"}, {"history": []}, {"user_id": "x", "history": ["?"]}])
def test_nobody_in_particular_gets_what_is_popular(client: TestClient, body: dict[str, Any]) -> None:
    assert recommend(client, **body, scene="home").served_by == "popular_scene"
    assert recommend(client, **body, scene="elsewhere").served_by == "popular_memory"
    assert recommend(client, **body).decoder is None


def test_n_beyond_the_catalogue_is_truncated(client: TestClient) -> None:
    answer = recommend(client, history=KNOWN, n=500)
    assert answer.truncated
    assert answer.counts.returned == len(answer.items) == 40


def test_filters_over_http(client: TestClient) -> None:
    filters = {"categories": [["All", "Group 1"]], "price_min_micros": 40_000_000, "deny": ["item-43", "?"]}
    answer = recommend(client, history=KNOWN, filters=filters)
    assert {item.item_id for item in answer.items} == {"item-40", "item-46"}
    assert answer.counts.filter_unknown == 1
    nothing = recommend(client, filters={"price_min_micros": 2, "price_max_micros": 1})
    assert (nothing.items, nothing.truncated) == ([], True)


def test_events_change_the_next_answer(client: TestClient) -> None:
    assert recommend(client, user_id="ann").served_by == "popular_scene"
    rows = [click(f"e{n}", "ann", item, time=1_000 + n) for n, item in enumerate(["item-20", "item-21"])]
    assert send(client, *rows).accepted == 2
    answer = recommend(client, user_id="ann", n=500)
    assert answer.served_by == "nezha"
    assert not {"item-20", "item-21"} & {item.item_id for item in answer.items}
    inline = recommend(client, history=["item-20", "item-21"], n=500)
    assert [item.item_id for item in inline.items] == [item.item_id for item in answer.items]


def test_an_inline_history_wins_over_the_stored_one(client: TestClient) -> None:
    send(client, click("e1", "ann", "item-20"))
    answer = recommend(client, user_id="ann", history=[])
    assert (answer.served_by, answer.history_source, answer.history_missing) == ("popular_scene", "request", None)


def test_an_answer_says_whose_history_it_follows(client: TestClient) -> None:
    send(client, click("e1", "ann", "item-20"))
    answers = [recommend(client, **body) for body in ({"user_id": "ann"}, {"user_id": "bob"}, {})]
    assert [(answer.history_source, answer.history_missing) for answer in answers] == [
        ("store", None), ("none", "absent"), ("none", None),
    ]  # fmt: skip
    text = client.get("/metrics").text
    assert 'windfire_feature_reads_total{reason="",status="PRESENT",view="user_recent:1"} 1.0' in text
    assert 'windfire_feature_reads_total{reason="absent",status="MISSING",view="user_recent:1"} 1.0' in text
    assert 'windfire_feature_age_seconds_count{view="user_recent:1"} 1.0' in text
    assert 'windfire_feature_age_seconds_bucket{le="60.0",view="user_recent:1"} 1.0' in text
    assert "windfire_histories_behind 0.0" in text


def test_what_is_no_positive_action_stays_out_of_the_history(client: TestClient) -> None:
    assert send(client, click("e1", "ann", "item-20") | {"action": "impression"}).accepted == 1
    assert recommend(client, user_id="ann").served_by == "popular_scene"


def test_events_are_idempotent_and_answered_row_by_row(client: TestClient) -> None:
    late = time.time_ns() // 1_000 + 3_600_000_000
    rows = [
        click("a", "ann", "item-20"),
        click("a", "ann", "item-21"),
        click("b", "ann", "never heard of", scene="home", value_micros=-5, position=3, attributes={"k": "v"}),
        click("c", "ann", "item-22", time=late),
    ]
    first = send(client, *rows)
    assert [result.status for result in first.results] == ["accepted", "duplicate", "accepted", "rejected"]
    assert first.results[3].reason == "time_in_future"
    again = send(client, *rows)
    assert (again.accepted, again.duplicate, again.rejected) == (0, 3, 1)
    history = recommend(client, user_id="ann").counts
    assert (history.history, history.history_unknown) == (2, 1)


def test_the_largest_row_fits_a_record(client: TestClient) -> None:
    wide = {f"{n:02d}".ljust(64, "\x01"): "\x01" * 256 for n in range(24)}
    ids = dict.fromkeys(("event_id", "user_id", "item_id", "request_id"), "\x01" * MAX_ID_BYTES)
    row = {**ids, "action": "\x01" * 64, "scene": "\x01" * 64, "attributes": wide, "value_micros": -(10**18)}
    assert send(client, row).accepted == 1


def test_the_longest_item_id_of_a_catalog_and_of_a_user_is_taken(client: TestClient) -> None:
    longest = "ü" * (MAX_ID_BYTES // 2)
    assert send(client, click("e1", "ü" * MAX_ID_BYTES, longest)).accepted == 1
    assert recommend(client, user_id="ü" * MAX_ID_BYTES).counts.history == 1


def test_a_restart_knows_events_and_histories(server_settings: Settings) -> None:
    with TestClient(create_app(server_settings)) as client:
        send(client, click("a", "ann", "item-20"), click("b", "bob", "item-21"))
    with TestClient(create_app(server_settings)) as client:
        assert recommend(client, user_id="ann").counts.history == 1
        assert send(client, click("a", "ann", "item-20")).duplicate == 1


def test_an_unfinished_end_of_a_log_is_told_at_the_start(
    server_settings: Settings, log_lines: list[MutableMapping[str, Any]]
) -> None:
    with TestClient(create_app(server_settings)) as client:
        send(client, click("a", "ann", "item-20"))
    (segment,) = (server_settings.state / "events").glob("*.log")
    with segment.open("ab") as file:
        file.write(b"1234567")
    with TestClient(create_app(server_settings)) as client:
        assert send(client, click("a", "ann", "item-20")).duplicate == 1
    (line,) = [line for line in log_lines if line["event"] == "log_end_cut"]
    assert (line["directory"], line["bytes"]) == (str(segment.parent), 7)


def test_histories_that_missed_events_catch_up_at_the_start(server_settings: Settings) -> None:
    with TestClient(create_app(server_settings)) as client:
        send(client, click("a", "ann", "item-20"), click("b", "ann", "item-21"))
    shutil.rmtree(server_settings.state / "features")
    (server_settings.state / "offsets" / "user_recent-1.json").unlink()
    with TestClient(create_app(server_settings)) as client:
        assert recommend(client, user_id="ann").counts.history == 2


@pytest.mark.parametrize("sync", [True, False])
def test_every_answer_is_an_exposure_joinable_by_request_id(server_settings: Settings, sync: bool) -> None:
    settings = server_settings.model_copy(update={"exposure_sync": sync})
    with TestClient(create_app(settings)) as client:
        answers = [
            recommend(client, user_id="ann", history=KNOWN, scene="home"),
            recommend(client, n=3),
            recommend(client, filters={"allow": []}),
        ]
    exposures = [exposure for _, exposure in read_exposures(settings.state / "exposures")]
    assert [exposure.request_id for exposure in exposures] == [answer.request_id for answer in answers]
    for exposure, answer in zip(exposures, answers, strict=True):
        assert list(exposure.items) == [item.item_id for item in answer.items]
        assert list(exposure.positions) == [item.position for item in answer.items]
        assert list(exposure.scores) == [item.score for item in answer.items]
        assert list(exposure.sources) == [item.source for item in answer.items]
        assert list(exposure.propensities) == [1.0] * len(answer.items)
        assert exposure.served_by == answer.served_by
        assert exposure.bundle_version == answer.bundle_version
        assert exposure.catalog_version == answer.catalog_version
    assert (exposures[0].user_id, exposures[0].scene, exposures[0].decoder) == ("ann", "home", "nezha")


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    readiness = Readiness.model_validate(client.get("/readyz").json())
    assert (readiness.ready, readiness.reasons, readiness.warnings, readiness.decoder) == (True, [], [], "nezha")
    answer = recommend(client, history=KNOWN)
    assert (readiness.bundle_version, readiness.catalog_version) == (answer.bundle_version, answer.catalog_version)
    client.get("/nowhere/4711")
    text = client.get("/metrics").text
    assert 'windfire_request_seconds_count{route="/v1/recommend",status="200",tier="nezha"} 1.0' in text
    assert 'windfire_request_seconds_count{route="unmatched",status="404",tier=""} 1.0' in text
    assert "windfire_ineligible_items_total 0.0" in text
    assert "4711" not in text


def test_two_applications_do_not_share_counters(server_settings: Settings, tmp_path: Path) -> None:
    other = server_settings.model_copy(update={"state": tmp_path / "other"})
    with TestClient(create_app(server_settings)) as one, TestClient(create_app(other)) as two:
        recommend(one, history=KNOWN)
        assert 'route="/v1/recommend"' not in two.get("/metrics").text


def test_a_deadline_that_leaves_no_time_for_the_model_is_answered_without_it(server_settings: Settings) -> None:
    hasty = server_settings.model_copy(update={"deadline": timedelta(microseconds=1)})
    with TestClient(create_app(hasty)) as client:
        answer = recommend(client, history=KNOWN)
        assert (answer.served_by, answer.decoder, len(answer.items)) == ("popular_memory", None, 10)
        metrics = client.get("/metrics").text
        assert 'windfire_fallback_total{reason="no_time",tier="popular_memory"} 1.0' in metrics
        assert 'windfire_skipped_calls_total{dependency="engine",reason="no_time"} 1.0' in metrics
        status, body = post(client, "/v1/similar", orjson.dumps({"item_id": "item-11"}))
        assert (status, body["code"], body["retryable"]) == (503, "unavailable", True)
        assert "deadline" in body["message"]


def test_a_second_server_on_the_same_state_is_refused(client: TestClient, server_settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="another writer"), TestClient(create_app(server_settings)):
        pass
    assert recommend(client, user_id="ann").served_by == "popular_scene"


def test_a_disk_that_refuses_is_a_503_without_internals(
    server_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(create_app(server_settings)) as client:

        def fail(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("recsys.event_log.segment_log._write", fail)
            status, body = post(client, "/v1/events", orjson.dumps({"events": [click("e", "ann", "item-20")]}))
        assert (status, body["code"], body["retryable"]) == (503, "unavailable", True)
        assert str(server_settings.state) not in body["message"]
        assert send(client, click("e", "ann", "item-20")).accepted == 1


def test_a_log_that_takes_nothing_more_is_a_warning_of_readiness(
    server_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(create_app(server_settings)) as client:

        def fail(_: Any) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("recsys.event_log.segment_log.SegmentLog._flush_or_take_back", fail)
            rows = orjson.dumps({"events": [click("e", "ann", "item-20")]})
            assert post(client, "/v1/events", rows)[0] == 503
        readiness = Readiness.model_validate(client.get("/readyz").json())
        assert readiness.ready, "recommendations are answered"
        assert [warning.partition(":")[0] for warning in readiness.warnings] == ["event_log_failed"]


def test_a_synchronous_exposure_does_not_wait_for_others(server_settings: Settings) -> None:
    settings = server_settings.model_copy(update={"exposure_sync": True, "exposure_flush": timedelta(minutes=1)})
    with TestClient(create_app(settings)) as client:
        started = time.monotonic()
        recommend(client)
        assert time.monotonic() - started < 30


class FaultyEngine:
    """Fails with what no answer may show."""

    versions: EngineVersions | None = None

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        raise ValueError("secret /internal/path")


def test_a_fault_is_a_500_without_internals(
    server_settings: Settings, log_lines: list[MutableMapping[str, Any]]
) -> None:
    with TestClient(create_app(server_settings, engine=FaultyEngine())) as client:
        status, body = post(client, "/v1/recommend", b"{}")
        assert (status, body["code"], body["retryable"]) == (500, "internal", False)
        assert "secret" not in orjson.dumps(body).decode()
        assert 'route="/v1/recommend",status="500"' in client.get("/metrics").text
    (line,) = [line for line in log_lines if line["event"] == "request_failed"]
    assert line["route"] == "/v1/recommend"
