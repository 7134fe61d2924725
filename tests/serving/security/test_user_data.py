from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from recsys.bundle import Registry
from recsys.errors import UnavailableError
from recsys.event_log import SegmentLog
from serving.app import create_app
from serving.security.user_data import Part, UserData
from serving.settings import Settings
from serving.workers.neighbours import Neighbours


def rows(user: str, count: int = 3, **more: Any) -> list[dict[str, Any]]:
    return [
        {"event_id": f"{user}-{n}", "user_id": user, "item_id": f"item-{10 + n}", "action": "click", **more}
        for n in range(count)
    ]


def meet(client: TestClient, user: str) -> None:
    """Three events and one answer."""
    assert client.post("/v1/events", json={"events": rows(user)}).json()["accepted"] == 3
    assert client.post("/v1/recommend", json={"user_id": user, "n": 2}).json()["history_source"] == "store"


def exported(client: TestClient, user: str) -> list[dict[str, Any]]:
    response = client.get(f"/v1/users/{quote(user, safe='')}/export")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.content.splitlines()]


def forgotten(client: TestClient, user: str) -> dict[str, int]:
    response = client.delete(f"/v1/users/{quote(user, safe='')}")
    assert response.status_code == 200
    erased: dict[str, int] = response.json()["erased"]
    return erased


@pytest.fixture
def synchronous(server_settings: Settings) -> Settings:
    """Exposures are on the disk before the answer, so that a test may look for them."""
    return server_settings.model_copy(update={"exposure_sync": True})


@pytest.fixture
def met(synchronous: Settings) -> Iterator[TestClient]:
    """A server that knows ann and bob."""
    with TestClient(create_app(synchronous)) as client:
        meet(client, "ann")
        meet(client, "bob")
        yield client


def test_an_export_is_all_that_is_held(met: TestClient) -> None:
    *data, end = exported(met, "ann")
    assert end == {"kind": "end", "counts": {"history": 3, "event": 3, "exposure": 1}}
    assert [row["kind"] for row in data] == ["history"] * 3 + ["event"] * 3 + ["exposure"]
    assert {row["event_id"] for row in data[:6]} == {"ann-0", "ann-1", "ann-2"}
    assert {row["user_id"] for row in data[3:]} == {"ann"}
    assert "bob" not in json.dumps(data)


def test_who_is_forgotten_is_nowhere_and_nobody_else_is(met: TestClient, synchronous: Settings) -> None:
    bob = exported(met, "bob")
    assert forgotten(met, "ann") == {"history": 3, "event": 3, "exposure": 1}
    assert exported(met, "ann") == [{"kind": "end", "counts": {"history": 0, "event": 0, "exposure": 0}}]
    assert forgotten(met, "ann") == {"history": 0, "event": 0, "exposure": 0}
    assert exported(met, "bob") == bob
    answer = met.post("/v1/recommend", json={"user_id": "ann"}).json()
    assert (answer["history_source"], answer["history_missing"]) == ("none", "deleted")
    logs = [path for folder in ("events", "exposures") for path in (synchronous.state / folder).glob("*.log")]
    held = b"".join(path.read_bytes() for path in logs)
    assert b"ann-" not in held
    assert b"bob-2" in held


def test_who_is_not_known_yet_is_forgotten_all_the_same(met: TestClient) -> None:
    assert forgotten(met, "carl") == {"history": 0, "event": 0, "exposure": 0}
    answer = met.post("/v1/recommend", json={"user_id": "carl"}).json()
    assert answer["history_missing"] == "deleted"  # an event of before that was durable and not merged stays out


def test_neither_a_restart_nor_a_replay_brings_anybody_back(synchronous: Settings) -> None:
    with TestClient(create_app(synchronous)) as client:
        meet(client, "ann")
        meet(client, "bob")
        forgotten(client, "ann")
    shutil.rmtree(synchronous.state / "offsets")
    with TestClient(create_app(synchronous)) as client:
        assert exported(client, "ann")[-1]["counts"] == {"history": 0, "event": 0, "exposure": 0}
        assert exported(client, "bob")[-1]["counts"] == {"history": 3, "event": 3, "exposure": 1}
    shutil.rmtree(synchronous.state / "offsets")
    shutil.rmtree(synchronous.state / "features")  # nor does one into an empty store
    with TestClient(create_app(synchronous)) as client:
        assert exported(client, "ann")[-1]["counts"] == {"history": 0, "event": 0, "exposure": 0}
        assert exported(client, "bob")[-1]["counts"] == {"history": 3, "event": 3, "exposure": 1}


def test_times_a_little_ahead_of_the_clock_go_too(client: TestClient) -> None:
    ahead = time.time_ns() // 1_000 + 200_000_000
    client.post("/v1/events", json={"events": rows("ann", time=ahead)})
    assert forgotten(client, "ann") == {"history": 3, "event": 3, "exposure": 0}
    assert client.post("/v1/recommend", json={"user_id": "ann"}).json()["history_source"] == "none"


