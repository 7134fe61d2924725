"""The OpenAPI document against the server, and random requests: no 5xx, no undocumented status."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

from recsys.bundle import Registry
from recsys.storage import write_bytes_atomically
from serving.app import create_app
from serving.errors import ErrorBody
from serving.paging import Page, read_cursor
from serving.schemas import RecommendAnswer
from serving.security.keys import Scope, encode_keys, new_key
from serving.security.scopes import describe
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
guarded_schema = schemathesis.openapi.from_dict(describe(create_app(Settings()).openapi(), keys=True))
SHORT = re.compile(r"[1-9]\d{0,3}")


def given_time(case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Similar and search have a documented 503 for a deadline that cannot be kept, which is no fault of the server."""
    wanted = str(case.headers.get("X-Deadline-Ms"))
    case.headers.update({"X-Deadline-Ms": "60000"} if SHORT.fullmatch(wanted) else {})
    return case


@schema.parametrize()
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_the_server_is_what_its_document_says(case: schemathesis.Case[Any], shared_url: str) -> None:
    given_time(case).call_and_validate(base_url=shared_url)


def test_every_check_is_made() -> None:
    load_all_checks()
    configured = schema.config.checks_config_for()
    names = [check.__name__ for check in CHECKS.get_all()]
    assert len(names) >= 14
    assert [name for name in names if not getattr(configured, name).enabled] == []


@pytest.fixture(scope="module")
def guarded(
    served_registry: Registry, tmp_path_factory: pytest.TempPathFactory, serve_in_thread: Callable[..., Any]
) -> Iterator[tuple[str, dict[str, str]]]:
    """A server that asks for keys, and the header of one that may do everything."""
    folder = tmp_path_factory.mktemp("guarded")
    stored, key = new_key("all", tuple(Scope))
    write_bytes_atomically(folder / "keys.json", encode_keys([stored]), mode=0o600)
    settings = Settings(
        registry=served_registry.root,
        state=folder / "state",
        catalog_log=folder / "log",
        keys_file=folder / "keys.json",
    )
    with serve_in_thread(settings) as url:
        yield url, {"Authorization": f"Bearer {key}"}


@guarded_schema.parametrize()
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_no_operation_ignores_its_key(case: schemathesis.Case[Any], guarded: tuple[str, dict[str, str]]) -> None:
    url, headers = guarded
    given_time(case).call_and_validate(base_url=url, headers=headers)


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
