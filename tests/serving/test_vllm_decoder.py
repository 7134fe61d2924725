"""The decoder that asks vLLM, against a server that speaks the plug-in's interface; tests/vllm has the real one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from recsys.backends.vllm_format import Question, unpack_shared
from recsys.bundle import Bundle, load_decoder
from recsys.decoding.decoder import Decoder
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.log_prior import LogPrior
from recsys.errors import ConfigError, InputError, UnavailableError
from serving.app import create_app
from serving.settings import Settings
from serving.vllm_decoder import VllmDecoder

LONG = timedelta(seconds=60)  # the first answer may wait for a compiler
HISTORIES = [np.array([9, 10, 11]), np.array([], dtype=np.int64), np.arange(20) % 48, np.array([40])]
Reply = tuple[int, Any]


class FakeVllm(ThreadingHTTPServer):
    """Answers `/pooling` from a decoder of ours.

    Attributes:
        reply: from a request's `data` to status and body; exchanged by tests.
        connections: how many were opened.
    """

    daemon_threads = True

    def __init__(self, decoder: Decoder, items: int, export_id: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.decoder, self.items, self.export_id = decoder, items, export_id
        self.reply: Callable[[dict[str, Any]], Reply] = self.answer
        self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, data: dict[str, Any]) -> Reply:
        question = Question.parse(data, items=self.items)
        if question.export_id != self.export_id:
            return 400, {"error": {"message": "this server runs another", "param": "export_id"}}
        wanted = question.wanted
        shared = None if wanted.shared is None else unpack_shared(wanted.shared, self.items)
        found = self.decoder.decode(
            [question.history], k=wanted.k, beam=wanted.beam, eligibility=Eligibility(shared, [wanted.excluded])
        )
        ranked = found.ranked[0]
        whole = {"items": ranked.items.tolist(), "scores": ranked.scores.tolist(), "widened": found.spent.widened}
        return 200, {"data": whole | {"export_id": self.export_id}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVllm

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_POST(self) -> None:
        assert self.path == "/pooling"
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]
        status, value = self.server.reply(data)
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Tests read no access log."""


@pytest.fixture
def local(served_bundle: Bundle) -> Decoder:
    return load_decoder(served_bundle, engine="torch")


@pytest.fixture
def fake(served_bundle: Bundle, local: Decoder) -> Iterator[FakeVllm]:
    identity = VllmDecoder.of(served_bundle, "http://127.0.0.1:1", timeout=LONG).export_id
    server = FakeVllm(local, len(served_bundle.codes), identity)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def remote(served_bundle: Bundle, fake: FakeVllm) -> Iterator[VllmDecoder]:
    decoder = VllmDecoder.of(served_bundle, fake.url, timeout=LONG)
    yield decoder
    decoder.close()


def decode(decoder: Decoder, **changes: Any) -> Any:
    question: dict[str, Any] = {"k": 12, "beam": 10, "eligibility": Eligibility()}
    return decoder.decode(HISTORIES, **question | changes)


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_those_of_the_same_decoder_here(remote: VllmDecoder, local: Decoder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.random(48) < 0.6
    excluded = [rng.integers(48, size=size) for size in (0, 3, 9, 2)]
    question = {"k": int(rng.integers(1, 40)), "eligibility": Eligibility(shared, excluded)}
    for found, expected in zip(decode(remote, **question).ranked, decode(local, **question).ranked, strict=True):
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5)


def test_connections_are_kept_open(remote: VllmDecoder, fake: FakeVllm) -> None:
    for _ in range(3):
        decode(remote)
    assert fake.connections == len(HISTORIES)


def test_a_connection_that_the_server_closed_is_opened_anew(remote: VllmDecoder, fake: FakeVllm) -> None:
    decode(remote)
    expected = decode(remote)
    for connection in remote.idle:
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)  # as after the server's keep-alive time
    found = decode(remote)
    np.testing.assert_array_equal(found.ranked[0].items, expected.ranked[0].items)


def test_the_requests_of_a_batch_are_under_way_together(remote: VllmDecoder, fake: FakeVllm) -> None:
    all_here = threading.Barrier(len(HISTORIES), timeout=5)

    def together(data: dict[str, Any]) -> Reply:
        all_here.wait()
        return fake.answer(data)

    fake.reply = together
    assert len(decode(remote).ranked) == len(HISTORIES)


def test_a_slow_server_is_left_at_the_timeout(served_bundle: Bundle, fake: FakeVllm) -> None:
    released = threading.Event()

    def slow(data: dict[str, Any]) -> Reply:
        released.wait(10)
        return fake.answer(data)

    fake.reply = slow
    decoder = VllmDecoder.of(served_bundle, fake.url, timeout=timedelta(milliseconds=200))
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
        decode(decoder)
    assert time.monotonic() - began < 2
    released.set()
    fake.reply = fake.answer
    assert not decoder.idle  # what comes late is nobody's answer
    patient = VllmDecoder.of(served_bundle, fake.url, timeout=LONG)
    assert len(decode(patient).ranked) == len(HISTORIES)
    patient.close()


