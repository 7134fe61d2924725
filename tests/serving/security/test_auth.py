from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Connection

from recsys.errors import ConfigError
from serving.app import create_app
from serving.errors import ErrorBody
from serving.item_routes import router as item_router
from serving.lifecycle.admin_routes import router as admin_router
from serving.metrics import Metrics
from serving.routes import router
from serving.security.auth import Authenticate
from serving.security.keys import KeyRing, Scope
from serving.security.scopes import SCOPES, ScopeTable
from serving.security.user_routes import router as user_router
from serving.settings import Settings

if TYPE_CHECKING:
    from tests.serving.security.conftest import KeyFile

NAMES = {"{item_id}": "i1", "{user_id:user}": "u1"}
CLOSED = [(method, path, scope) for (method, path), scope in SCOPES.items() if scope is not None]
OPEN = [(method, path) for (method, path), scope in SCOPES.items() if scope is None]


def filled(template: str) -> str:
    for name, value in NAMES.items():
        template = template.replace(name, value)
    return template


def declared(client: TestClient) -> set[tuple[str, str]]:
    """Every (method, template) that the application answers."""
    application: Any = client.app
    listed = [*application.routes, *router.routes, *item_router.routes, *user_router.routes, *admin_router.routes]
    routes = [route for route in listed if isinstance(route, Route)]
    return {(method, route.path) for route in routes for method in route.methods or ()}


def test_every_route_declares_its_scope_and_nothing_else_does(guarded: TestClient) -> None:
    document: dict[str, dict[str, Any]] = guarded.get("/openapi.json").json()["paths"]
    public = {(method.upper(), path) for path, operations in document.items() for method in operations}
    templates = {(method, path.replace(":user", "")) for method, path in SCOPES}
    assert public <= templates  # a router that nobody named here is in the document all the same
    assert declared(guarded) == set(SCOPES)


@pytest.mark.parametrize(("method", "path", "scope"), CLOSED)
def test_only_a_key_with_the_scope_gets_through(
    guarded: TestClient, key_file: KeyFile, method: str, path: str, scope: Scope
) -> None:
    def code(headers: dict[str, str]) -> tuple[int, str]:
        response = guarded.request(method, filled(path), headers=headers, content=b"no json")
        return response.status_code, response.json()["code"]

    assert code({}) == (401, "unauthorized")
    assert code({"Authorization": "Bearer wf_0123456789abcdef_" + "A" * 43}) == (401, "unauthorized")
    assert code(key_file.bearer("expired")) == (401, "unauthorized")
    for other in set(Scope) - {scope}:
        assert code(key_file.bearer(other.value)) == (403, "forbidden")
    for name in (scope.value, "all"):
        response = guarded.request(method, filled(path), headers=key_file.bearer(name), content=b"no json")
        assert response.status_code in {200, 404, 422}  # 404: the catalogue does not have the item i1


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_some_routes_need_no_key(guarded: TestClient, method: str, path: str) -> None:
    response = guarded.request(method, path)
    assert response.status_code == 200
    assert guarded.request(method, path, headers={"Authorization": "Bearer nonsense"}).status_code == 200


def test_a_refusal_is_an_envelope_with_a_challenge(guarded: TestClient) -> None:
    response = guarded.post("/v1/recommend", json={})
    error = ErrorBody.model_validate_json(response.content)
    assert (error.code, error.retryable) == ("unauthorized", False)
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["x-request-id"]
    assert 'windfire_refusals_total{code="unauthorized"} 1.0' in metrics_of(guarded)


def metrics_of(client: TestClient) -> str:
    services: Any = client.app_state["services"]
    text: str = services.metrics.render().decode()
    return text


def test_a_key_says_in_which_paths_and_methods_there_are_none(guarded: TestClient, key_file: KeyFile) -> None:
    for path in ("/nowhere", "/v1", "/v1/users", "/v1/recommend/", "/v1/recommend%0A", "/%2Fv1/recommend", "/redoc"):
        assert guarded.get(path).status_code == 401
        assert guarded.get(path, headers=key_file.bearer("events")).status_code == 404
    response = guarded.delete("/v1/items/i1/", headers=key_file.bearer("all"))
    assert response.status_code == 404
    response = guarded.get("/v1/items/i1", headers=key_file.bearer("events"))
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, PUT")
    assert guarded.options("/v1/recommend").status_code == 401


def test_a_route_without_a_scope_does_not_exist_for_a_server_with_keys(
    server_settings: Settings, key_file: KeyFile
) -> None:
    forgotten = APIRouter()

    @forgotten.get("/v1/forgotten")
    @forgotten.get("/v1/recommend")
    async def answer() -> str:
        return "reached"

    for keys, expected in ((None, [200, 200]), (key_file.path, [404, 405])):
        application = create_app(server_settings.model_copy(update={"keys_file": keys}))
        application.include_router(forgotten)
        with TestClient(application) as client:
            found = [client.get(path, headers=key_file.bearer("all")) for path in ("/v1/forgotten", "/v1/recommend")]
        assert [response.status_code for response in found] == expected


paths = st.lists(
    st.sampled_from(["v1", "users", "items", "export", "u1", "", ".", "\n", "recommend", "%2F"]), max_size=6
)


closed = "not declared"


