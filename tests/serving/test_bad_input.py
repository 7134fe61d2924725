from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from recsys.bundle import Registry
from serving.app import create_app
from serving.errors import ErrorBody
from serving.metrics import Metrics
from serving.middleware import MAX_BODY_BYTES, BodyLimit, Observe
from serving.settings import Settings
from serving.watching import RequestWatch

JSON = {"Content-Type": "application/json"}


def refused(client: TestClient, path: str, content: Any, status: int, code: str, headers: Any = None) -> ErrorBody:
    response = client.post(path, content=content, headers=headers or JSON)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    error = ErrorBody.model_validate_json(response.content)
    assert error.code == code
    return error


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 0}, "body.n"),
        ({"n": -1}, "body.n"),
        ({"n": 501}, "body.n"),
        ({"n": 10**400}, "body.n"),
        ({"n": -(10**30)}, "body.n"),
        ({"n": math.nan}, "body.n"),
        ({"n": math.inf}, "body.n"),
        ({"n": 1.5}, "body.n"),
        ({"n": "10"}, "body.n"),
        ({"n": True}, "body.n"),
        ({"n": None}, "body.n"),
        ({"n": []}, "body.n"),
        ({"history": "item-11"}, "body.history"),
        ({"history": [1]}, "body.history.0"),
        ({"history": [None]}, "body.history.0"),
        ({"history": {"0": "item-11"}}, "body.history"),
        ({"user_id": ""}, "body.user_id"),
        ({"user_id": 7}, "body.user_id"),
        ({"user_id": "x" * 257}, "body.user_id"),
        ({"user_id": "\ud800"}, "body.user_id"),
        ({"user_id": "a\0b"}, "body.user_id"),
        ({"scene": ""}, "body.scene"),
        ({"scene": "x" * 65}, "body.scene"),
        ({"exclude_seen": 1}, "body.exclude_seen"),
        ({"filters": None}, "body.filters"),
        ({"filters": {"price_min_micros": -1}}, "body.filters.price_min_micros"),
        ({"filters": {"price_max_micros": 10**18 + 1}}, "body.filters.price_max_micros"),
        ({"filters": {"categories": ["All"]}}, "body.filters.categories.0"),
        ({"filters": {"categories": [[]]}}, "body.filters.categories.0"),
        ({"filters": {"brands": ["x"] * 1_001}}, "body.filters.brands"),
        ({"filters": {"allow": ["x"] * 10_001}}, "body.filters.allow"),
        ({"filters": {"unheard": 1}}, "body.filters.unheard"),
        ({"caps": {"brand": 0}}, "body.caps.brand"),
        ({"caps": {"category": 501}}, "body.caps.category"),
        ({"caps": {"category_depth": 17}}, "body.caps.category_depth"),
        ({"caps": {"colour": 1}}, "body.caps.colour"),
        ({"caps": None}, "body.caps"),
        ({"diversity": -0.1}, "body.diversity"),
        ({"diversity": 1.1}, "body.diversity"),
        ({"diversity": math.nan}, "body.diversity"),
        ({"diversity": "1"}, "body.diversity"),
        ({"cursor": "nonsense"}, "body.cursor"),
        ({"cursor": "\ud800"}, "body.cursor"),
        ({"cursor": 7}, "body.cursor"),
        ({"unheard": 1}, "body.unheard"),
        ([], "body"),
        ("text", "body"),
        (7, "body"),
        (None, "body"),
    ],
)
def test_what_does_not_fit_its_form_is_named(client: TestClient, body: Any, field: str) -> None:
    content = json.dumps(body).encode()  # unlike orjson it writes NaN, large integers and lone surrogates
    error = refused(client, "/v1/recommend", content, 422, "malformed")
    assert (error.field, error.retryable) == (field, False)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{]", b"\xff\xfe", b"nothing", b'{"n": 1e}', b'{"n":' + b"9" * 5_000 + b"}", b"[" * 100_000, b"\0"],
    ids=["empty", "open", "wrong bracket", "bytes", "word", "number", "5000 digits", "nested", "nul"],
)
def test_what_is_no_json(client: TestClient, content: bytes) -> None:
    refused(client, "/v1/recommend", content, 422, "malformed")
    refused(client, "/v1/events", content, 422, "malformed")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"])
def test_another_content_type(client: TestClient, kind: str) -> None:
    refused(client, "/v1/recommend", b'{"n": 1}', 422, "malformed", {"Content-Type": kind})


def test_a_field_name_that_json_cannot_carry(client: TestClient) -> None:
    refused(client, "/v1/recommend", b'{"\\ud800": 1}', 422, "malformed")
    refused(client, "/v1/recommend", b'{"' + b"x" * 10_000 + b'": 1}', 422, "malformed")


GOOD = {"event_id": "e", "user_id": "u", "item_id": "i", "action": "click"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**GOOD, "time": 0}, "time"),
        ({**GOOD, "time": 10**17 + 1}, "time"),
        ({**GOOD, "time": "2026-01-01"}, "time"),
        ({**GOOD, "event_id": ""}, "event_id"),
        ({**GOOD, "user_id": None}, "user_id"),
        ({**GOOD, "action": ""}, "action"),
        ({**GOOD, "position": -1}, "position"),
        ({**GOOD, "value_micros": 1.5}, "value_micros"),
        ({**GOOD, "attributes": {"k": 1}}, "attributes.k"),
        ({**GOOD, "attributes": {str(n): "v" for n in range(25)}}, "attributes"),
        ({**GOOD, "extra": 1}, "extra"),
        ({"event_id": "e"}, "user_id"),
    ],
)
def test_a_malformed_event_refuses_the_batch_and_nothing_is_written(
    client: TestClient, row: dict[str, Any], field: str
) -> None:
    error = refused(client, "/v1/events", orjson.dumps({"events": [GOOD, row]}), 422, "malformed")
    assert error.field == f"body.events.1.{field}"
    again = client.post("/v1/events", json={"events": [GOOD]}).json()
    assert again["accepted"] == 1


