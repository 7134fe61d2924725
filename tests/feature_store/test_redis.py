"""The Redis store on real servers, and what requests see of one that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.redis_server import RedisServer, free_port
from feature_store.encoding import Codec
from feature_store.fields import Field, Kind
from feature_store.opening import (
    RedisAddress,
    Timeouts,
    open_async_hashes,
    open_async_store,
    open_hashes,
    open_store,
)
from feature_store.reading import TAIL, Reason, Status
from feature_store.redis_hashes import PlainHashes
from feature_store.redis_store import RedisFeatureStore
from feature_store.store import FeatureStore, Merge, Write, delete_entity, now_micros
from feature_store.views import View
from recsys.errors import ConfigError, DataError, UnavailableError

COUNTS = View("counts", "user", (Field("clicks", Kind.INT64),), 1, "team", ttl=timedelta(hours=1))
FOREVER = View("forever", "user", (Field("clicks", Kind.INT64),), 1, "team")
RECENT = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", ttl=timedelta(hours=1), history=50)
PATIENT = Timeouts(connect=timedelta(seconds=20), answer=timedelta(seconds=20))
HOUR = 3_600_000


def row(number: int, item: str = "i") -> dict[str, Any]:
    return {"time": now_micros(), "seq": number, "event_id": f"e{number}", "item": item}


@pytest.fixture
def store(server: RedisServer) -> Iterator[FeatureStore]:
    store = open_store(server.address, PATIENT)
    yield store
    store.close()


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=server.port) as client:
        yield client


def clicks(store: FeatureStore, entity: str, view: View = COUNTS) -> Any:
    return (store.read([(view, entity)])[0].values or {}).get("clicks")


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds
        time.sleep(0.02)
    return time.monotonic() - started


def test_redis_forgets_what_is_kept_no_longer(store: FeatureStore, raw: Any) -> None:
    now = now_micros()
    store.put([Write(COUNTS, "ttl", {"clicks": 1}, now - 10**9), Write(FOREVER, "ttl", {"clicks": 1}, now)])
    store.merge([Merge(RECENT, "ttl", [row(1) | {"time": now - 10**9}])])
    store.merge([Merge(RECENT, "ttl", [row(2) | {"time": now - 2 * 10**9}])])
    assert 2 * HOUR - 1_020_000 < raw.pttl(COUNTS.key("ttl")) <= 2 * HOUR - 999_999
    assert 2 * HOUR - 1_020_000 < raw.pttl(RECENT.key("ttl") + TAIL) <= 2 * HOUR - 999_999
    assert raw.pttl(FOREVER.key("ttl")) == -1
    store.merge([Merge(RECENT, "ttl", [row(3, "x" * 5_000)])])  # folded
    assert not raw.exists(RECENT.key("ttl") + TAIL)
    assert 2 * HOUR - 20_000 < raw.pttl(RECENT.key("ttl")) <= 2 * HOUR + 1


def test_a_restarted_server_learns_the_scripts_again(store: FeatureStore, raw: Any) -> None:
    store.put([Write(COUNTS, "learn", {"clicks": 1}, now_micros())])
    raw.script_flush()
    assert store.put([Write(COUNTS, "learn", {"clicks": n}, now_micros()) for n in (2, 3)]) == [True, True]
    assert clicks(store, "learn") == 3


def test_a_write_is_one_round_trip_and_so_is_a_read(store: FeatureStore, raw: Any) -> None:
    now = now_micros()
    writes = [Write(COUNTS, f"trip{n}", {"clicks": n}, now) for n in range(20)]
    store.put(writes)
    store.merge([Merge(RECENT, "trip", [row(1)])])
    before = raw.info("commandstats")
    store.merge([Merge(RECENT, "trip", [row(2)])])
    store.put(writes)
    store.read([(view, f"trip{n}") for n in range(20) for view in (COUNTS, RECENT)])
    after = raw.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert (calls["cmdstat_evalsha"], calls["cmdstat_mget"], calls.get("cmdstat_eval", 0)) == (21, 1, 0)


def test_what_is_appended_while_a_tail_is_folded_stays(server: RedisServer, raw: Any) -> None:
    store = open_store(server.address, PATIENT)
    other = open_store(server.address, PATIENT)
    assert isinstance(store, RedisFeatureStore)
    fetch = store._fetch

    def fetch_and_meanwhile(keys: list[bytes], ends: float | None) -> list[Any]:
        found = fetch(keys, ends)
        other.merge([Merge(RECENT, "fold", [row(2)])])
        return found

    store._fetch = fetch_and_meanwhile  # type: ignore[method-assign]
    store.merge([Merge(RECENT, "fold", [row(1, "x" * 5_000)])])
    assert raw.strlen(RECENT.key("fold") + TAIL) < 100
    assert [entry[1] for entry in other.read([(RECENT, "fold")])[0].entries or []] == [1, 2]
    store.close()
    other.close()


def test_a_fold_that_somebody_else_made_changes_nothing(server: RedisServer, raw: Any) -> None:
    slow, fast = open_store(server.address, PATIENT), open_store(server.address, PATIENT)
    assert isinstance(slow, RedisFeatureStore)
    fetch = slow._fetch

    def fetch_and_meanwhile(keys: list[bytes], ends: float | None) -> list[Any]:
        found = fetch(keys, ends)
        fast.merge([Merge(RECENT, "race", [row(2, "y" * 5_000)])])
        fast.merge([Merge(RECENT, "race", [row(3)])])
        return found

    slow._fetch = fetch_and_meanwhile  # type: ignore[method-assign]
    slow.merge([Merge(RECENT, "race", [row(1, "x" * 5_000)])])
    assert [entry[1] for entry in fast.read([(RECENT, "race")])[0].entries or []] == [1, 2, 3]
    slow.close()
    fast.close()


def test_a_full_tail_is_folded_before_it_takes_more(store: FeatureStore, raw: Any) -> None:
    entries = RECENT.entries
    stuffed = entries.tail([(now_micros(), number, f"e{number}", "x" * 1000) for number in range(70)], now_micros())
    raw.set(RECENT.key("stuffed") + TAIL, stuffed)
    store.merge([Merge(RECENT, "stuffed", [row(99)])])
    assert [entry[1] for entry in store.read([(RECENT, "stuffed")])[0].entries or []] == [*range(21, 70), 99]
    assert raw.strlen(RECENT.key("stuffed") + TAIL) < 100


def test_a_deleted_history_leaves_none_of_its_bytes(store: FeatureStore, raw: Any) -> None:
    store.merge([Merge(RECENT, "erased", [row(1, "folded")])])
    store.put([Write(RECENT, "erased", None, now_micros() - 1_800_000_000)])  # folds
    store.merge([Merge(RECENT, "erased", [row(2, "in the tail")])])
    before = b"".join(raw.get(key) or b"" for key in raw.keys("wf:{erased}*"))
    assert b"folded" in before
    assert b"in the tail" in before
    delete_entity(store, [RECENT], "erased", now_micros())
    after = b"".join(raw.get(key) or b"" for key in raw.keys("wf:{erased}*"))
    assert after != b""  # the mark
    assert b"folded" not in after
    assert b"in the tail" not in after


def test_foreign_bytes_are_missing_and_give_way(store: FeatureStore, raw: Any) -> None:
    other = View("counts", "user", (Field("clicks", Kind.STRING),), 1, "team")
    raw.set(COUNTS.key("old"), b"\x00" + bytes(30))
    raw.set(COUNTS.key("damaged"), Codec(other).encode({"clicks": "many"}, 0, 0))
    raw.lpush(COUNTS.key("list"), "x")
    readings = store.read([(COUNTS, name) for name in ("old", "damaged", "list")])
    assert [reading.reason for reading in readings] == [Reason.FORMAT, Reason.CORRUPT, Reason.ABSENT]
    now = now_micros()
    assert store.put([Write(COUNTS, "old", {"clicks": 1}, now), Write(COUNTS, "damaged", {"clicks": 1}, now)]) == [
        True, True,
    ]  # fmt: skip
    with pytest.raises(DataError, match="counts:1"):
        store.put([Write(COUNTS, "list", {"clicks": 1}, now)])


def test_keys_of_another_type_keep_no_other_write_back(store: FeatureStore, raw: Any) -> None:
    """Also where a tail is full, and must be folded before it takes more."""
    full = RECENT.entries.tail([RECENT.entries.pack(row(number, "i" * 100)) for number in range(600)], now_micros())
    for user in ("bob", "cid"):
        raw.set(RECENT.key(user) + TAIL, full)
    raw.lpush(RECENT.key("ann") + TAIL, "x")
    raw.lpush(RECENT.key("cid"), "x")
    with pytest.raises(DataError, match="ann"):
        store.merge([Merge(RECENT, user, [row(1_000)]) for user in ("ann", "bob", "cid", "dan")])
    held = [store.read([(RECENT, user)])[0].entries or [] for user in ("bob", "dan")]
    assert [entries[-1][1] for entries in held] == [1_000, 1_000]


def test_a_full_server_is_not_taken_for_a_key_of_another_type(own_server: RedisServer) -> None:
    """Both are met in one batch: what was not acknowledged must be written again."""
    store = open_store(own_server.address, PATIENT)
    with redis.Redis(port=own_server.port) as raw:
        raw.lpush(RECENT.key("ann") + TAIL, "x")
        raw.config_set("maxmemory", 1)
        with pytest.raises(UnavailableError, match="did not acknowledge"):
            store.merge([Merge(RECENT, user, [row(1)]) for user in ("ann", "bob")])
    store.close()


def test_an_outage_is_an_answer_and_ends_with_it(own_server: RedisServer) -> None:
    store = open_store(own_server.address)
    write = Write(COUNTS, "ann", {"clicks": 1}, now_micros())
    store.put([write])
    own_server.kill()
    readings = store.read([(COUNTS, "ann"), (RECENT, "ann")], deadline=0.05)
    assert [(reading.status, reading.reason) for reading in readings] == [("MISSING", "unavailable")] * 2
    with pytest.raises(UnavailableError, match="repeat"):
        store.put([write])
    own_server.start()
    assert until(lambda: store.read([(COUNTS, "ann")])[0].reason is Reason.ABSENT, 10) < 10
    assert store.put([write]) == [True]
    store.close()


def test_a_server_that_hangs_costs_no_more_than_the_deadline(own_server: RedisServer) -> None:
    store = open_store(own_server.address, Timeouts(answer=timedelta(seconds=5)))
    store.put([Write(COUNTS, "ann", {"clicks": 1}, now_micros())])
    own_server.pause()
    started = time.monotonic()
    reading = store.read([(COUNTS, "ann")], deadline=0.05)[0]
    assert time.monotonic() - started < 2  # far less than the client's own five seconds
    assert (reading.status, reading.reason) == (Status.MISSING, Reason.DEADLINE)
    own_server.go_on()
    assert until(lambda: clicks(store, "ann") == 1, 10) < 10
    assert store.read([(COUNTS, "ann")], deadline=-1)[0].reason is Reason.DEADLINE
    store.close()


def test_a_full_server_still_answers(own_server: RedisServer) -> None:
    store = open_store(own_server.address, PATIENT)
    store.put([Write(COUNTS, "ann", {"clicks": 1}, now_micros())])
    with redis.Redis(port=own_server.port) as raw:
        raw.config_set("maxmemory", 1)
    with pytest.raises(UnavailableError, match="give Redis memory"):
        store.put([Write(COUNTS, "ann", {"clicks": 2}, now_micros())])
    assert clicks(store, "ann") == 1
    store.close()


def test_coroutines_say_the_same(server: RedisServer) -> None:
    async def talk() -> list[Any]:
        store = open_async_store(server.address, PATIENT)
        assert await store.ping()
        now = now_micros()
        first = await store.put([Write(COUNTS, "async", {"clicks": n}, now - n) for n in (2, 1, 3)])
        await store.merge([Merge(RECENT, "async", [row(n, "x" * 2_000)]) for n in range(5)])
        await store.merge([Merge(RECENT, "async", [row(9)])])
        counts, recent = await store.read([(COUNTS, "async"), (RECENT, "async")], deadline=20)
        await store.put([Write(COUNTS, "async", None, now)])
        (deleted,) = await store.read([(COUNTS, "async")])
        none = await store.read([])
        await store.close()
        return [first, counts.values, len(recent.entries or []), deleted.reason, none]

    assert asyncio.run(talk()) == [[True, True, False], {"clicks": 1}, 6, Reason.DELETED, []]


def test_a_coroutine_gives_up_at_its_deadline_and_a_late_answer_is_not_taken(own_server: RedisServer) -> None:
    async def talk() -> list[Any]:
        store = open_async_store(own_server.address, Timeouts(answer=timedelta(seconds=5)))
        await store.put([Write(COUNTS, name, {"clicks": n}, now_micros()) for n, name in enumerate(("ann", "bob"))])
        own_server.pause()
        started = time.monotonic()
        (late,) = await store.read([(COUNTS, "ann")], deadline=0.05)
        seconds = time.monotonic() - started
        own_server.go_on()
        (bob,) = await store.read([(COUNTS, "bob")])
        own_server.kill()
        (gone,) = await store.read([(COUNTS, "ann")])
        with pytest.raises(UnavailableError):
            await store.put([Write(COUNTS, "ann", None, now_micros())])
        answered = await store.ping()
        await store.close()
        return [late.reason, seconds < 2, bob.values, gone.reason, answered]

    assert asyncio.run(talk()) == [Reason.DEADLINE, True, {"clicks": 1}, Reason.UNAVAILABLE, False]


def test_many_reads_at_a_time_are_all_answered(server: RedisServer) -> None:
    async def talk() -> set[Reason]:
        store = open_async_store(server.address, PATIENT)
        found = await asyncio.gather(*(store.read([(COUNTS, f"crowd{number}")]) for number in range(150)))
        await store.close()
        return {reading.reason for (reading,) in found}

    assert asyncio.run(talk()) == {Reason.ABSENT}


CLUSTER = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]


@pytest.fixture
def cluster(redis_needed: None, tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Two masters with half of the slots each."""
    servers = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        servers.append(RedisServer(folder, CLUSTER).start())
    clients = [redis.Redis(port=server.port) for server in servers]
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTS", *range(number * 8192, (number + 1) * 8192))  # type: ignore[no-untyped-call]
    clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", servers[1].port)  # type: ignore[no-untyped-call]
    until(lambda: all(b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO") for client in clients), 20)  # type: ignore[no-untyped-call]
    yield servers
    for client, server in zip(clients, servers, strict=True):
        client.close()
        server.kill()


def test_a_cluster_serves_entities_of_all_nodes(cluster: list[RedisServer]) -> None:
    address = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster)
    users = [f"user{number}" for number in range(12)]
    now = now_micros()
    store = open_store(address, PATIENT)
    assert store.put([Write(COUNTS, user, {"clicks": n}, now) for n, user in enumerate(users)]) == [True] * 12
    store.merge([Merge(RECENT, user, [row(n, "x" * 5_000)]) for n, user in enumerate(users)])  # folded at once
    store.merge([Merge(RECENT, user, [row(20 + n)]) for n, user in enumerate(users)])
    readings = store.read([(view, user) for user in users for view in (COUNTS, RECENT)], deadline=20)
    assert [reading.values for reading in readings[::2]] == [{"clicks": n} for n in range(12)]
    assert [[entry[1] for entry in reading.entries or []] for reading in readings[1::2]] == [
        [n, 20 + n] for n in range(12)
    ]
    store.close()
    sizes = []
    for server in cluster:
        with redis.Redis(port=server.port) as client:
            sizes.append(client.dbsize())
    assert min(sizes) > 0
    with redis.cluster.RedisCluster(port=cluster[0].port, host="127.0.0.1") as client:
        client.lpush(COUNTS.key("list"), "x")  # reads as absent and takes nothing from its neighbours
        for n, user in enumerate(users):
            client.hset(f"plain:{user}", mapping={"clicks": n})
    reader = open_hashes(address, PlainHashes("plain:{entity}"), PATIENT)
    assert [reading.values for reading in reader.read([(FOREVER, user) for user in users])] == [
        {"clicks": n} for n in range(12)
    ]
    reader.close()

    async def talk() -> list[Any]:
        other = open_async_store(address, PATIENT)
        put = await other.put([Write(COUNTS, user, {"clicks": 7}, now_micros()) for user in users])
        found = await other.read([(COUNTS, user) for user in [*users, "list"]])
        await other.close()
        hashes = open_async_hashes(address, PlainHashes("plain:{entity}"), PATIENT)
        assert [reading.values for reading in await hashes.read([(FOREVER, users[7])])] == [{"clicks": 7}]
        await hashes.close()
        return [put, [reading.values for reading in found]]

    assert asyncio.run(talk()) == [[True] * 12, [{"clicks": 7}] * 12 + [None]]


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(UnavailableError, match="no node"):
        open_store(f"redis+cluster://127.0.0.1:{free_port()}")


def sentinel_of(master: RedisServer, port: int) -> str:
    return (
        f"port {port}\nsentinel monitor features 127.0.0.1 {master.port} 2\n"
        "sentinel down-after-milliseconds features 500\nsentinel failover-timeout features 2000\n"
    )


@pytest.fixture
def watched(redis_needed: None, tmp_path: Path) -> Iterator[tuple[RedisServer, list[RedisServer]]]:
    """A master with a replica, and three sentinels that watch them."""
    master = RedisServer(tmp_path).start()
    replica = RedisServer(tmp_path, ["--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0"])
    replica.start()
    with redis.Redis(port=replica.port) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up", 20)
    ports = [free_port() for _ in range(3)]
    sentinels = [RedisServer(tmp_path, port=port, sentinel=sentinel_of(master, port)).start() for port in ports]
    with redis.Redis(port=ports[0]) as client:
        until(lambda: knows_all(client), 20)
    yield master, sentinels
    for server in (*sentinels, replica, master):
        server.kill()


def knows_all(sentinel: Any) -> bool:
    found = sentinel.sentinel_master("features")
    return (found["num-slaves"], found["num-other-sentinels"]) == (1, 2)


def test_writing_goes_on_after_the_master_was_killed(watched: tuple[RedisServer, list[RedisServer]]) -> None:
    master, sentinels = watched
    address = "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in sentinels) + "/features"
    store = open_store(address, Timeouts(timedelta(seconds=0.5), timedelta(seconds=0.5)))
    store.put([Write(COUNTS, "ann", {"clicks": 1}, now_micros())])
    master.kill()
    reasons = set()

    def written() -> bool:
        reasons.add(store.read([(COUNTS, "ann")], deadline=0.2)[0].reason)
        try:
            return store.put([Write(COUNTS, "ann", {"clicks": 2}, now_micros())]) == [True]
        except UnavailableError:
            return False

    until(written, 20)
    assert clicks(store, "ann") == 2
    assert Reason.UNAVAILABLE in reasons
    store.close()


@pytest.mark.parametrize(
    "address",
    [
        "", "http://localhost", "redis://", "redis://a,b/0", "redis://host/x", "redis+sentinel://a:1,b:2",
        "redis+cluster://a:1/3", "redis://host:port/0", "redis://host/-1",
    ],
)  # fmt: skip
def test_an_address_of_another_form_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=r"lmdb:DIRECTORY"):
        open_store(address)


def test_an_address_holds_user_and_password_and_errors_do_not() -> None:
    found = RedisAddress.parse("redis+sentinel://me:s%40ecret@a,b:7/features/3")
    assert (found.hosts, found.service, found.database) == ((("a", 26379), ("b", 7)), "features", 3)
    assert (found.user, found.password) == ("me", "s@ecret")
    assert "s@ecret" not in repr(found)


@pytest.mark.parametrize(
    "address", ["redis://me:secret@a,b/0", "me:secret@a:6379", "redis:/me:secret@a/0", "redis://a/0?password=secret"]
)
def test_an_address_of_another_form_is_shown_without_what_may_be_a_secret(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisAddress.parse(address)
    assert "secret" not in str(caught.value)
