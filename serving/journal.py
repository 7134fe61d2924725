"""What the server writes down: events before it acknowledges them, exposures after it has answered."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import structlog

from feature_store.history import HISTORY_CONSUMER, HistoryConsumer, HistoryEvent
from recsys.errors import UnavailableError
from serving.schemas import EventResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from feature_store.history import HistoryStore
    from recsys.event_log import ConsumerOffsets, EventLog, Exposure, ExposureLog
    from serving.metrics import Metrics
    from serving.schemas import EventRow

_SAVE_EVERY: Final = 10_000  # events; what a start after a kill has to merge again at most
_log = structlog.stdlib.get_logger(__name__)


class EventIntake:
    """Events into the durable log, then into the users' histories.

    The log is the truth. A history that missed an event, because the process died or the store failed between the
    two writes, gets it with the next write or start: `replay` goes on where all before is known to be merged.

    Args:
        log: durable, idempotent by event id.
        histories: of users.
        offsets: remember that position.
        actions: that become part of a history.
        skew: how far a time may lie ahead of this machine's clock.
        metrics: counts merges that failed.
    """

    def __init__(
        self,
        log: EventLog,
        histories: HistoryStore,
        offsets: ConsumerOffsets,
        *,
        actions: Sequence[str],
        skew: timedelta,
        metrics: Metrics,
    ) -> None:
        self._log = log
        self._histories = histories
        self._offsets = offsets
        self._actions = frozenset(actions)
        self._skew_micros = round(skew.total_seconds() * 1_000_000)
        self._metrics = metrics
        self._consumer = HistoryConsumer(log, histories, offsets, actions=actions)
        self._merged = self._saved = 0
        self._behind = False

    def replay(self) -> int:
        """Merge what the log holds behind the remembered position; returns the number of events read."""
        count = self._consumer.catch_up()
        self._merged = self._saved = self._offsets.get(HISTORY_CONSUMER)
        return count

    def write(self, batches: list[list[EventRow]]) -> list[list[EventResult]]:
        """Append batches durably in one go, then merge them; one list of results per batch.

        Raises:
            UnavailableError: the log refuses; no row is written.
        """
        now = time.time_ns() // 1_000
        rows = [row for batch in batches for row in batch]
        records = [_record(row, now) for row in rows]
        timely = [record["time"] <= now + self._skew_micros for record in records]
        try:
            numbers = iter(self._log.append([record for record, good in zip(records, timely, strict=True) if good]))
        except UnavailableError:
            _log.exception("events_refused", events=len(records))
            raise
        results = []
        fresh = []
        for record, good in zip(records, timely, strict=True):
            number = next(numbers) if good else None
            if number is not None:
                fresh.append((number, record))
            results.append(_result(record["event_id"], good, number))
        self._merge(fresh)
        answer = iter(results)
        return [[next(answer) for _ in batch] for batch in batches]

    def save_progress(self) -> None:
        """Remember up to where all is merged."""
        if self._merged != self._saved:
            self._offsets.commit(HISTORY_CONSUMER, self._merged)
            self._saved = self._merged

    def _merge(self, numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        try:
            if self._behind:
                self.replay()
            else:
                self._histories.merge_many(self._by_user(numbered))
                self._merged = numbered[-1][0] + 1 if numbered else self._merged
            self._behind = False
            if self._merged - self._saved >= _SAVE_EVERY:
                self.save_progress()
        except Exception:  # noqa: BLE001 - the events are durable; the next write or start tries again
            self._behind = True
            self._metrics.history_failures.inc(len(numbered))
            _log.exception("history_merge_failed", events=len(numbered))

    def _by_user(self, numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, list[HistoryEvent]]:
        users: defaultdict[str, list[HistoryEvent]] = defaultdict(list)
        for number, row in numbered:
            if row["action"] in self._actions:
                event = HistoryEvent(row["item_id"], row["time"], number, row["event_id"], row["action"], row["scene"])
                users[row["user_id"]].append(event)
        return users


class ExposureWriter:
    """Exposures into their log; what could not be written is counted.

    Args:
        log: durable.
        metrics: counts what was dropped.
    """

    def __init__(self, log: ExposureLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def write(self, exposures: list[Exposure]) -> list[None]:
        """Append a group; one result per exposure."""
        try:
            self._log.append(exposures)
        except Exception:
            self._metrics.exposures_dropped.inc(len(exposures))
            _log.exception("exposures_dropped", count=len(exposures))
            raise
        return [None] * len(exposures)


def _record(row: EventRow, now: int) -> dict[str, Any]:
    return {**row.model_dump(), "time": now if row.time is None else row.time, "created_at": now}


def _result(event_id: str, timely: bool, number: int | None) -> EventResult:
    if not timely:
        return EventResult(event_id=event_id, status="rejected", reason="time_in_future")
    return EventResult(event_id=event_id, status="duplicate" if number is None else "accepted")
