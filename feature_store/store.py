"""The protocol of feature stores: put, merge, read; and what they all do before bytes reach a server or a file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from feature_store.encoding import check_time
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from feature_store.reading import Reading, Wanted
    from feature_store.views import View

CLOCK_SKEW: Final = 300_000_000
"""Microseconds by which an event time may lie ahead of the writer's clock."""


@dataclass(frozen=True, slots=True)
class Write:
    """A value for one view of one entity, or its deletion.

    Attributes:
        view: what is written.
        entity: whose.
        values: by field; None deletes. Deleting a history forgets its entries up to `event_time`.
        event_time: when it became true, UTC microseconds.
        created_at: when it was recorded; now unless given.
    """

    view: View
    entity: str
    values: Mapping[str, Any] | None
    event_time: int
    created_at: int | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """Entries for one history of one entity.

    Attributes:
        view: a history.
        entity: whose.
        entries: each with time, seq, event_id and the view's fields, in any order.
        created_at: when they were recorded; now unless given.
    """

    view: View
    entity: str
    entries: Sequence[Mapping[str, Any]]
    created_at: int | None = None


class FeatureStore(Protocol):
    """Values and histories by view and entity.

    Two writers never need to agree on an order: of two values the one with the newer (event time, created_at) stays,
    whoever comes first, and a history holds what was merged, whatever the order. A write whose event time is as old
    as its view's `keep` is ignored. Stored bytes that cannot be read give way to what is written.
    """

    @property
    def epoch(self) -> int:
        """Changes where writes that were acknowledged before may be lost since; compare it before and after a write.

        A server that was reached anew may be another one, or the same with an empty memory. A Cluster does not tell.
        """
        ...

    def put(self, writes: Sequence[Write]) -> list[bool]:
        """Write or delete values. Says which of them are what the store now holds because of this call.

        Of histories it is always True unless the deletion came too late to be kept.

        Raises:
            InputError: a field, entity or time that does not fit; nothing was written.
            UnavailableError: the store did not acknowledge; some may have been written. Repeating is harmless.
        """
        ...

    def merge(self, merges: Sequence[Merge]) -> None:
        """Insert entries into histories by (time, seq, event_id).

        Raises:
            InputError: as `put`.
            UnavailableError: as `put`.
        """
        ...

    def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """Read views, in the order of `wanted`.

        Args:
            wanted: views and entities.
            deadline: seconds that this may take; what was not read by then is MISSING with that reason.

        Raises:
            InputError: an entity that cannot be a name. An outage, bad bytes or a passed deadline do not raise.
        """
        ...

    def close(self) -> None:
        """Let go of files or connections."""
        ...


class AsyncFeatureStore(Protocol):
    """`FeatureStore` for coroutines; see there."""

    async def put(self, writes: Sequence[Write]) -> list[bool]:
        """See `FeatureStore.put`."""
        ...

    async def merge(self, merges: Sequence[Merge]) -> None:
        """See `FeatureStore.merge`."""
        ...

    async def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `FeatureStore.read`."""
        ...

    async def close(self) -> None:
        """See `FeatureStore.close`."""
        ...


class Prepared(NamedTuple):
    """A checked write.

    Attributes:
        view: of the key.
        key: of the value, or of the history's base.
        raw: the value, or what is appended to the tail.
        keep_ms: milliseconds from now for which it is kept; 0 for ever.
        erases: it is folded at once, because what it deletes stands in the tail and its base until then.
    """

    view: View
    key: bytes
    raw: bytes
    keep_ms: int
    erases: bool = False


def now_micros() -> int:
    """This moment in UTC microseconds."""
    return time.time_ns() // 1_000


def prepare_write(write: Write, now: int) -> Prepared | None:
    """Check and encode; None where it is too old to be kept.

    Raises:
        InputError: names what does not fit.
    """
    view, created_at = write.view, now if write.created_at is None else write.created_at
    key, event_time = view.key(write.entity), _not_ahead("event_time", write.event_time, now)
    if view.history is None:
        raw = view.codec.encode(write.values, event_time, created_at)
    elif write.values is None:
        raw = view.entries.floor(event_time, check_time("created_at", created_at))
    else:
        raise InputError("a history takes entries, not a value", field="view", value=view.label, remedy="use merge")
    if view.gone(event_time, now):
        return None
    return Prepared(view, key, raw, _keep_ms(view, event_time, now), erases=view.history is not None)


def prepare_merge(merge: Merge, now: int) -> Prepared | None:
    """Check and encode; None where there is no entry young enough to be kept.

    Raises:
        InputError: names what does not fit.
    """
    view = merge.view
    if view.history is None:
        raise InputError("this view holds one value, not a history", field="view", value=view.label, remedy="use put")
    key = view.key(merge.entity)
    created_at = check_time("created_at", now if merge.created_at is None else merge.created_at)
    packed = [view.entries.pack(row) for row in merge.entries]
    kept = [entry for entry in packed if not view.gone(_not_ahead("time", entry[0], now), now)]
    if not kept:
        return None
    newest = max(entry[0] for entry in kept)
    return Prepared(view, key, view.entries.tail(kept, created_at), _keep_ms(view, newest, now))


def delete_entity(store: FeatureStore, views: Iterable[View], entity: str, event_time: int) -> None:
    """Delete every view of one entity: values and histories up to `event_time`, late writes of older events included.

    Raises:
        UnavailableError: the store did not acknowledge; call it again.
    """
    store.put([Write(view, entity, None, event_time) for view in views])


def export_entity(store: FeatureStore, views: Iterable[View], entity: str) -> dict[str, Reading]:
    """All that the store holds of one entity, by `name:version`."""
    chosen = list(views)
    readings = store.read([(view, entity) for view in chosen])
    return {view.label: reading for view, reading in zip(chosen, readings, strict=True)}


def _not_ahead(name: str, event_time: Any, now: int) -> int:
    """Refuse times of the future: such a value would win over all that comes until then."""
    if check_time(name, event_time) > now + CLOCK_SKEW:
        raise InputError("a time lies ahead of this machine's clock", field=name, value=event_time,
                         remedy="give UTC microseconds; up to five minutes ahead are taken")  # fmt: skip
    return int(event_time)


def _keep_ms(view: View, event_time: int, now: int) -> int:
    return 0 if view.keep_micros is None else (event_time + view.keep_micros - now) // 1_000 + 1
