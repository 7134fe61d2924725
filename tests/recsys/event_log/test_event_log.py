from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import CorruptionError, InputError, UnavailableError
from recsys.event_log import (
    EventLog,
    EventReader,
    Exposure,
    ExposureLog,
    RowStatus,
    parse_event,
    read_events,
    read_exposures,
    read_records,
)
from recsys.records import EVENTS, Action

NOW = 1_700_000_000_000_000
ACCEPTED, DUPLICATE, REJECTED = RowStatus.ACCEPTED, RowStatus.DUPLICATE, RowStatus.REJECTED


def row(number: int, **changes: Any) -> dict[str, Any]:
    base = {"event_id": f"e{number}", "user_id": "u", "item_id": "i", "time": number, "action": "click"}
    return {**base, **changes}


def exposure(**changes: Any) -> Exposure:
    values: dict[str, Any] = {
        "request_id": "r1",
        "user_id": None,
        "time": 1,
        "scene": "home",
        "items": ["a", "b"],
        "positions": [0, 1],
        "scores": [-1.5, -2.0],
        "sources": ["nezha", "item_to_item"],
        "propensities": [1.0, 0.01],
        "served_by": "nezha",
        "decoder": "nezha",
        "bundle_version": "b",
        "catalog_version": "b.0",
        "arms": {"beam": "wide"},
    }
    return Exposure(**{**values, **changes})


def test_events_have_exactly_the_fields_of_the_table(tmp_path: Path) -> None:
    log = EventLog(tmp_path, clock=lambda: NOW)
    full = row(1, scene="home", value_micros=-5, request_id="r", position=0, attributes={"a": "b"})
    log.take([full, row(2)])
    log.close()
    stored = [msgspec.json.decode(record) for _, record in read_records(tmp_path)]
    assert [event.keys() for event in stored] == [set(EVENTS.names) - {"seq"}] * 2
    events = [event for _, event in read_events(tmp_path)]
    assert events[0] == {**full, "created_at": NOW, "seq": 0}
    table = pa.Table.from_pylist([dict(event) for event in events], schema=EVENTS)
    assert table["seq"].to_pylist() == [0, 1]
    assert table["attributes"].to_pylist() == [[("a", "b")], None]


def test_what_a_row_leaves_out_is_filled_in(tmp_path: Path) -> None:
    log = EventLog(tmp_path, clock=lambda: NOW)
    results = log.take([{"user_id": "u", "item_id": "i", "action": Action.CLICK, "seq": 99, "created_at": 5}] * 2)
    events = [event for _, event in log.read()]
    assert [result.status for result in results] == [ACCEPTED, ACCEPTED]
    assert [event["event_id"] for event in events] == [result.event_id for result in results]
    assert events[0]["event_id"] != events[1]["event_id"]
    assert [(event["time"], event["created_at"], event["seq"]) for event in events] == [(NOW, NOW, 0), (NOW, NOW, 1)]
    log.close()


BAD_ROWS = [
    ({"user_id": ""}, "user_id"),
    ({"user_id": 7}, "user_id"),
    ({"user_id": None}, "user_id"),
    ({"item_id": "x" * 1_025}, "item_id"),
    ({"event_id": "\ud800"}, "event_id"),
    ({"time": -1}, "time"),
    ({"time": 2**62}, "time"),
    ({"time": "yesterday"}, "time"),
    ({"time": True}, "time"),
    ({"action": ""}, "action"),
    ({"action": "a" * 257}, "action"),
    ({"position": -1}, "position"),
    ({"position": 2**31}, "position"),
    ({"value_micros": 1.5}, "value_micros"),
    ({"value_micros": 2**63}, "value_micros"),
    ({"attributes": {"a": 1}}, "attributes"),
    ({"attributes": {"a": "b" * 300_000}}, "attributes"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("change", "field"), BAD_ROWS)
def test_a_bad_row_names_field_value_and_remedy(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_event(row(1, **change), now=NOW)
    assert (caught.value.field, caught.value.value) == (field, change[field])
    assert caught.value.remedy


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError) as caught:
        parse_event({"user_id": "u", "action": "click"}, now=NOW)
    assert (caught.value.field, caught.value.value) == ("item_id", None)


def test_a_bad_row_does_not_hinder_the_others(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    results = log.take([row(1), row(2, time="never"), row(1), row(3)])
    assert [result.status for result in results] == [ACCEPTED, REJECTED, DUPLICATE, ACCEPTED]
    assert [result.number for result in results] == [0, None, 0, 1]
    assert [result.error is None for result in results] == [True, False, True, True]
    assert log.take([]) == []
    log.close()


def test_an_append_of_good_events_is_all_or_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(InputError, match="time"):
        log.append([row(1), row(2, time="never")])
    assert log.append([row(1), row(2), row(1)]) == [0, 1, None]
    log.close()


def test_a_repeated_event_id_is_not_written_again_even_after_a_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=300)
    log.append([row(1), row(2)])
    log.append([row(3)])
    log.close()
    reopened = EventLog(tmp_path)
    results = reopened.take([row(2, item_id="other"), row(4)])
    assert [(result.status, result.number) for result in results] == [(DUPLICATE, 1), (ACCEPTED, 3)]
    assert [(event["event_id"], event["item_id"]) for _, event in EventReader(tmp_path).read(1)] == [
        ("e2", "i"),
        ("e3", "i"),
        ("e4", "i"),
    ]
    reopened.close()


def test_a_damaged_log_is_refused_and_not_left_locked(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=1)
    for number in range(3):
        log.append([row(number)])
    log.close()
    oldest = min(tmp_path.glob("*.log"))
    good = oldest.read_bytes()
    oldest.write_bytes(good[:-1])
    with pytest.raises(CorruptionError, match=oldest.name):
        EventLog(tmp_path)
    oldest.write_bytes(good)
    EventLog(tmp_path).close()


def restarted(log: EventLog, remembered: int) -> EventLog:
    log.close()
    return EventLog(log.records.directory, remembered=remembered, flush=lambda _: None)


NEXT_LOG: dict[bool, Callable[[EventLog, int], EventLog]] = {False: lambda log, _: log, True: restarted}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.lists(st.integers(0, 6), max_size=5), st.booleans()), max_size=10), st.integers(1, 8))
def test_the_idempotency_window_is_the_newest_events_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[int], bool]], remembered: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = EventLog(directory, remembered=remembered, flush=lambda _: None)
    written: list[str] = []
    for numbers, restart in steps:
        results = log.take([row(number) for number in numbers])
        fresh = dict.fromkeys(f"e{number}" for number in numbers if f"e{number}" not in written[-remembered:])
        written += fresh
        assert [result.event_id for result in results if result.status is ACCEPTED] == list(fresh)
        assert [written[result.number or 0] for result in results] == [f"e{number}" for number in numbers]
        log = NEXT_LOG[restart](log, remembered)
    assert [event["event_id"] for _, event in log.read()] == written
    log.close()


