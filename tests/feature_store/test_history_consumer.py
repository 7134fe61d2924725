from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from feature_store.history import EmbeddedHistoryStore, HistoryConsumer, HistoryEvent
from recsys.errors import InputError
from recsys.event_log import ConsumerOffsets, EventLog, EventReader


def row(number: int, user: str, action: str = "click") -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": f"i{number}", "time": 100 - number, "action": action}


ROWS = [row(number, f"u{number % 3}", ["click", "impression", "purchase"][number % 4 % 3]) for number in range(12)]
POSITIVE = [row for row in ROWS if row["action"] != "impression"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The directory of a log of ROWS in several segments."""
    log = EventLog(tmp_path / "log", segment_bytes=600)
    for event in ROWS:
        log.take([event])
    log.close()
    return tmp_path / "log"


def histories(store: EmbeddedHistoryStore) -> dict[str, list[str]]:
    return {user: [event.item_id for event in store.get(user).events] for user in ("u0", "u1", "u2")}


EXPECTED = {
    user: [row["item_id"] for row in sorted(POSITIVE, key=lambda row: row["time"]) if row["user_id"] == user]
    for user in ("u0", "u1", "u2")
}


def test_positive_events_reach_the_histories_once(log: Path, tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path / "store")
    offsets = ConsumerOffsets(tmp_path / "offsets")
    consumer = HistoryConsumer(EventReader(log), store, offsets, batch=5)
    assert consumer.catch_up() == 12
    assert consumer.catch_up() == 0
    assert offsets.get("history") == 12
    assert histories(store) == EXPECTED
    assert store.get("u0").events[-1] == HistoryEvent("i0", 100, 0, "e0", "click", None)
    offsets.commit("history", 0)
    assert HistoryConsumer(EventReader(log), store, offsets).catch_up() == 12
    assert histories(store) == EXPECTED
    store.close()


def test_the_actions_of_a_history_are_a_setting(log: Path, tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path / "store")
    offsets = ConsumerOffsets(tmp_path / "offsets")
    HistoryConsumer(EventReader(log), store, offsets, name="bought", actions=["purchase"]).catch_up()
    assert {event.action for user in EXPECTED for event in store.get(user).events} == {"purchase"}
    assert (offsets.get("bought"), offsets.get("history")) == (12, 0)
    store.close()


def test_new_events_are_seen_while_the_log_is_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log", segment_bytes=600)
    store = EmbeddedHistoryStore(tmp_path / "store")
    consumer = HistoryConsumer(log, store, ConsumerOffsets(tmp_path / "offsets"))
    counts = []
    for event in ROWS:
        log.take([event])
        counts.append(consumer.catch_up())
    assert counts == [1] * 12
    assert histories(store) == EXPECTED
    log.close()
    store.close()


class DyingStore(EmbeddedHistoryStore):
    """Dies after its second merge, before anything can be committed."""

    merges = 0

    def merge_many(self, events: Mapping[str, Sequence[HistoryEvent]]) -> int:
        inserted = super().merge_many(events)
        self.merges += 1
        if self.merges == 2:
            raise KeyboardInterrupt
        return inserted


def test_a_consumer_that_dies_between_merge_and_commit_counts_nothing_twice(log: Path, tmp_path: Path) -> None:
    offsets = ConsumerOffsets(tmp_path / "offsets")
    dying = DyingStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        HistoryConsumer(EventReader(log), dying, offsets, batch=4).catch_up()
    dying.close()
    assert offsets.get("history") == 4
    store = EmbeddedHistoryStore(tmp_path / "store")
    assert HistoryConsumer(EventReader(log), store, offsets, batch=4).catch_up() == 8
    assert histories(store) == EXPECTED
    store.close()


def test_events_that_retention_took_are_not_passed_over_in_silence(log: Path, tmp_path: Path) -> None:
    writer = EventLog(log)
    assert writer.records.truncate_before(8) > 0
    store = EmbeddedHistoryStore(tmp_path / "store")
    with pytest.raises(InputError, match="no longer holds"):
        HistoryConsumer(writer, store, ConsumerOffsets(tmp_path / "offsets")).catch_up()
    writer.close()
    store.close()
