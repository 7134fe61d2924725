from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.redis_server import RedisServer
from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.opening import open_store
from feature_store.standard import USER_RECENT
from feature_store.store import FeatureStore, now_micros
from feature_store.streaming import HistoryStream
from feature_store.views import View
from recsys.errors import ConfigError, UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog

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
    offsets.commit("user_recent-1", 0)
    assert stream.catch_up() == 31
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
