"""Users' histories on the embedded store: ordered, de-duplicated, trimmed, shared by the processes of one machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import lmdb
import msgspec
import pyarrow.dataset as ds

from recsys.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

HISTORY_LIMIT: Final = 1000
_FORMAT: Final = b"\x01"
_VIEW: Final = "history:1"
_MAX_KEY: Final = 480  # LMDB takes 511 bytes
_MAP_BYTES: Final = 64 << 30  # address space, not disk


class HistoryEvent(NamedTuple):
    """One event of a history; ordered by (time, seq, event_id)."""

    item_id: str
    time: int
    seq: int
    event_id: str
    action: str
    scene: str | None


class Status(StrEnum):
    """Whether the store holds a value."""

    PRESENT = "PRESENT"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class History:
    """What the store holds of a user.

    Attributes:
        status: MISSING for a user without an event.
        events: oldest first.
    """

    status: Status
    events: list[HistoryEvent]


class HistoryStore(Protocol):
    """Histories by user."""

    def merge(self, user_id: str, events: Sequence[HistoryEvent]) -> int:
        """Insert events; returns how many were new and newer than what the trim leaves out."""
        ...

    def get(self, user_id: str, *, limit: int = HISTORY_LIMIT) -> History:
        """The newest `limit` events, oldest first."""
        ...

    def delete(self, user_id: str) -> bool:
        """Forget a user; returns whether there was anything."""
        ...


def merge_events(old: Sequence[HistoryEvent], new: Sequence[HistoryEvent], limit: int) -> list[HistoryEvent]:
    """Both together by (time, seq, event_id), each event_id once (the first in that order), the newest `limit`."""
    merged: dict[str, HistoryEvent] = {}
    for event in sorted([*old, *new], key=_order):
        merged.setdefault(event.event_id, event)
    return list(merged.values())[-limit:]


def _order(event: HistoryEvent) -> tuple[int, int, str]:
    return event.time, event.seq, event.event_id


class EmbeddedHistoryStore:
    """LMDB: one file, many reading processes, one writer at a time.

    Key `wf:{user}:history:1` (a SHA-256 in place of very long user ids), value = format byte and MessagePack.

    Args:
        path: directory, created where absent.
        limit: newest events kept per user.
    """

    def __init__(self, path: Path, *, limit: int = HISTORY_LIMIT) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._limit = limit
        self._environment = lmdb.open(str(path), map_size=_MAP_BYTES, max_readers=512)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[HistoryEvent])

    def merge(self, user_id: str, events: Sequence[HistoryEvent]) -> int:
        """See `HistoryStore.merge`; one write transaction."""
        return self.merge_many({user_id: events})

    def merge_many(self, events: dict[str, Sequence[HistoryEvent]]) -> int:
        """Merge several users' events in one transaction."""
        inserted = 0
        with self._environment.begin(write=True) as transaction:
            for user_id, new in events.items():
                key = _key(user_id)
                old = self._decode(transaction.get(key))
                merged = merge_events(old, new, self._limit)
                known = {event.event_id for event in old}
                inserted += sum(event.event_id not in known for event in merged)
                transaction.put(key, _FORMAT + self._encoder.encode(merged))
        return inserted

    def get(self, user_id: str, *, limit: int = HISTORY_LIMIT) -> History:
        """See `HistoryStore.get`."""
        with self._environment.begin() as transaction:
            value = transaction.get(_key(user_id))
        events = self._decode(value)
        return History(Status.MISSING if value is None else Status.PRESENT, events[-limit:])

    def delete(self, user_id: str) -> bool:
        """See `HistoryStore.delete`."""
        with self._environment.begin(write=True) as transaction:
            return bool(transaction.delete(_key(user_id)))

    def close(self) -> None:
        """Close the file."""
        self._environment.close()

    def _decode(self, value: bytes | None) -> list[HistoryEvent]:
        if value is None:
            return []
        if value[:1] != _FORMAT:
            raise CorruptionError("a stored history has an unknown format", field="format", value=value[:1])
        return self._decoder.decode(value[1:])


def _key(user_id: str) -> bytes:
    name = user_id.encode()
    if len(name) > _MAX_KEY:
        name = b"sha256-" + hashlib.sha256(name).hexdigest().encode()
    return b"wf:{" + name + b"}:" + _VIEW.encode()


def load_tables(store: EmbeddedHistoryStore, tables: Path, actions: Iterable[str], *, batch_rows: int = 100_000) -> int:
    """Bring a data set's events into the store, a batch at a time; running it again changes nothing.

    Args:
        store: where to.
        tables: directory with an `events` table (`recsys.records`).
        actions: that belong to a history.
        batch_rows: rows in memory at once.

    Returns:
        Number of events that were new to the store.
    """
    columns = ["user_id", "item_id", "time", "seq", "event_id", "action", "scene"]
    wanted = ds.field("action").isin(list(actions))
    inserted = 0
    events = ds.dataset(tables / "events", format="parquet")
    for batch in events.to_batches(columns=columns, filter=wanted, batch_size=batch_rows):
        users: dict[str, Sequence[HistoryEvent]] = defaultdict(list)
        values = [batch[name].to_pylist() for name in columns]
        for user, item, time, seq, event_id, action, scene in zip(*values, strict=True):
            users[user].append(HistoryEvent(item, time, seq, event_id, action, scene))  # type: ignore[attr-defined]
        if users:
            inserted += store.merge_many(users)
    return inserted
