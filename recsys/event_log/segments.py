"""An append-only log of byte records in segment files; what `append` has answered survives a crash.

A segment is named by the number of its first record. A record is its length and CRC-32 (little-endian uint32 each)
and its bytes. One process writes, any number read beside it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from recsys.errors import CorruptionError, InputError, UnavailableError
from recsys.storage import fsync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_HEADER: Final = struct.Struct("<II")
_SUFFIX: Final = ".log"
SEGMENT_BYTES: Final = 64 << 20
MAX_RECORD_BYTES: Final = 16 << 20


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments of a log as (number of the first record, path), rising."""
    return sorted((int(path.stem), path) for path in directory.glob(f"*{_SUFFIX}"))


def read_records(directory: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Read a log, also while another process writes it; an unfinished record at the end is left out.

    Args:
        directory: of the log.
        start: number of the first record wanted.

    Yields:
        (number, bytes).

    Raises:
        CorruptionError: a record before the end differs from its checksum.
        InputError: `start` lies before the oldest record kept.
    """
    segments = segment_files(directory)
    if segments and start < segments[0][0]:
        raise InputError(
            "the log no longer holds this record",
            field="start",
            value=start,
            remedy=f"start at {segments[0][0]} or later",
        )
    for index, (first, path) in enumerate(segments):
        last = index == len(segments) - 1
        if not last and segments[index + 1][0] <= start:
            continue
        for number, (_, payload) in enumerate(_scan(path, last=last), first):
            if number >= start:
                yield number, payload


def _scan(path: Path, *, last: bool) -> Iterator[tuple[int, bytes]]:
    """Whole records of a segment as (end position, bytes)."""
    size = path.stat().st_size
    position = 0
    with path.open("rb") as file:
        while position < size:
            header = file.read(_HEADER.size)
            length, checksum = _HEADER.unpack(header) if len(header) == _HEADER.size else (size, 0)
            end = position + _HEADER.size + length
            payload = file.read(length) if end <= size else b""
            whole = end <= size and zlib.crc32(payload) == checksum
            if not whole:
                if last and end >= size:
                    return  # the write that a crash cut off
                raise CorruptionError(
                    "a record of the log differs from its checksum",
                    field=path.name,
                    value=f"byte {position}",
                    remedy="restore the segment from a copy; records before it are readable",
                )
            yield end, payload
            position = end


class SegmentLog:
    """The writer's side of a log.

    Concurrent appenders share a flush to the disk: who finds his records flushed by another's flush returns at once.

    Args:
        directory: created where absent.
        segment_bytes: a new segment begins once the current one is larger.
        flush: makes an open file's bytes durable; `os.fsync` but in tests.

    Attributes:
        cut_bytes: length of an unfinished record that was cut off on opening.

    Raises:
        UnavailableError: another process writes this log.
        CorruptionError: the newest segment is damaged before its end.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, flush: Callable[[int], None] = os.fsync
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._flush = flush
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._lock = (directory / "writer.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UnavailableError(
                "another process writes this log",
                field="directory",
                value=str(directory),
                remedy="stop it, or give this one its own --state",
            ) from None
        segments = segment_files(directory) or [(0, directory / f"{0:020d}{_SUFFIX}")]
        self._first, self._path = segments[-1]
        count = position = 0
        if self._path.exists():
            for position, _ in _scan(self._path, last=True):  # noqa: B007 - the last position is what is wanted
                count += 1
        self.cut_bytes = (self._path.stat().st_size if self._path.exists() else 0) - position
        self._file = self._path.open("ab")
        if self.cut_bytes:
            self._file.truncate(position)
            os.fsync(self._file.fileno())
        fsync_path(directory)
        self._next = self._first + count
        self._durable = self._next

    def __len__(self) -> int:
        """Number of the next record; equals the count of all records ever appended."""
        return self._next

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append records; returns their numbers once they are on the disk.

        Raises:
            InputError: a record over 16 MiB; nothing of the call is written then.
            OSError: the disk refused; nothing is acknowledged.
        """
        for payload in payloads:
            if len(payload) > MAX_RECORD_BYTES:
                raise InputError(f"a record has at most {MAX_RECORD_BYTES} bytes", field="payload", value=len(payload))
        with self._writing:
            if self._file.tell() > self._segment_bytes:
                self._rotate()
            numbers = range(self._next, self._next + len(payloads))
            self._file.write(b"".join(_HEADER.pack(len(p), zlib.crc32(p)) + p for p in payloads))
            self._file.flush()
            self._next = numbers.stop
        with self._flushing:
            if self._durable < numbers.stop:
                with self._writing:
                    reached, handle = self._next, os.dup(self._file.fileno())
                try:
                    self._flush(handle)
                finally:
                    os.close(handle)
                self._durable = reached
        return numbers

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """See `read_records`."""
        return read_records(self.directory, start)

    def truncate_before(self, number: int) -> int:
        """Remove whole segments that hold only records before `number`; returns how many."""
        segments = segment_files(self.directory)
        removed = 0
        for (_, path), (following, _) in pairwise(segments):
            if following <= number:
                path.unlink()
                removed += 1
        fsync_path(self.directory)
        return removed

    def close(self) -> None:
        """Release the log to another writer."""
        self._file.close()
        self._lock.close()

    def _rotate(self) -> None:
        self._flush(self._file.fileno())
        self._durable = self._next
        self._file.close()
        self._first, self._path = self._next, self.directory / f"{self._next:020d}{_SUFFIX}"
        self._file = self._path.open("ab")
        fsync_path(self.directory)
