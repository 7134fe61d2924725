from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import UnavailableError
from recsys.event_log import (
    EventLog,
    EventReader,
    Exposure,
    ExposureLog,
    UserRecords,
    expire,
    read_events,
    read_exposures,
)
from recsys.event_log.segments import segment_files

DAY = 86_400_000_000


def event(number: int, user: str, **more: Any) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": "i", "action": "click", **more}


def erase(log: EventLog, user: str) -> int:
    records = UserRecords(user)
    return log.records.erase(records.mark, records.theirs)


users = st.sampled_from(["ann", "an", "ann ", 'a"nn', "ann\\", "äöü", "\u2028", "ann/b", "\n", "'", "b"])


@settings(max_examples=40)
@given(
    owners=st.lists(users, max_size=30),
    gone=st.lists(users, max_size=3),
    later=st.lists(users, max_size=5),
    segment_bytes=st.integers(1, 2_000),
)
def test_a_user_goes_and_nothing_else_moves(
    tmp_path_factory: pytest.TempPathFactory, owners: list[str], gone: list[str], later: list[str], segment_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = EventLog(directory, segment_bytes=segment_bytes, flush=lambda _: None)
    numbered = list(enumerate(owners))
    for number, user in numbered:
        log.append([event(number, user, attributes={"user_id": "ann", "said": '"user_id":"ann"'})])
    for user in gone:
        expected = sum(owner == user for _, owner in numbered)
        assert len(list(UserRecords(user).read(directory))) == expected
        assert erase(log, user) == expected
        numbered = [(number, owner) for number, owner in numbered if owner != user]
        assert erase(log, user) == 0
    for number, user in enumerate(later, len(owners)):
        log.append([event(number, user)])
    numbered += list(enumerate(later, len(owners)))
    log.close()
    assert [(number, row["user_id"]) for number, row in read_events(directory)] == numbered
    reopened = EventLog(directory, flush=lambda _: None)
    assert reopened.records.end == len(owners) + len(later)
    assert [(number, row["user_id"]) for number, row in reopened.read()] == numbered
    reopened.close()


def test_the_bytes_are_gone_from_every_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=400)
    log.append([event(number, f"user-{number % 3}") for number in range(9)])
    for number in range(9, 18):
        log.append([event(number, f"user-{number % 3}")])
    assert erase(log, "user-1") == 6
    log.close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"user-1" not in held
    assert held.count(b"user-0") == held.count(b"user-2") == 6


def test_readers_with_a_place_go_on_where_they_were(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(number, f"user-{number % 2}") for number in range(10)])
    reader = EventReader(tmp_path)
    reading = reader.read()
    first = [next(reading)[0] for _ in range(5)]  # it stands inside a segment that is about to be replaced
    assert erase(log, "user-1") == 5
    assert first == [0, 1, 2, 3, 4]
    assert [number for number, _ in reader.read(5)] == [6, 8]
    log.append([event(10, "user-0")])
    assert [number for number, _ in reader.read(9)] == [10]
    log.close()


def test_exposures_of_a_user_go_and_those_of_nobody_stay(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path)
    for user in ("ann", None, "bob", "ann"):
        log.append([exposure(user)])
    records = UserRecords("ann")
    assert log.records.erase(records.mark, records.theirs) == 2
    assert [row.user_id for _, row in read_exposures(tmp_path)] == [None, "bob"]
    log.close()


def exposure(user: str | None, time: int = 1) -> Exposure:
    return Exposure(
        request_id="r", user_id=user, time=time, scene=None, items=["i"], positions=[0], scores=[1.0],
        sources=["nezha"], propensities=[1.0], served_by="nezha", decoder=None, bundle_version="b",
        catalog_version="b.0", arms={},
    )  # fmt: skip


def test_what_a_killed_erasure_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([event(0, "ann")])
    log.close()
    (segment,) = tmp_path.glob("*.log")
    (tmp_path / f".{segment.name}.erasing").write_bytes(segment.read_bytes())
    log = EventLog(tmp_path)
    assert [row["user_id"] for _, row in log.read()] == ["ann"]
    log.close()
    assert not list(tmp_path.glob(".*erasing"))