@pytest.mark.parametrize("events", [[], [GOOD] * 1_001])
def test_too_few_or_too_many_events(client: TestClient, events: list[Any]) -> None:
    assert refused(client, "/v1/events", orjson.dumps({"events": events}), 422, "malformed").field == "body.events"


def history_of(count: int, length: int) -> bytes:
    return orjson.dumps({"history": [f"{n:0{length}d}" for n in range(count)] + ["item-11"]})


def test_a_history_of_100_000_items_inside_the_limit_is_answered(client: TestClient) -> None:
    content = history_of(100_000, 7)
    assert len(content) < MAX_BODY_BYTES
    answer = client.post("/v1/recommend", content=content, headers=JSON)
    assert answer.status_code == 200
    assert answer.json()["counts"]["history_unknown"] == 100_000
    assert answer.json()["served_by"] == "nezha"


@pytest.mark.parametrize("content", [history_of(100_000, 9), b"x" * 10_000_000, b" " * (MAX_BODY_BYTES + 1)])
@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/events", "/nowhere"])
def test_a_body_over_one_mebibyte_is_refused_whole(client: TestClient, path: str, content: bytes) -> None:
    refused(client, path, content, 413, "too_large")


def test_a_body_of_exactly_one_mebibyte_is_read(client: TestClient) -> None:
    content = b'{"n": 3}'.ljust(MAX_BODY_BYTES)
    assert client.post("/v1/recommend", content=content, headers=JSON).status_code == 200


def chunks(count: int) -> Iterator[bytes]:
    yield b'{"n": 3}'
    yield from (b" " * 1_024 for _ in range(count))


def test_chunked_bodies_have_the_same_limit(client: TestClient) -> None:
    assert client.post("/v1/recommend", content=chunks(1_000), headers=JSON).status_code == 200
    refused(client, "/v1/recommend", chunks(1_024), 413, "too_large")


def test_a_chunked_body_is_not_read_to_its_end() -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    asyncio.run(BodyLimit(unreachable, limit=95)({"type": "http", "headers": []}, receive, send))
    assert (read, sent[0]["status"]) == (10, 413)


def test_a_client_that_leaves_while_sending_gets_no_answer() -> None:
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Message:
        return next(messages)

    async def unreachable(*_: Any) -> None:
        raise AssertionError

    metrics = Metrics()
    app = Observe(BodyLimit(unreachable), metrics, RequestWatch(metrics, timedelta(seconds=1)))
    asyncio.run(app({"type": "http", "headers": []}, receive, unreachable))
    labels = {"route": "unmatched", "tier": "", "status": "499"}
    assert metrics.registry.get_sample_value("windfire_request_seconds_count", labels) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/recommend/x", 404, "not_found"),
        ("GET", "/v1/recommend", 405, "method_not_allowed"),
        ("DELETE", "/v1/events", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert ErrorBody.model_validate_json(response.content).code == code


def test_405_names_the_methods_that_are_allowed(client: TestClient) -> None:
    assert client.get("/v1/recommend").headers["allow"] == "POST"


@pytest.mark.parametrize("registry", ["nothing", "empty"])
def test_before_the_first_bundle_everything_says_so(server_settings: Settings, tmp_path: Any, registry: str) -> None:
    settings = server_settings.model_copy(update={"registry": tmp_path / registry})
    (tmp_path / "empty" / "versions").mkdir(parents=True)
    with TestClient(create_app(settings)) as client:
        error = refused(client, "/v1/recommend", b"{}", 503, "unavailable")
        assert error.retryable
        assert client.post("/v1/recommend", json={}).headers["retry-after"] == "1"
        readiness = client.get("/readyz")
        assert (readiness.status_code, readiness.json()["reasons"]) == (503, ["no_bundle: the registry is empty"])
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/events", json={"events": [GOOD]}).json()["accepted"] == 1


def test_every_error_is_in_the_openapi_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    reference = {"$ref": "#/components/schemas/ErrorBody"}
    for path in ("/v1/recommend", "/v1/events"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "401", "403", "413", "422", "429", "500", "503"}
        for status in ("401", "403", "413", "422", "429", "500", "503"):
            assert responses[status]["content"] == {"application/json": {"schema": reference}}
    assert set(document["paths"]["/readyz"]["get"]["responses"]) == {"200", "500", "503"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert client.get("/docs").status_code == 200


def test_published_but_flipped_is_refused_by_name(server_settings: Settings, served_registry: Registry) -> None:
    root = server_settings.state.parent / "copy"
    shutil.copytree(served_registry.root, root)
    codes = Registry(root).path(served_registry.current() or "") / "codes.npy"
    data = bytearray(codes.read_bytes())
    data[-1] ^= 1
    codes.write_bytes(data)
    with TestClient(create_app(server_settings.model_copy(update={"registry": root}))) as client:
        (reason,) = client.get("/readyz").json()["reasons"]
        assert reason.startswith("bundle_refused: codes.npy differs from its checksum")
        refused(client, "/v1/recommend", b"{}", 503, "unavailable")