@given(
    path=paths.map("/".join).filter(lambda path: not path.endswith("\n")),  # such a path the table does not know at all
    method=st.sampled_from(["GET", "PUT", "DELETE", "POST", "HEAD"]),
)
def test_the_table_knows_a_path_as_the_router_does(path: str, method: str) -> None:
    connection = {"type": "http", "path": f"/{path}", "method": method}
    listed = [*router.routes, *item_router.routes, *user_router.routes, *admin_router.routes]
    routes = [route for route in listed if isinstance(route, Route) and route.matches(connection)[0] is Match.FULL]
    wanted: list[Scope | str | None] = [SCOPES[method, route.path] for route in routes[:1]]
    rules: dict[str, Any] = ScopeTable().rules(f"/{path}")
    assert rules.get(method, closed) == (wanted or [closed])[0]


def test_too_many_requests_are_told_when_to_come_again(guarded: TestClient, key_file: KeyFile) -> None:
    key_file.add("slow", *Scope, rate=0.01, burst=2)
    ring: KeyRing = guarded.app_state["services"].keys
    assert ring.refresh()
    statuses = [guarded.post("/v1/recommend", json={}, headers=key_file.bearer("slow")) for _ in range(3)]
    assert [response.status_code for response in statuses] == [200, 200, 429]
    error = ErrorBody.model_validate_json(statuses[2].content)
    assert (error.code, error.retryable) == ("rate_limited", True)
    assert 90 <= int(statuses[2].headers["retry-after"]) <= 100
    assert guarded.post("/v1/recommend", json={}, headers=key_file.bearer("all")).status_code == 200
    assert guarded.get("/healthz", headers=key_file.bearer("slow")).status_code == 200


def test_a_running_server_sees_a_new_and_a_revoked_key(
    guarded: TestClient, key_file: KeyFile, log_lines: list[MutableMapping[str, Any]]
) -> None:
    def answered(name: str, status: int) -> None:
        deadline = time.monotonic() + 30
        while guarded.get("/metrics", headers=key_file.bearer(name)).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    key_file.add("late", Scope.METRICS)
    answered("late", 200)
    key_file.stored.pop()
    key_file.write()
    answered("late", 401)
    assert next(line["keys"] for line in log_lines if line["event"] == "keys_loaded") == len(key_file.stored)


def test_a_damaged_key_file_is_a_warning_whose_words_are_for_administrators(
    guarded: TestClient, key_file: KeyFile
) -> None:
    key_file.path.write_bytes(b"{")
    services = guarded.app_state["services"]
    assert not services.keys.refresh()
    (brief,) = guarded.get("/readyz").json()["warnings"]
    assert brief == "keys_refused"
    assert guarded.get("/readyz", headers=key_file.bearer("metrics")).json()["warnings"] == ["keys_refused"]
    (full,) = guarded.get("/readyz", headers=key_file.bearer("admin")).json()["warnings"]
    assert full.startswith("keys_refused: this is no key file")
    assert str(key_file.path) in full


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "shop.example", ""])
def test_a_server_without_keys_is_not_open_to_other_machines(server_settings: Settings, host: str) -> None:
    with pytest.raises(ConfigError, match="WINDFIRE_HOST"):
        create_app(server_settings.model_copy(update={"host": host}))


@pytest.mark.parametrize(
    ("host", "chosen"),
    [("127.0.0.1", False), ("127.9.9.9", False), ("::1", False), ("localhost", False), ("0.0.0.0", True)],
)
def test_a_server_without_keys_is_open_to_this_machine_or_by_choice(
    server_settings: Settings, host: str, chosen: bool
) -> None:
    create_app(server_settings.model_copy(update={"host": host, "open": chosen}))


def test_with_keys_any_address_will_do(server_settings: Settings, key_file: KeyFile) -> None:
    create_app(server_settings.model_copy(update={"host": "0.0.0.0", "keys_file": key_file.path}))


def test_an_open_server_says_so(client: TestClient, log_lines: list[MutableMapping[str, Any]]) -> None:
    assert [line["host"] for line in log_lines if line["event"] == "server_open"] == ["127.0.0.1"]


def test_nothing_of_a_refused_body_is_read(key_file: KeyFile) -> None:
    async def unreachable(*_: Any) -> Any:
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    guard = Authenticate(unreachable, ring=KeyRing(key_file.path), metrics=Metrics())
    connection = {"type": "http", "path": "/v1/events", "method": "POST", "headers": []}
    asyncio.run(guard(connection, unreachable, send))
    assert sent[0]["status"] == 401
    asyncio.run(guard({"type": "websocket", "path": "/v1/events", "headers": []}, unreachable, send))
    assert sent[-1] == {"type": "websocket.close", "code": 1008}


@pytest.mark.parametrize(("server", "instead"), [("guarded", []), ("client", [{}])])
def test_the_document_names_scope_and_refusals_of_every_operation(
    request: pytest.FixtureRequest, server: str, instead: list[dict[str, list[str]]]
) -> None:
    document = request.getfixturevalue(server).get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            template = next(key for key in SCOPES if key[0] == method.upper() and key[1].replace(":user", "") == path)
            scope = SCOPES[template]
            assert operation["security"] == ([] if scope is None else [{"ApiKey": [scope.value]}, *instead])
            assert ({"401", "403", "429"} <= set(operation["responses"])) == (scope is not None)


def passing(guard: Authenticate, connection: Connection) -> None:
    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    asyncio.run(guard(connection, receive, send))


def test_the_holder_is_handed_on(key_file: KeyFile) -> None:
    seen: list[Connection] = []

    async def inner(scope: Connection, receive: Receive, send: Send) -> None:
        seen.append(scope)

    guard = Authenticate(inner, ring=KeyRing(key_file.path), metrics=Metrics())
    header = (b"authorization", key_file.bearer("events")["Authorization"].encode())
    passing(guard, {"type": "http", "path": "/v1/events", "method": "POST", "headers": [header]})
    assert seen[0]["windfire.key"].scopes == {Scope.EVENTS}
