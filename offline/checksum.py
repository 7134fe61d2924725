"""Checksums of a job's output that depend on its rows, not on their order or on the partition into files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.storage import sha256_file, sha256_parts

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import Column, DataFrame, SparkSession

_SALTS = (1, 2)


def rows_checksum(frame: DataFrame) -> str:
    """Checksum of a table as a multiset of rows, in one pass and without a shuffle of the rows.

    Each row is hashed twice to 64 bits under different salts, and the hashes are added up: sums of integers do not
    depend on the order. It guards against changes, not against an adversary.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name everybody gives it

    columns = [column for name in sorted(frame.columns) for column in _hashable(frame, name)]
    sums = [
        F.sum(F.xxhash64(F.lit(salt), *columns).cast("decimal(38,0)")).cast("string").alias(f"s{salt}")
        for salt in _SALTS
    ]
    row = frame.agg(F.count(F.lit(1)).alias("rows"), *sums).first()
    types = [f"{name} {kind}" for name, kind in sorted(frame.dtypes)]
    values = [] if row is None else [str(row[name]) for name in ("rows", *(f"s{salt}" for salt in _SALTS))]
    return sha256_parts([*types, *values])


def _hashable(frame: DataFrame, name: str) -> list[Column]:
    """The column as the hash sees it: Spark's hash skips nulls, forgets where arrays end and refuses maps."""
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.types import ArrayType, MapType

    column = F.col(f"`{name}`")
    kind = frame.schema[name].dataType
    if isinstance(kind, MapType):
        return [F.array_sort(F.map_entries(column)), F.size(column)]
    if isinstance(kind, ArrayType):
        return [column, F.size(column)]
    return [column, column.isNull()]


def output_checksum(session: SparkSession, directory: Path) -> str:
    """Checksum of a job's output: the rows below data/ and the bytes of the files beside it."""
    parts = ["data", rows_checksum(session.read.parquet(f"file:{directory / 'data'}"))]
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        parts += [file.name, sha256_file(file)]
    return sha256_parts(parts)
