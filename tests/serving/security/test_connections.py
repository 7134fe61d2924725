from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving.security.connections import MAX_HEAD_BYTES, MAX_HEADERS, ConnectionLimits, guarded_protocol

PATIENT = 30.0
SHORT = 0.2
GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body unless the path says otherwise; answer with its length, or with 8 MB, or late."""
    await asyncio.sleep({"/slow": 5 * SHORT}.get(scope["path"], 0.0))
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = {"/large": b"x" * 8_000_000}.get(scope["path"], str(size).encode())
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """A server in a thread, and why it ended connections."""

    limits: ConnectionLimits
    server: uvicorn.Server
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self.server.servers[0].sockets[0].getsockname()
        return name

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENT)

    def ask(self, data: bytes, until_closed: bool = False) -> bytes:
        """Send, and read what comes: one answer's head, or everything until the server hangs up."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # it may hang up before it has all
                connection.sendall(data)
            return read(connection, until_closed)


def read(connection: socket.socket, until_closed: bool = True) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while (until_closed or b"\r\n\r\n" not in found) and (data := connection.recv(1 << 16)):
            found += data
    return found


@contextlib.contextmanager
def serving(
    *, head: float = PATIENT, body: float = PATIENT, number: int = 100, keep_alive: int = 30
) -> Iterator[Running]:
    ended: Counter[str] = Counter()
    limits = ConnectionLimits(head=head, body=body, number=number, ended=lambda why: ended.update([why]))
    config = uvicorn.Config(
        answering, port=0, log_config=None, loop="uvloop", lifespan="off", http=guarded_protocol(limits),
        timeout_keep_alive=keep_alive, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield Running(limits, server, ended)
    server.should_exit = True
    thread.join()


def until(holds: Any) -> None:
    deadline = time.monotonic() + PATIENT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def patient() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    with serving(head=SHORT, body=SHORT) as running:
        yield running


def with_headers(*headers: bytes, target: bytes = b"/small") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + b"".join(one + b"\r\n" for one in headers) + b"\r\n"


LONG = b"x" * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "data",
    [
        with_headers(b"A: " + LONG),
        with_headers(LONG + b": a"),
        with_headers(target=b"/" + LONG),
        with_headers(*[b"A: " + b"x" * 1_000] * 33),
        with_headers(*[b"A: b"] * MAX_HEADERS),
        b"GET / HTTP/1.1\r\nA: " + LONG * 40,  # and never an end
        b"GET /" + LONG * 40,
    ],
    ids=["value", "name", "target", "together", "number", "endless value", "endless target"],
)
def test_a_large_head_is_refused(patient: Running, data: bytes) -> None:
    answer = patient.ask(data, until_closed=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    # What the client still sends behind the answer may reset the connection before it has read it.
    assert answer == b"" or head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert answer == b"" or json.loads(body)["code"] == "head_too_large"
    assert patient.ask(GET).startswith(b"HTTP/1.1 200")


def test_a_head_at_the_limit_is_taken(patient: Running) -> None:
    data = with_headers(*[b"A: b"] * (MAX_HEADERS - 1))
    assert patient.ask(data).startswith(b"HTTP/1.1 200")
    assert patient.ask(with_headers(b"A: " + b"x" * (MAX_HEAD_BYTES - 100))).startswith(b"HTTP/1.1 200")


def test_many_requests_of_one_chunk_are_many_heads(patient: Running) -> None:
    large = with_headers(b"A: " + b"x" * 20_000)
    with patient.connect() as connection:
        connection.sendall(large * 5 + with_headers(b"Connection: close"))
        assert read(connection).count(b"HTTP/1.1 200") == 6


@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_head_that_does_not_come_ends_the_connection(hasty: Running, start: bytes) -> None:
    began = time.monotonic()
    answer = hasty.ask(start, until_closed=True)
    assert time.monotonic() - began >= SHORT / 2
    assert answer[:12] == {True: b"HTTP/1.1 408", False: b""}[bool(start)]


def test_a_head_that_drips_ends_like_one_that_does_not_come(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                connection.sendall(b"x")
                time.sleep(0.02)
            pytest.fail("a head may drip for ever")
    assert hasty.ended["head"] > 0


def test_empty_lines_do_not_keep_a_connection(hasty: Running) -> None:
    with serving(head=SHORT, body=SHORT, keep_alive=1) as running, running.connect() as connection:
        connection.sendall(GET)
        assert read(connection, until_closed=False).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                connection.sendall(b"\r\n")
                time.sleep(0.02)
            pytest.fail("empty lines keep a connection")


CUT = [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc", b"Content-Length: 1\r\n\r\n"]


@pytest.mark.parametrize("framing", CUT, ids=["length", "chunked", "nothing"])
def test_a_truncated_body_ends_the_connection(hasty: Running, framing: bytes) -> None:
    answer = hasty.ask(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing, until_closed=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    error = json.loads(body)
    assert (error["code"], error["retryable"]) == ("too_slow", True)


def test_a_body_that_nobody_waits_for_is_not_answered_twice(hasty: Running) -> None:
    answer = hasty.ask(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", until_closed=True)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 200")


def test_an_early_answer_leaves_the_connection_good(patient: Running) -> None:
    with patient.connect() as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert read(connection, until_closed=False).startswith(b"HTTP/1.1 200")
        connection.sendall(b"abc" + with_headers(b"Connection: close"))
        assert read(connection).count(b"HTTP/1.1 200") == 1


def test_trailers_and_extensions_have_an_end(patient: Running) -> None:
    answer = patient.ask(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 20_000_000,
        until_closed=True,
    )
    assert b" 200 " not in answer
    assert patient.ended["size"] > 0
    assert patient.ask(GET).startswith(b"HTTP/1.1 200")


def test_who_does_not_read_is_cut_off(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(with_headers(target=b"/large"))
        until(lambda: hasty.ended["unread"] > 0)


def test_an_idle_connection_makes_room_for_a_new_one() -> None:
    with serving(number=3) as running, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(running.connect()) for _ in range(3)]
        for connection in connections:
            connection.sendall(GET)
            assert read(connection, until_closed=False).startswith(b"HTTP/1.1 200")
        connections[0].sendall(GET)  # now the second is the one that is idle longest
        assert read(connections[0], until_closed=False).startswith(b"HTTP/1.1 200")
        until(lambda: len(running.limits.idle) == 3)
        assert running.ask(GET).startswith(b"HTTP/1.1 200")
        assert connections[1].recv(100) in {b"", b"0"}  # the rest of its answer at most
        assert connections[1].recv(100) == b""
        assert running.ended == {"evicted": 1}


def test_where_none_is_idle_a_new_connection_is_refused() -> None:
    with serving(number=2) as running, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(running.connect()) for _ in range(2)]
        for connection in busy:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        until(lambda: not running.limits.idle)
        answer = running.ask(b"", until_closed=True)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer
        for connection in busy:
            connection.sendall(b"abc")
            assert read(connection, until_closed=False).startswith(b"HTTP/1.1 200")
        assert running.ended == {"refused": 1}


def test_a_connection_that_waits_too_long_for_its_next_request_is_closed() -> None:
    with serving(keep_alive=1) as running, running.connect() as connection:
        connection.sendall(GET)
        began = time.monotonic()
        assert read(connection).count(b"HTTP/1.1") == 1
        assert time.monotonic() - began >= 0.5
        until(lambda: not running.server.server_state.connections)
        assert not running.limits.idle


def test_what_waits_behind_a_slow_answer_does_not_time_out() -> None:
    """The server itself stops reading there."""
    with serving(head=SHORT, body=SHORT) as running, running.connect() as connection:
        behind = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 400000\r\n\r\n"
        connection.sendall(with_headers(target=b"/slow") + behind + b"x" * 400_000)
        answers = read(connection)
        assert answers.count(b"HTTP/1.1 200") == 2
        assert answers.endswith(b"400000")
