"""The OpenAPI document against the server, and random requests: no 5xx, no undocumented status."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.testclient import TestClient

from recsys.bundle import Registry
from serving.app import create_app
from serving.errors import ErrorBody
from serving.paging import Page, read_cursor
from serving.schemas import RecommendAnswer
from serving.settings import Settings

# `WINDFIRE_FUZZ_EXAMPLES=10000 pytest tests/serving/test_openapi_fuzz.py -k random` is the full run.
EXAMPLES = int(os.environ.get("WINDFIRE_FUZZ_EXAMPLES", "300"))
ITEMS = [f"item-{n:02d}" for n in range(48)]


@pytest.fixture(scope="module")
def fuzzed(served_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One application for all examples."""
    state = tmp_path_factory.mktemp("fuzzed") / "state"
    with TestClient(create_app(Settings(registry=served_registry.root, state=state, beam=10))) as client:
        yield client


document = create_app(Settings()).openapi()
schema = schemathesis.openapi.from_dict(document)


@schema.parametrize()
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_the_server_is_what_its_document_says(case: schemathesis.Case[Any], shared_url: str) -> None:
    case.headers.update({name: patient(value) for name, value in case.headers.items() if name == "X-Deadline-Ms"})
    case.call_and_validate(base_url=shared_url)


def patient(value: Any) -> Any:
    """A deadline as drawn, but a whole number of milliseconds is long enough: 503 is the right answer to 2 ms."""
    return f"{value}000000" if str(value).isdigit() and str(value).isascii() and int(value) > 0 else value


text = st.text(max_size=20)
identifiers = st.sampled_from(ITEMS) | text
micros = st.none() | st.integers(0, 10**18) | st.integers(0, 50_000_000)
paths = st.lists(st.sampled_from(["All", "Group 1", "Group 2"]) | text, min_size=1, max_size=3)
filters = st.fixed_dictionaries(
    {},
    optional={
        "categories": st.lists(paths, max_size=3),
        "brands": st.lists(st.sampled_from(["Brand 1", "Brand 2"]) | text, max_size=3),
        "price_min_micros": micros,
        "price_max_micros": micros,
        "allow": st.none() | st.lists(identifiers, max_size=50),
        "deny": st.lists(identifiers, max_size=50),
    },
)
cursors = st.lists(identifiers.filter(bool), min_size=1, max_size=20).map(lambda shown: Page("r", 1, shown).cursor())
schemathesis.openapi.format("windfire-cursor", cursors)
good = st.fixed_dictionaries(
    {"history": st.lists(identifiers, max_size=60)},
    optional={
        "user_id": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=120),
        "n": st.integers(1, 500),
        "scene": st.sampled_from(["home", "cart"]) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
        "filters": filters,
        "exclude_seen": st.booleans(),
        "caps": st.fixed_dictionaries({}, optional=dict.fromkeys(("brand", "category"), st.integers(1, 500))),
        "diversity": st.sampled_from([0, 0.0, 0.3, 1]),
        "cursor": cursors,
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)
spoiled = st.builds(
    lambda body, name, value: {**body, name: value}, good, st.sampled_from(["n", "history", "x"]), anything
)


def ask(client: TestClient, body: Any) -> Any:

    return client.post("/v1/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"})


@settings(max_examples=EXAMPLES)
@given(body=good)
def test_random_histories_are_answered(fuzzed: TestClient, body: dict[str, Any]) -> None:
    response = ask(fuzzed, body)
    assert response.status_code == 200, response.text
    answer = RecommendAnswer.model_validate(orjson.loads(response.content))
    shown = [item.item_id for item in answer.items]
    assert len(set(shown)) == len(shown) == answer.counts.returned <= answer.counts.requested == body.get("n", 10)
    assert answer.truncated == (len(shown) < answer.counts.requested)
    before = read_cursor(body["cursor"]).shown if "cursor" in body else []
    assert [item.position for item in answer.items] == list(range(len(before), len(before) + len(shown)))
    rules = body.get("filters", {})
    refused = {
        *before,
        *rules.get("deny", []),
        *(body["history"] if body.get("exclude_seen", True) else []),
        *ITEMS[:5],
    }
    assert not refused & set(shown)
    assert rules.get("allow") is None or set(shown) <= set(rules["allow"])
    for source in {item.source for item in answer.items}:
        scores = [item.score for item in answer.items if item.source == source]
        assert body.get("diversity") or scores == sorted(scores, reverse=True)


@settings(max_examples=EXAMPLES)
@given(body=spoiled | anything)
def test_random_bodies_have_a_documented_answer(fuzzed: TestClient, body: Any) -> None:
    response = ask(fuzzed, body)
    assert response.status_code in {200, 422}, response.text
    models: dict[int, type[BaseModel]] = {200: RecommendAnswer, 422: ErrorBody}
    models[response.status_code].model_validate(orjson.loads(response.content))


@settings(max_examples=EXAMPLES // 3)
@given(content=st.binary(max_size=200))
def test_random_bytes_have_a_documented_answer(fuzzed: TestClient, content: bytes) -> None:
    for path in ("/v1/recommend", "/v1/events", "/v1/similar", "/v1/search"):
        response = fuzzed.post(path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in {200, 422}, response.text


def test_no_ineligible_item_was_ever_caught(fuzzed: TestClient) -> None:
    assert "windfire_ineligible_items_total 0.0" in fuzzed.get("/metrics").text
