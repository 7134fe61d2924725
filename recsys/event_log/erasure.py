"""Single records of a log, found and erased without an index: by bytes that they all hold.

A segment is searched as plain bytes first, which is as fast as memory; only one that holds them is read record by
record. Work is done in short turns, so that the other threads of a server go on.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from recsys.event_log.segments import SUFFIX, frame, scan, segment_files
from recsys.storage import fsync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHUNK: Final = 1 << 20
_TURN: Final = 200  # records between two offers of the interpreter's lock: half a millisecond
_ERASING: Final = ".erasing"


class _Owner(msgspec.Struct):
    user_id: str | None


_OWNER: Final = msgspec.json.Decoder(_Owner)


class UserRecords(NamedTuple):
    """Which records of an event log or of an exposure log belong to a user.

    Attributes:
        user_id: whose.
    """

    user_id: str

    @property
    def mark(self) -> bytes:
        """Bytes that every such record holds: the field as the log's own encoder writes it."""
        return msgspec.json.encode({"user_id": self.user_id})[1:-1]

    def theirs(self, payload: bytes) -> bool:
        """Whether a record that holds the mark is one; it may stand in a text."""
        return _OWNER.decode(payload).user_id == self.user_id

    def read(self, directory: Path) -> Iterator[tuple[int, bytes]]:
        """Yield those that a log holds now as (number, bytes).

        Raises:
            CorruptionError: a segment with such records is damaged.
        """
        mark = self.mark
        for first, path in segment_files(directory):
            if not holds(path, mark):
                continue
            last = path == segment_files(directory)[-1][1]
            for place, (_, payload) in enumerate(_in_turns(scan(path, last=last))):
                if mark in payload and self.theirs(payload):
                    yield first + place, payload


def holds(path: Path, mark: bytes) -> bool:
    """Whether a file holds these bytes anywhere; an absent file holds nothing."""
    kept = b""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        while chunk := file.read(_CHUNK):
            looked_at = kept + chunk
            if mark in looked_at:
                return True
            kept = looked_at[-len(mark) + 1 :]
            time.sleep(0)
    return False


def erase_in(path: Path, mark: bytes, theirs: Callable[[bytes], bool]) -> int:
    """Overwrite records of a segment that is no longer written to; returns how many.

    Args:
        path: of the segment.
        mark: bytes that every such record holds.
        theirs: says of a record whether it goes.

    Raises:
        CorruptionError: the segment is damaged; it stays as it is.
        OSError: the disk refuses; it stays as it is.
    """
    if not holds(path, mark):
        return 0
    count = 0
    new = path.with_name(f".{path.name}{_ERASING}")
    try:
        with new.open("wb") as file:
            for _, payload in _in_turns(scan(path, last=False)):
                goes = mark in payload and theirs(payload)
                count += goes
                file.write(frame(bytes(len(payload)) if goes else payload))
            file.flush()
            os.fsync(file.fileno())
        if count:
            new.replace(path)
            fsync_path(path.parent)
    finally:
        new.unlink(missing_ok=True)
    return count


def remove_litter(directory: Path) -> None:
    """Remove what a killed erasure left: a copy of records that somebody wanted gone."""
    for path in directory.glob(f".*{SUFFIX}{_ERASING}"):
        path.unlink()


def _in_turns(records: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for place, record in enumerate(records):
        if place % _TURN == 0:
            time.sleep(0)
        yield record
