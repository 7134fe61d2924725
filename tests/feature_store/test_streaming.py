from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from benchmarks.redis_server import RedisServer
from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.opening import open_store
from feature_store.standard import USER_RECENT, recent_items
from feature_store.store import FeatureStore, now_micros
from feature_store.streaming import HistoryStream, load_events
from feature_store.views import View
from recsys.errors import ConfigError, DataError, InputError, UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog
from recsys.records import EVENTS, POSITIVE_ACTIONS

USERS = ("u0", "u1", "u2")


def event(number: int, action: str = "click") -> dict[str, Any]:
    """Every third event is late by far more than there are events."""
    late = 10_000 if number % 3 == 0 else 0
    return {"event_id": f"e{number}", "user_id": f"u{number % 2}", "item_id": f"i{number}", "action": action,
            "time": BASE + number - late, "scene": "home"}  # fmt: skip


BASE = now_micros() - 10**7


def items(store: FeatureStore) -> dict[str, list[str]]:
    readings = store.read([(USER_RECENT, user) for user in USERS])
    return {user: [entry[3] for entry in reading.entries or []] for user, reading in zip(USERS, readings, strict=True)}


def expected(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    ordered = sorted(events, key=lambda event: event["time"])
    return {user: [event["item_id"] for event in ordered if event["user_id"] == user] for user in USERS}


def test_events_reach_the_history_once_in_their_place(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    events = [event(number) for number in range(30)]
    log.take([*events, event(3), event(40, "impression")])
    offsets = ConsumerOffsets(tmp_path / "offsets")
    stream = HistoryStream(log, store, offsets, USER_RECENT, batch=7)
    assert stream.catch_up() == 31
    assert items(store) == expected(events)
    assert (stream.catch_up(), offsets.get("user_recent-1")) == (0, 31)
    offsets.commit("user_recent-1", 0)
    assert HistoryStream(log, store, offsets, USER_RECENT).catch_up() == 31
    assert items(store) == expected(events)
    log.close()
    store.close()


class DyingStore(EmbeddedFeatureStore):
    """Acknowledges its second merge to nobody."""

    merges = 0

    def merge(self, merges: Any) -> None:
        super().merge(merges)
        self.merges += 1
        if self.merges == 2:
            raise UnavailableError("gone")


def test_a_merge_that_nobody_heard_of_counts_once(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), DyingStore(tmp_path / "store")
    events = [event(number) for number in range(12)]
    log.take(events)
    stream = HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT, batch=5)
    with pytest.raises(UnavailableError):
        stream.catch_up()
    assert stream.catch_up() == 7
    assert items(store) == expected(events)
    log.close()
    store.close()


def test_what_a_failover_lost_is_sent_again_from_the_log(redis_needed: None, tmp_path: Path) -> None:
    log, offsets = EventLog(tmp_path / "log"), ConsumerOffsets(tmp_path / "offsets")
    events = [event(number) for number in range(40)]
    master, replica = RedisServer(tmp_path), RedisServer(tmp_path)
    with master, replica, redis.Redis(port=replica.port) as other:
        other.replicaof("127.0.0.1", master.port)
        first = open_store(master.address)
        stream = HistoryStream(log, first, offsets, USER_RECENT)
        log.take(events[:20])
        stream.catch_up()
        with redis.Redis(port=master.port) as client:
            assert client.wait(1, 20_000) == 1
        other.replicaof("NO", "ONE")  # cut off from the master, which goes on for a while
        failed_at = now_micros()
        log.take(events[20:])
        assert stream.catch_up() == 20  # acknowledged, and nowhere but in the old master's memory
        assert items(first) == expected(events)
        first.close()
        master.kill()
        second = open_store(replica.address)
        assert items(second) == expected(events[:20])
        stream = HistoryStream(log, second, offsets, USER_RECENT)
        assert stream.rewind(failed_at) == 20
        assert stream.catch_up() == 20
        assert items(second) == expected(events)
        assert stream.rewind(now_micros() + 1) == 40
        second.close()
    log.close()


def test_a_view_that_events_cannot_fill_is_refused(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    item = (Field("item_id", Kind.STRING),)
    for view in (
        View("v", "user", item, 1, "team"),
        View("v", "item", item, 1, "team", history=3),
        View("v", "user", (Field("colour", Kind.STRING),), 1, "team", history=3),
    ):
        with pytest.raises(ConfigError, match=r"view|fields"):
            HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), view)
    log.close()
    store.close()


def test_an_event_is_in_the_history_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """The middle of twenty, so that one slow flush of a busy disk is no failure."""
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    stream = HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT)
    seconds = []
    for number in range(20):
        started = time.monotonic()
        log.take([event(number)])
        stream.catch_up()
        store.read([(USER_RECENT, "u0")])
        seconds.append(time.monotonic() - started)
    assert sorted(seconds)[10] < 0.1
    assert items(store) == expected([event(number) for number in range(20)])
    log.close()
    store.close()


def test_which_actions_count_is_a_setting(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    offsets = ConsumerOffsets(tmp_path / "offsets")
    events = [event(number, ("click", "impression", "purchase")[number % 3]) for number in range(12)]
    log.take(events)
    HistoryStream(log, store, offsets, USER_RECENT, name="bought", actions=["purchase"]).catch_up()
    assert items(store) == expected(events[2::3])
    assert (offsets.get("bought"), offsets.get("user_recent-1")) == (12, 0)
    log.close()
    store.close()


def test_events_that_retention_took_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log", segment_bytes=600), EmbeddedFeatureStore(tmp_path / "store")
    for number in range(12):
        log.take([event(number)])
    assert log.records.truncate_before(8) > 0
    with pytest.raises(InputError, match="no longer holds"):
        HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT).catch_up()
    log.close()
    store.close()