def test_a_server_that_is_not_there_is_unavailable(served_bundle: Bundle) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="ConnectionRefusedError"):
            decode(VllmDecoder.of(served_bundle, url, timeout=LONG))


def of_data(**changes: Any) -> Callable[[FakeVllm, dict[str, Any]], Reply]:
    def reply(fake: FakeVllm, data: dict[str, Any]) -> Reply:
        status, value = fake.answer(data)
        return status, {"data": value["data"] | changes}

    return reply


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda fake, data: (500, {"error": {"message": "broken", "param": None}}), UnavailableError),
        (lambda fake, data: (503, b"<html>busy</html>"), UnavailableError),
        (lambda fake, data: (200, b"{"), UnavailableError),
        (lambda fake, data: (200, {"answer": 1}), UnavailableError),
        (lambda fake, data: (400, {"error": {"message": "bad", "param": "history"}}), InputError),
        (lambda fake, data: fake.answer(data | {"export_id": "another"}), UnavailableError),
        (of_data(export_id="another"), UnavailableError),
        (of_data(items=[48], scores=[0.0]), UnavailableError),
        (of_data(items=[-1], scores=[0.0]), UnavailableError),
        (of_data(items=[2**40], scores=[0.0]), UnavailableError),
        (of_data(items=[1], scores=[]), UnavailableError),
        (of_data(items="abc"), UnavailableError),
        (of_data(widened="many"), UnavailableError),
    ],
)
def test_what_is_no_answer_is_an_error_and_the_next_request_is_answered(
    remote: VllmDecoder, fake: FakeVllm, reply: Any, error: type[Exception]
) -> None:
    fake.reply = lambda data: reply(fake, data)
    with pytest.raises(error):
        decode(remote)
    fake.reply = fake.answer
    assert len(decode(remote).ranked) == len(HISTORIES)


def test_a_failure_is_logged_once_per_change_of_reason(
    remote: VllmDecoder, fake: FakeVllm, log_lines: list[MutableMapping[str, Any]]
) -> None:
    def fail(status: int) -> None:
        fake.reply = lambda _: (status, {"error": {"message": "secret path"}})
        with pytest.raises(UnavailableError) as raised:
            decode(remote)
        assert raised.value.message == "the model cannot be asked"
        assert "secret path" in raised.value.remedy

    for status in (500, 500, 503):
        fail(status)
    fake.reply = fake.answer
    decode(remote)
    fail(503)
    reasons = [line["reason"] for line in log_lines if line["event"] == "vllm_failed"]
    assert reasons == ["status 500", "status 503", "status 503"]


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://[::1]", ("::1", 80)), ("https://[::1]/x", ("::1", 443)), ("http://h:8000", ("h", 8000))],
)
def test_a_url_without_a_port_has_the_usual_one(served_bundle: Bundle, url: str, address: tuple[str, int]) -> None:
    assert VllmDecoder.of(served_bundle, url, timeout=LONG).address == address


def test_what_cannot_be_asked_is_refused(remote: VllmDecoder, served_bundle: Bundle) -> None:
    with pytest.raises(InputError):
        decode(remote, k=0)
    with pytest.raises(InputError):
        decode(remote, eligibility=Eligibility(None, [np.array([1])]))
    with pytest.raises(ConfigError, match="log-prior"):
        decode(remote, log_prior=LogPrior(served_bundle.trie, np.zeros(48)))
    with pytest.raises(ConfigError, match="decoder"):
        VllmDecoder.of(served_bundle, "http://127.0.0.1:1", timeout=LONG, decoder="beam")


def test_the_service_answers_through_vllm(server_settings: Settings, fake: FakeVllm) -> None:
    question = {"history": ["item-09", "item-10"], "n": 8}
    with TestClient(create_app(server_settings)) as client:
        expected = client.post("/v1/recommend", json=question).json()
    through = server_settings.model_copy(update={"vllm_url": fake.url, "vllm_timeout": LONG})
    with TestClient(create_app(through)) as client:
        before = fake.connections
        found = client.post("/v1/recommend", json=question)
        assert found.status_code == 200
        assert fake.connections == before  # the trial at the start has opened it
        answer = found.json()
        fake.reply = lambda data: (500, {"error": {"message": "broken"}})
        without = client.post("/v1/recommend", json=question).json()
        assert (without["served_by"], without["decoder"], len(without["items"])) == ("item_to_item", None, 8)
        fake.reply = fake.answer
        assert client.post("/v1/recommend", json=question).json()["served_by"] == "nezha"
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in expected["items"]]
    scores, other = ([item["score"] for item in one["items"]] for one in (answer, expected))
    np.testing.assert_allclose(scores, other, rtol=0, atol=1e-5)
    assert (answer["served_by"], answer["decoder"]) == ("nezha", "nezha")


def test_a_bundle_that_vllm_does_not_run_is_not_served(server_settings: Settings, fake: FakeVllm) -> None:
    fake.export_id = "another"
    with TestClient(
        create_app(server_settings.model_copy(update={"vllm_url": fake.url, "vllm_timeout": LONG}))
    ) as client:
        ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "vLLM runs another model than the bundle" in ready.text
