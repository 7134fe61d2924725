"""Users' histories on the embedded store: ordered, de-duplicated, trimmed, shared by the processes of one machine."""

from __future__ import annotations

import hashlib
import struct
import time
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import lmdb
import msgspec
import pyarrow.dataset as ds

from recsys.errors import CorruptionError, DataError, InputError, UnavailableError
from recsys.records import POSITIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from recsys.event_log import ConsumerOffsets, Event

HISTORY_LIMIT: Final = 1000
HISTORY_CONSUMER: Final = "history"
"""The name under which `HistoryConsumer` remembers its offset."""
_FORMAT: Final = 1
_HEADER: Final = struct.Struct("<Bqq")  # format, time of the newest event, time of the write
_VIEW: Final = b"history:1"
_HASHED: Final = b"sha256-"
_MAX_NAME: Final = 480  # LMDB takes keys of 511 bytes
_MAP_BYTES: Final = 64 << 30  # address space, not disk
_MAX_READERS: Final = 512


class HistoryEvent(NamedTuple):
    """One event of a history; ordered by (time, seq, event_id)."""

    item_id: str
    time: int
    seq: int
    event_id: str
    action: str
    scene: str | None


_ORDER: Final = itemgetter(*map(HistoryEvent._fields.index, ("time", "seq", "event_id")))
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[HistoryEvent])


class Status(StrEnum):
    """Whether the store holds a value; a history has no age at which it would be stale."""

    PRESENT = "PRESENT"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class History:
    """What the store holds of a user.

    Attributes:
        status: MISSING for a user without an event.
        events: oldest first.
        created_at: UTC microseconds of the last write, None when missing.
    """

    status: Status
    events: list[HistoryEvent]
    created_at: int | None = None


class HistoryStore(Protocol):
    """Histories by user."""

    def merge(self, user_id: str, events: Sequence[HistoryEvent]) -> int:
        """Insert events; see `merge_events`. Returns how many of the events held now were not held before."""
        ...

    def merge_many(self, events: Mapping[str, Sequence[HistoryEvent]]) -> int:
        """Merge several users' events: all of them, or none where it fails."""
        ...

    def get(self, user_id: str, *, limit: int = HISTORY_LIMIT) -> History:
        """The newest `limit` events, oldest first."""
        ...

    def get_many(self, user_ids: Sequence[str], *, limit: int = HISTORY_LIMIT) -> list[History]:
        """Histories in the order of `user_ids`, all of the same moment."""
        ...

    def delete(self, user_id: str) -> bool:
        """Forget a user; returns whether there was anything."""
        ...


def merge_events(old: Sequence[HistoryEvent], new: Sequence[HistoryEvent], limit: int) -> list[HistoryEvent]:
    """Both together by (time, seq, event_id), each event_id once (the first in that order), the newest `limit`."""
    ordered = sorted([*old, *new], key=_ORDER)
    if len({event.event_id for event in ordered}) < len(ordered):
        unique: dict[str, HistoryEvent] = {}
        for event in ordered:
            unique.setdefault(event.event_id, event)
        ordered = list(unique.values())
    return ordered[max(0, len(ordered) - limit) :]


