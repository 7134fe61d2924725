"""Real workers behind one port: kill -9, SIGTERM to one, SIGHUP, SIGTERM to all, under clients that never try again."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.event_log import read_exposures
from serving.metrics import EngineMetrics

Start = Callable[..., Any]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
CLIENTS = 6
ENGINES = {family.name for family in EngineMetrics().registry.collect()}
PATIENT = {"WINDFIRE_KEEP_ALIVE": "PT2M", "WINDFIRE_DRAIN_TIMEOUT": "PT1M"}  # a slow machine is no failure


def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true value."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return value


@dataclass
class Crew:
    """A parent and its workers.

    Attributes:
        server: the parent.
        count: of workers.
    """

    server: Any
    count: int

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The whole log lines of one kind."""
        written = self.server.log.read_text()
        lines = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def pids(self) -> list[int]:
        """The newest process of each worker."""
        return list({line["worker"]: line["pid"] for line in self.lines("worker_up")}.values())

    def pid(self, worker: int) -> int:
        pid: int = [line["pid"] for line in self.lines("worker_up") if line["worker"] == worker][-1]
        return pid

    def replaced(self, worker: int, before: int) -> bool:
        return self.pid(worker) != before and not psutil.pid_exists(before)

    def ask(self, path: str = "/healthz") -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=30)
        connection.request("GET", path)
        response = connection.getresponse()
        answer = response.status, dict(response.headers), response.read()
        connection.close()
        return answer


@dataclass
class Traffic:
    """What clients in a closed loop met.

    Attributes:
        answered: requests by status.
        broken: requests that ended without an answer.
        closed: answers that ended their connection.
    """

    answered: dict[int, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    closed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.answered.values())

    def note(self, status: int, closes: bool) -> None:
        with self.lock:
            self.answered[status] = self.answered.get(status, 0) + 1
            self.closed += closes

    def loop(self, url: str, stop: threading.Event, client: int) -> None:
        """Ask over one connection for as long as the server keeps it, and never a second time."""
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        while not stop.wait(0.002 * client):
            try:
                body = json.dumps({"user_id": f"u{client}", "n": 3})
                connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                self.note(response.status, response.will_close)
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                connection.close()
        connection.close()


