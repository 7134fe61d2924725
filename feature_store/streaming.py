"""From the event log into a history: each event's effect exactly once, whatever dies or is read twice."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa
import pyarrow.dataset as ds

from feature_store.entries import ORDER_FIELDS
from feature_store.store import Merge, now_micros
from feature_store.tables import conform, materialize, table_schema
from recsys.errors import ConfigError, DataError, UnavailableError
from recsys.records import EVENTS, POSITIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from feature_store.store import FeatureStore
    from feature_store.views import View
    from recsys.event_log import ConsumerOffsets, Event

_BATCH: Final = 2_000
_OFTEN: Final = 60.0  # seconds after which `take` commits, however little it merged
_AGAIN: Final = 3  # times that one `catch_up` begins again
_MARKS: Final = 20  # positions remembered inside `settle`


class EventSource(Protocol):
    """An event log to read from: `EventLog` in the writer's process, `EventReader` in any other."""

    def read(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yield (number, event) from record `start` on."""
        ...


class HistoryStream:
    """A consumer of the event log that fills a history view of users.

    Its offset is committed after the store acknowledged, and an entry that is merged again changes nothing. So nothing
    counts twice inside what the view holds (its newest N entries, none older than `keep`).

    A store may acknowledge and then lose, in a failover. Where it says so (`FeatureStore.epoch`), the stream begins
    again at the committed offset; with `settle` that lies behind by all that was merged in so much time. `rewind` does
    it by hand, for any time.

    Args:
        log: where the events come from.
        store: where they go.
        offsets: remember how far it came.
        view: a history of users; its fields are taken from the event's fields of the same name.
        name: of the consumer; the view's label unless given.
        actions: that belong to the history.
        batch: events per merge and commit.
        settle: the offset is committed this long after the store acknowledged; what a failover may lose is younger.
        every: records that `take` merges before it commits, unless a minute has passed.
        refused: told of a batch in which a key held something of another type, which would hold up all others; that
            user's events of the batch are not in the store. None: it is raised.
        clock: monotonic seconds.

    Raises:
        ConfigError: no history of users, or a field that no event has.
    """

    def __init__(
        self,
        log: EventSource,
        store: FeatureStore,
        offsets: ConsumerOffsets,
        view: View,
        *,
        name: str | None = None,
        actions: Iterable[str] = POSITIVE_ACTIONS,
        batch: int = _BATCH,
        settle: timedelta = timedelta(0),
        every: int = 1,
        refused: Callable[[DataError], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if view.history is None or view.entity != "user":
            raise ConfigError("events fill histories of users", field="view", value=view.label,
                              remedy="declare the view with entity user and history=N")  # fmt: skip
        if strange := sorted(set(view.names) - set(EVENTS.names)):
            raise ConfigError("no event has these fields", field="fields", value=strange,
                              remedy=f"take some of {', '.join(EVENTS.names)}")  # fmt: skip
        self._log = log
        self._store = store
        self._offsets = offsets
        self._view = view
        self._name = name or f"{view.name}-{view.version}"
        self._actions = frozenset(actions)
        self._batch = batch
        self._every = every
        self._refused = refused
        self._settle = settle.total_seconds()
        self._clock = clock
        self._committed = offsets.get(self._name)
        self._position: int | None = None  # None: wherever the committed offset is
        self._at_end = False
        self._committed_at = clock()
        self._marks: deque[tuple[float, int]] = deque()
        self._epoch: int | None = None

    @property
    def at_end(self) -> bool:
        """Whether the last `catch_up` came to the end of the log."""
        return self._at_end

    def catch_up(self, *, seconds: float | None = None) -> int:
        """Apply what the log holds behind the committed offset, or behind what was applied since.

        Args:
            seconds: after which it stops between two batches; None: at the end of the log only.

        Returns:
            Number of events read.

        Raises:
            UnavailableError: the store did not acknowledge; the next call begins at the committed offset.
            InputError: an event that does not fit the view, or lies more than five minutes ahead of the clock.
            DataError: a key holds something of another type, and nobody wants to be told.
        """
        count = again = 0
        ends = None if seconds is None else self._clock() + seconds
        self._at_end = False
        events = self._log.read(self._reached())
        while chunk := list(islice(events, self._batch)):
            self._apply(chunk, 1)
            count += len(chunk)
            if self._position is None:  # the store may have lost something
                if again == _AGAIN:
                    raise UnavailableError("the store is another one at every write", field="view",
                                           value=self._view.label, remedy="see why its connections end")  # fmt: skip
                again += 1
                events = self._log.read(self._reached())
            if ends is not None and self._clock() > ends:
                return count
        self._at_end = True
        return count

    def take(self, numbered: Sequence[tuple[int, Mapping[str, Any]]], *, seconds: float | None = None) -> None:
        """Apply what was just appended to the log, without reading it back.

        Args:
            numbered: (record number, event without seq) in order; what lies between is known to be of no interest.
            seconds: see `catch_up`, which is called where more than these must be applied; `at_end` then says whether
                all was.

        Raises:
            UnavailableError: see `catch_up`, which then brings them.
            InputError: see `catch_up`.
        """
        if not numbered:
            return
        if self._position is not None and self._at_end:  # else records before these are not applied yet
            self._apply([(number, {**event, "seq": number}) for number, event in numbered], self._every)
        if self._position is None or not self._at_end:
            self.catch_up(seconds=seconds)

    def save(self) -> None:
        """Commit the offset as far as `settle` lets it."""
        self._commit(1)

    def rewind(self, since: int, start: int = 0) -> int:
        """Let the next `catch_up` begin with the first event recorded at or after `since`, but never later than now.

        Call it after a failover, with a time before the old master died.

        Args:
            since: `created_at` in UTC microseconds.
            start: number of the oldest record that the log holds.

        Returns:
            The record it will begin with.
        """
        reached = self._committed
        found = (number for number, event in self._log.read(start) if (event["created_at"] or 0) >= since)
        place = min(next(found, reached), reached)
        self._write_offset(place)
        self._forget()
        return place

    def _reached(self) -> int:
        if self._position is None:
            self._position = self._committed
        return self._position

    def _apply(self, chunk: Sequence[tuple[int, Mapping[str, Any]]], every: int) -> None:
        """Merge; afterwards there is no position where all from the committed offset on must be applied again."""
        try:
            self._merge(self._merges(event for _, event in chunk))
        except BaseException:
            self._forget()
            raise
        epoch, self._epoch = self._epoch, self._store.epoch
        if epoch not in (None, self._epoch):
            self._forget()
            return
        self._position = chunk[-1][0] + 1
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= self._settle / _MARKS:
            self._marks.append((now, self._position))
        self._commit(every)

    def _merge(self, merges: Sequence[Merge]) -> None:
        try:
            self._store.merge(merges)
        except DataError as error:  # the other keys' merges were made
            if self._refused is None:
                raise
            self._refused(error)

    def _commit(self, every: int) -> None:
        now = self._clock()
        settled = None
        while self._marks and self._marks[0][0] <= now - self._settle:
            settled = self._marks.popleft()
        if settled is None:
            return
        if settled[1] - self._committed >= every or now - self._committed_at >= _OFTEN:
            self._write_offset(settled[1])
        else:
            self._marks.appendleft(settled)

    def _write_offset(self, offset: int) -> None:
        self._offsets.commit(self._name, offset)
        self._committed = offset
        self._committed_at = self._clock()

    def _forget(self) -> None:
        self._position = None
        self._marks.clear()

    def _merges(self, events: Iterable[Mapping[str, Any]]) -> list[Merge]:
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        created: defaultdict[str, int] = defaultdict(int)
        for event in events:
            if event["action"] in self._actions:
                user = event["user_id"]
                rows[user].append({name: event[name] for name in (*ORDER_FIELDS, *self._view.names)})
                created[user] = max(created[user], event["created_at"] or 0)
        return [Merge(self._view, user, entries, created[user]) for user, entries in rows.items()]


def load_events(
    store: FeatureStore, view: View, tables: Path, actions: Iterable[str], *, batch_rows: int = 200_000
) -> int:
    """Bring a data set's events into a history of users, a batch at a time; running it again changes nothing.

    Args:
        store: where to.
        view: a history of users.
        tables: directory with an `events` table (`recsys.records`).
        actions: that belong to the history.
        batch_rows: rows in memory at once.

    Returns:
        Number of events read.

    Raises:
        DataError: no events table there.
        UnavailableError: the store did not acknowledge; run it again.
    """
    folder = tables / "events"
    if not folder.is_dir():
        raise DataError(
            "no events table", field="tables", value=str(tables), remedy="name the --out of `windfire import`"
        )
    wanted = ds.field("action").isin(list(actions))
    columns = {name: ds.field(name) for name in table_schema(view).names if name in EVENTS.names}
    columns["entity_id"] = ds.field("user_id")
    columns["created_at"] = ds.scalar(pa.scalar(now_micros()))  # one for all: a user's rows of a batch are one merge
    batches = ds.dataset(folder, format="parquet").to_batches(columns=columns, filter=wanted, batch_size=batch_rows)
    return materialize(store, view, (conform(view, pa.Table.from_batches([batch])) for batch in batches))