def test_many_threads_send_the_same_events_and_each_is_written_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    statuses: list[RowStatus] = []

    def send(start: int) -> None:
        for number in range(start, start + 40):
            statuses.extend(result.status for result in log.take([row(number % 40)]))

    threads = [threading.Thread(target=send, args=(start,)) for start in range(0, 40, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["event_id"] for _, event in log.read()) == sorted(f"e{number}" for number in range(40))
    assert (statuses.count(ACCEPTED), statuses.count(DUPLICATE)) == (40, 280)
    log.close()


def test_a_duplicate_is_answered_when_the_first_is_on_the_disk(tmp_path: Path) -> None:
    gate = threading.Event()
    gate.set()

    def flush(_: int) -> None:
        assert gate.wait(10)

    log = EventLog(tmp_path, flush=flush)

    async def main() -> list[RowStatus]:
        gate.clear()
        first = asyncio.create_task(log.take_async([row(1)]))
        second = asyncio.create_task(log.take_async([row(1), row(2, time="never")]))
        await asyncio.sleep(0.02)
        assert not first.done()
        assert not second.done()
        gate.set()
        return [result.status for results in await asyncio.gather(first, second) for result in results]

    assert asyncio.run(main()) == [ACCEPTED, DUPLICATE, REJECTED]
    log.close()


def test_an_event_that_the_disk_refused_is_new_when_it_is_sent_again(
    tmp_path: Path, full_disk: AbstractContextManager[None]
) -> None:
    log = EventLog(tmp_path)
    with full_disk, pytest.raises(UnavailableError):
        log.take([row(1)])
    assert log.take([row(1)])[0].status is ACCEPTED
    log.close()


def test_exposures_come_back_as_written_and_join_with_events(tmp_path: Path) -> None:
    shown = [
        exposure(),
        exposure(
            request_id="r2",
            user_id="u",
            items=["c"],
            positions=[0],
            scores=[0.0],
            sources=["popular"],
            propensities=[1.0],
            decoder=None,
        ),
    ]
    log = ExposureLog(tmp_path / "exposures")
    assert log.append(shown) == range(2)
    assert asyncio.run(log.append_async(shown[:1])) == range(2, 3)
    assert list(log.read(1)) == [(1, shown[1]), (2, shown[0])]
    log.close()
    events = EventLog(tmp_path / "events")
    events.take([row(1, item_id="c", request_id="r2", position=0)])
    by_request = {exposure.request_id: exposure for _, exposure in read_exposures(tmp_path / "exposures")}
    joined = [(by_request[event["request_id"] or ""], event) for _, event in events.read()]
    assert [(answer.items[event["position"] or 0], event["item_id"]) for answer, event in joined] == [("c", "c")]
    events.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scores": [1.0]}, "scores"),
        ({"positions": [0, 1, 2]}, "positions"),
        ({"scores": [float("nan"), 0.0]}, "scores"),
        ({"propensities": [0.0, 1.0]}, "propensities"),
        ({"propensities": [float("nan"), 1.0]}, "propensities"),
    ],
)
def test_an_exposure_that_contradicts_itself_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        exposure(**change)
    assert caught.value.field == field


def test_exposures_of_an_earlier_release_are_read(tmp_path: Path) -> None:
    later = {"page": 2, "caps": {"brand": 2}, "diversity": 0.5}
    log = ExposureLog(tmp_path)
    log.append([exposure(), exposure(**later)])
    log.close()
    written = [msgspec.json.decode(record) for _, record in read_records(tmp_path)]
    assert written[1] == written[0] | later
    assert not set(later) & set(written[0]), "what an earlier release wrote, too"
    old, new = (each for _, each in read_exposures(tmp_path))
    assert (old.page, old.caps, old.diversity) == (0, {}, 0.0)
    assert (new.page, new.caps, new.diversity) == (2, {"brand": 2}, 0.5)
