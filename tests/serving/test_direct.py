"""The direct way of a recommendation: what it takes is answered as by the framework, and the rest is left to that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.testclient import TestClient

from recsys.bundle import Registry
from recsys.errors import OverloadedError
from serving.app import create_app
from serving.direct import _JSON, _LARGEST, Direct
from serving.errors import NO_ANSWER
from serving.paging import Page
from serving.routes import router
from serving.schemas import RecommendRequest
from serving.settings import Settings

PATH = "/v1/recommend"
DIRECT, USUAL = "application/json", "application/json; the=usual-way"
PASSING = {"date", "x-request-id", "content-length"}


@pytest.fixture(scope="module")
def asked(served_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    state = tmp_path_factory.mktemp("direct") / "state"
    with TestClient(create_app(Settings(registry=served_registry.root, state=state, beam=10))) as client:
        yield client


def answer(client: TestClient, body: bytes, kind: str, deadline: bytes | None) -> tuple[int, Any, dict[str, str]]:
    """Without what differs from request to request."""
    headers = {b"Content-Type": kind.encode()} | ({} if deadline is None else {b"X-Deadline-Ms": deadline})
    response = client.post(PATH, content=body, headers=headers)
    said = orjson.loads(response.content)
    cursor = said.pop("next_cursor", None)
    said.pop("request_id", None)
    kept = {name: value for name, value in response.headers.items() if name not in PASSING}
    return response.status_code, (said, cursor is None), kept


def both(client: TestClient, body: bytes, deadline: bytes | None = None) -> tuple[int, Any]:
    ways = [answer(client, body, kind, deadline) for kind in (DIRECT, USUAL)]
    assert ways[0] == ways[1]
    return ways[0][:2]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 200),
        (b'{"history": ["item-11", "nobody"], "n": 5.0, "caps": {"brand": 1}, "diversity": 1}', 200),
        (b'{"n": 5, "n": 6}', 200),
        (b'\xef\xbb\xbf{"n": 5}', 200),
        ('{"n": 5}'.encode("utf-16"), 200),
        (rb'{"history": ["\ud800"]}', 200),
        (b'{"n": 0}', 422),
        (b'{"n": "5"}', 422),
        (b'{"n": true}', 422),
        (b'{"n": 1e400}', 422),
        (b'{"diversity": NaN}', 422),
        (b'{"user_id": ""}', 422),
        (b'{"unknown": 1}', 422),
        (b'{"filters": {"categories": [[]]}}', 422),
        (b'{"cursor": "x"}', 422),
        (b'{"n": 5', 422),
        (b"\xff", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"{}"', 422),
        (b"", 422),
        (b"[" * 100_000, 422),
        (b'{"n": ' + b"1" * 5_000 + b"}", 422),
    ],
)
def test_both_ways_say_the_same(asked: TestClient, body: bytes, status: int) -> None:
    assert both(asked, body)[0] == status


@pytest.mark.parametrize("kind", sorted(_JSON))
def test_what_counts_as_json_does_so_on_both_ways(asked: TestClient, kind: bytes) -> None:
    ways = [answer(asked, b'{"n": 3}', said, None) for said in (kind.decode(), f"{kind.decode()}; the=usual-way")]
    assert ways[0] == ways[1]
    assert ways[0][0] == 200


@pytest.mark.parametrize(
    "deadline", ["1000", "1", "0", "007", "-1", "+5", " 5 ", "1e3", "5.0", "", "\u0661", "9" * 9, "9" * 30, "9" * 5_000]
)
def test_both_ways_read_the_same_deadline(asked: TestClient, deadline: str) -> None:
    both(asked, b'{"n": 3}', deadline.encode())


scalars = (
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats() | st.sampled_from(["", "item-11", "home", "\0"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)
lists = st.lists(st.sampled_from(["item-11", "item-12", "?"]), max_size=3)
fitting = st.fixed_dictionaries(
    {},
    optional={
        "history": lists,
        "n": st.integers(1, 50),
        "scene": st.sampled_from(["home", "cart"]),
        "exclude_seen": st.booleans(),
        "filters": st.fixed_dictionaries({}, optional={"allow": lists, "deny": lists, "brands": lists}),
        "caps": st.fixed_dictionaries({}, optional={"brand": st.integers(1, 3)}),
        "diversity": st.floats(0, 1),
        "cursor": st.just(Page("r", 1, ["item-13"]).cursor()),
    },
)
strange = st.dictionaries(st.sampled_from([*RecommendRequest.model_fields, "more"]), values, max_size=1)


@given(fitting, strange)
@settings(max_examples=50, suppress_health_check=list(HealthCheck), deadline=None)
def test_random_bodies_are_answered_alike(asked: TestClient, body: dict[str, Any], change: dict[str, Any]) -> None:
    both(asked, json.dumps({**body, **change}).encode())


def scope_of(*headers: tuple[str, str], **rest: Any) -> dict[str, Any]:
    given_headers = [(name.encode(), value.encode()) for name, value in headers]
    return {
        "type": "http", "method": "POST", "path": PATH, "root_path": "", "headers": given_headers,
        "state": {"services": None}, "query_string": b"", **rest,
    }  # fmt: skip


JSON = ("content-type", "application/json")


class Endpoint:
    """In the place of the route's; answers, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[Any, int | None]] = []
        self._errors = [] if error is None else [error]

    async def __call__(self, body: Any, request: Any, services: Any, deadline_ms: int | None) -> Response:
        self.asked.append((body, deadline_ms))
        for error in self._errors:
            raise error
        return Response(b"direct")


