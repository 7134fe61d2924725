"""Windfire's own logs as sources: what users did, and what was shown to them, becomes training data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.chunks import Chunk
from recsys.datasets.importing.generic import named_tables
from recsys.datasets.importing.mapping import load_mapping
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.structured import json_chunk
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import action, integer, money, string_map, text
from recsys.errors import InputError
from recsys.event_log.exposures import Exposure
from recsys.event_log.segments import erased, read_records, segment_files
from recsys.records import EVENTS, Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from recsys.datasets.importing.chunks import Column, Reading, RowFile

_RECORDS_PER_CHUNK: Final = 16_384
_ANSWERS_PER_CHUNK: Final = 512  # of up to 500 items each
_SHOWN: Final = ("event_id", "user_id", "item_id", "time", "scene", "request_id", "position")
_DEPTHS: Final = ("", "*/", "*/worker-*/")  # of a log below the state of one server, of its workers, of several servers
_NOTED: Final = (
    "propensity", "source", "score", "served_by", "decoder", "bundle_version", "catalog_version", "arms",
)  # fmt: skip


def open_event_log(source: Path, mapping_file: Path | None) -> SourceDataset:
    """Open the folder of an `EventLog`, or all of them below a server's state, also while they are written.

    Args:
        source: the folder, the state of a server with or without workers, or a folder of such states.
        mapping_file: may name the files of items and users; says nothing about the events.

    Raises:
        InputError: the folder holds no log.
    """
    logs = _logs(source, "events", "event log")
    return _dataset(tuple(EventLogRows(log, name) for name, log in logs.items()), _plan(), mapping_file)


def open_exposure_log(source: Path, mapping_file: Path | None) -> SourceDataset:
    """Open the folder of an `ExposureLog`, or all below a state; every item shown is an impression.

    Args:
        source: see `open_event_log`.
        mapping_file: may name the files of items and users; says nothing about the exposures.

    Raises:
        InputError: the folder holds no log.
    """
    logs = _logs(source, "exposures", "exposure log")
    return _dataset(tuple(ExposureRows(log, name) for name, log in logs.items()), _impressions(), mapping_file)


def _logs(source: Path, folder: str, what: str) -> dict[str, Path]:
    """The logs that a source means, by the names that reports give them."""
    if source.is_dir() and segment_files(source):
        return {source.name: source}
    found = sorted(log for depth in _DEPTHS for log in source.glob(depth + folder) if segment_files(log))
    if not found:
        raise InputError(
            f"no {what} here",
            field="source",
            value=str(source),
            remedy="name the folder that holds the segments, or the state of a server",
        )
    return {str(log.relative_to(source)): log for log in found}


def _dataset(logs: tuple[RowFile, ...], plan: TablePlan, mapping_file: Path | None) -> SourceDataset:
    tables = {} if mapping_file is None else named_tables(load_mapping(mapping_file), mapping_file)
    return SourceDataset(SourceTable(logs, plan), items=tables.get("items"), users=tables.get("users"))


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


def _impressions() -> TablePlan:
    micros = time_converter("us")
    fields = (
        Field("event_id", text(), "event_id", required=True),
        Field("user_id", text(), "user_id", required=True),
        Field("item_id", text(), "item_id", required=True),
        Field("time", micros, "time", required=True),
        Field("created_at", micros, "time"),
        Field("scene", text(), "scene"),
        Field("action", action({}), default=Action.IMPRESSION.value),
        Field("request_id", text(), "request_id"),
        Field("position", integer(pa.int32()), "position"),
    )
    return TablePlan(EVENTS, fields, attributes=_NOTED)


@dataclass(frozen=True, slots=True)
class _Segments:
    """A log's folder as a source, under the name that reports give it."""

    folder: Path
    name: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """The segments."""
        return tuple(path for _, path in segment_files(self.folder))

    def records(self) -> Iterator[tuple[int, bytes]]:
        """The records that are whole and were not erased, with their numbers."""
        records = read_records(self.folder, segment_files(self.folder)[0][0])
        return ((number, payload) for number, payload in records if not erased(payload))


@dataclass(frozen=True, slots=True)
class EventLogRows(_Segments):
    """The records of an event log; a record's number plus one stands for the line."""

    open_schema: bool = True

    def columns(self) -> list[str]:
        """The fields of an event."""
        return list(EVENTS.names)

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the records that are whole; see `RowFile.chunks`.

        Raises:
            CorruptionError: a record before the end differs from its checksum.
        """
        records = self.records()
        while numbered := list(islice(records, _RECORDS_PER_CHUNK)):
            for _, run in groupby(enumerate(numbered), lambda placed: placed[1][0] - placed[0]):  # no gap inside one
                lines = [record for _, record in run]
                payloads = [payload for _, payload in lines]
                reading.advance(sum(map(len, payloads)))
                yield json_chunk(payloads, lines[0][0] + 1, wanted)


@dataclass(frozen=True, slots=True)
class ExposureRows(_Segments):
    """The items of an exposure log's answers; an answer's record number plus one stands for the line.

    An item's event id is `REQUEST_ID:POSITION`. An anonymous answer has no user, so its items are rejected.
    """

    open_schema: bool = False

    def columns(self) -> list[str]:
        """What is known of an item that was shown."""
        return [*_SHOWN, *_NOTED]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read the answers that are whole; see `RowFile.chunks`.

        Raises:
            CorruptionError: a record before the end differs from its checksum.
        """
        records = self.records()
        while numbered := list(islice(records, _ANSWERS_PER_CHUNK)):
            reading.advance(sum(len(payload) for _, payload in numbered))
            rows: list[dict[str, Any]] = []
            lines: list[int] = []
            for number, payload in numbered:
                shown = _shown(msgspec.json.decode(payload, type=Exposure))
                rows += shown
                lines += [number + 1] * len(shown)
            columns: dict[str, Column] = {name: [row[name] for row in rows] for name in wanted}
            yield Chunk(columns, np.array(lines, dtype=np.int64), partial(_raw, rows))


def _shown(answer: Exposure) -> list[dict[str, Any]]:
    same = {
        "user_id": answer.user_id,
        "time": answer.time,
        "scene": answer.scene,
        "request_id": answer.request_id,
        "served_by": answer.served_by,
        "decoder": answer.decoder,
        "bundle_version": answer.bundle_version,
        "catalog_version": answer.catalog_version,
        "arms": answer.arms or None,
    }
    places = zip(answer.items, answer.positions, answer.scores, answer.sources, answer.propensities, strict=True)
    return [
        {
            **same,
            "event_id": f"{answer.request_id}:{position}",
            "item_id": item,
            "position": position,
            "score": score,
            "source": source,
            "propensity": propensity,
        }
        for item, position, score, source, propensity in places
    ]


def _raw(rows: list[dict[str, Any]], row: int) -> str:
    return orjson.dumps(rows[row]).decode()
