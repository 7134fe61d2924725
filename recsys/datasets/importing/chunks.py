"""What readers hand over: chunks of source rows as columns, each row with its line and its raw text."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.errors import InputError
from recsys.records import RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Lines = npt.NDArray[np.int64]
Column: TypeAlias = pa.Array | list[Any]

MAX_LINE: Final = 1 << 20  # bytes; a longer line means that the file is not what its name says


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the memory of an import.

    Attributes:
        block_bytes: how much of a text file is parsed at once.
        partition_bytes: source bytes per spilled partition; one partition's keys are held at once.
        row_group_rows: rows per Parquet row group, and per batch of the second pass.
        max_partitions: files open at once, per kind of spill.
    """

    block_bytes: int = 2 << 20
    partition_bytes: int = 64 << 20
    row_group_rows: int = 65_536
    max_partitions: int = 256


def _ignore(amount: int) -> None:
    del amount


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read: the limits, and who is told of the bytes read from disk.

    Attributes:
        limits: what bounds the memory.
        advance: called with the number of source bytes read since the last call.
    """

    limits: Limits = field(default_factory=Limits)
    advance: Callable[[int], None] = _ignore


SAMPLE: Final = Reading(Limits(block_bytes=64 << 10, row_group_rows=100))  # to look at the first rows only


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is not taken over.

    Attributes:
        line: line in the source, from 1; the row number for binary sources.
        reason: the documented reason.
        detail: names the field and the value.
        raw: the row as read, undecodable bytes escaped.
    """

    line: int
    reason: RejectReason
    detail: str
    raw: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one source file.

    Attributes:
        columns: name to N values: an Arrow array or a list of Python values.
        lines: (N,) line of each row.
        raw: row index to the row as read; called for rejected rows only.
        rejected: rows between these that could not be taken apart.
    """

    columns: dict[str, Column]
    lines: Lines
    raw: Callable[[int], str]
    rejected: Sequence[Rejection] = ()


class RowFile(Protocol):
    """A source file of rows."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files on disk."""

    @property
    def name(self) -> str:
        """The file's name in reports and rejected rows."""

    @property
    def open_schema(self) -> bool:
        """Whether a row may have columns that `columns` does not list."""

    def columns(self) -> list[str]:
        """The names of the columns, found without reading the whole file."""

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the wanted columns from the first row on.

        Raises:
            InputError: the file cannot be read to its end.
        """


def read_blocks(path: Path, reading: Reading) -> Iterator[bytes]:
    """Read a text file (gzip where the name ends in .gz) as blocks of whole lines.

    Raises:
        InputError: the compressed data is cut off or damaged, or a line is longer than `MAX_LINE`.
    """
    with path.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        before = 0
        while block := _read_block(path, stream, reading.limits.block_bytes):
            after = file.tell()
            reading.advance(after - before)
            before = after
            yield block


def _read_block(path: Path, stream: io.BufferedIOBase, size: int) -> bytes:
    try:
        block = stream.read(size)
        rest = stream.readline(MAX_LINE) if block and not block.endswith(b"\n") else b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"the compressed file is cut off or damaged ({error}); nothing was written",
            field="source",
            value=str(path),
            remedy="copy or download the file again",
        ) from error
    if len(rest) == MAX_LINE and not rest.endswith(b"\n"):
        raise InputError(
            f"a line is longer than {MAX_LINE:,} bytes",
            field="source",
            value=str(path),
            remedy="check that the file is text with one row a line, and that its name says what it is",
        )
    return block + rest


def escape(data: bytes) -> str:
    """Decode UTF-8; bytes that are not UTF-8 stand as backslash escapes."""
    return data.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
