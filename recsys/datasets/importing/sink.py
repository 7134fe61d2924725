"""Where an import's rows go: Parquet files by row groups and the counts, or the counts alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.records import EVENTS, ITEMS, REJECTED, USERS, TableCounts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recsys.datasets.importing.chunks import Rejection

MAX_RAW: Final = 2_000  # characters of a rejected row that are kept
EXAMPLES: Final = 3
_GROUPS_PER_FILE: Final = 16
_SCHEMAS: Final = {"items": ITEMS, "users": USERS, "events": EVENTS, "rejected": REJECTED}


class Sink:
    """Takes rows of all tables and keeps the account of them.

    Args:
        directory: where the tables are written; None writes nothing.
        row_group_rows: rows per row group.
    """

    def __init__(self, directory: Path | None, row_group_rows: int) -> None:
        self.written: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.line_ids: set[str] = set()
        self.examples: dict[str, list[str]] = {}
        self.earliest: int | None = None
        self.latest: int | None = None
        self._writers = {
            name: _ParquetFiles(directory / name, schema, row_group_rows)
            for name, schema in _SCHEMAS.items()
            if directory is not None
        }

    def write(self, table: str, rows: pa.Table) -> None:
        """Add rows to a table; columns that its schema lacks are left out."""
        self.written[table] += rows.num_rows
        if table in self._writers and rows.num_rows:
            self._writers[table].write(rows)

    def reject(self, table: str, source: str, rejections: Sequence[Rejection]) -> None:
        """Add rejected rows of a source file."""
        if not rejections:
            return
        self.rejected[table] += len(rejections)
        rows = []
        for rejection in rejections:
            reason = str(rejection.reason)
            self.reasons[reason] += 1
            examples = self.examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{source}:{rejection.line}: {rejection.detail}")
            row = {"table": table, "source": source, "line": rejection.line, "reason": reason}
            rows.append({**row, "detail": rejection.detail, "raw": rejection.raw[:MAX_RAW]})
        if self._writers:
            self._writers["rejected"].write(pa.Table.from_pylist(rows, schema=REJECTED))

    def note_times(self, times: pa.ChunkedArray) -> None:
        """Widen the range of event times."""
        ends = pc.min_max(times).as_py()
        if ends["min"] is not None:
            self.earliest = ends["min"] if self.earliest is None else min(self.earliest, ends["min"])
            self.latest = ends["max"] if self.latest is None else max(self.latest, ends["max"])

    def counts(self) -> dict[str, TableCounts]:
        """Rows per table; what was read is what was written or rejected."""
        return {
            name: TableCounts(self.written[name] + self.rejected[name], self.written[name], self.rejected[name])
            for name in ("items", "users", "events")
        }

    def close(self) -> None:
        """Write what is held; every table has at least one file afterwards."""
        for writer in self._writers.values():
            writer.close()


class _ParquetFiles:
    """One table's files: row groups of a fixed size, a new file after 16 of them."""

    def __init__(self, folder: Path, schema: pa.Schema, group_rows: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._schema = schema
        self._group_rows = group_rows
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._groups = 0
        self._files = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        self._held.append(rows.select(self._schema.names).cast(self._schema))
        self._held_rows += rows.num_rows
        if self._held_rows < self._group_rows:
            return
        held = pa.concat_tables(self._held)
        whole = held.num_rows - held.num_rows % self._group_rows
        for start in range(0, whole, self._group_rows):
            self._write_group(held.slice(start, self._group_rows))
        self._held = [held.slice(whole)]
        self._held_rows = held.num_rows - whole

    def close(self) -> None:
        if self._held_rows or not self._files:
            self._write_group(pa.concat_tables([self._schema.empty_table(), *self._held]))
        if self._writer is not None:
            self._writer.close()

    def _write_group(self, rows: pa.Table) -> None:
        if self._writer is None:
            path = self._folder / f"part-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema)
            self._files += 1
        self._writer.write_table(rows.combine_chunks(), row_group_size=self._group_rows)
        self._groups += 1
        if self._groups == _GROUPS_PER_FILE:
            self._writer.close()
            self._writer, self._groups = None, 0
