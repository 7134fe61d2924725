"""Imported tables as Spark frames: one base directory and any number of increments, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import ConfigError, CorruptionError, DataError
from recsys.records import TABLES, TablesManifest
from recsys.storage import sha256_file, sha256_parts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyspark.sql import DataFrame, SparkSession

USED_TABLES = ("items", "events")


@dataclass(frozen=True, slots=True)
class Tables:
    """Table directories as written by `windfire import`, `windfire simulate` or the event log's importer.

    Attributes:
        directories: the base first, then the increments, oldest first; an item that comes again replaces the
            earlier row.
        time_is_order: whether any of them has order instead of times.
    """

    directories: tuple[Path, ...]
    time_is_order: bool

    @classmethod
    def open(cls, directories: Sequence[Path]) -> Tables:
        """Check manifests and columns without reading rows.

        Raises:
            ConfigError: increments of a source without times, whose order starts anew in every import, or event ids
                that stand for other events in an earlier directory.
            CorruptionError: a file that is no Parquet.
            DataError: a directory without tables, or a column that is absent or has another type.
        """
        manifests = [TablesManifest.load(directory) for directory in directories]
        time_is_order = any(manifest.time_is_order for manifest in manifests)
        if time_is_order and len(directories) > 1:
            raise ConfigError(
                "a source without times cannot be continued: nothing says which events come later",
                field="increment",
                value=[str(directory) for directory in directories[1:]],
                remedy="import the whole log again as one source",
            )
        _require_own_ids(manifests)
        for directory in directories:
            for table in USED_TABLES:
                for file in _files(directory, table):
                    _check_columns(table, file)
        return cls(tuple(directories), time_is_order)

    def fingerprints(self, table: str) -> dict[str, str]:
        """Checksum of a table's files, per directory: `<table>[0]` is the base."""
        return {
            f"{table}[{number}]": sha256_parts([sha256_file(file) for file in _files(directory, table)])
            for number, directory in enumerate(self.directories)
        }

    def rows(self, table: str, *, start: int = 0) -> int:
        """Number of rows in the directories from number `start` on, from the files' footers."""
        files = [file for directory in self.directories[start:] for file in _files(directory, table)]
        return sum(pq.ParquetFile(file).metadata.num_rows for file in files)

    def read(self, session: SparkSession, table: str, *, start: int = 0) -> DataFrame:
        """The table over the directories from number `start` on, with a column `source` = directory number."""
        from functools import reduce

        from pyspark.sql import functions as F  # noqa: N812

        frames = [
            _read(session, table, _files(directory, table)).withColumn("source", F.lit(number))
            for number, directory in enumerate(self.directories)
            if number >= start
        ]
        return reduce(lambda left, right: left.unionByName(right), frames)


def _files(directory: Path, table: str) -> list[Path]:
    return sorted((directory / table).glob("*.parquet"))


def _read(session: SparkSession, table: str, files: Sequence[Path]) -> DataFrame:
    from pyspark.sql.pandas.types import from_arrow_schema

    schema = from_arrow_schema(TABLES[table])
    if not files:
        return session.createDataFrame([], schema)
    return session.read.schema(schema).parquet(*(f"file:{file}" for file in files))


def _require_own_ids(manifests: Sequence[TablesManifest]) -> None:
    """Two files of one name with different content give different events the same FILE:LINE; one would be lost."""
    content: dict[str, str] = {}
    for manifest in manifests:
        for name in manifest.line_ids:
            found = manifest.sources.get(name, "")
            if content.setdefault(name, found) != found:
                raise ConfigError(
                    "two directories were imported from different files of this name, whose events have no event_id",
                    field="increment",
                    value=name,
                    remedy="give every day's file a name of its own and import it again, or give the log an event_id",
                )


def _check_columns(table: str, file: Path) -> None:
    try:
        found = pq.read_schema(file)
    except pa.ArrowException as error:
        raise CorruptionError(
            f"{file.parent.name}/{file.name} is no Parquet file: {error}",
            field="data",
            value=str(file),
            remedy="import the source again with `windfire import`",
        ) from error
    for expected in TABLES[table]:
        position = found.get_field_index(expected.name)
        kind = found.field(position).type if position >= 0 else None
        if kind != expected.type:
            raise DataError(
                f"{file.parent.name}/{file.name}: column {expected.name} must be {expected.type}",
                field=expected.name,
                value="absent" if kind is None else str(kind),
                remedy="import the source again with `windfire import`",
            )
