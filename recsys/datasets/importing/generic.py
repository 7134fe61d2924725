"""One's own log: CSV, TSV, JSON lines or Parquet, one file or a folder of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.mapping import Mapping, TableMapping, load_mapping, plan_table
from recsys.datasets.importing.structured import JsonLinesFile, ParquetRows
from recsys.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from recsys.datasets.importing.chunks import RowFile

_FORMATS: Final = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_DIMENSIONS: Final = ("items", "users")


def open_log(source: Path, mapping_file: Path | None, form: str | None = None) -> SourceDataset:
    """Open a log of one's own.

    Args:
        source: a file, or a folder. In a folder the files whose names begin with `items` and `users` are those
            tables, all others are the log, in the order of their names.
        mapping_file: see `TableMapping`; not needed where columns have the obvious names.
        form: csv, jsonl or parquet; None goes by the ending of each name.

    Raises:
        InputError: the source is absent, has no file of a known format, or lacks a column.
    """
    mapping = Mapping() if mapping_file is None else load_mapping(mapping_file)
    groups: dict[str, list[Path]] = {"events": [], **{table: [] for table in _DIMENSIONS}}
    for path in _paths(source, form):
        table = next((name for name in _DIMENSIONS if path.name.startswith(name)), "events")
        groups[table if source.is_dir() else "events"].append(path)
    if not groups["events"]:
        raise _no_file(source)
    events = _open_table("events", mapping.events, groups["events"], source, form)
    tables = {
        table: _open_table(table, getattr(mapping, table), groups[table], source)
        for table in _DIMENSIONS
        if groups[table]
    }
    tables |= named_tables(mapping, mapping_file)
    wanted = events.plan.wanted
    return SourceDataset(
        events=events,
        items=tables.get("items"),
        users=tables.get("users"),
        unique_event_ids=not events.plan.has("event_id"),
        ignored_columns=tuple(name for name in events.files[0].columns() if name not in wanted),
    )


def named_tables(mapping: Mapping, mapping_file: Path | None) -> dict[str, SourceTable]:
    """The items and users tables whose `path` a mapping file names.

    Raises:
        InputError: a path is absent or cannot be used.
    """
    tables = {}
    for table in _DIMENSIONS:
        section: TableMapping = getattr(mapping, table)
        if section.path is not None and mapping_file is not None:
            place = mapping_file.parent / section.path
            paths = _paths(place, None)
            if not paths:
                raise _no_file(place)
            tables[table] = _open_table(table, section, paths, place)
    return tables


def _open_table(
    table: str, mapping: TableMapping, paths: list[Path], source: Path, form: str | None = None
) -> SourceTable:
    files: list[RowFile] = []
    for path in paths:
        name = path.name if path == source else str(path.relative_to(source))
        files.append(_open_file(path, name, mapping, form))
    return SourceTable(tuple(files), plan_table(table, mapping, files))


def _open_file(path: Path, name: str, mapping: TableMapping, form: str | None) -> RowFile:
    match form or _format_of(path):
        case "jsonl":
            return JsonLinesFile(path, name)
        case "parquet":
            return ParquetRows(path, name)
        case _:
            delimiter = mapping.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
            return DelimitedFile(path, name, delimiter, mapping.quoted)


def _format_of(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return _FORMATS.get(suffixes[-1].lower()) if suffixes else None


def _paths(source: Path, form: str | None) -> list[Path]:
    if source.is_dir():
        forms = set(_FORMATS.values()) if form is None else {form}
        return [path for path in sorted(source.rglob("*")) if path.is_file() and _format_of(path) in forms]
    if not source.is_file():
        raise InputError("no such file", field="source", value=str(source), remedy="check the path")
    if form is None and _format_of(source) is None:
        raise _no_file(source)
    return [source]


def _no_file(source: Path) -> InputError:
    return InputError(
        "no file of a known format",
        field="source",
        value=str(source),
        remedy=f"use one of {', '.join(_FORMATS)} (.gz may follow), or name the format: csv, jsonl, parquet",
    )