def passed(endpoint: Endpoint, scope: dict[str, Any], *parts: bytes) -> tuple[list[bytes], list[Any]]:
    """What came to the framework, and what was sent."""
    came: list[bytes] = []
    sent: list[Any] = []
    messages = iter(
        [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]
    )

    async def usual(_: Any, receive: Any, __: Any) -> None:
        came.extend([(await receive())["body"] for _ in parts])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    async def gone(_: Any, __: Exception) -> Response:
        return Response(status_code=NO_ANSWER)

    route = APIRoute(PATH, endpoint, methods=["POST"], response_model=None)
    route.endpoint = endpoint
    direct = Direct(usual, route=route, model=RecommendRequest, handlers={OverloadedError: gone})
    asyncio.run(direct(scope, receive, send))
    return came, sent


def test_a_plain_request_does_not_reach_the_framework() -> None:
    endpoint = Endpoint()
    scope = scope_of(JSON, ("x-deadline-ms", "250"), ("accept", "*/*"))
    came, sent = passed(endpoint, scope, b'{"n": 3}')
    assert (came, sent[1]["body"]) == ([], b"direct")
    assert endpoint.asked == [(RecommendRequest(n=3), 250)]
    assert scope["route"].path == PATH
    passed(endpoint, scope_of(JSON), b"{}")
    assert endpoint.asked[1:] == [(RecommendRequest(), None)]


@pytest.mark.parametrize(
    ("scope", "parts"),
    [
        (scope_of(JSON, method="GET"), [b"{}"]),
        (scope_of(JSON, path="/v1/similar"), [b"{}"]),
        (scope_of(JSON, root_path="/v1"), [b"{}"]),
        (scope_of(JSON, type="websocket"), [b"{}"]),
        (scope_of(JSON, **{"fastapi.telemetry": None}), [b"{}"]),
        (scope_of(), [b"{}"]),
        (scope_of(JSON, JSON), [b"{}"]),
        (scope_of(("content-type", "text/plain"), JSON), [b"{}"]),
        (scope_of(JSON, ("x-deadline-ms", "1"), ("x-deadline-ms", "1")), [b"{}"]),
        (scope_of(JSON, ("x-deadline-ms", "0")), [b"{}"]),
        (scope_of(JSON), [b'{"n": 0}']),
        (scope_of(JSON), [b"{", b"}"]),
        (scope_of(JSON), [b" " * (_LARGEST - 1) + b"{}"]),
    ],
)
def test_every_other_request_comes_to_the_framework_as_it_was(scope: dict[str, Any], parts: list[bytes]) -> None:
    endpoint = Endpoint()
    assert passed(endpoint, scope, *parts) == (parts, [])
    assert endpoint.asked == []


def test_an_error_is_answered_by_the_applications_handler_and_another_one_is_not() -> None:
    _, sent = passed(Endpoint(OverloadedError("full")), scope_of(JSON), b"{}")
    assert sent[0]["status"] == NO_ANSWER
    with pytest.raises(ZeroDivisionError):
        passed(Endpoint(ZeroDivisionError()), scope_of(JSON), b"{}")


def test_the_applications_own_endpoint_is_asked(server_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what stands in its place, as in a measurement of stages, would be passed over."""

    async def broken(**_: Any) -> NoReturn:
        raise OverloadedError("put in its place")

    (route,) = (route for route in router.routes if isinstance(route, APIRoute) and route.path == PATH)
    monkeypatch.setattr(route, "endpoint", broken)
    with TestClient(create_app(server_settings)) as client:
        response = client.post(PATH, json={})
    assert (response.status_code, response.json()["message"]) == (503, "put in its place")
