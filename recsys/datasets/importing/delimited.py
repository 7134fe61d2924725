"""Rows of CSV and TSV files: whole blocks by Arrow where they are plain, record by record where they are not."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from recsys.datasets.importing.chunks import SAMPLE, Chunk, Column, Reading, Rejection, escape, read_blocks
from recsys.errors import InputError
from recsys.records import RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_BOM: Final = b"\xef\xbb\xbf"
_MORE: Final = b""  # what stands for the end of the file among the blocks


@dataclass(frozen=True, slots=True)
class DelimitedFile:
    """A CSV file with a header line; fields may be quoted and quoted fields may hold line breaks.

    Attributes:
        path: the file; gzip where its name ends in .gz.
        name: its name in reports.
        delimiter: one character between the fields.
        quoted: whether `"` around a field is not part of it.
    """

    path: Path
    name: str
    delimiter: str = ","
    quoted: bool = True
    open_schema: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def columns(self) -> list[str]:
        """The header's names, without blanks around them."""
        return self._header()[0]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the wanted columns as strings; see `RowFile.chunks`."""
        names, skip, line = self._header()
        if not names:
            return
        indices = {name: names.index(name) for name in wanted}
        carried = b""
        for block in chain(read_blocks(self.path, reading), [_MORE]):
            data = carried + block
            data, skip = data[skip:], max(0, skip - len(data))
            parsed = self._plain(data, len(names), indices, line)
            if parsed is None:
                chunk, used = self._careful(data, len(names), indices, line, final=block == _MORE)
            else:
                chunk, used = parsed, len(data)
            carried = data[used:]
            line += _line_count(data[:used])
            yield chunk

    def _header(self) -> tuple[list[str], int, int]:
        """The names, how many bytes they take, and the number of the line after them."""
        start = next(read_blocks(self.path, SAMPLE), b"")
        lines = _split(start.removeprefix(_BOM))
        record = next(iter(_records(lines, self._parser, final=True)[0]), None)
        if record is None:
            return [], 0, 1
        if isinstance(record.fields, str):
            raise InputError(
                f"the header line cannot be read: {record.fields}",
                field="source",
                value=self.name,
                remedy="check the quotes and the delimiter of the first line",
            )
        size = sum(map(len, lines[: record.end])) + (len(_BOM) if start.startswith(_BOM) else 0)
        names = [escape(name.encode("utf-8", "surrogateescape")).strip() for name in record.fields]
        return names, size, record.end + 1

    def _parser(self, lines: _Feed) -> Iterable[list[str]]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, quoting=quoting, strict=True)

    def _plain(self, data: bytes, width: int, indices: dict[str, int], line: int) -> Chunk | None:
        """Parse lines without quotes and without faults, else return None."""
        rows = _line_count(data)
        if not rows or (self.quoted and b'"' in data) or data.count(b"\r") != data.count(b"\r\n"):
            return None
        if data[:1] in b"\r\n" or b"\n\n" in data or b"\n\r" in data:
            return None  # blank lines are no rows, but Arrow would count them
        names = [str(index) for index in range(width)]
        used = [str(index) for index in indices.values()]
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(data),
                read_options=arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self.delimiter, quote_char=False, ignore_empty_lines=False
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={name: pa.string() for name in used},
                    include_columns=sorted(set(used)),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != rows:
            return None
        columns: dict[str, Column] = {name: table[str(at)].combine_chunks() for name, at in indices.items()}
        return Chunk(columns, np.arange(line, line + rows), _RawLines(data).row)

    def _careful(
        self, data: bytes, width: int, indices: dict[str, int], line: int, *, final: bool
    ) -> tuple[Chunk, int]:
        """Parse record by record; also return the number of bytes that belong to whole records."""
        lines = _split(data)
        records, used = _records(lines, self._parser, final=final)
        good: list[_Record] = []
        rejected: list[Rejection] = []
        for record in records:
            fault = record.fault(width, indices)
            if fault is None:
                good.append(record)
            else:
                raw = escape(b"".join(lines[record.start : record.end]))
                rejected.append(Rejection(line + record.start, *fault, raw))
        columns: dict[str, Column] = {
            name: pa.array([record.fields[at] for record in good], pa.string()) for name, at in indices.items()
        }

        def raw_row(row: int) -> str:
            return escape(b"".join(lines[good[row].start : good[row].end]))

        starts = np.array([line + record.start for record in good], dtype=np.int64)
        return Chunk(columns, starts, raw_row, rejected), sum(map(len, islice(lines, used)))


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: lines [start, end) of a block; `fields` is the parser's complaint where it has one."""

    start: int
    end: int
    fields: list[str] | str

    def fault(self, width: int, indices: dict[str, int]) -> tuple[RejectReason, str] | None:
        """Why the record cannot be taken apart into `width` decodable fields; None where it can."""
        if isinstance(self.fields, str):
            return RejectReason.BAD_SYNTAX, self.fields
        if len(self.fields) != width:
            return RejectReason.BAD_SYNTAX, f"{len(self.fields)} fields where the header has {width}"
        for name, index in indices.items():
            try:
                self.fields[index].encode()
            except UnicodeEncodeError:
                return RejectReason.BAD_ENCODING, f"{name}: bytes that are not UTF-8"
        return None


class _Feed:
    """Lines for the parser; tells how many it took and whether it asked for more than there are."""

    def __init__(self, lines: list[str], start: int) -> None:
        self.position = start
        self.exhausted = False
        self._lines = lines

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self.position == len(self._lines):
            self.exhausted = True
            raise StopIteration
        self.position += 1
        return self._lines[self.position - 1]


def _records(
    lines: list[bytes], parser: Callable[[_Feed], Iterable[list[str]]], *, final: bool
) -> tuple[list[_Record], int]:
    """Take lines apart; a line that spoils the syntax is one bad record and the next line starts afresh.

    Returns:
        The records, blank lines left out, and how many lines they cover: the rest is a record that needs more
        lines (never the case where `final`).
    """
    texts = [line.decode("utf-8", "surrogateescape") for line in lines]
    records: list[_Record] = []
    start = 0
    while start < len(texts):
        feed = _Feed(texts, start)
        try:
            for fields in parser(feed):
                if fields:
                    records.append(_Record(start, feed.position, fields))
                start = feed.position
        except csv.Error as error:
            if feed.exhausted and not final:
                return records, start
            records.append(_Record(start, start + 1, str(error)))
            start += 1
    return records, start


class _RawLines:
    """The lines of a block, split when the first is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @cached_property
    def _lines(self) -> list[bytes]:
        return self._data.split(b"\n")

    def row(self, index: int) -> str:
        """Line `index` of the block as text."""
        return escape(self._lines[index])


def _split(data: bytes) -> list[bytes]:
    """Whole lines with their line feed; bytes.splitlines would also split at a lone carriage return."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _line_count(data: bytes) -> int:
    return data.count(b"\n") + bool(data and not data.endswith(b"\n"))
