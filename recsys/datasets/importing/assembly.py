"""From source tables to the three tables, in bounded memory.

Events take three passes. The first converts the source chunk by chunk and spills the good rows parted by user, and,
where event ids come from the source, the keys of those rows parted by event id. The second meets all rows of one event
id together and finds those that are not the first in canonical order. The third reads the rows of a part of the users
in the order of the source, leaves out the repeated ones, numbers each user's rows (`seq`) and writes.

What grows with the source: the files on disk; in memory 8 bytes an item of the items file, and the distinct ids of one
partition at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.importing.chunks import Reading, Rejection
from recsys.datasets.importing.plans import LINE
from recsys.datasets.importing.spill import Hashes, KnownIds, Positions, Spill, first_of_each, hash64, present
from recsys.records import ITEMS, USERS, RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from recsys.datasets.importing.chunks import RowFile
    from recsys.datasets.importing.plans import TablePlan
    from recsys.datasets.importing.sink import Sink

_SOURCE, _ARRIVAL = "source", "arrival"
_SOURCE_EXPANSION: Final = {".gz": 6, ".parquet": 4}  # text bytes that a stored byte stands for, about


@dataclass(frozen=True, slots=True)
class SourceTable:
    """Files that hold one table, and how their rows are read."""

    files: tuple[RowFile, ...]
    plan: TablePlan

    @property
    def paths(self) -> list[Path]:
        """All files on disk."""
        return [path for file in self.files for path in file.paths]

    @property
    def text_bytes(self) -> int:
        """About how much text the files hold."""
        return sum(path.stat().st_size * _SOURCE_EXPANSION.get(path.suffix, 1) for path in self.paths)


@dataclass(frozen=True, slots=True)
class SourceDataset:
    """What an importer knows about its source.

    Attributes:
        events: the log.
        items: the catalogue; None derives the items from the events.
        users: what is known of the users; those that only the events name are added.
        unique_event_ids: event ids cannot repeat, because they are made from the position in the source.
        ignored_columns: columns of the log that go nowhere.
    """

    events: SourceTable
    items: SourceTable | None = None
    users: SourceTable | None = None
    unique_event_ids: bool = False
    ignored_columns: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[SourceTable, ...]:
        """All source tables that there are."""
        return tuple(table for table in (self.items, self.users, self.events) if table is not None)

    @property
    def time_is_order(self) -> bool:
        """The source has no times."""
        return not self.events.plan.has("time")


class Assembly:
    """One import under way.

    Args:
        dataset: the source.
        sink: takes the rows.
        scratch: a folder for the spilled files, on a disk with room for the source.
        reading: limits and progress.
        written: called with (partitions done, partitions) in the third pass.
    """

    def __init__(
        self,
        dataset: SourceDataset,
        sink: Sink,
        scratch: Path,
        reading: Reading,
        written: Callable[[int, int], None],
    ) -> None:
        self._dataset = dataset
        self._sink = sink
        self._scratch = scratch
        self._reading = reading
        self._written = written
        self._partitions = self._partitions_for(dataset.events)
        self._rows = reading.limits.row_group_rows
        self._by_user = self._spill("events", self._partitions)
        self._repeated = self._spill("repeated", self._partitions)
        self._known_users = self._spill("users", self._partitions)
        sink.notes.update({"items_without_text": 0, "users_with_one_event": 0})

    def run(self) -> None:
        """Read everything and write everything."""
        known = None if self._dataset.items is None else self._items(self._dataset.items)
        if self._dataset.users is not None:
            self._read_users(self._dataset.users)
        self._known_users.close()
        keys = self._spill("keys", self._partitions)
        self._read_events(keys, known)
        keys.close()
        self._by_user.close()
        self._find_repeated(keys)
        self._repeated.close()
        seen = None if known is not None else self._spill("seen", self._partitions)
        self._write_events(seen)
        if seen is not None:
            seen.close()
            self._derive_items(seen)

    def _items(self, table: SourceTable) -> KnownIds:
        spill = self._spill("items", self._partitions_for(table))
        for _, rows in self._converted(table, "items"):
            spill.add(rows, rows["item_id"])
        spill.close()
        known: list[Hashes] = []
        for partition in range(spill.partitions):
            rows = self._distinct(spill, partition, "items", "item_id", RejectReason.DUPLICATE_ITEM_ID)
            if rows is not None:
                known.append(hash64(rows["item_id"]))
                unspoken = pc.and_(pc.is_null(rows["title"]), pc.is_null(rows["text"]))
                self._sink.notes["items_without_text"] += pc.sum(unspoken).as_py() or 0
                self._sink.write("items", rows)
            spill.drop(partition)
        return KnownIds(known)

    def _read_users(self, table: SourceTable) -> None:
        for _, rows in self._converted(table, "users"):
            self._known_users.add(rows, rows["user_id"])

    def _read_events(self, keys: Spill, known: KnownIds | None) -> None:
        arrived = 0
        for file, converted in self._converted(self._dataset.events, "events"):
            rows = self._with_event_ids(converted, file.name)
            if known is not None:
                rows = self._without_unknown_items(rows, known, file.name)
            numbers = np.arange(arrived, arrived + rows.num_rows)
            arrived += rows.num_rows
            rows = rows.append_column(_ARRIVAL, pa.array(numbers))
            self._by_user.add(rows, rows["user_id"])
            if not self._dataset.unique_event_ids:
                # what loses within a chunk has lost: so one id repeated without end does not fill its partition
                first = self._first_events(rows.select(["event_id", "user_id", "time", _ARRIVAL]))
                keys.add(first, first["event_id"])

    def _first_events(self, rows: pa.Table) -> pa.Table:
        """The rows that come first in canonical order with their event id; the others are marked as repeated."""
        first = first_of_each(rows, "event_id", ["user_id", "time", _ARRIVAL])
        if first.all():
            return rows
        others = rows.filter(pa.array(~first))
        self._repeated.add(others.select([_ARRIVAL]), others["user_id"])
        return rows.filter(pa.array(first))

    def _with_event_ids(self, rows: pa.Table, source: str) -> pa.Table:
        ids = rows["event_id"].combine_chunks()
        missing = ~present(ids)
        if not missing.any():
            return rows
        self._sink.notes["events_without_event_id"] += int(missing.sum())
        self._sink.line_ids.add(source)
        made = pc.binary_join_element_wise(source, rows[LINE].cast(pa.string()), ":")
        at = rows.schema.get_field_index("event_id")
        return rows.set_column(at, "event_id", pc.coalesce(ids, made))

    def _without_unknown_items(self, rows: pa.Table, known: KnownIds, source: str) -> pa.Table:
        found = known.holds(rows["item_id"].combine_chunks())
        if found.all():
            return rows
        strangers = rows.filter(pa.array(~found))
        details = [f"item_id: {value!r} is not in the items file" for value in strangers["item_id"].to_pylist()]
        self._sink.reject("events", source, _rejections(strangers, RejectReason.UNKNOWN_ITEM, details))
        return rows.filter(pa.array(found))

    def _find_repeated(self, keys: Spill) -> None:
        for partition in range(keys.partitions):
            rows = keys.read_all(partition)
            if rows is not None:
                self._first_events(rows)
            keys.drop(partition)

    def _write_events(self, seen: Spill | None) -> None:
        for partition in range(self._partitions):
            dropped = self._repeated.read_all(partition)
            repeated = np.empty(0, np.int64) if dropped is None else np.sort(dropped[_ARRIVAL].to_numpy())
            positions = Positions()
            for spilled in self._by_user.read(partition, self._rows):
                rows = self._without_repeated(spilled, repeated)
                seqs = pa.array(positions.number(rows["user_id"].combine_chunks()))
                rows = rows.append_column("seq", seqs)
                if self._dataset.time_is_order:
                    rows = rows.set_column(rows.schema.get_field_index("time"), "time", seqs)
                else:
                    self._sink.note_times(rows["time"])
                self._sink.write("events", rows)
                if seen is not None:
                    distinct = rows["item_id"].unique()
                    seen.add(pa.table({"item_id": distinct}), distinct)
            self._write_users(partition, positions.counts)
            for spill in (self._by_user, self._repeated, self._known_users):
                spill.drop(partition)
            self._written(partition + 1, self._partitions)

    def _without_repeated(self, rows: pa.Table, repeated: npt.NDArray[np.int64]) -> pa.Table:
        arrivals = rows[_ARRIVAL].to_numpy()
        places = np.searchsorted(repeated, arrivals)
        again = np.zeros(len(arrivals), dtype=bool)
        inside = places < len(repeated)
        again[inside] = repeated[places[inside]] == arrivals[inside]
        if again.any():
            self._reject_by_source(
                "events",
                rows.filter(pa.array(again)),
                RejectReason.DUPLICATE_EVENT_ID,
                "event_id",
            )
            rows = rows.filter(pa.array(~again))
        return rows

    def _write_users(self, partition: int, counts: dict[str, int]) -> None:
        known = self._distinct(self._known_users, partition, "users", "user_id", RejectReason.DUPLICATE_USER_ID)
        self._sink.notes["users_with_one_event"] += sum(count == 1 for count in counts.values())
        if known is not None:
            self._sink.write("users", known)
            named = set(known["user_id"].to_pylist())
            self._sink.notes["users_without_events"] += len(named - counts.keys())
            counts = {name: count for name, count in counts.items() if name not in named}
        self._sink.write("users", _only_ids(USERS, "user_id", pa.array(list(counts), pa.string())))

    def _derive_items(self, seen: Spill) -> None:
        for partition in range(seen.partitions):
            rows = seen.read_all(partition)
            if rows is not None:
                distinct = rows["item_id"].combine_chunks().unique()
                self._sink.notes["items_derived_from_events"] += len(distinct)
                self._sink.notes["items_without_text"] += len(distinct)
                self._sink.write("items", _only_ids(ITEMS, "item_id", distinct))
            seen.drop(partition)

    def _distinct(self, spill: Spill, partition: int, table: str, key: str, reason: RejectReason) -> pa.Table | None:
        """A partition's rows without those whose key an earlier row has."""
        rows = spill.read_all(partition)
        if rows is None:
            return None
        rows = rows.append_column(_ARRIVAL, pa.array(np.arange(rows.num_rows)))
        first = first_of_each(rows, key, [_ARRIVAL])
        if not first.all():
            self._reject_by_source(table, rows.filter(pa.array(~first)), reason, key)
            rows = rows.filter(pa.array(first))
        return rows

    def _reject_by_source(self, table: str, rows: pa.Table, reason: RejectReason, key: str) -> None:
        for source in rows[_SOURCE].unique().to_pylist():
            own = rows.filter(pc.equal(rows[_SOURCE], source))
            details = [f"{key}: {value!r} stands more than once" for value in own[key].to_pylist()]
            self._sink.reject(table, source, _rejections(own, reason, details))

    def _converted(self, table: SourceTable, name: str) -> Iterator[tuple[RowFile, pa.Table]]:
        """Every chunk's good rows with the file they come from; the others are rejected here."""
        for file in table.files:
            for chunk in file.chunks(table.plan.wanted, self._reading):
                rows, rejected = table.plan.apply(chunk)
                self._sink.reject(name, file.name, rejected)
                if rows.num_rows:
                    source = pa.repeat(file.name, rows.num_rows).dictionary_encode()
                    yield file, rows.append_column(_SOURCE, source)

    def _partitions_for(self, table: SourceTable) -> int:
        limits = self._reading.limits
        return max(1, min(limits.max_partitions, table.text_bytes // limits.partition_bytes))

    def _spill(self, name: str, partitions: int) -> Spill:
        return Spill(self._scratch / name, partitions)


def _rejections(rows: pa.Table, reason: RejectReason, details: list[str]) -> list[Rejection]:
    """Rejections of rows that were converted already: their raw form is the converted row as JSON."""
    helpers = {LINE, _SOURCE, _ARRIVAL}
    lines = rows[LINE].to_pylist()
    values = rows.drop_columns([name for name in rows.column_names if name in helpers]).to_pylist()
    raws = [{name: value for name, value in row.items() if value is not None} for row in values]
    return [
        Rejection(line, reason, detail, orjson.dumps(raw, default=str).decode())
        for line, detail, raw in zip(lines, details, raws, strict=True)
    ]


def _only_ids(schema: pa.Schema, key: str, ids: pa.Array) -> pa.Table:
    columns = [ids if field.name == key else pa.nulls(len(ids), field.type) for field in schema]
    return pa.table(columns, schema=schema)
