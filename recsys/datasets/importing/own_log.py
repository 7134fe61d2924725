"""Windfire's own event log as a source: what was served becomes training data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.generic import named_tables
from recsys.datasets.importing.mapping import load_mapping
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.structured import json_chunk
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import action, integer, money, string_map, text
from recsys.errors import InputError
from recsys.event_log.segments import read_records, segment_files
from recsys.records import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from recsys.datasets.importing.chunks import Chunk, Reading

_RECORDS_PER_CHUNK: Final = 16_384


def open_event_log(source: Path, mapping_file: Path | None) -> SourceDataset:
    """Open the folder of an `EventLog`, also while a server writes it.

    Args:
        source: the folder.
        mapping_file: may name the files of items and users; says nothing about the events.

    Raises:
        InputError: the folder holds no log.
    """
    if not source.is_dir() or not segment_files(source):
        raise InputError(
            "no event log here", field="source", value=str(source), remedy="name the folder that holds the segments"
        )
    tables = {} if mapping_file is None else named_tables(load_mapping(mapping_file), mapping_file)
    return SourceDataset(
        events=SourceTable((EventLogRows(source),), _plan()),
        items=tables.get("items"),
        users=tables.get("users"),
    )


def _plan() -> TablePlan:
    micros = time_converter("us")
    fields = (
        Field("event_id", text(), "event_id", required=True),
        Field("user_id", text(), "user_id", required=True),
        Field("item_id", text(), "item_id", required=True),
        Field("time", micros, "time", required=True),
        Field("created_at", micros, "created_at"),
        Field("scene", text(), "scene"),
        Field("action", action({}), "action", required=True),
        Field("value_micros", money(1), "value_micros"),
        Field("request_id", text(), "request_id"),
        Field("position", integer(pa.int32()), "position"),
        Field("attributes", string_map(), "attributes"),
    )
    return TablePlan(EVENTS, fields)


@dataclass(frozen=True, slots=True)
class EventLogRows:
    """The records of an event log; a record's number plus one stands for the line."""

    folder: Path
    open_schema: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """The segments."""
        return tuple(path for _, path in segment_files(self.folder))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def columns(self) -> list[str]:
        """The fields of an event."""
        return list(EVENTS.names)

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the records that are whole; see `RowFile.chunks`.

        Raises:
            CorruptionError: a record before the end differs from its checksum.
        """
        first = segment_files(self.folder)[0][0]
        records = read_records(self.folder, first)
        while numbered := list(islice(records, _RECORDS_PER_CHUNK)):
            payloads = [payload for _, payload in numbered]
            reading.advance(sum(map(len, payloads)))
            yield json_chunk(payloads, numbered[0][0] + 1, wanted)
