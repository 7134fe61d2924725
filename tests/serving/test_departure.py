from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from serving.app import create_app
from serving.departure import Departure
from serving.engine import EngineAnswer, EngineRequest, EngineVersions
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

    def counts(self, asked: int, given_up: int) -> bool:
        return (self.asked, self.given_up) == (asked, given_up)

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        self.asked += 1
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


@given(st.lists(st.tuples(st.sampled_from(["watch", "unwatch", "tell"]), st.integers(0, 3)), max_size=12))
def test_each_watcher_is_told_once_and_nobody_who_has_left(steps: list[tuple[str, int]]) -> None:
    told: list[int] = []
    calls = [partial(told.append, n) for n in range(4)]
    departure, gone = Departure(), False
    watching: list[int] = []
    expected: list[int] = []
    for step, number in steps:
        does: dict[str, Callable[[Callable[[], None]], None]] = {
            "watch": departure.watch,
            "unwatch": departure.unwatch,
            "tell": lambda _: departure.tell(),
        }
        does[step](calls[number])
        now = {"watch": [number], "unwatch": [], "tell": []}[step]
        expected += now if gone else []
        watching = [each for each in watching if (step, each) != ("unwatch", number)]
        watching += [each for each in now if not gone and each not in watching]
        gone = gone or step == "tell"
        expected += watching if gone else []
        watching = [] if gone else watching
    assert told == expected