@contextmanager
def traffic(url: str) -> Iterator[Traffic]:
    """Clients that ask until the block ends."""
    seen, stop = Traffic(), threading.Event()
    threads = [threading.Thread(target=seen.loop, args=(url, stop, client)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: seen.total > 10 * CLIENTS, "the clients get answers")
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def goes_on(seen: Traffic) -> None:
    """Wait until the clients have got more answers."""
    more = seen.total + 10 * CLIENTS
    until(lambda: seen.total > more, "the clients still get answers")


StartCrew = Callable[..., Crew]


@pytest.fixture(scope="module")
def start_crew(start_server: Start, shared_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> StartCrew:
    """Starts workers over one engine process, with histories in LMDB; all are up when it returns."""

    def start(count: int, **environment: str) -> Crew:
        variables = {
            "WINDFIRE_ENGINE_SOCKET": str(shared_engine.socket),
            "WINDFIRE_HISTORY_STORE": f"lmdb:{tmp_path_factory.mktemp('histories')}",
            "WINDFIRE_WORKERS": str(count),
            **PATIENT,
            **environment,
        }
        crew = Crew(start_server(**variables), count)
        until(lambda: len(crew.pids()) == count, "all workers are up")
        return crew

    return start


def replace_each_in_turn(crew: Crew) -> Traffic:
    """SIGTERM to one worker after the other under traffic."""
    with traffic(crew.server.url) as seen:
        for worker in range(crew.count):
            before = crew.pid(worker)
            os.kill(before, signal.SIGTERM)
            until(partial(crew.replaced, worker, before), "the successor is up")
        goes_on(seen)
    return seen


@pytest.fixture(scope="module")
def crew(start_crew: StartCrew) -> Crew:
    return start_crew(2)


def test_sigterm_to_each_worker_fails_no_request(crew: Crew) -> None:
    seen = replace_each_in_turn(crew)
    assert seen.broken == []
    assert set(seen.answered) == {200}
    assert seen.closed > 0
    assert crew.lines("worker_died") == []


def test_a_worker_that_is_killed_is_started_again(crew: Crew) -> None:
    with traffic(crew.server.url) as seen:
        before = crew.pid(0)
        os.kill(before, signal.SIGKILL)
        until(lambda: crew.replaced(0, before), "it is started again")
        goes_on(seen)
    assert len(seen.broken) <= CLIENTS  # each client had one request in flight at most
    assert set(seen.answered) == {200}
    (death,) = crew.lines("worker_died")
    assert (death["worker"], death["pid"], death["how"], death["deaths"]) == (0, before, "signal 9", 1)


def test_a_worker_that_hangs_is_started_again(start_crew: StartCrew) -> None:
    crew = start_crew(2, WINDFIRE_WORKER_SILENCE="PT5S")
    hangs, lives = crew.pid(0), crew.pid(1)
    os.kill(hangs, signal.SIGSTOP)
    until(lambda: crew.replaced(0, hangs), "it is started again")
    (silent,) = crew.lines("worker_silent")
    assert (silent["worker"], silent["pid"]) == (0, hangs)
    assert crew.lines("worker_died")[0]["how"] == "signal 9"
    assert crew.pid(1) == lives


def test_a_parent_that_was_stopped_kills_nobody(start_crew: StartCrew) -> None:
    crew = start_crew(2, WINDFIRE_WORKER_SILENCE="PT2S")
    processes = [crew.server.process.pid, *crew.pids()]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    with traffic(crew.server.url) as seen:
        goes_on(seen)
    assert (crew.lines("worker_silent"), crew.pids()) == ([], processes[1:])


def test_sighup_replaces_all_and_fails_no_request(crew: Crew) -> None:
    before = {worker: crew.pid(worker) for worker in range(crew.count)}
    with traffic(crew.server.url) as seen:
        crew.server.process.send_signal(signal.SIGHUP)
        until(lambda: crew.lines("rolling_restart_done"), "all are replaced")
        goes_on(seen)
    assert (seen.broken, set(seen.answered)) == ([], {200})
    assert all(crew.replaced(worker, pid) for worker, pid in before.items())


def test_an_idle_connection_is_answered_once_more(crew: Crew) -> None:
    connections = [http.client.HTTPConnection(urlsplit(crew.server.url).netloc, timeout=30) for _ in range(8)]
    for connection in connections:  # to both workers, as it comes
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    before = [crew.pid(worker) for worker in range(crew.count)]
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    until(lambda: all(not accepts(pid) for pid in before), "the old ones take no connections")
    for connection in connections:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
    until(lambda: all(map(crew.replaced, range(crew.count), before)), "the successors are up")


def accepts(pid: int) -> bool:
    """Whether a process still listens."""
    return any(link.status == psutil.CONN_LISTEN for link in psutil.Process(pid).net_connections("tcp"))


def any_exposure(state: Path) -> bool:
    """Whether a worker has answered."""
    return bool(list(read_exposures(state / "exposures")))


def test_every_worker_has_logs_of_its_own_and_answers(crew: Crew) -> None:
    with traffic(crew.server.url) as seen:
        goes_on(seen)
    for state in (crew.server.state / f"worker-{worker}" for worker in range(crew.count)):
        until(partial(any_exposure, state), f"{state} has answered")
    assert seen.broken == []
    assert not (crew.server.state / "events").exists()


def samples(text: bytes) -> Samples:
    """Everything but gauges, and what the engine shows when it has the time."""
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if family.type in {"counter", "histogram"} and family.name not in ENGINES
    }


def answers_in(shown: Samples) -> dict[str, float]:
    """Recommend requests by status."""
    return {
        dict(labels)["status"]: value
        for (name, labels), value in shown.items()
        if name == "windfire_request_seconds_count" and dict(labels)["route"] == "/v1/recommend"
    }


def send(crew: Crew, bodies: list[dict[str, Any]]) -> None:
    """Each over a connection of its own, to whichever worker takes it."""
    for body in bodies:
        connection = http.client.HTTPConnection(urlsplit(crew.server.url).netloc, timeout=30)
        connection.request("POST", "/v1/recommend", json.dumps(body), {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()


def counted(crew: Crew, expected: dict[str, float]) -> bool:
    return answers_in(samples(crew.ask("/metrics")[2])) == expected


def test_metrics_are_the_sum_of_all_workers_and_never_go_back(crew: Crew) -> None:
    rng = random.Random(5)
    began = samples(crew.ask("/metrics")[2])
    before, sent = began, {"200": 0, "422": 0}
    for end in (signal.SIGTERM, signal.SIGKILL):
        good, bad = rng.randrange(20, 40), rng.randrange(5, 10)
        send(crew, rng.sample([{"n": 3}] * good + [{"n": 0}] * bad, good + bad))
        sent["200"] += good
        sent["422"] += bad
        expected = {status: answers_in(began).get(status, 0) + count for status, count in sent.items()}
        # A request is counted behind its answer, which may be on the way for longer than this test's next question.
        until(partial(counted, crew, expected), f"{expected} are counted")
        shown = samples(crew.ask("/metrics")[2])
        assert {key for key, value in before.items() if shown.get(key, -1.0) < value} == set()
        before = shown
        pid = crew.pid(1)
        os.kill(pid, end)
        until(partial(crew.replaced, 1, pid), "the next life begins")
    shown = samples(crew.ask("/metrics")[2])
    assert answers_in(shown) == answers_in(before)
    assert {key for key, value in before.items() if shown.get(key, -1.0) < value} == set()


def test_a_user_is_forgotten_by_all_workers(crew: Crew) -> None:
    row = {"user_id": "gone", "item_id": "item-01", "action": "click"}
    for n in range(16):  # each to whichever worker takes the connection
        sent = {"events": [{"event_id": f"gone{n}", **row}]}
        assert httpx.post(f"{crew.server.url}/v1/events", json=sent, timeout=30).json()["accepted"] == 1
    place = f"{crew.server.url}/v1/users/gone"
    before = json.loads(httpx.get(f"{place}/export", timeout=30).text.splitlines()[-1])
    assert before["counts"]["event"] == 16
    erased = httpx.delete(place, timeout=60)
    assert (erased.status_code, erased.json()["erased"]["event"]) == (200, 16)
    after = json.loads(httpx.get(f"{place}/export", timeout=30).text.splitlines()[-1])
    assert set(after["counts"].values()) == {0}


def unready(crew: Crew) -> Any:
    """What /readyz says once it is no longer 200."""
    answer = crew.ask("/readyz")
    return answer if answer[0] != 200 else None


def test_sigterm_to_the_parent_answers_what_is_in_flight_and_ends_all(start_crew: StartCrew) -> None:
    crew = start_crew(2, WINDFIRE_DRAIN_DELAY="PT0.5S")
    pids = crew.pids()
    with traffic(crew.server.url) as seen:
        crew.server.process.send_signal(signal.SIGTERM)
        status, headers, body = until(lambda: unready(crew), "the workers say that they drain")
        assert (status, headers["connection"], json.loads(body)["reasons"]) == (503, "close", ["draining"])
    assert crew.server.process.wait(30) == 0
    assert set(seen.answered) == {200}
    assert {error.partition("(")[0] for error in seen.broken} <= {"ConnectionRefusedError"}
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.faults
def test_workers_do_not_outlive_a_parent_that_is_killed(start_crew: StartCrew) -> None:
    crew = start_crew(2)
    crew.server.process.kill()
    until(lambda: not any(map(psutil.pid_exists, crew.pids())), "the workers end")


@pytest.mark.faults
def test_four_workers_are_replaced_in_turn_again_and_again(start_crew: StartCrew) -> None:
    crew = start_crew(4)
    for _ in range(3):
        seen = replace_each_in_turn(crew)
        assert (seen.broken, set(seen.answered)) == ([], {200})
    assert crew.lines("worker_died") == []


@pytest.mark.faults
def test_a_crash_loop_is_said_and_ends(start_crew: StartCrew) -> None:
    crew = start_crew(4)
    for deaths in range(1, 5):
        before = crew.pid(2)
        os.kill(before, signal.SIGKILL)
        until(partial(crew.replaced, 2, before), "it is started again")
        assert crew.lines("worker_died")[-1]["deaths"] == deaths
    assert [line["deaths"] for line in crew.lines("worker_crash_loop")] == [3, 4]
    assert crew.ask("/readyz")[0] == 200
