"""Users' histories: read for recommendations within a deadline, written behind the event log."""

from __future__ import annotations

import hashlib
import math
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from feature_store.entries import ORDER_FIELDS
from feature_store.opening import LMDB, RedisAddress, open_async_store, open_store
from feature_store.reading import Reason, Status
from feature_store.settings import read_feature_settings
from feature_store.standard import USER_RECENT
from feature_store.store import delete_entity, now_micros
from feature_store.streaming import HistoryStream
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from feature_store.reading import Reading
    from feature_store.store import AsyncFeatureStore, FeatureStore
    from recsys.errors import DataError
    from recsys.event_log import ConsumerOffsets, EventLog
    from serving.metrics import Metrics
    from serving.settings import Settings

RETRY_SECONDS: Final = 0.2
"""Between two attempts while the store does not take events."""
_SLICE: Final = 0.5  # seconds of catching up for which new events wait
_SAVE_EVERY: Final = 10_000  # events; what a start after a kill has to merge again at most, besides what is not settled
_SETTLE: Final = timedelta(seconds=30)  # Redis gives a write up as lost long before: replicas lag by milliseconds
_log = structlog.stdlib.get_logger(__name__)


class Histories:
    """The view `user_recent` of one feature store.

    The event log is the truth. What the store missed, or acknowledged and lost, it gets with a later `take`, of no
    events if need be, or with the next start; until then the answers are made from what it holds.

    Args:
        store: written to, from one thread.
        reader: for coroutines; None: `store` is read on the event loop, which is right for a memory-mapped file.
        stream: from the event log into the store.
        deadline: of a read.
        metrics: counts reads, ages and failed merges.
        pause: seconds between two attempts while the store does not take events.
    """

    def __init__(
        self,
        store: FeatureStore,
        reader: AsyncFeatureStore | None,
        stream: HistoryStream,
        *,
        deadline: timedelta,
        metrics: Metrics,
        pause: float = RETRY_SECONDS,
    ) -> None:
        self._store = store
        self._reader = reader
        self._stream = stream
        self._deadline = deadline.total_seconds()
        self._metrics = metrics
        self._pause = pause
        self._tried = -math.inf
        self._trouble = ""
        self._behind = True  # nobody knows how far, before the first `catch_up`

    @property
    def behind(self) -> bool:
        """Whether durable events are not yet in the store."""
        return self._behind

    @property
    def deadline(self) -> float:
        """Seconds that a read may take."""
        return self._deadline

    async def of(self, user_id: str, within: float = math.inf) -> Reading:
        """What the store says of a user; an outage or a passed deadline is MISSING with that reason.

        Args:
            user_id: whose history is read.
            within: seconds, where less is left than a read may take.
        """
        began = time.perf_counter()
        wanted, deadline = [(USER_RECENT, user_id)], min(self._deadline, within)
        if self._reader is None:
            (reading,) = self._store.read(wanted, deadline=deadline)
        else:
            (reading,) = await self._reader.read(wanted, deadline=deadline)
        self._metrics.observe_reading(USER_RECENT.label, reading, time.perf_counter() - began, now_micros())
        return reading

    def take(self, numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Merge events that were just appended to the log, and what was missed before; never raises.

        Args:
            numbered: see `HistoryStream.take`.
        """
        if self._behind and time.monotonic() - self._tried < self._pause:
            return
        self._catch_up_or(lambda: self._stream.take(numbered, seconds=_SLICE), len(numbered), _SLICE)

    def start(self) -> None:
        """Merge all that the log holds and the store does not; never raises, whatever the store does."""
        self._catch_up_or(lambda: None, 0, None)

    def _catch_up_or(self, take: Callable[[], None], events: int, seconds: float | None) -> None:
        try:
            if self._behind:
                self._stream.catch_up(seconds=seconds)
            else:
                take()
            self._behind = not self._stream.at_end
            self._trouble = ""
        except Exception as error:  # noqa: BLE001 - the events are durable; the next write, retry or start tries again
            self._behind = True
            self._metrics.history_failures.inc(events)
            if str(error) != self._trouble:  # tried several times a second, for as long as it lasts
                _log.exception("history_merge_failed", events=events)
            self._trouble = str(error)
            self._tried = time.monotonic()
        self._metrics.histories_behind.set(self._behind)

    def held(self, user_id: str) -> Iterator[dict[str, Any]]:
        """All entries of a user, oldest first; for any thread.

        Raises:
            UnavailableError: the store cannot be read.
        """
        reading = self._of_one(user_id)
        names = (*ORDER_FIELDS, *USER_RECENT.names)
        return (dict(zip(names, entry, strict=True)) for entry in reading.entries or ())

    def forget(self, user_id: str) -> int:
        """Delete a user's history, and what still comes of events before this moment; for any thread.

        A mark stays under the user's id, also where nothing was held yet: events may be durable and not merged.

        Returns:
            How many entries it had.

        Raises:
            UnavailableError: the store did not acknowledge.
        """
        reading = self._of_one(user_id)
        newest = 0 if reading.event_time is None else reading.event_time
        delete_entity(self._store, [USER_RECENT], user_id, max(newest, now_micros()))
        return len(reading.entries or ())

    def _of_one(self, user_id: str) -> Reading:
        (reading,) = self._store.read([(USER_RECENT, user_id)])
        if reading.status is Status.MISSING and reading.reason not in (Reason.ABSENT, Reason.DELETED):
            raise UnavailableError(f"the user's history cannot be read: {reading.reason.value}")
        return reading

    def save(self) -> None:
        """Remember how far all is merged."""
        self._stream.save()

    async def close(self) -> None:
        """Let go of the store."""
        if self._reader is not None:
            await self._reader.close()
        self._store.close()


def open_histories(settings: Settings, log: EventLog, offsets: ConsumerOffsets, metrics: Metrics) -> Histories:
    """Open the store that the settings name.

    Raises:
        ConfigError: an address of another form.
        UnavailableError: a Cluster of which no node answers; any other store is first asked when used.
    """
    address = history_address(settings)
    timeouts = read_feature_settings().timeouts
    embedded = address.startswith(LMDB)
    store = open_store(address, timeouts)
    stream = HistoryStream(
        log,
        store,
        offsets,
        USER_RECENT,
        name=consumer_name(address),
        actions=settings.history_actions,
        settle=timedelta(0) if embedded else _SETTLE,
        every=_SAVE_EVERY,
        refused=partial(_count_refused, metrics),
    )
    reader = None if embedded else open_async_store(address, timeouts)
    return Histories(store, reader, stream, deadline=settings.history_deadline, metrics=metrics)


def _count_refused(metrics: Metrics, error: DataError) -> None:
    """A key holds something else: waiting for it would hold up everybody."""
    metrics.history_refused.inc()
    _log.error("history_merge_refused", reason=str(error))


def history_address(settings: Settings) -> str:
    """Address of the feature store with the histories: the given one, else a directory of the server's state."""
    return settings.history_store.get_secret_value() or f"{LMDB}{settings.state / 'features'}"


def consumer_name(address: str = LMDB) -> str:
    """The name under which the offset is remembered; another Redis begins with the oldest event."""
    base = f"{USER_RECENT.name}-{USER_RECENT.version}"
    if address.startswith(LMDB):
        return base
    where = RedisAddress.parse(address)
    place = repr((where.kind, where.hosts, where.service, where.database))  # a new password is no new store
    return f"{base}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
