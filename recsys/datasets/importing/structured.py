"""Rows of JSON-lines and Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.datasets.importing.chunks import SAMPLE, Chunk, Column, Reading, Rejection, escape, read_blocks
from recsys.datasets.importing.values import Unreadable
from recsys.errors import InputError
from recsys.records import RejectReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SAMPLE: Final = 1_000  # rows that are looked at for the names of the columns


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """One JSON object a line; a key that a row lacks is a missing value.

    Attributes:
        path: the file; gzip where its name ends in .gz.
        name: its name in reports.
    """

    path: Path
    name: str
    open_schema: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def columns(self) -> list[str]:
        """The keys of the first rows, in order of appearance."""
        names: dict[str, None] = {}
        for line in islice(next(read_blocks(self.path, SAMPLE), b"").split(b"\n"), _SAMPLE):
            names.update(dict.fromkeys(_parse(line) if line.strip() else ()))
        return list(names)

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the wanted keys as Python values; see `RowFile.chunks`."""
        first = 1
        for block in read_blocks(self.path, reading):
            lines = block.split(b"\n")
            yield json_chunk(lines, first, wanted)
            first += len(lines) - 1


def json_chunk(lines: list[bytes], first: int, wanted: Sequence[str]) -> Chunk:
    """The wanted keys of JSON objects, one per element; blank elements are no rows, `first` is the first one's line."""
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    rejected: list[Rejection] = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            rows.append(_load(line))
            kept.append(index)
        except _BadLineError as error:
            rejected.append(Rejection(first + index, error.reason, str(error), escape(line)))
    columns: dict[str, Column] = {name: [row.get(name) for row in rows] for name in wanted}
    return Chunk(columns, np.array(kept, dtype=np.int64) + first, lambda row: escape(lines[kept[row]]), rejected)


class _BadLineError(ValueError):
    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _load(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise _BadLineError(RejectReason.BAD_ENCODING, "bytes that are not UTF-8") from error
        raise _BadLineError(RejectReason.BAD_SYNTAX, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _BadLineError(RejectReason.BAD_SYNTAX, f"a JSON {type(value).__name__} where an object is expected")
    return value


def _parse(line: bytes) -> dict[str, Any]:
    try:
        return _load(line)
    except _BadLineError:
        return {}


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """A Parquet file; rows are numbered from 1.

    Attributes:
        path: the file.
        name: its name in reports.
    """

    path: Path
    name: str
    open_schema: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def columns(self) -> list[str]:
        """The names of the top-level columns."""
        with self._open() as file:
            return list(file.schema_arrow.names)

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the wanted columns in their own types; see `RowFile.chunks`."""
        first = 1
        with self._open() as file:
            size = self.path.stat().st_size
            try:
                for batch in file.iter_batches(reading.limits.row_group_rows, columns=list(wanted), use_threads=False):
                    columns = {name: _readable(batch.column(name)) for name in wanted}
                    lines = np.arange(first, first + batch.num_rows)
                    yield Chunk(columns, lines, _raw_of(batch))
                    first += batch.num_rows
                    reading.advance(size * batch.num_rows // max(1, file.metadata.num_rows))
            except (pa.ArrowInvalid, OSError) as error:
                raise self._damaged(error) from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, memory_map=False, pre_buffer=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"this is no readable Parquet file ({error}); nothing was written",
            field="source",
            value=str(self.path),
            remedy="copy the file again, or name its real format",
        )


def _readable(array: pa.Array) -> Column:
    """Strings from Parquet need not be UTF-8, and times need not fit a calendar: find out before they are used."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return [_value(scalar) for scalar in array]
    return array


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(error)


def _raw_of(batch: pa.RecordBatch) -> Any:
    def raw(row: int) -> str:
        values = {name: _value(batch.column(name)[row]) for name in batch.schema.names}
        return orjson.dumps(values, default=str).decode()

    return raw