def test_who_comes_back_is_known_from_then_on(met: TestClient) -> None:
    forgotten(met, "ann")
    again = [{"event_id": "ann-new", "user_id": "ann", "item_id": "item-20", "action": "click"}]
    assert met.post("/v1/events", json={"events": again}).json()["accepted"] == 1
    assert exported(met, "ann")[-1]["counts"] == {"history": 1, "event": 1, "exposure": 0}
    assert met.post("/v1/events", json={"events": rows("ann")}).json()["duplicate"] == 3  # late repetitions are known


NAMES = ["export", "a/b", "/", "a/export/b", "ä ö", "%2F", "a?b#c", '"', "a\nb", "a\n", "..", "x" * 256]


@pytest.mark.parametrize("user", NAMES)
def test_every_user_can_be_named(shared_url: str, user: str) -> None:
    """Over the wire, by a client that leaves paths alone."""
    address = urlsplit(shared_url)
    row = {**rows("any", 1)[0], "user_id": user, "event_id": f"named-{NAMES.index(user)}"}
    assert httpx.post(f"{shared_url}/v1/events", json={"events": [row]}).json()["accepted"] == 1
    path = f"/v1/users/{quote(user, safe='')}"
    with closing(HTTPConnection(address.netloc, timeout=30)) as connection:
        connection.request("GET", f"{path}/export")
        data = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.request("DELETE", path)
        erased = json.loads(connection.getresponse().read())["erased"]
    assert {row["user_id"] for row in data if row["kind"] == "event"} == {user}
    assert erased == {"history": 1, "event": 1, "exposure": 0}


@pytest.mark.parametrize("path", ["/v1/users/a%00b", f"/v1/users/{'x' * 257}", f"/v1/users/{'x' * 257}/export"])
def test_what_can_be_nobodys_id_is_malformed(client: TestClient, path: str) -> None:
    method = {True: "GET", False: "DELETE"}[path.endswith("export")]
    response = client.request(method, path)
    assert (response.status_code, response.json()["field"]) == (422, "path.user_id")


def test_the_history_is_gone_from_the_stores_bytes(met: TestClient) -> None:
    store = met.app_state["services"].histories._store
    with store._environment.begin() as transaction:
        before = b"".join(bytes(key + value) for key, value in transaction.cursor())
    forgotten(met, "ann")
    with store._environment.begin() as transaction:
        after = b"".join(bytes(key + value) for key, value in transaction.cursor())
    assert b"ann-1" in before
    assert b"ann-1" not in after
    assert b"bob-1" in after


class Cache:
    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.threads: set[int] = set()

    def forget(self, user_id: str) -> None:
        self.forgotten.append(user_id)
        self.threads.add(threading.get_ident())


def part(name: str, calls: list[str]) -> Part:
    def forget(user_id: str) -> int:
        calls.append(name)
        return len(user_id)

    return Part(name, forget, lambda user_id: iter([{"user": user_id}]))


def test_caches_are_emptied_behind_the_stores_and_on_the_event_loop() -> None:
    async def scenario() -> tuple[dict[str, int], int]:
        users.add(part("history", calls))
        users.add_cache(cache.forget)
        return await users.forget("ann"), threading.get_ident()

    users, cache, calls = UserData(), Cache(), list[str]()
    erased, loop_thread = asyncio.run(scenario())
    users.close()
    assert (erased, calls, cache.forgotten) == ({"history": 3}, ["history"], ["ann"])
    assert cache.threads == {loop_thread}
    lines = [json.loads(line) for line in b"".join(users.export("ann")).splitlines()]
    assert lines == [{"kind": "history", "user": "ann"}, {"kind": "end", "counts": {"history": 1}}]


def test_a_part_that_refuses_is_no_success() -> None:
    def refuse(_: str) -> int:
        raise UnavailableError("the disk refuses")

    users, cache = UserData(), Cache()
    users.add(Part("history", refuse, lambda _: iter(())))
    users.add_cache(cache.forget)
    with pytest.raises(UnavailableError, match="the disk refuses"):
        asyncio.run(users.forget("ann"))
    users.close()
    assert cache.forgotten == []


def test_more_erasures_than_may_wait_are_refused_and_one_that_nobody_waits_for_goes_on() -> None:
    hold, erased = threading.Event(), list[str]()

    def slow(user_id: str) -> int:
        assert hold.wait(30)
        erased.append(user_id)
        return 1

    async def scenario() -> None:
        impatient = asyncio.create_task(users.forget("impatient"))
        waiting = [asyncio.create_task(users.forget(f"u{n}")) for n in range(15)]
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(UnavailableError, match="too many"):
            await users.forget("late")
        hold.set()
        await asyncio.gather(*waiting)
        assert await users.forget("again") == {"history": 1}

    users = UserData()
    users.add(Part("history", slow, lambda _: iter(())))
    asyncio.run(scenario())
    users.close()
    assert erased == ["impatient", *(f"u{n}" for n in range(15)), "again"]


