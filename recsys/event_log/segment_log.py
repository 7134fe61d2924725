"""The writer of a log: what `append` has answered survives a crash."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final

from recsys.errors import UnavailableError
from recsys.event_log.erasure import erase_in, holds, remove_litter
from recsys.event_log.group_writer import GroupWriter
from recsys.event_log.segments import SegmentReader, frame, scan, segment_files, segment_path
from recsys.storage import fsync_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

SEGMENT_BYTES: Final = 64 << 20
_LOCK: Final = "writer.lock"


@dataclass(frozen=True, slots=True)
class _Append:
    data: bytes
    count: int
    rotate: bool = False


class _TakenBackError(Exception):
    """A write was refused and the log stands where it stood before."""


class SegmentLog:
    """The writer's side of a log; any number of threads and tasks append through it.

    One thread writes: what was submitted while it flushed goes to the disk together, with one flush. A write that
    the disk refuses is taken back and may be tried again. After a flush that failed nobody knows what is on the disk,
    so the log takes nothing more until it is opened anew.

    Args:
        directory: created where absent.
        segment_bytes: a new segment begins where the current one would become larger.
        flush: makes an open file's bytes durable; given its descriptor.

    Attributes:
        directory: of the log.
        cut_bytes: length of the unfinished end that was cut off on opening.

    Raises:
        UnavailableError: another writer has this log open.
        CorruptionError: the newest segment is damaged before its end.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, flush: Callable[[int], None] = os.fsync
    ) -> None:
        self.directory = directory
        self.cut_bytes = 0
        self._segment_bytes = segment_bytes
        self._flush = flush
        self._reader = SegmentReader(directory)
        self._writer = GroupWriter(f"log-{directory.name}", self._write_group)
        self._rewriting = threading.Lock()  # of segments that are closed
        self._closed = False
        self._failed = False
        self._end = self._size = 0
        make_directory(directory)
        self._lock = _lock(directory)
        try:
            self._file = self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def start(self) -> int:
        """Number of the oldest record that is kept."""
        return segment_files(self.directory)[0][0]

    @property
    def end(self) -> int:
        """Number that follows the newest durable record."""
        return self._end

    @property
    def failed(self) -> bool:
        """Whether a flush failed, so that the log takes nothing more until it is opened anew."""
        return self._failed

    def submit(self, payloads: Sequence[bytes]) -> Future[range]:
        """Queue records; they become neighbours in the log, in this order.

        Returns:
            Their numbers, once they are on the disk. It cannot be cancelled. It fails with `UnavailableError` where
            the disk refuses; the records are not in the log then.

        Raises:
            InputError: a record over 16 MiB; nothing of the call is written.
            UnavailableError: the log is closed, or a flush failed.
        """
        append = _Append(b"".join(map(frame, payloads)), len(payloads))
        if self._failed:
            raise UnavailableError(
                "a flush of the log failed",
                field="directory",
                value=str(self.directory),
                remedy="look for errors of the disk, then start this process again",
            )
        return self._writer.submit(append)

    def append(self, payloads: Sequence[bytes]) -> range:
        """Append records; returns their numbers once they are on the disk. Raises what `submit` says."""
        return self.submit(payloads).result()

    async def append_async(self, payloads: Sequence[bytes]) -> range:
        """Like `append`, without blocking the event loop; a cancelled caller's records are written nevertheless."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(payloads)))

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Read durable records; see `SegmentReader.read`."""
        for number, payload in self._reader.read(start):
            if number >= self._end:
                return
            yield number, payload

    def truncate_before(self, number: int) -> int:
        """Remove the segments that hold only records before `number`.

        Returns:
            How many files went. Records before `number` that share a segment with later ones stay.
        """
        with self._rewriting:
            segments = segment_files(self.directory)
            gone = [path for (_, path), (following, _) in pairwise(segments) if following <= number]
            for path in gone:
                path.unlink()
            if gone:
                fsync_path(self.directory)
            return len(gone)

    def rotate(self) -> None:
        """Begin a new segment, so that `truncate_before` and `erase` reach all that was appended so far.

        Raises:
            UnavailableError: the log is closed, or the disk refuses.
        """
        self._writer.submit(_Append(b"", 0, rotate=True)).result()

    def erase(self, mark: bytes, theirs: Callable[[bytes], bool]) -> int:
        """Overwrite records with zeros, in files of their own that take the place of the old ones.

        Everything that was appended before the call is looked at. Numbers and lengths stay, so that no reader and no
        offset is disturbed; a crash leaves each segment as it was or erased. Repeating it changes nothing.

        Args:
            mark: bytes that every such record holds; segments without them are only searched.
            theirs: says of a record whether it goes.

        Returns:
            How many records were erased.

        Raises:
            UnavailableError: the disk refuses; repeat it.
            CorruptionError: a segment that holds `mark` is damaged.
        """
        with self._rewriting:
            if holds(segment_files(self.directory)[-1][1], mark):
                self.rotate()
            closed = segment_files(self.directory)[:-1]
            try:
                return sum(erase_in(path, mark, theirs) for _, path in closed)
            except OSError as error:
                raise _refused(error, self.directory) from error

    def close(self) -> None:
        """Write what waits, then release the log to another writer; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        os.close(self._file)
        os.close(self._lock)

    def _recover(self) -> int:
        """Find the end of the newest segment, cut off what is not whole, and open it."""
        remove_litter(self.directory)
        segments = segment_files(self.directory)
        self._end, path = segments[-1] if segments else (0, segment_path(self.directory, 0))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            for behind, _ in scan(path, last=True):
                self._end, self._size = self._end + 1, behind
            self.cut_bytes = os.fstat(file).st_size - self._size
            os.ftruncate(file, self._size)
            # A killed writer may have left whole records that it did not flush; from now on they are answered for.
            self._flush(file)
            fsync_path(self.directory)
        except BaseException:
            os.close(file)
            raise
        return file

    def _write_group(self, group: list[_Append]) -> list[range]:
        """Write and flush a group; returns the numbers of each append's records."""
        try:
            rotate = any(append.rotate for append in group)
            count = sum(append.count for append in group)
            first = self._commit(b"".join(append.data for append in group), count, rotate=rotate)
        except Exception as error:
            self._failed = not isinstance(error, _TakenBackError)
            self._reader = SegmentReader(self.directory)  # the other one may remember a place that is gone
            raise _refused(error, self.directory) from error
        places = accumulate((append.count for append in group), initial=first)
        return [range(*pair) for pair in pairwise(places)]

    def _commit(self, data: bytes, count: int, *, rotate: bool = False) -> int:
        """Write and flush a group; returns the number of its first record."""
        if self._failed:
            raise UnavailableError("a flush of the log failed")
        if self._size and (rotate or self._size + len(data) > self._segment_bytes):
            self._rotate()
        try:
            _write(self._file, data)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise _TakenBackError(str(error)) from error
        if data:
            self._flush_or_take_back()
        first = self._end
        self._size, self._end = self._size + len(data), first + count
        return first

    def _flush_or_take_back(self) -> None:
        try:
            self._flush(self._file)
        except BaseException:
            # A reader would still find in memory what the disk may not hold.
            os.ftruncate(self._file, self._size)
            raise

    def _rotate(self) -> None:
        """Begin the next segment; the current one is flushed already."""
        path = segment_path(self.directory, self._end)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:  # no inode or no file descriptor is left: nothing was written
            raise _TakenBackError(error.strerror) from error
        fsync_path(self.directory)
        os.close(self._file)
        self._file, self._size = file, 0


def make_directory(directory: Path) -> None:
    """Create a directory that is still there after a power failure."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        fsync_path(directory.parent)


def _lock(directory: Path) -> int:
    """Become the only writer of a log; the lock dies with its process."""
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UnavailableError(
            "another writer has this log open",
            field="directory",
            value=str(directory),
            remedy="stop it, or give this one its own directory",
        ) from None
    return lock


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _refused(error: Exception, directory: Path) -> UnavailableError:
    return UnavailableError(
        f"the log could not be written: {error}",
        field="directory",
        value=str(directory),
        remedy="make room on the disk or replace it, then send the records again",
    )
