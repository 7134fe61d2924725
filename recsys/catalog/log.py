"""The catalogue log: what happened to items, in one order for all workers of a machine.

A directory with the segments of `recsys.event_log`, a lock, and a file `end` with the sequence number that follows the
newest acknowledged record. Whoever holds the lock may append. The end is written behind the flush, therefore a reader,
which asks for it before every batch, never sees a record that a refused write takes back, and sees every record
whose writer was answered. After a power failure the end may stand too low; opening the log for writing, or `settle`,
brings it to what the segments hold.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from recsys.catalog.changes import decode_change, encode_change
from recsys.errors import CorruptionError, DataError, InputError, UnavailableError
from recsys.event_log.segment_log import SegmentLog, make_directory
from recsys.event_log.segments import SegmentReader, segment_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from recsys.catalog.changes import Change

SEGMENT_BYTES: Final = 1 << 20  # every write looks through the newest segment
_END: Final = struct.Struct("<Q")
_PAUSE: Final = 0.001  # seconds between two tries to get the lock


class CatalogLog:
    """One process's view of the log; safe to share between threads.

    Args:
        directory: of the log; need not exist before the first write.
        segment_bytes: see `recsys.event_log.SegmentLog`.
        flush: see `recsys.event_log.SegmentLog`.
        patience: seconds to wait for another writer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        flush: Callable[[int], None] = os.fsync,
        patience: float = 5.0,
    ) -> None:
        self.directory = directory
        self._end = str(directory / "end")
        self._segment_bytes, self._flush, self._patience = segment_bytes, flush, patience
        self._reader = SegmentReader(directory)
        self._failed = False

    @property
    def end(self) -> int:
        """Sequence number that follows the newest acknowledged record; 0 where nothing was written yet."""
        try:
            file = os.open(self._end, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        try:
            data = os.pread(file, _END.size, 0)
        finally:
            os.close(file)
        return int(_END.unpack(data)[0]) if len(data) == _END.size else 0

    @property
    def start(self) -> int:
        """Sequence number of the oldest record that is kept; 0 where nothing was written yet."""
        segments = segment_files(self.directory)
        return segments[0][0] if segments else 0

    def read(self, start: int, end: int) -> Iterator[tuple[int, Change]]:
        """Read acknowledged records.

        Args:
            start: sequence number of the first; of no records, where it is `end`, the log is not looked at.
            end: that follows the last; at most `self.end`.

        Yields:
            (sequence number, change).

        Raises:
            DataError: the log ends before `start`, or begins behind it: it is another one than the bundle's.
            CorruptionError: a record is damaged, or the newest segment ends before `end`.
        """
        if start > end:
            raise DataError(
                f"the catalogue log in {self.directory} ends at {end}",
                field="catalog_sequence",
                value=start,
                remedy="give the log that the bundle's snapshot was taken from, or restore it",
            )
        reached = start
        if start == end:
            return
        try:
            for number, data in self._reader.read(start):
                yield number, decode_change(data)
                reached = number + 1
                if reached == end:  # no further: the reader remembers where the last record that it gave ends
                    return
        except InputError as error:
            raise DataError(error.message, field="catalog_sequence", value=start, remedy=error.remedy) from error
        if reached < end:
            raise self._cut_short(reached, end)

    def settle(self) -> None:
        """Cut off what a killed writer has left unfinished, and make the rest known.

        Does nothing where there is no log, where this process may only read it, or where a flush of it failed: what was
        not flushed is taken back already.

        Raises:
            UnavailableError: another writer has the lock for too long.
            CorruptionError: the newest segment is damaged.
        """
        if not self._failed and self.directory.is_dir() and os.access(self.directory, os.W_OK):
            with self.writing():
                pass

    @contextmanager
    def writing(self) -> Iterator[CatalogWriter]:
        """Be the only writer for a while, and know of all records before.

        Raises:
            UnavailableError: another writer has the lock for too long, the disk refuses, or a flush failed earlier.
            CorruptionError: the newest segment is damaged.
        """
        if self._failed:
            raise UnavailableError(
                "a flush of the catalogue log failed",
                field="directory",
                value=str(self.directory),
                remedy="look for errors of the disk, then start this process again",
            )
        try:
            make_directory(self.directory)
            with _locked(self.directory / "catalog.lock", self._patience), self._opened() as records:
                yield CatalogWriter(records, self._publish)
        except OSError as error:
            raise UnavailableError(
                f"the catalogue log cannot be written: {error.strerror}",
                field="directory",
                value=str(self.directory),
                remedy="make room on the disk, or look at the rights of the directory",
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[SegmentLog]:
        records = SegmentLog(self.directory, segment_bytes=self._segment_bytes, flush=self._flush)
        try:
            if records.end < self.end:  # numbers that workers have applied must not be given a second time
                raise self._cut_short(records.end, self.end)
            if records.end > self.end:
                self._publish(records.end)
            yield records
        finally:
            self._failed = records.failed
            records.close()

    def _cut_short(self, reached: int, end: int) -> CorruptionError:
        return CorruptionError(
            f"the catalogue log ends at {reached}, and {end} records were acknowledged",
            field="directory",
            value=str(self.directory),
            remedy="restore its newest segment from a copy; to go on without what is missing, stop all workers and "
            "remove its file `end`",
        )

    def _publish(self, end: int) -> None:
        file = os.open(self._end, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, _END.pack(end), 0)
        finally:
            os.close(file)


class CatalogWriter:
    """The log in the hands of its one writer.

    Args:
        records: opened.
        publish: makes a new end known.
    """

    def __init__(self, records: SegmentLog, publish: Callable[[int], None]) -> None:
        self._records, self._publish = records, publish

    @property
    def end(self) -> int:
        """Sequence number of the next record."""
        return self._records.end

    def append(self, changes: Sequence[Change]) -> range:
        """Append records durably and make them known.

        Returns:
            Their sequence numbers.

        Raises:
            InputError: a value out of its range; nothing is written.
            UnavailableError: the disk refuses; the records are not in the log.
        """
        numbers = self._records.append([encode_change(change) for change in changes])
        self._publish(self._records.end)
        return numbers

    def truncate_before(self, number: int) -> int:
        """Remove the segments that hold only records before a sequence number; returns how many went."""
        return self._records.truncate_before(number)


@contextmanager
def _locked(path: Path, patience: float) -> Iterator[None]:
    """Hold an exclusive lock that dies with its process."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not _taken(lock):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "another process writes the catalogue log",
                    field="directory",
                    value=str(path.parent),
                    remedy="try again; if it lasts, look for a process that hangs",
                )
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
