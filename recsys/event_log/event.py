"""One event as the log holds it, and what is asked of a row that wants to become one."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final, TypedDict

import msgspec
from msgspec import Meta

from recsys.errors import InputError
from recsys.records import EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_EVENT_BYTES: Final = 256 << 10
_MAX_TIME: Final = 10**17  # UTC microseconds, in the year 5138
_PLACE: Final = re.compile(r"\$\.(\w+)|field `(\w+)`")
_ENCODER: Final = msgspec.json.Encoder()

Id = Annotated[str, Meta(min_length=1, max_length=1024)]
Word = Annotated[str, Meta(min_length=1, max_length=256)]
Time = Annotated[int, Meta(ge=0, le=_MAX_TIME)]
Micros = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Position = Annotated[int, Meta(ge=0, le=2**31 - 1)]

_REMEDIES: Final = {
    **dict.fromkeys(("event_id", "user_id", "item_id", "request_id"), "give a string of 1 to 1,024 characters"),
    **dict.fromkeys(("action", "scene"), "give a word of 1 to 256 characters"),
    "time": f"give whole UTC microseconds since 1970, 0 to {_MAX_TIME}",
    "value_micros": "give whole millionths of the currency's unit, inside 64 bits",
    "position": "give the place on the page as a whole number, 0 is the first",
    "attributes": "give strings by name",
}


class StoredEvent(TypedDict):
    """An event as a record of the log: the fields of `recsys.records.EVENTS` but seq, which is the record's number."""

    event_id: Id
    user_id: Id
    item_id: Id
    time: Time
    created_at: Time
    scene: Word | None
    action: Word
    value_micros: Micros | None
    request_id: Id | None
    position: Position | None
    attributes: dict[str, str] | None


class Event(StoredEvent):
    """An event as it is read: exactly the fields of `recsys.records.EVENTS`, so that rows go to Arrow as they are."""

    seq: int


_FIELDS: Final = frozenset(EVENTS.names)
_ABSENT: Final = {name: None for name in EVENTS.names if EVENTS.field(name).nullable}


def parse_event(row: Mapping[str, Any], *, now: int) -> tuple[StoredEvent, bytes]:
    """Make an event of a row from outside.

    Args:
        row: with the fields of `recsys.records.EVENTS`. An absent event_id is drawn at random, an absent time is
            `now`, created_at is `now` whatever the row says, and so is seq the record's number.
        now: UTC microseconds.

    Returns:
        The event and its record.

    Raises:
        InputError: names the field, its value and the remedy.
    """
    if not row.keys() <= _FIELDS:
        name = min(row.keys() - _FIELDS, key=str)
        raise InputError(
            "an event has no such field", field=str(name), value=row[name], remedy="put it into `attributes`"
        )
    filled = {**_ABSENT, **row, "created_at": now}
    if filled.get("time") is None:
        filled["time"] = now
    if filled.get("event_id") is None:
        filled["event_id"] = uuid.uuid4().hex
    try:
        event = msgspec.convert(filled, StoredEvent)
        record = _ENCODER.encode(event)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise _unfit((place[1] or place[2]) if place else "event", filled, str(error)) from None
    except UnicodeEncodeError:
        field = next(name for name, value in event.items() if _is_not_utf8(value))
        raise _unfit(field, filled, "the text is not valid Unicode") from None
    if len(record) > MAX_EVENT_BYTES:
        raise InputError(
            f"an event has at most {MAX_EVENT_BYTES} bytes as JSON",
            field="attributes",
            value=filled["attributes"],
            remedy="send less with it",
        )
    return event, record


def _unfit(field: str, row: Mapping[str, Any], why: str) -> InputError:
    return InputError(why, field=field, value=row.get(field), remedy=_REMEDIES.get(field, "see docs/event_log.md"))


def _is_not_utf8(value: object) -> bool:
    try:
        _ENCODER.encode(value)
    except UnicodeEncodeError:
        return True
    return False
