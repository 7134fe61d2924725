from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from serving.app import create_app
from serving.departure import DEPARTURE, Departure
from serving.engine import EngineAnswer, EngineRequest, EngineVersions
from serving.routes import _unless_gone
from serving.runner import uvicorn_config
from serving.settings import Settings

PATIENT = 10.0
ASK = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
ASK_SIMILAR = (
    b"POST /v1/similar HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    b'{"item_id":"a"}'
)


class PatientEngine:
    """Answers nothing; knows who gave up."""

    versions: EngineVersions | None = None

    def __init__(self) -> None:
        self.asked = self.given_up = 0
        self.was_asked = asyncio.Event()

    def counts(self, asked: int, given_up: int) -> bool:
        return (self.asked, self.given_up) == (asked, given_up)

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        self.asked += 1
        self.was_asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        raise AssertionError


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def engine() -> PatientEngine:
    return PatientEngine()


@pytest.fixture
def address(server_settings: Settings, engine: PatientEngine) -> Iterator[tuple[str, int]]:
    settings = server_settings.model_copy(update={"port": 0, "deadline": server_settings.deadline * 600})
    config = uvicorn_config(settings)
    config.app = create_app(settings, engine=engine)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    yield host, port
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("requests", [ASK, ASK_SIMILAR, ASK + ASK], ids=["one", "similar", "pipelined"])
def test_whoever_hangs_up_is_not_decoded(address: tuple[str, int], engine: PatientEngine, requests: bytes) -> None:
    for number in (1, 2):  # the second connection knows nothing of the first
        with contextlib.closing(socket.create_connection(address, timeout=PATIENT)) as connection:
            connection.sendall(requests)
            until(partial(engine.counts, number, number - 1))
            time.sleep(0.02)
            assert engine.counts(number, number - 1)
        until(partial(engine.counts, number, number))


def test_a_client_that_stays_is_not_given_up_for_another(address: tuple[str, int], engine: PatientEngine) -> None:
    with contextlib.closing(socket.create_connection(address, timeout=PATIENT)) as stays:
        stays.sendall(ASK)
        until(lambda: engine.asked == 1)
        with contextlib.closing(socket.create_connection(address, timeout=PATIENT)) as goes:
            goes.sendall(ASK)
            until(lambda: engine.asked == 2)
        until(lambda: engine.given_up == 1)
        time.sleep(0.05)
        assert engine.given_up == 1


def test_under_another_server_too_whoever_goes_away_is_not_decoded(
    server_settings: Settings, engine: PatientEngine
) -> None:
    app = create_app(server_settings, engine=engine)
    body = [{"type": "http.request", "body": b"{}", "more_body": False}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        for message in body:
            body.remove(message)
            return message
        await engine.was_asked.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def ask(state: dict[str, Any]) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"", "headers": headers}
        await asyncio.wait_for(app({**scope, "state": state}, receive, send), 10)

    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(ask, client.app_state)
        assert 'route="/v1/recommend",status="499"' in client.get("/metrics").text
    assert engine.given_up == 1
    assert sent[0]["status"] == 499


def test_a_request_that_the_server_cancels_is_no_client_that_went_away(
    server_settings: Settings, engine: PatientEngine
) -> None:
    app = create_app(server_settings, engine=engine)
    body = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> MutableMapping[str, Any]:
        for message in body:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        raise AssertionError(message)

    async def ask(state: dict[str, Any]) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"", "headers": headers}
        serving = asyncio.create_task(app({**scope, "state": state}, receive, send))
        await engine.was_asked.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(ask, client.app_state)
    assert engine.given_up == 1


@pytest.mark.parametrize("size", [2, 60_000, 100_000, 300_000])
def test_a_long_body_hides_nobody_who_hangs_up(address: tuple[str, int], engine: PatientEngine, size: int) -> None:
    """Over 64 KiB uvicorn stops reading, and a transport that does not read sees no end."""
    head, body = ASK.replace(b"Length: 2", b"Length: %d" % size)[:-2], b"{" + b" " * (size - 2) + b"}"
    with contextlib.closing(socket.create_connection(address, timeout=PATIENT)) as connection:
        connection.sendall(head)
        time.sleep(0.05)  # the body comes as a whole, behind its head
        connection.sendall(body)
        until(partial(engine.counts, 1, 0))
        time.sleep(0.02)
    until(partial(engine.counts, 1, 1))


class Watching:
    """A request of a connection, served by what the route does around its engine."""

    def __init__(self) -> None:
        self.departure = Departure()
        self.request = Request({"type": "http", DEPARTURE: self.departure})

    async def end(self, *happens: str) -> str:
        """How it ends when this happens to it in one turn of the loop."""
        task = asyncio.create_task(_unless_gone(self.request, self.never()))
        await asyncio.sleep(0)
        does: dict[str, Callable[[], object]] = {"client": self.departure.tell, "server": task.cancel}
        for each in happens:
            does[each]()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        return type(ended).__name__

    async def never(self) -> EngineAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    async def quick(self) -> Any:
        await asyncio.sleep(0)
        return self


@pytest.mark.parametrize(
    ("happens", "ends"),
    [
        (["client"], "ClientDisconnect"),
        (["server"], "CancelledError"),
        (["client", "server"], "CancelledError"),
        (["server", "client"], "CancelledError"),
    ],
)
def test_who_ends_a_request_is_known(happens: list[str], ends: str) -> None:
    assert asyncio.run(Watching().end(*happens)) == ends


def test_a_connection_keeps_nothing_of_the_requests_it_has_served() -> None:
    async def serve() -> None:
        served = Watching()
        for _ in range(3):
            answer: Any = await _unless_gone(served.request, served.quick())
            assert answer is served
            assert served.departure._call is None

    asyncio.run(serve())


def test_under_another_server_nobody_waits_on_behind_the_answer() -> None:
    async def never() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def serve() -> int:
        answer: Any = await _unless_gone(Request({"type": "http"}, never), Watching().quick())
        assert answer is not None
        for _ in range(3):  # what is cancelled ends
            await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(serve()) == 1


def test_nothing_is_asked_for_a_client_that_went_away_before() -> None:
    async def serve() -> int:
        served = Watching()
        asked: Any = served_never()
        served.departure.tell()
        with pytest.raises(ClientDisconnect):
            await _unless_gone(served.request, asked)
        task = asyncio.current_task()
        assert asked.cr_frame is None, "closed, so that nobody is told that it was never awaited"
        return -1 if task is None else task.cancelling()

    async def served_never() -> EngineAnswer:
        raise AssertionError

    assert asyncio.run(serve()) == 0


@given(st.lists(st.sampled_from(["watch", "unwatch", "tell"]), max_size=8))
def test_whoever_watches_is_told_once(steps: list[str]) -> None:
    told: list[int] = []
    departure, watching, gone, expected = Departure(), False, False, 0
    for step in steps:
        does: dict[str, Callable[[], object]] = {
            "watch": partial(departure.watch, partial(told.append, 1)),
            "unwatch": departure.unwatch,
            "tell": departure.tell,
        }
        said = does[step]()
        assert said == {"watch": not gone, "unwatch": None, "tell": None}[step]
        expected += watching and step == "tell"
        gone = gone or step == "tell"
        watching = {"watch": not gone, "unwatch": False, "tell": False}[step]
    assert len(told) == expected
