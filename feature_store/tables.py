"""Offline tables of features: one row per value as it became known, in Arrow or Parquet.

Columns of a view: `entity_id`, `event_time`, `created_at`, optionally `deleted`, then the fields. Of a history:
`entity_id`, `time`, `seq`, `event_id`, `created_at`, then the fields. Times are UTC microseconds. Nothing is ever
updated in place: a correction is another row with a later `created_at`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.dataset as ds

from feature_store.store import Merge, Write
from recsys.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from feature_store.store import FeatureStore
    from feature_store.views import View

DELETED: Final = "deleted"


def table_schema(view: View) -> pa.Schema:
    """The columns of a view's table."""
    required = [("entity_id", pa.string())]
    if view.history is None:
        required += [("event_time", pa.int64())]
    else:
        required += [("time", pa.int64()), ("seq", pa.int64()), ("event_id", pa.string())]
    fields = [pa.field(name, kind, nullable=False) for name, kind in [*required, ("created_at", pa.int64())]]
    deleted = [pa.field(DELETED, pa.bool_())] if view.history is None else []
    return pa.schema(fields + deleted + [pa.field(field.name, field.arrow) for field in view.fields])


def conform(view: View, table: pa.Table) -> pa.Table:
    """The view's columns of a table, in the declared types; `deleted` is added where absent.

    Raises:
        InputError: an absent column, one of another type, or a row without entity or time; names the column.
    """
    schema = table_schema(view)
    return pa.Table.from_arrays([_column(view, column, table) for column in schema], schema=schema)


def _column(view: View, column: pa.Field, table: pa.Table) -> Any:
    if column.name not in table.column_names:
        if column.name != DELETED:
            raise InputError(f"the table of the view {view.label} lacks a column", field=column.name,
                             value=table.column_names, remedy="see docs/feature_store.md")  # fmt: skip
        return pa.chunked_array([pa.repeat(pa.scalar(False), len(table))], pa.bool_())
    given = table[column.name]
    try:
        found = given.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"a column of the view {view.label} has another type: {error}", field=column.name,
                         value=str(given.type), remedy=f"bring it to {column.type}") from None  # fmt: skip
    if not column.nullable and found.null_count:
        raise InputError(f"rows of the view {view.label} lack a value", field=column.name,
                         value=f"{found.null_count} rows", remedy="drop or complete them")  # fmt: skip
    return found.fill_null(False) if column.name == DELETED else found


def read_table(
    view: View, path: Path, *, columns: Mapping[str, str] | None = None, batch_rows: int = 100_000
) -> Iterator[pa.Table]:
    """A view's rows from a Parquet file or a directory of them, a batch at a time.

    Args:
        view: of the rows.
        path: of the file or directory.
        columns: where a column of the view stands under another name.
        batch_rows: rows in memory at once.

    Raises:
        DataError: no Parquet there.
        InputError: see `conform`.
    """
    try:
        dataset = ds.dataset(path, format="parquet")
        sources = {name: (columns or {}).get(name, name) for name in table_schema(view).names}
        wanted = {name: ds.field(source) for name, source in sources.items() if source in dataset.schema.names}
        for batch in dataset.to_batches(columns=wanted, batch_size=batch_rows):
            yield conform(view, pa.Table.from_batches([batch]))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(f"no table of features: {error}", field="table", value=str(path),
                        remedy="name a Parquet file or a directory of them") from error  # fmt: skip


def writes_of(view: View, table: pa.Table) -> list[Write]:
    """Rows of a conforming table as puts and deletions, of each entity only the newest of the table."""
    keys = list(zip(*(table[name].to_pylist() for name in ("entity_id", "event_time", "created_at")), strict=True))
    newest: dict[str, tuple[int, int]] = {}
    for entity, *times in keys:
        newest[entity] = max(newest.get(entity, (times[0], times[1])), (times[0], times[1]))
    # Between rows of equal times the store decides, by their bytes.
    chosen = [number for number, (entity, *times) in enumerate(keys) if tuple(times) == newest[entity]]
    rows = table.take(pa.array(chosen, pa.int64())).to_pylist()
    return [
        Write(view, row["entity_id"], None if row[DELETED] else {name: row[name] for name in view.names},
              row["event_time"], row["created_at"])
        for row in rows
    ]  # fmt: skip


def merges_of(view: View, table: pa.Table) -> list[Merge]:
    """Rows of a conforming table of a history, grouped by entity and `created_at`."""
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        grouped.setdefault((row.pop("entity_id"), row.pop("created_at")), []).append(row)
    return [Merge(view, entity, rows, created_at) for (entity, created_at), rows in grouped.items()]


def materialize(
    store: FeatureStore,
    view: View,
    tables: Iterable[pa.Table],
    *,
    batch: int = 1_000,
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Bring rows of conforming tables into a store; in any order, and running it again changes nothing.

    Args:
        store: where to.
        view: of the rows.
        tables: see `read_table`.
        batch: writes per round trip or transaction.
        advance: told the rows of each batch.

    Returns:
        Number of rows read.

    Raises:
        InputError: a value that does not fit.
        UnavailableError: the store did not acknowledge; run it again.
    """
    count = 0
    for table in tables:
        if view.history is None:
            writes = writes_of(view, table)
            for start in range(0, len(writes), batch):
                store.put(writes[start : start + batch])
        else:
            merges = merges_of(view, table)
            for start in range(0, len(merges), batch):
                store.merge(merges[start : start + batch])
        count += len(table)
        advance(len(table))
    return count
