"""The durable log of events; idempotent by event_id inside a stated window."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from recsys.errors import InputError
from recsys.event_log.event import Event, StoredEvent, parse_event
from recsys.event_log.segment_log import SEGMENT_BYTES, SegmentLog
from recsys.event_log.segments import SegmentReader, erased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

REMEMBERED_IDS: Final = 200_000
_DECODER: Final = msgspec.json.Decoder(StoredEvent)
_Record: TypeAlias = tuple[StoredEvent, bytes]


class RowStatus(StrEnum):
    """What became of a row."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class RowResult:
    """The answer for one row.

    Attributes:
        status: accepted and duplicate rows are on the disk.
        event_id: None for a rejected row.
        number: of the record, the event's seq; of a duplicate, that of the first; None for a rejected row.
        error: why the row was rejected: field, value and remedy.
    """

    status: RowStatus
    event_id: str | None = None
    number: int | None = None
    error: InputError | None = None


class _Identity(msgspec.Struct):
    event_id: str


@dataclass(slots=True)
class _Outcome:
    """A row on its way to the disk: the `index`-th record of an append, or number `index` where it is there already."""

    status: RowStatus
    event_id: str | None = None
    index: int | None = None
    written: Future[range] | None = None
    error: InputError | None = None

    def result(self) -> RowResult:
        """Wait for the disk."""
        number = self.index
        if self.written is not None and number is not None:
            number = self.written.result()[number]
        return RowResult(self.status, self.event_id, number, self.error)


class EventReader:
    """Reads an event log in any process, also while a server writes it; see `SegmentReader`."""

    def __init__(self, directory: Path) -> None:
        self._records = SegmentReader(directory)

    def read(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yield (number, event); seq is the number."""
        return _decode(self._records.read(start))


def read_events(directory: Path, start: int = 0) -> Iterator[tuple[int, Event]]:
    """Read an event log once; see `EventReader`."""
    return EventReader(directory).read(start)


class EventLog:
    """Events as JSON records; any number of threads and tasks append through it.

    A row whose event_id is among the newest `remembered` ones is a duplicate: it is not written again, and it is
    answered once the first is on the disk. Opening reads those ids back from the log. Repetitions over a longer
    distance are removed by the offline jobs.

    Args:
        directory: of the log.
        segment_bytes: see `SegmentLog`.
        remembered: width of the idempotency window, in events; about 250 bytes of memory each.
        flush: see `SegmentLog`.
        clock: now, in UTC microseconds.

    Attributes:
        records: the log below, for its offsets and retention.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        remembered: int = REMEMBERED_IDS,
        flush: Callable[[int], None] = os.fsync,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self.records = SegmentLog(directory, segment_bytes=segment_bytes, flush=flush)
        self._remembered = remembered
        self._clock = clock
        self._classifying = threading.Lock()
        self._pending: dict[str, tuple[Future[range], int]] = {}
        self._known: OrderedDict[str, int] = OrderedDict()
        try:
            self._remember_newest()
        except BaseException:
            self.records.close()
            raise

    def take(self, rows: Sequence[Mapping[str, Any]]) -> list[RowResult]:
        """Validate rows from outside and append the good ones durably; a bad row does not hinder the others.

        Args:
            rows: see `parse_event`.

        Returns:
            One result per row.

        Raises:
            UnavailableError: the disk refuses; send all rows again.
        """
        return [outcome.result() for outcome in self._submit(self._parse(rows))]

    async def take_async(self, rows: Sequence[Mapping[str, Any]]) -> list[RowResult]:
        """Like `take`, without blocking the event loop while the disk works."""
        outcomes = self._submit(self._parse(rows))
        for written in {outcome.written for outcome in outcomes if outcome.written is not None}:
            await asyncio.shield(asyncio.wrap_future(written))
        return [outcome.result() for outcome in outcomes]

    def append(self, events: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """Append events that are known to be good, all or none.

        Args:
            events: see `parse_event`.

        Returns:
            Per event its number once it is on the disk, or None for a duplicate.

        Raises:
            InputError: the first bad event; none is written.
            UnavailableError: the disk refuses; send all again.
        """
        parsed = self._parse(events)
        for event in parsed:
            if isinstance(event, InputError):
                raise event
        results = [outcome.result() for outcome in self._submit(parsed)]
        return [result.number if result.status is RowStatus.ACCEPTED else None for result in results]

    def read(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yield durable events as (number, event); seq is the number."""
        return _decode(self.records.read(start))

    def close(self) -> None:
        """Release the log."""
        self.records.close()

    def _remember_newest(self) -> None:
        identity = msgspec.json.Decoder(_Identity)
        for number, record in self.records.read(max(self.records.start, self.records.end - self._remembered)):
            if not erased(record):
                self._known[identity.decode(record).event_id] = number

    def _parse(self, rows: Sequence[Mapping[str, Any]]) -> list[_Record | InputError]:
        now = self._clock()
        return [_parse_or_error(row, now) for row in rows]

    def _submit(self, parsed: Sequence[_Record | InputError]) -> list[_Outcome]:
        """Queue the records whose event_id is new; one outcome per row."""
        fresh: dict[str, bytes] = {}
        with self._classifying:
            outcomes = [self._classify(row, fresh) for row in parsed]
            if not fresh:
                return outcomes
            written = self.records.submit(list(fresh.values()))
            places = {event_id: (written, index) for index, event_id in enumerate(fresh)}
            self._pending.update(places)
        for outcome in outcomes:
            if outcome.event_id in places:
                outcome.written, outcome.index = places[outcome.event_id]
        written.add_done_callback(partial(self._settle, list(fresh)))
        return outcomes

    def _classify(self, row: _Record | InputError, fresh: dict[str, bytes]) -> _Outcome:
        """New, known, or on its way to the disk; a new row joins `fresh`."""
        if isinstance(row, InputError):
            return _Outcome(RowStatus.REJECTED, error=row)
        event, record = row
        event_id = event["event_id"]
        if event_id in self._known:
            return _Outcome(RowStatus.DUPLICATE, event_id, self._known[event_id])
        if event_id in self._pending:
            written, index = self._pending[event_id]
            return _Outcome(RowStatus.DUPLICATE, event_id, index, written)
        repeated = event_id in fresh
        fresh.setdefault(event_id, record)
        return _Outcome(RowStatus.DUPLICATE if repeated else RowStatus.ACCEPTED, event_id)

    def _settle(self, event_ids: list[str], written: Future[range]) -> None:
        """Move ids from the way to the disk to the known ones, or forget them where the disk refused."""
        numbers = () if written.exception() else written.result()
        with self._classifying:
            for event_id in event_ids:
                del self._pending[event_id]
            self._known.update(zip(event_ids, numbers, strict=False))
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)


def _parse_or_error(row: Mapping[str, Any], now: int) -> _Record | InputError:
    try:
        return parse_event(row, now=now)
    except InputError as error:
        return error


def _decode(records: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Event]]:
    for number, record in records:
        if not erased(record):
            yield number, {**_DECODER.decode(record), "seq": number}