@pytest.fixture
def crew(synchronous: Settings) -> Iterator[list[TestClient]]:
    """Two workers of one server, each with its own logs, and the folder of a third that is no more.

    One process cannot open an embedded store twice, so that here, unlike elsewhere, each has one of its own.
    """
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(3):
            store = SecretStr(f"lmdb:{synchronous.state / f'store-{number}'}")
            changes = {"workers": 2, "state": synchronous.state / f"worker-{number}", "history_store": store}
            application = create_app(synchronous.model_copy(update=changes))
            clients.append(stack.enter_context(TestClient(application)) if number < 2 else TestClient(application))
        with clients[2]:
            meet(clients[2], "ann")
        for client in clients[:2]:
            meet(client, "ann")
            meet(client, "bob")
        yield clients


def test_one_worker_forgets_for_all(crew: list[TestClient], synchronous: Settings) -> None:
    assert exported(crew[0], "ann")[-1]["counts"] == {"history": 3, "event": 9, "exposure": 3}
    first = forgotten(crew[0], "ann")
    assert (first["event"], first["exposure"]) == (9, 3)
    for client in crew[:2]:
        assert [row for row in exported(client, "ann")[:-1] if row["kind"] != "history"] == []
        assert exported(client, "bob")[-1]["counts"] == {"history": 3, "event": 6, "exposure": 2}
    held = b"".join(path.read_bytes() for path in synchronous.state.rglob("*.log"))
    assert b"ann-" not in held
    assert not list(synchronous.state.rglob("erasures/*"))


def test_workers_that_ask_each_other_at_once_do_not_wait_for_ever(crew: list[TestClient]) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(forgotten, client, "ann") for client in crew[:2]]
        assert sum(one.result(60)["event"] for one in both) == 9
    assert exported(crew[0], "ann")[-1]["counts"]["event"] == 0


def test_a_worker_that_does_not_answer_is_no_success(synchronous: Settings) -> None:
    deaf = SegmentLog(synchronous.state / "worker-1" / "events")
    deaf.append([b'{"user_id":"ann"}'])
    own = synchronous.model_copy(update={"workers": 2, "state": synchronous.state / "worker-0"})
    neighbours = Neighbours(own, patience=0.1)
    with pytest.raises(UnavailableError, match="does not answer"):
        neighbours.forget("event", "ann")
    (request,) = (synchronous.state / "worker-1" / "erasures").glob("*.json")
    assert request.stat().st_mode & 0o777 == 0o600
    deaf.close()
    assert neighbours.forget("event", "ann") == 1  # nobody has it open any more


def test_an_outage_of_the_store_is_an_error_and_no_half_export(server_settings: Settings) -> None:
    away = server_settings.model_copy(update={"history_store": SecretStr("redis://127.0.0.1:1/0")})
    with TestClient(create_app(away)) as client:
        for response in (client.get("/v1/users/ann/export"), client.delete("/v1/users/ann")):
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")


@pytest.mark.faults
def test_an_erasure_beside_writers_loses_nothing_and_survives_kill_9(
    start_server: Any, served_registry: Registry
) -> None:
    server = start_server(registry=served_registry.root)
    acknowledged: list[str] = []

    def send() -> None:
        with httpx.Client(base_url=server.url) as client:
            for number in range(1_000_000):
                pair = [*rows(f"ann-{number}", 1, user_id="ann"), *rows(f"bob-{number}", 1, user_id="bob")]
                try:
                    client.post("/v1/events", json={"events": pair}).raise_for_status()
                except httpx.TransportError:
                    return
                acknowledged.append(pair[1]["event_id"])

    sender = threading.Thread(target=send)
    sender.start()
    with httpx.Client(base_url=server.url) as client:
        for _ in range(20):
            assert client.delete("/v1/users/ann").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        cut_short = pool.submit(httpx.delete, f"{server.url}/v1/users/ann")
        server.process.kill()
        server.process.wait()
        cut_short.exception()  # answered or not
    sender.join(10)
    with TestClient(create_app(Settings(registry=served_registry.root, state=server.state))) as after:
        forgotten(after, "ann")
        held = {row["event_id"] for row in exported(after, "bob") if row["kind"] == "event"}
        assert set(acknowledged) <= held
        assert exported(after, "ann")[-1]["counts"]["event"] == 0


@pytest.mark.faults
def test_real_workers_forget_together(start_server: Any, tmp_path: Path) -> None:
    server = start_server(WINDFIRE_WORKERS="2", WINDFIRE_HISTORY_STORE=f"lmdb:{tmp_path / 'store'}")
    for number in range(30):  # a connection each, so that both workers get some
        response = httpx.post(f"{server.url}/v1/events", json={"events": rows(f"ann-{number}", 1, user_id="ann")})
        assert response.json()["accepted"] == 1
    erased = httpx.delete(f"{server.url}/v1/users/ann", timeout=60).json()["erased"]
    assert (erased["history"], erased["event"]) == (30, 30)
    held = b"".join(path.read_bytes() for path in server.state.rglob("*.log"))
    assert held.count(b'"action":"click"') == held.count(b"ann") == 0
    assert not list(server.state.rglob("erasures/*"))
