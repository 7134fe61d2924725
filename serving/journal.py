"""What the server writes down: events before it acknowledges them, exposures after it has answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog

from recsys.errors import UnavailableError
from serving.schemas import EventResult

if TYPE_CHECKING:
    from datetime import timedelta

    from recsys.event_log import EventLog, Exposure, ExposureLog
    from serving.histories import Histories
    from serving.metrics import Metrics
    from serving.schemas import EventRow

_log = structlog.stdlib.get_logger(__name__)


class EventIntake:
    """Events into the durable log, then into the users' histories.

    Args:
        log: durable, idempotent by event id.
        histories: of users.
        skew: how far a time may lie ahead of this machine's clock.
    """

    def __init__(self, log: EventLog, histories: Histories, *, skew: timedelta) -> None:
        self._log = log
        self._histories = histories
        self._skew_micros = round(skew.total_seconds() * 1_000_000)

    def write(self, batches: list[list[EventRow]]) -> list[list[EventResult]]:
        """Append batches durably in one go, then merge them; one list of results per batch.

        An empty batch lets histories catch up that are behind.

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
        self._histories.take(fresh)
        answer = iter(results)
        return [[next(answer) for _ in batch] for batch in batches]


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
