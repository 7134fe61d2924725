"""The real server process: kill -9, SIGTERM, bodies over the wire."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry
from recsys.event_log import read_events
from serving.app import create_app
from serving.settings import Settings

Start = Callable[..., Any]


def event(n: int) -> dict[str, Any]:
    return {"event_id": f"e{n}", "user_id": f"u{n % 7}", "item_id": f"item-{n % 48:02d}", "action": "click", "time": n}


def send_until_the_end(url: str, sender: int, acknowledged: list[str], enough: threading.Event) -> None:
    """Send batches of three until the server is gone; note what it has acknowledged."""
    with httpx.Client(base_url=url) as client:
        for batch in range(100_000):
            rows = [event(1 + sender * 1_000_000 + batch * 3 + n) for n in range(3)]
            try:
                response = client.post("/v1/events", json={"events": rows})
            except httpx.TransportError:
                return
            assert response.status_code == 200
            acknowledged += [row["event_id"] for row in response.json()["results"] if row["status"] == "accepted"]
            if len(acknowledged) > 300:
                enough.set()


def test_kill_9_loses_no_acknowledged_event(start_server: Start, served_registry: Registry) -> None:
    server = start_server()
    acknowledged: list[str] = []
    enough = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send_until_the_end, server.url, n, acknowledged, enough) for n in range(4)]
        assert enough.wait(20)
        server.process.kill()
        server.process.wait()
    assert [sender.result() for sender in senders] == [None] * 4
    written = [record["event_id"] for _, record in read_events(server.state / "events")]
    assert set(acknowledged) <= set(written)
    assert len(written) == len(set(written))
    with TestClient(create_app(Settings(registry=served_registry.root, state=server.state))) as client:
        assert client.get("/readyz").json()["reasons"] == []
        answers = [client.post("/v1/recommend", json={"user_id": f"u{user}"}).json() for user in range(7)]
        assert [answer for answer in answers if "counts" not in answer] == []
        # no user has reached the 1,000 events that a history keeps
        assert sum(answer["counts"]["history"] for answer in answers) == len(written)
        assert client.post("/v1/events", json={"events": [event(1)]}).json()["duplicate"] == 1


def test_sigterm_answers_what_is_in_flight_and_refuses_none(start_server: Start) -> None:
    server = start_server(WINDFIRE_DRAIN_DELAY="PT0.5S")
    statuses: list[int] = []

    def ask_until_not_ready() -> bool:
        with httpx.Client(base_url=server.url) as client:
            while client.get("/readyz").status_code == 200:
                statuses.append(client.post("/v1/recommend", json={"history": ["item-11"]}).status_code)
            statuses.append(client.post("/v1/recommend", json={"history": ["item-11"]}).status_code)
            return bool(client.get("/readyz").json()["reasons"] == ["draining"])

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(ask_until_not_ready) for _ in range(2)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert [client.result(10) for client in clients] == [True, True]
    server.process.wait(10)
    assert set(statuses) == {200}
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert not [line for line in lines if line["level"] in {"warning", "error"}]
    assert {"bundle_loaded"} <= {line["event"] for line in lines}


def test_ten_megabytes_over_the_wire(shared_url: str) -> None:
    response = httpx.post(f"{shared_url}/v1/recommend", content=b"x" * 10_000_000)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_ten_megabytes_in_chunks_over_the_wire(shared_url: str) -> None:
    def pour(connection: socket.socket) -> None:
        for _ in range(1_000):
            connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")

    address = urlsplit(shared_url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        # The server hangs up behind its 413, which the reset may overtake.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            pour(connection)
    assert httpx.get(f"{shared_url}/healthz").status_code == 200


def test_what_is_no_http_ends_the_connection_only(shared_url: str) -> None:
    address = urlsplit(shared_url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{shared_url}/healthz").status_code == 200
