"""POST /v1/similar and /v1/search on the real application, decoded here or by an engine process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from recsys.bundle import Bundle, Registry, publish_run
from recsys.catalog import CatalogFilter
from recsys.event_log import read_exposures
from serving.app import create_app
from serving.engine import EngineRequest, Seek
from serving.schemas import FoundAnswer
from serving.settings import Settings
from serving.stages import BundleRecommender

NOW = 2_000_000_000_000_000
ITEMS = [f"item-{n:02d}" for n in range(48)]
GONE = {*ITEMS[:5]}  # see `served_work`


@pytest.fixture
def no_engine() -> None:
    """In the place of an engine process."""


@pytest.fixture(params=["in process", "over a socket"])
def client(request: pytest.FixtureRequest, server_settings: Settings) -> Iterator[TestClient]:
    fixture = {"in process": "no_engine", "over a socket": "shared_engine"}[request.param]
    engine = request.getfixturevalue(fixture)
    settings = server_settings.model_copy(update={"engine_socket": engine and engine.socket})
    with TestClient(create_app(settings)) as client:
        yield client


def ask(client: TestClient, path: str, **body: Any) -> FoundAnswer:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    answer = FoundAnswer.model_validate(orjson.loads(response.content))
    assert response.headers["x-request-id"] == answer.request_id
    return answer


def refused(client: TestClient, path: str, **body: Any) -> tuple[int, str, str | None]:
    response = client.post(f"/v1/{path}", json=body)
    error = response.json()
    return response.status_code, error["code"], error.get("field")


def ids(answer: FoundAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


def nearest(vectors: Any, query: Any, hidden: set[str]) -> list[str]:
    """All items that may be shown, by brute force."""
    scores = {ITEMS[row]: float(vectors[row] @ query) / np.linalg.norm(vectors[row]) for row in range(48)}
    return sorted((item for item in ITEMS if item not in hidden), key=lambda item: -round(scores[item], 6))


def test_similar_items_by_brute_force(client: TestClient, served_bundle: Bundle) -> None:
    answer = ask(client, "similar", item_id="item-20", n=8)
    vectors = served_bundle.collaborative
    assert ids(answer) == nearest(vectors, vectors[20], GONE | {"item-20"})[:8]
    assert (answer.served_by, answer.truncated) == ("index", False)
    assert {item.source for item in answer.items} == {"collaborative"}
    assert [item.position for item in answer.items] == list(range(8))
    assert answer.items[0].title == f"Title {int(answer.items[0].item_id[-2:])}"
    assert answer.catalog_version == f"{answer.bundle_version}.0"
    assert answer.counts.model_dump() == {"requested": 8, "returned": 8, "filter_unknown": 0}


def test_the_vectors_can_be_chosen(client: TestClient) -> None:
    answer = ask(client, "similar", item_id="item-20", n=3, vectors="text")
    assert {item.source for item in answer.items} == {"text"}
    assert refused(client, "similar", item_id="item-20", vectors="given") == (501, "not_in_bundle", None)
    assert refused(client, "similar", item_id="item-20", vectors="colour") == (422, "malformed", "body.vectors")


def test_an_item_that_is_gone_still_has_neighbours(client: TestClient) -> None:
    assert not GONE & set(ids(ask(client, "similar", item_id="item-00", n=48)))


def test_an_item_without_such_a_vector_has_no_neighbours(client: TestClient) -> None:
    answer = ask(client, "similar", item_id="item-05", vectors="text")
    assert (answer.items, answer.truncated, answer.counts.returned) == ([], True, 0)
    assert ask(client, "similar", item_id="item-05").items


@pytest.mark.parametrize("item", ["nobody", "item-2", "item-20x"])
def test_an_unknown_item_is_named(client: TestClient, item: str) -> None:
    assert refused(client, "similar", item_id=item) == (404, "unknown_item", "body.item_id")


def test_a_text_finds_the_items_that_have_its_words(client: TestClient) -> None:
    answer = ask(client, "search", text="title 23", n=3)
    assert answer.items[0].item_id == "item-23"
    assert {item.source for item in answer.items} == {"text"}
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[0] <= 1
    assert ids(ask(client, "search", text="Title 23", n=3)) == ids(answer)


def test_filters_hold_in_the_search(client: TestClient) -> None:
    filters = {"categories": [["All", "Group 1"]], "price_min_micros": 40_000_000, "deny": ["item-43", "?"]}
    for answer in (
        ask(client, "search", text="Title", n=10, filters=filters),
        ask(client, "similar", item_id="item-20", n=10, filters=filters),
    ):
        assert set(ids(answer)) == {"item-40", "item-46"}
        assert (answer.truncated, answer.counts.filter_unknown) == (True, 1)
    assert ids(ask(client, "search", text="Title", filters={"allow": ["item-02", "item-07"]})) == ["item-07"]
    assert ask(client, "similar", item_id="item-20", filters={"allow": []}).items == []


@pytest.mark.parametrize("text", ["", "   ", None, 3, "x" * 1_001])
def test_an_empty_or_oversized_text_is_malformed(client: TestClient, text: Any) -> None:
    assert refused(client, "search", text=text) == (422, "malformed", "body.text")


def test_a_text_without_a_word_finds_nothing(client: TestClient) -> None:
    assert ask(client, "search", text="?!").items == []


def test_a_request_for_everything_is_truncated(client: TestClient) -> None:
    answer = ask(client, "search", text="Brand 3", n=500)
    assert set(ids(answer)) == set(ITEMS[6:])  # item 5 has no text
    assert answer.truncated


def test_answers_are_exposed_and_counted(server_settings: Settings) -> None:
    with TestClient(create_app(server_settings)) as client:
        answers = [ask(client, "similar", item_id="item-20", n=3), ask(client, "search", text="title", n=2)]
        assert refused(client, "similar", item_id="nobody")[0] == 404
        figures = client.get("/metrics").text
    assert 'windfire_request_seconds_count{route="/v1/similar",status="200",tier="index"} 1.0' in figures
    assert 'windfire_request_seconds_count{route="/v1/similar",status="404",tier="index"} 1.0' in figures
    assert 'windfire_items_total{source="collaborative"} 3.0' in figures
    assert "windfire_ineligible_items_total 0.0" in figures
    exposures = [exposure for _, exposure in read_exposures(server_settings.state / "exposures")]
    assert [exposure.request_id for exposure in exposures] == [answer.request_id for answer in answers]
    assert [list(exposure.items) for exposure in exposures] == [ids(answer) for answer in answers]
    assert {(exposure.served_by, exposure.decoder, exposure.user_id) for exposure in exposures} == {
        ("index", None, None)
    }


def test_a_bundle_without_indexes_says_so(tiny_work: Path, tiny_run: Path, server_settings: Settings) -> None:
    registry = Registry(server_settings.state.parent / "bare")
    publish_run(registry, run=tiny_run, work=tiny_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    with TestClient(create_app(server_settings.model_copy(update={"registry": registry.root}))) as client:
        assert client.get("/readyz").status_code == 200
        assert refused(client, "similar", item_id="item-20") == (501, "not_in_bundle", None)
        assert refused(client, "search", text="title") == (501, "not_in_bundle", None)
        assert client.post("/v1/recommend", json={"history": ["item-20"]}).status_code == 200


@pytest.mark.parametrize(("off", "similar"), [("retrieval", 501), ("search", 200)])
def test_settings_leave_the_indexes_or_the_encoder_out(server_settings: Settings, off: str, similar: int) -> None:
    with TestClient(create_app(server_settings.model_copy(update={off: False}))) as client:
        assert client.post("/v1/similar", json={"item_id": "item-20"}).status_code == similar
        response = client.post("/v1/search", json={"text": "title"})
        assert (response.status_code, response.json()["retryable"]) == (501, False)


def test_every_error_is_in_the_openapi_document(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    both = {"200", "401", "403", "413", "422", "429", "500", "501", "503"}
    assert set(paths["/v1/similar"]["post"]["responses"]) == both | {"404"}
    assert set(paths["/v1/search"]["post"]["responses"]) == both


seeks = st.builds(Seek, item_id=st.sampled_from(ITEMS)) | st.builds(
    Seek, text=st.sampled_from(["title 7", "group 2", "brand 1"])
)
groups = st.lists(st.sampled_from([("All", f"Group {n}") for n in range(4)]), max_size=2)
price = st.none() | st.integers(0, 50_000_000)


@settings(max_examples=150)
@given(
    seek=seeks,
    n=st.integers(1, 60),
    groups=groups,
    low=price,
    high=price,
    allow=st.none() | st.lists(st.sampled_from(ITEMS), max_size=30),
    deny=st.lists(st.sampled_from(ITEMS), max_size=30),
)
def test_any_question_is_answered_as_brute_force_does(
    recommender: BundleRecommender, served_bundle: Bundle, seek: Seek, n: int, groups: Any, low: Any, high: Any,
    allow: list[str] | None, deny: list[str],
) -> None:  # fmt: skip
    conditions = CatalogFilter(categories=tuple(groups), price_min_micros=low, price_max_micros=high)
    request = EngineRequest((), n, NOW, conditions=conditions, allow=allow, deny=deny, seek=seek)
    (answer,) = recommender.recommend([request])
    mask = served_bundle.catalog.eligible(conditions, NOW)
    may = {item for row, item in enumerate(ITEMS) if mask is None or mask[row]}
    may -= {*deny, seek.item_id or "", *([] if seek.item_id else ["item-05"])}  # item 5 has no text
    may &= set(ITEMS if allow is None else allow)
    assert (answer.ineligible, answer.refusal) == (0, None)
    found = [item.item_id for item in answer.items]
    assert len(found) == min(n, len(may))
    assert set(found) <= may
    assert answer.truncated == (len(found) < n)


def test_a_batch_answers_like_single_requests(recommender: BundleRecommender) -> None:
    requests = [
        EngineRequest([], 5, NOW, seek=Seek(item_id="item-20")),
        EngineRequest(["item-20"], 5, NOW),
        EngineRequest([], 5, NOW, seek=Seek(item_id="nobody")),
        EngineRequest([], 5, NOW, seek=Seek(text="title 9")),
    ]
    together = recommender.recommend(requests)
    assert [answer.refusal for answer in together] == [None, None, "unknown_item", None]
    singles = [recommender.recommend([request])[0] for request in requests]
    assert [[item.item_id for item in answer.items] for answer in together] == [
        [item.item_id for item in answer.items] for answer in singles
    ]


def test_the_text_of_an_item_finds_the_item_itself(recommender: BundleRecommender) -> None:
    texts = [f"Title {n}. All > Group {n % 3}. Brand {n % 4}" for n in (10, 11, 12)]
    answers = recommender.recommend([EngineRequest([], 1, NOW, seek=Seek(text=text)) for text in texts])
    assert [answer.items[0].item_id for answer in answers] == ["item-10", "item-11", "item-12"]
    np.testing.assert_allclose([answer.items[0].score for answer in answers], 1.0, rtol=1e-6)
