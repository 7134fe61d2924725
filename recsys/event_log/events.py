"""The durable log of events; idempotent by event_id inside a stated window."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from recsys.event_log.segments import SEGMENT_BYTES, SegmentLog, read_records, segment_files
from recsys.records import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

REMEMBERED_IDS: Final = 200_000


def read_events(directory: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read an event log, also while a server writes it: (number, event); seq is the number."""
    for number, payload in read_records(directory, start):
        yield number, {**msgspec.json.decode(payload), "seq": number}


class EventLog:
    """Events as JSON records with the fields of `recsys.records.EVENTS`.

    An event_id among the newest `remembered` events is a duplicate and is not written again; the Spark job `clean`
    removes repetitions over any distance.

    Args:
        directory: of the log.
        segment_bytes: see `SegmentLog`.
        remembered: width of the idempotency window, in events.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, remembered: int = REMEMBERED_IDS
    ) -> None:
        self._log = SegmentLog(directory, segment_bytes=segment_bytes)
        self._remembered = remembered
        self._known: OrderedDict[str, None] = OrderedDict()
        self._encoder = msgspec.json.Encoder()
        for _, event in self.read(max(self._oldest(), len(self._log) - remembered)):
            self._remember(event["event_id"])

    def append(self, events: Sequence[dict[str, Any]]) -> list[int | None]:
        """Append events durably; one call at a time.

        Args:
            events: with the fields of `EVENTS`; a `seq` is ignored, the record's number takes its place.

        Returns:
            Per event its number, or None for a repeated event_id.
        """
        fresh: list[dict[str, Any]] = []
        taken: list[bool] = []
        inside: set[str] = set()
        for event in events:
            new = event["event_id"] not in self._known and event["event_id"] not in inside
            taken.append(new)
            if new:
                inside.add(event["event_id"])
                fresh.append({name: event.get(name) for name in EVENTS.names if name != "seq"})
        numbers = iter(self._log.append([self._encoder.encode(event) for event in fresh]))
        for event in fresh:
            self._remember(event["event_id"])
        return [next(numbers) if new else None for new in taken]

    def read(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """See `read_events`."""
        return read_events(self._log.directory, start)

    def close(self) -> None:
        """Release the log."""
        self._log.close()

    def _remember(self, event_id: str) -> None:
        self._known[event_id] = None
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)

    def _oldest(self) -> int:
        return segment_files(self._log.directory)[0][0]
