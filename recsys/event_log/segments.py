"""A log on disk: segment files of records, and how they are read beside the process that writes them.

A segment is named by the number of its first record. A record begins with three little-endian uint32: the length of
its bytes, their CRC-32, and the CRC-32 of those two numbers. The last one tells a damaged length, behind which nothing
can be found any more, from a record that a crash cut off.

An erased record keeps its number and its length, so that nothing else in a log moves: its bytes are zeros.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from recsys.errors import CorruptionError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_RECORD_BYTES: Final = 16 << 20
SUFFIX: Final = ".log"
_MEASURES: Final = struct.Struct("<II")
_HEADER: Final = struct.Struct("<III")


def segment_path(directory: Path, first: int) -> Path:
    """The file of the segment that begins with record `first`."""
    return directory / f"{first:020d}{SUFFIX}"


def segment_files(directory: Path) -> list[tuple[int, Path]]:
    """The segments of a log as (number of the first record, path), rising; files of other names are none."""
    return sorted((int(path.stem), path) for path in directory.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def frame(payload: bytes) -> bytes:
    """A record as it stands in a segment.

    Raises:
        InputError: it is longer than 16 MiB.
    """
    if len(payload) > MAX_RECORD_BYTES:
        raise InputError(
            f"a record has at most {MAX_RECORD_BYTES} bytes",
            field="payload",
            value=len(payload),
            remedy="split it into several records",
        )
    measures = _MEASURES.pack(len(payload), zlib.crc32(payload))
    return b"".join((measures, zlib.crc32(measures).to_bytes(4, "little"), payload))


def erased(payload: bytes) -> bool:
    """Whether a record's bytes were erased; no JSON begins with a zero."""
    return payload.startswith(b"\0")


def scan(path: Path, start: int = 0, *, last: bool) -> Iterator[tuple[int, bytes]]:
    """Read the whole records of a segment.

    Args:
        path: of the segment.
        start: byte where a record begins.
        last: it is the newest segment, which may end in a record that is being written or that a crash cut off.

    Yields:
        (byte behind the record, the record's bytes).

    Raises:
        CorruptionError: a record differs from its checksum and is no cut-off end.
        InputError: the segment was removed in the meantime.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        if last:
            return  # nothing was written yet
        raise InputError(
            "the log no longer holds this segment",
            field="segment",
            value=path.name,
            remedy="start at the oldest record that is kept",
        ) from None
    with file:
        size = os.fstat(file.fileno()).st_size
        position = start
        file.seek(position)
        while position < size:
            payload = _next_payload(file)
            if payload is None:
                if last and _is_cut_off(file, position, size):
                    return
                raise CorruptionError(
                    f"a record of the log {path} differs from its checksum at byte {position}",
                    field="offset",
                    value=position,
                    remedy="restore the file from a copy; the records before this byte can be read",
                )
            position += _HEADER.size + len(payload)
            yield position, payload


def _next_payload(file: BinaryIO) -> bytes | None:
    """The record at the file's position; None where it is not whole."""
    header = _header(file.read(_HEADER.size))
    if header is None:
        return None
    length, checksum = header
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def _header(data: bytes) -> tuple[int, int] | None:
    """Length and checksum of a record; None where its header is not whole."""
    if len(data) < _HEADER.size:
        return None
    length, checksum, own = _HEADER.unpack(data)
    whole = own == zlib.crc32(data[: _MEASURES.size]) and length <= MAX_RECORD_BYTES
    return (length, checksum) if whole else None


def _is_cut_off(file: BinaryIO, position: int, size: int) -> bool:
    """Whether everything from `position` on can be the rest of a write that did not come to its end.

    That is: part of a header, a record that reaches to or over the end of the file, or zeros (a file system may have
    made the file longer before it had the bytes). Anything else has intact records behind it.
    """
    file.seek(position)
    data = file.read(_HEADER.size)
    if len(data) < _HEADER.size:
        return True
    header = _header(data)
    if header is not None:
        return position + _HEADER.size + header[0] >= size
    file.seek(position)
    return not any(file.read(size - position))


class _Place(NamedTuple):
    number: int
    path: Path
    position: int


class SegmentReader:
    """Reads a log's records in order.

    It remembers where the last record that it yielded ends, so that a consumer that comes again for the next one does
    not walk through the segment from its beginning. Several threads may read through one reader.

    Args:
        directory: of the log; need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._place: _Place | None = None

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Read what is there now; an unfinished record at the end is left out.

        Another process than the writer may see records that are not flushed yet, hence not acknowledged.

        Args:
            start: number of the first record wanted; the end of the log yields nothing.

        Yields:
            (number, bytes).

        Raises:
            CorruptionError: a record before the end differs from its checksum, or a segment is missing.
            InputError: `start` lies before the oldest record kept or behind the end.
        """
        segments = segment_files(self.directory) or [(0, segment_path(self.directory, 0))]
        if start < segments[0][0]:
            raise InputError(
                "the log no longer holds this record",
                field="start",
                value=start,
                remedy=f"start at {segments[0][0]} or later",
            )
        ends: list[int | None] = [first for first, _ in segments[1:]] + [None]
        for (first, path), end in zip(segments, ends, strict=True):
            if end is None or start < end:
                yield from self._read_segment(first, path, end, start)

    def _read_segment(self, first: int, path: Path, end: int | None, start: int) -> Iterator[tuple[int, bytes]]:
        number, position = first, 0
        place = self._place
        if place is not None and (place.number, place.path) == (start, path):
            number, position = start, place.position
        for behind, payload in scan(path, position, last=end is None):
            number += 1
            if number > start:
                self._place = _Place(number, path, behind)
                yield number - 1, payload
        if end is not None and number != end:
            raise CorruptionError(
                f"records are missing: {path} ends before record {number}, the next segment begins with {end}",
                field="segment",
                value=path.name,
                remedy="restore the missing segment or the longer copy of this one",
            )
        if number < start:
            raise InputError(
                f"the log {self.directory} ends before this record",
                field="start",
                value=start,
                remedy=f"it was replaced, or a power failure took unflushed records; start at {number} or earlier",
            )


def read_records(directory: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Read a log once; see `SegmentReader.read`."""
    return SegmentReader(directory).read(start)