def test_an_event_id_may_be_any_text_that_the_log_takes(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    log.append([event(0) | {"event_id": "\x01\n\u2028" * 300, "user_id": "\x01", "item_id": "\n"}])
    HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT).catch_up()
    assert recent_items(store.read([(USER_RECENT, "\x01")])[0]) == ["\n"]
    log.close()
    store.close()


class ForgetfulStore(EmbeddedFeatureStore):
    """Has another epoch after every merge of `told`; forgets nothing itself."""

    told: frozenset[int] = frozenset()
    merges = 0

    @property
    def epoch(self) -> int:
        return sum(number <= self.merges for number in self.told)

    def merge(self, merges: Any) -> None:
        self.merges += 1
        super().merge(merges)


def counted(log: EventLog, start: int) -> list[tuple[int, Any]]:
    return [(number, {name: value for name, value in row.items() if name != "seq"}) for number, row in log.read(start)]


def test_a_store_that_may_have_lost_something_gets_all_again_that_had_not_settled(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), ForgetfulStore(tmp_path / "store")
    offsets, now = ConsumerOffsets(tmp_path / "offsets"), [0.0]
    stream = HistoryStream(log, store, offsets, USER_RECENT, settle=timedelta(seconds=30), clock=lambda: now[0])
    store.told = frozenset({4})
    stream.catch_up()
    for number in range(3):
        log.take([event(number)])
        stream.take(counted(log, number))
        now[0] += 20.0
    assert offsets.get("user_recent-1") == 1  # merged 40 s ago; the second was merged 20 s ago
    log.take([event(3)])
    stream.take(counted(log, 3))
    assert store.merges == 5  # the new event, then all from the offset on, in one batch
    stream.take([])
    assert store.merges == 5
    now[0] += 31.0
    stream.save()
    assert offsets.get("user_recent-1") == 4
    log.close()
    store.close()


def test_a_store_that_is_another_one_at_every_write_is_given_up_on(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), ForgetfulStore(tmp_path / "store")
    stream = HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT, batch=1)
    log.take([event(number) for number in range(3)])
    store.told = frozenset(range(100))
    with pytest.raises(UnavailableError, match="another one"):
        stream.catch_up()
    log.close()
    store.close()


def test_catching_up_stops_between_batches_when_its_time_is_over(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    ticks = iter(range(1_000))
    offsets = ConsumerOffsets(tmp_path / "offsets")
    stream = HistoryStream(log, store, offsets, USER_RECENT, batch=2, clock=lambda: float(next(ticks)))
    log.take([event(number) for number in range(6)])
    assert (stream.catch_up(seconds=1), stream.at_end) == (2, False)
    assert (stream.catch_up(seconds=1_000), stream.at_end) == (4, True)
    assert items(store) == expected([event(number) for number in range(6)])
    log.close()
    store.close()


def test_what_is_taken_in_the_middle_of_catching_up_passes_over_nothing(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    ticks = iter(range(1_000))
    stream = HistoryStream(
        log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT, batch=2, clock=lambda: float(next(ticks))
    )
    log.take([event(number) for number in range(6)])
    stream.catch_up(seconds=1)
    log.take([event(6)])
    stream.take(counted(log, 6))
    assert stream.at_end
    assert items(store) == expected([event(number) for number in range(7)])
    log.close()
    store.close()


def test_a_minute_without_many_events_commits_all_the_same(tmp_path: Path) -> None:
    log, store = EventLog(tmp_path / "log"), EmbeddedFeatureStore(tmp_path / "store")
    offsets, now = ConsumerOffsets(tmp_path / "offsets"), [0.0]
    stream = HistoryStream(log, store, offsets, USER_RECENT, every=100, clock=lambda: now[0])
    stream.catch_up()
    found = []
    for number in range(3):
        log.take([event(number)])
        now[0] += 25.0
        stream.take(counted(log, number))
        found.append(offsets.get("user_recent-1"))
    assert found == [0, 0, 3]
    log.close()
    store.close()


def test_tables_load_once(tmp_path: Path) -> None:
    actions = ["click", "impression", "purchase", "click"]
    rows = [
        {"event_id": f"e{n}", "user_id": f"u{n % 2}", "item_id": f"i{n}", "time": 9 - n, "seq": n, "action": action}
        for n, action in enumerate(actions)
    ]
    (tmp_path / "events").mkdir()
    for number, line in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([line], schema=EVENTS), tmp_path / "events" / f"part-{number}.parquet")
    store = EmbeddedFeatureStore(tmp_path / "store")
    assert [load_events(store, USER_RECENT, tmp_path, POSITIVE_ACTIONS, batch_rows=2) for _ in range(2)] == [3, 3]
    assert store.read([(USER_RECENT, "u0")])[0].entries == [
        (7, 2, "e2", "i2", "purchase", None), (9, 0, "e0", "i0", "click", None),
    ]  # fmt: skip
    assert recent_items(store.read([(USER_RECENT, "u1")])[0]) == ["i3"]
    with pytest.raises(DataError, match="windfire import"):
        load_events(store, USER_RECENT, tmp_path / "events", POSITIVE_ACTIONS)
    store.close()
