"""What a read says of a view: PRESENT, STALE or MISSING, with the event time and the reason."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from feature_store.encoding import UnknownFormatError
from feature_store.entries import NEVER, Entry, distinct, younger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feature_store.views import View

Wanted = tuple["View", str]
"""A view and the entity of which it is read."""
Raw = bytes | memoryview | None
TAIL: Final = b":tail"


class Status(StrEnum):
    """Whether there is a value, and whether it is as young as its view asks."""

    PRESENT = "PRESENT"
    STALE = "STALE"
    MISSING = "MISSING"


class Reason(StrEnum):
    """Why a value is not PRESENT."""

    NONE = ""
    TTL = "ttl"
    ABSENT = "absent"
    DELETED = "deleted"
    FORMAT = "unknown format"
    CORRUPT = "corrupt"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"


class Reading(NamedTuple):
    """What a store says of one view of one entity.

    Attributes:
        status: STALE has values, MISSING has none.
        reason: why it is not PRESENT.
        event_time: UTC microseconds of the value, of a history's newest entry, or of the deletion; None: not known.
        created_at: UTC microseconds of the write.
        values: by field; None for a history.
        entries: of a history, oldest first, each event_id once.
    """

    status: Status
    reason: Reason = Reason.NONE
    event_time: int | None = None
    created_at: int | None = None
    values: dict[str, Any] | None = None
    entries: list[Entry] | None = None


def missing(reason: Reason, event_time: int | None = None, created_at: int | None = None) -> Reading:
    """A reading without a value."""
    return Reading(Status.MISSING, reason, event_time, created_at)


_ABSENT: Final = missing(Reason.ABSENT)


def keys_of(wanted: Sequence[Wanted]) -> list[bytes]:
    """The keys to fetch: one for a value, two for a history.

    The tail comes before its base: a tail that is folded in between the two reads is then read twice, never not at all.

    Raises:
        InputError: an entity that cannot be a name.
    """
    keys = []
    for view, entity in wanted:
        key = view.key(entity)
        if view.history is not None:
            keys.append(key + TAIL)
        keys.append(key)
    return keys


def readings_of(wanted: Sequence[Wanted], raws: Iterator[Raw], now: int) -> list[Reading]:
    """Readings of what was fetched for `keys_of(wanted)`, in the order of `wanted`; never raises for bad bytes."""
    return [
        _value(view, next(raws), now) if view.history is None else history_reading(view, next(raws), next(raws), now)
        for view, _ in wanted
    ]


def _value(view: View, raw: Raw, now: int) -> Reading:
    if raw is None:
        return _ABSENT
    try:
        event_time, created_at, packed = view.codec.decode(raw)
        if view.gone(event_time, now):
            return _ABSENT
        if packed is None:
            return missing(Reason.DELETED, event_time, created_at)
        values = view.codec.named(packed)
    except UnknownFormatError:
        return missing(Reason.FORMAT)
    except ValueError:
        return missing(Reason.CORRUPT)
    if view.stale(event_time, now):
        return Reading(Status.STALE, Reason.TTL, event_time, created_at, values)
    return Reading(Status.PRESENT, Reason.NONE, event_time, created_at, values)


def history_reading(view: View, tail: Raw, base: Raw, now: int) -> Reading:
    """What the bytes of a history say."""
    if tail is None and base is None:
        return _ABSENT
    try:
        held = view.entries.load(base, tail)
    except UnknownFormatError:
        return missing(Reason.FORMAT)
    except ValueError:
        return missing(Reason.CORRUPT)
    entries = held.entries if view.keep_micros is None else younger(held.entries, now - view.keep_micros)
    if not entries:
        if held.floor == NEVER or view.gone(held.floor, now):
            return _ABSENT
        return missing(Reason.DELETED, held.floor, held.created_at)
    newest = entries[-1][0]
    stale = view.stale(newest, now)
    status, reason = (Status.STALE, Reason.TTL) if stale else (Status.PRESENT, Reason.NONE)
    return Reading(status, reason, newest, held.created_at, None, distinct(entries))