def test_a_disk_that_refuses_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.append([event(0, "ann"), event(1, "bob")])
    log.records.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(UnavailableError, match="No space left"):
            erase(log, "ann")
    assert [row["user_id"] for _, row in log.read()] == ["ann", "bob"]
    assert not list(tmp_path.glob(".*erasing"))
    assert erase(log, "ann") == 1
    log.close()


def refuse(*_: Any) -> Path:
    raise OSError(28, "No space left on device")


def test_events_that_come_while_a_user_goes_stay(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=300)
    log.append([event(number, "ann") for number in range(20)])
    written = [log.records.submit([b'{"user_id":"bob"}']) for _ in range(50)]
    assert erase(log, "ann") == 20
    assert len({future.result()[0] for future in written}) == 50
    assert sum(b"bob" in payload for _, payload in log.records.read()) == 50
    log.close()


def at(days: float) -> Callable[[], int]:
    return lambda: round(days * DAY)


def aged_log(directory: Path, days: list[float]) -> EventLog:
    """One event per day given, each by a clock of its own, in segments as a server makes them."""
    for number, day in enumerate(days):
        log = EventLog(directory, clock=at(day))
        log.append([event(number, "ann")])
        log.close()
    return EventLog(directory)


def kept(directory: Path) -> list[int]:
    return [number for number, _ in read_events(directory, segment_files(directory)[0][0])]


def test_old_segments_go_and_young_ones_stay(tmp_path: Path) -> None:
    log = aged_log(tmp_path, [1, 2, 3])
    period = timedelta(days=10)
    assert expire(log.records, period, round(4.5 * DAY)) == 0  # closed for its age
    log.append([event(3, "ann", time=1)])
    assert len(segment_files(tmp_path)) == 2
    assert expire(log.records, period, round(12.9 * DAY)) == 0  # the newest of it is younger
    assert kept(tmp_path) == [0, 1, 2, 3]
    assert expire(log.records, period, round(13.1 * DAY)) == 1
    assert kept(tmp_path) == [3]
    log.close()


def test_what_a_consumer_still_needs_stays(tmp_path: Path) -> None:
    log = aged_log(tmp_path, [1])
    log.records.rotate()
    log.close()
    log = aged_log(tmp_path, [2])
    far = 100 * DAY
    assert expire(log.records, timedelta(days=1), far, before=0) == 0
    assert expire(log.records, timedelta(days=1), far, before=2) >= 1
    log.close()


def test_a_segment_of_erased_records_goes_with_its_time(tmp_path: Path) -> None:
    log = aged_log(tmp_path, [1, 2])
    assert erase(log, "ann") == 2
    assert expire(log.records, timedelta(days=1), 50 * DAY) == 1
    assert kept(tmp_path) == []
    log.append([event(7, "ann")])
    assert kept(tmp_path) == [2]
    log.close()


def test_exposures_age_by_their_time(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path)
    log.append([exposure("ann", time=DAY)])
    assert expire(log.records, timedelta(days=3), 3 * DAY) == 0
    assert expire(log.records, timedelta(days=3), 5 * DAY) == 1
    log.close()


def test_a_full_disk_stops_neither_reading_nor_the_next_try(
    tmp_path: Path, full_disk: AbstractContextManager[None]
) -> None:
    log = EventLog(tmp_path)
    log.append([event(0, "ann")])
    with full_disk, pytest.raises(UnavailableError):
        log.append([event(1, "ann")])
    assert erase(log, "ann") == 1
    assert log.append([event(2, "bob")]) == [1]
    log.close()


def test_an_empty_log_holds_nobody(tmp_path: Path) -> None:
    assert list(UserRecords("ann").read(tmp_path / "nowhere")) == []
    log = EventLog(tmp_path)
    assert erase(log, "ann") == 0
    assert expire(log.records, timedelta(days=1), time.time_ns() // 1_000) == 0
    assert os.listdir(tmp_path)  # noqa: PTH208
    log.close()