class EmbeddedHistoryStore:
    """LMDB: one file, any number of reading processes, one writer at a time; a write is on the disk when it returns.

    Key `wf:{user}:history:1`, a SHA-256 in place of a user id over 480 bytes. Value: format byte, time of the newest
    event and of the write (little-endian int64), MessagePack. A process opens a directory once, and not before it
    forks.

    Args:
        path: directory, created where absent.
        limit: newest events kept per user.
        map_bytes: largest size of the file.
        clock: now, in UTC microseconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int = HISTORY_LIMIT,
        map_bytes: int = _MAP_BYTES,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        if limit < 1:
            raise InputError("a history keeps at least one event", field="limit", value=limit, remedy="give 1 or more")
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._limit = limit
        self._clock = clock
        self._environment = lmdb.open(str(path), map_size=map_bytes, max_readers=_MAX_READERS)
        self._environment.reader_check()  # a killed reader would keep old pages from being used again

    def merge(self, user_id: str, events: Sequence[HistoryEvent]) -> int:
        """See `HistoryStore.merge`."""
        return self.merge_many({user_id: events})

    def merge_many(self, events: Mapping[str, Sequence[HistoryEvent]]) -> int:
        """See `HistoryStore.merge_many`; one transaction, hence one flush to the disk, none where nothing changes.

        Raises:
            UnavailableError: the file is as large as it may become; nothing is written.
        """
        now = self._clock()
        try:
            with self._environment.begin(write=True) as transaction:
                return sum(self._merge(transaction, user_id, new, now) for user_id, new in events.items())
        except lmdb.MapFullError:
            raise UnavailableError(
                "the store of histories is full",
                field="path",
                value=str(self._path),
                remedy="delete users or give a larger map_bytes",
            ) from None

    def get(self, user_id: str, *, limit: int = HISTORY_LIMIT) -> History:
        """See `HistoryStore.get`."""
        with self._environment.begin(buffers=True) as transaction:
            return _newest(_decode(transaction.get(_key(user_id)), user_id), limit)

    def get_many(self, user_ids: Sequence[str], *, limit: int = HISTORY_LIMIT) -> list[History]:
        """See `HistoryStore.get_many`."""
        with self._environment.begin(buffers=True) as transaction:
            return [_newest(_decode(transaction.get(_key(user)), user), limit) for user in user_ids]

    def delete(self, user_id: str) -> bool:
        """See `HistoryStore.delete`."""
        with self._environment.begin(write=True) as transaction:
            return bool(transaction.delete(_key(user_id)))

    def close(self) -> None:
        """Close the file."""
        self._environment.close()

    def _merge(self, transaction: Any, user_id: str, new: Sequence[HistoryEvent], now: int) -> int:
        key = _key(user_id)
        old = _decode(transaction.get(key), user_id).events
        merged = merge_events(old, new, self._limit)
        if merged == old:
            return 0
        transaction.put(key, _HEADER.pack(_FORMAT, merged[-1].time, now) + _ENCODER.encode(merged))
        known = {event.event_id for event in old}
        return sum(event.event_id not in known for event in merged)


def _newest(history: History, limit: int) -> History:
    if len(history.events) <= limit:
        return history
    return History(history.status, history.events[len(history.events) - max(0, limit) :], history.created_at)


def _decode(value: Any, user_id: str) -> History:
    """Read a stored value: bytes, a view of the memory map, or None."""
    if value is None:
        return History(Status.MISSING, [])
    try:
        form, _, created_at = _HEADER.unpack_from(value)
        if form == _FORMAT:
            return History(Status.PRESENT, _DECODER.decode(memoryview(value)[_HEADER.size :]), created_at)
    except (struct.error, msgspec.DecodeError):
        form = "unreadable"
    raise CorruptionError(
        f"the stored history of a user cannot be read: {form}",
        field="user_id",
        value=user_id,
        remedy="delete this user and replay the event log",
    )


def _key(user_id: str) -> bytes:
    name = user_id.encode()
    if len(name) > _MAX_NAME or name.startswith(_HASHED):  # so that no id can pass for another's hash
        name = _HASHED + hashlib.sha256(name).hexdigest().encode()
    return b"wf:{" + name + b"}:" + _VIEW


class EventSource(Protocol):
    """An event log to read from: `EventLog` in the writer's process, `EventReader` in any other."""

    def read(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yield (number, event) from record `start` on."""
        ...


class HistoryConsumer:
    """Brings the event log's new events into the histories.

    Its offset is committed after the merge, and merging an event again changes nothing: so a consumer that dies at
    any moment has each event's effect exactly once after the next `catch_up`.

    Args:
        log: where the events come from.
        store: where they go.
        offsets: remember how far it came.
        name: of the consumer.
        actions: that belong to a history.
        batch: events per merge and commit.
    """

    def __init__(
        self,
        log: EventSource,
        store: HistoryStore,
        offsets: ConsumerOffsets,
        *,
        name: str = HISTORY_CONSUMER,
        actions: Iterable[str] = POSITIVE_ACTIONS,
        batch: int = 10_000,
    ) -> None:
        self._log = log
        self._store = store
        self._offsets = offsets
        self._name = name
        self._actions = frozenset(actions)
        self._batch = batch

    def catch_up(self) -> int:
        """Apply what the log holds behind the committed offset; returns the number of events read."""
        count = 0
        events = self._log.read(self._offsets.get(self._name))
        while chunk := list(islice(events, self._batch)):
            self._store.merge_many(_by_user((event for _, event in chunk), self._actions))
            self._offsets.commit(self._name, chunk[-1][0] + 1)
            count += len(chunk)
        return count


def _by_user(events: Iterable[Mapping[str, Any]], actions: frozenset[str]) -> dict[str, list[HistoryEvent]]:
    users: defaultdict[str, list[HistoryEvent]] = defaultdict(list)
    for event in events:
        if event["action"] in actions:
            users[event["user_id"]].append(HistoryEvent(*[event[name] for name in HistoryEvent._fields]))
    return users


def load_tables(store: HistoryStore, tables: Path, actions: Iterable[str], *, batch_rows: int = 200_000) -> int:
    """Bring a data set's events into the store, a batch at a time; running it again changes nothing.

    Args:
        store: where to.
        tables: directory with an `events` table (`recsys.records`).
        actions: that belong to a history.
        batch_rows: rows in memory at once.

    Returns:
        Number of events that were new to the store when they were merged.

    Raises:
        DataError: no events table there.
    """
    folder = tables / "events"
    if not folder.is_dir():
        raise DataError(
            "no events table", field="tables", value=str(tables), remedy="name the --out of `windfire import`"
        )
    wanted = ds.field("action").isin(list(actions))
    columns = ["user_id", *HistoryEvent._fields]
    inserted = 0
    for batch in ds.dataset(folder, format="parquet").to_batches(columns=columns, filter=wanted, batch_size=batch_rows):
        users: defaultdict[str, list[HistoryEvent]] = defaultdict(list)
        values = [batch[name].to_pylist() for name in columns]
        for user, event in zip(values[0], map(HistoryEvent._make, zip(*values[1:], strict=True)), strict=True):
            users[user].append(event)
        inserted += store.merge_many(users)
    return inserted
