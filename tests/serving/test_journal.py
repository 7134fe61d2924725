from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from feature_store.embedded import EmbeddedFeatureStore
from feature_store.standard import USER_RECENT
from feature_store.store import Merge
from feature_store.streaming import HistoryStream
from recsys.errors import UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog, Exposure, ExposureLog
from serving.histories import Histories
from serving.journal import EventIntake, ExposureWriter
from serving.metrics import Metrics
from serving.schemas import EventRow


class Store(EmbeddedFeatureStore):
    """Refuses merges while told so."""

    failing = False
    tries = 0

    def merge(self, merges: Sequence[Merge]) -> None:
        self.tries += 1
        if self.failing:
            raise OSError("no space")
        super().merge(merges)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "features")
    yield store
    store.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "events")
    yield log
    log.close()


def histories_of(log: EventLog, store: Store, tmp_path: Path, metrics: Metrics, every: int = 10_000) -> Histories:
    offsets = ConsumerOffsets(tmp_path / "offsets")
    stream = HistoryStream(log, store, offsets, USER_RECENT, actions=["click"], every=every)
    return Histories(store, None, stream, deadline=timedelta(seconds=1), metrics=metrics, pause=0)


def intake_of(log: EventLog, histories: Histories) -> EventIntake:
    return EventIntake(log, histories, skew=timedelta(minutes=1))


def row(event_id: str) -> EventRow:
    return EventRow(event_id=event_id, user_id="ann", item_id=f"item of {event_id}", action="click", time=7)


def known(store: Store) -> list[str]:
    return [entry[2] for entry in store.read([(USER_RECENT, "ann")])[0].entries or []]


def test_a_failed_merge_is_made_up_for_by_the_next_write(log: EventLog, store: Store, tmp_path: Path) -> None:
    metrics = Metrics()
    intake = intake_of(log, histories_of(log, store, tmp_path, metrics))
    store.failing = True
    ((result,),) = intake.write([[row("a")]])
    assert (result.status, known(store)) == ("accepted", [])
    assert metrics.registry.get_sample_value("windfire_history_failures_total") == 1
    assert metrics.registry.get_sample_value("windfire_histories_behind") == 1
    store.failing = False
    intake.write([[row("b")], [row("b"), row("c")]])
    assert known(store) == ["a", "b", "c"]
    assert metrics.registry.get_sample_value("windfire_histories_behind") == 0


def test_an_empty_batch_makes_up_for_a_failed_merge(log: EventLog, store: Store, tmp_path: Path) -> None:
    histories = histories_of(log, store, tmp_path, Metrics())
    intake = intake_of(log, histories)
    store.failing = True
    intake.write([[row("a")]])
    assert histories.behind
    store.failing = False
    assert intake.write([[]]) == [[]]
    assert (histories.behind, known(store)) == (False, ["a"])


def test_a_failed_merge_is_made_up_for_by_the_next_start(log: EventLog, store: Store, tmp_path: Path) -> None:
    histories = histories_of(log, store, tmp_path, Metrics())
    intake = intake_of(log, histories)
    intake.write([[row("a")]])
    store.failing = True
    intake.write([[row("b")]])
    histories.save()
    store.failing = False
    histories_of(log, store, tmp_path, Metrics()).start()
    assert known(store) == ["a", "b"]


def test_a_store_that_fails_is_left_alone_for_a_while(log: EventLog, store: Store, tmp_path: Path) -> None:
    stream = HistoryStream(log, store, ConsumerOffsets(tmp_path / "offsets"), USER_RECENT, actions=["click"])
    histories = Histories(store, None, stream, deadline=timedelta(seconds=1), metrics=Metrics(), pause=60)
    intake = intake_of(log, histories)
    store.failing = True
    intake.write([[row("a")]])
    tries = store.tries
    intake.write([[row("b")], [row("c")]])
    assert (store.tries, histories.behind) == (tries, True)
    store.failing = False
    histories.start()
    assert (known(store), histories.behind) == (["a", "b", "c"], False)


class Renewed(Store):
    """Has been connected to anew when told so; a merge takes 300 ms."""

    epoch = 0
    now = 0.0

    def merge(self, merges: Sequence[Merge]) -> None:
        super().merge(merges)
        self.now += 0.3


def test_nobody_waits_long_while_much_is_merged_again(log: EventLog, tmp_path: Path) -> None:
    store, offsets = Renewed(tmp_path / "renewed"), ConsumerOffsets(tmp_path / "offsets")
    settle = timedelta(seconds=30)
    stream = HistoryStream(
        log, store, offsets, USER_RECENT, actions=["click"], settle=settle, batch=1, clock=lambda: store.now
    )
    histories = Histories(store, None, stream, deadline=timedelta(seconds=1), metrics=Metrics(), pause=0)
    histories.start()
    intake = intake_of(log, histories)
    for number in range(8):
        intake.write([[row(f"e{number}")]])
    store.epoch, began, tries = 1, store.now, []
    intake.write([[row("last")]])
    while histories.behind:
        tries.append(store.now - began)
        began = store.now
        intake.write([[]])
    assert len(tries) > 2
    assert max(tries) < 1.3  # half a second, and what begins within it
    assert known(store) == [*(f"e{number}" for number in range(8)), "last"]
    store.close()


def test_an_outage_is_logged_once(
    log: EventLog, store: Store, tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """It is tried several times a second."""
    intake = intake_of(log, histories_of(log, store, tmp_path, Metrics()))
    for outage in range(2):
        store.failing = True
        for number in range(3):
            intake.write([[row(f"{outage}-{number}")]])
        store.failing = False
        intake.write([[]])
    assert [line["event"] for line in log_lines] == ["history_merge_failed"] * 2


def test_exposures_that_the_disk_refuses_are_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    log = ExposureLog(tmp_path / "exposures")
    log.close()
    exposure = Exposure(
        request_id="r", user_id=None, time=1, scene=None, items=["a"], positions=[0], scores=[1.0], sources=["nezha"],
        propensities=[1.0], served_by="nezha", decoder="nezha", bundle_version="b", catalog_version="b.0", arms={},
    )  # fmt: skip
    with pytest.raises(UnavailableError):
        ExposureWriter(log, metrics).write([exposure, exposure])
    assert metrics.registry.get_sample_value("windfire_exposures_dropped_total") == 2


def test_a_position_that_cannot_be_saved_refuses_no_event(log: EventLog, store: Store, tmp_path: Path) -> None:
    intake = intake_of(log, histories_of(log, store, tmp_path, Metrics(), every=1))
    (tmp_path / "offsets").touch()  # where a directory would be
    assert [result.status for (result,) in intake.write([[row("a")]])] == ["accepted"]
    (tmp_path / "offsets").unlink()
    assert [result.status for (result,) in intake.write([[row("b")]])] == ["accepted"]
    assert known(store) == ["a", "b"]
    assert ConsumerOffsets(tmp_path / "offsets").get("user_recent-1") == 2


def test_a_log_that_refuses_events_is_told_to_the_operator(
    log: EventLog, store: Store, tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    intake = intake_of(log, histories_of(log, store, tmp_path, Metrics()))
    log.close()
    with pytest.raises(UnavailableError):
        intake.write([[row("a")], [row("b"), row("c")]])
    assert [(line["event"], line["events"]) for line in log_lines] == [("events_refused", 3)]
