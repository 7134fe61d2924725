"""Compaction of the catalogue log: the records that still matter, in a file beside a bundle's snapshot.

Nothing is made up: what is kept is a part of the log, in its order and with its sequence numbers. Of an item these are
the records that placed it, those that its vector is of, its last upsert, and what was said of it since. Who applies
them and then the rest of the log comes to the state that the whole log leads to, under every tokenizer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from recsys.catalog.changes import Upsert, decode_change, encode_change
from recsys.errors import CorruptionError
from recsys.event_log.segments import frame, scan
from recsys.storage import write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from recsys.catalog.changes import Change

CHANGES: Final = "changes.log"
"""The file's name in a bundle."""

_FORMAT: Final = "windfire.changes/1"
_NUMBER_BYTES: Final = 8

Numbered = tuple[int, "Change"]


class Folded(NamedTuple):
    """What a stretch of the log came to.

    Attributes:
        start: sequence number of the stretch's first record.
        end: that follows its last.
        records: those of it that are kept, as (sequence number, change), rising.
    """

    start: int
    end: int
    records: list[Numbered]


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    start: int
    end: int


def fold(records: Iterable[Numbered]) -> list[Numbered]:
    """Leave out what later records have overtaken.

    Args:
        records: (sequence number, change), rising; may be folded already.

    Returns:
        Some of them, in their order: at most some twelve of an item, however often it changed.
    """
    items: dict[str, _Item] = {}
    for number, change in records:
        items.setdefault(change.item_id, _Item()).take(number, change)
    kept = {number: change for item in items.values() for number, change in item.kept()}
    return sorted(kept.items(), key=lambda record: record[0])


def write_folded(path: Path, folded: Folded) -> None:
    """Write a file that is whole or absent."""
    head = msgspec.json.encode(_Head(format=_FORMAT, start=folded.start, end=folded.end))
    rows = (number.to_bytes(_NUMBER_BYTES, "little") + encode_change(change) for number, change in folded.records)
    write_bytes_atomically(path, b"".join(map(frame, (head, *rows))))


def read_folded(path: Path) -> Folded:
    """Undo `write_folded`.

    Raises:
        CorruptionError: the file is damaged, or of another format.
    """
    payloads = [payload for _, payload in scan(path, last=False)]
    try:
        head = msgspec.json.decode(payloads[0] if payloads else b"", type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _foreign(path) from error
    records = [
        (int.from_bytes(payload[:_NUMBER_BYTES], "little"), decode_change(payload[_NUMBER_BYTES:]))
        for payload in payloads[1:]
    ]
    numbers = [head.start - 1, *(number for number, _ in records), head.end]
    if head.format != _FORMAT or any(below >= above for below, above in pairwise(numbers)):
        raise _foreign(path)
    return Folded(head.start, head.end, records)


class _Item:
    """The records of one item that matter.

    Every tokenizer treats two upserts alike, as far as they give a semantic ID, that carry the same one and both have
    letters or not. Its vector is that of the last upsert that it can read: by its letters, or by a vector of its own.
    """

    def __init__(self) -> None:
        self._placed: dict[tuple[tuple[str, tuple[int, ...]] | None, bool], Numbered] = {}  # the first of each kind
        self._read: dict[str | None, Numbered] = {}  # the last for everybody, and those since for one tokenizer alone
        self._last: Numbered | None = None
        self._since: dict[type, Numbered] = {}

    def take(self, number: int, change: Change) -> None:
        record = number, change
        if not isinstance(change, Upsert):
            self._since[type(change)] = record
            return
        self._since.clear()
        self._last = record
        encoded, letters = change.encoded, _has_letters(change)
        given = None if encoded is None else (encoded.tokenizer, encoded.codes)
        if letters:
            self._read = {None: record}
        elif encoded is not None:
            self._read[encoded.tokenizer] = record
        if letters or encoded is not None:
            self._placed.setdefault((given, letters), record)

    def kept(self) -> list[Numbered]:
        upserts = [*self._placed.values(), *self._read.values(), self._last]
        return [record for record in (*upserts, *self._since.values()) if record is not None]


def _has_letters(change: Upsert) -> bool:
    """Whether every tokenizer can read its words."""
    names = (change.title, *change.category_path, change.brand, change.text)
    return any(letter.isalnum() for name in names if name for letter in name)


def _foreign(path: Path) -> CorruptionError:
    return CorruptionError(
        f"{path.name} holds no changes of a catalogue in the form {_FORMAT}",
        field="file",
        value=str(path),
        remedy="publish the bundle again, or roll back to another version",
    )
