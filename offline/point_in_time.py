"""The point-in-time join on Spark: what `feature_store.joins` says, for tables of any size.

Labels and rows of an entity lie in one partition, sorted by the time from which they are known; a running maximum of
(event time, created_at, deletion, bytes) is the row that counts. Spark spills what does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from feature_store.joins import EVENT_TIME, STATUS, check_joinable, column_name, encoded_ties
from feature_store.reading import Status
from feature_store.tables import DELETED, table_schema
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pyspark.sql import Column, DataFrame

    from feature_store.views import View

_LABEL: Final = "label"
_STATE: Final = "state"
_TIE: Final = "tie"
_KEY: Final = ("entity_id", "event_time", "created_at", DELETED)


def point_in_time_join(
    labels: DataFrame,
    features: Sequence[tuple[View, DataFrame]],
    *,
    entities: Mapping[str, str] | None = None,
    time_column: str = "time",
    inclusive: bool = False,
) -> DataFrame:
    """As `feature_store.joins.point_in_time_join`, but the labels come back in any order.

    Raises:
        InputError: an absent column, a history, or a name that occurs twice. A row without entity or time, or with a
            value that does not fit, fails the job with its column named.
    """
    joined = labels
    for view, table in features:
        check_joinable(view, joined.columns)
        column = (entities or {}).get(view.entity, f"{view.entity}_id")
        for name in (column, time_column):
            if name not in labels.columns:
                raise InputError("the labels lack a column", field="labels", value=labels.columns,
                                 remedy=f"add {name}, or name another")  # fmt: skip
        joined = _join(
            joined, view, _with_ties(view, conform_frame(view, table)), column, time_column, inclusive=inclusive
        )
    return joined


def conform_frame(view: View, table: DataFrame) -> DataFrame:
    """As `feature_store.tables.conform`; a row without entity or time fails the job with its column named.

    Raises:
        InputError: an absent column.
    """
    from pyspark.sql import functions as F  # noqa: N812
    from pyspark.sql.pandas.types import from_arrow_type

    columns = []
    for column in table_schema(view):
        if column.name not in table.columns:
            if column.name != DELETED:
                raise InputError(f"the table of the view {view.label} lacks a column", field=column.name,
                                 value=table.columns, remedy="see docs/feature_store.md")  # fmt: skip
            columns.append(F.lit(False).alias(DELETED))
            continue
        value = F.col(column.name).cast(from_arrow_type(column.type))
        if not column.nullable:
            value = _required(value, f"a row of the view {view.label} lacks {column.name}")
        columns.append((F.coalesce(value, F.lit(False)) if column.name == DELETED else value).alias(column.name))
    return table.select(*columns)


def _required(value: Column, message: str) -> Column:
    from pyspark.sql import functions as F  # noqa: N812

    return F.when(value.isNull(), F.raise_error(message)).otherwise(value)


def _with_ties(view: View, rows: DataFrame) -> DataFrame:
    """The bytes of rows that agree in entity, times and deletion; all others need none."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    counted = rows.withColumn("rows", F.count(F.lit(1)).over(Window.partitionBy(*_KEY)))
    alone = counted.where("rows = 1").drop("rows").withColumn(_TIE, F.lit(b""))
    several = counted.where("rows > 1").drop("rows")

    def encode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            ties = pa.array(encoded_ties(view, table), pa.binary())
            yield from table.append_column(_TIE, ties).to_batches()

    return alone.unionByName(several.mapInArrow(encode, alone.schema))


def _join(
    labels: DataFrame, view: View, rows: DataFrame, entity: str, time_column: str, *, inclusive: bool
) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    at = _required(F.col(time_column), f"a label lacks {time_column}").cast("long")
    wanted = labels.select(
        F.col(entity).cast("string").alias("entity_id"),
        at.alias("at"),
        F.lit(inclusive).alias("behind"),  # at one time strict labels come before rows, inclusive ones behind them
        F.struct(*labels.columns).alias(_LABEL),
    )
    state = F.struct("event_time", "created_at", DELETED, _TIE, F.struct(*view.names).alias("values"))
    known = rows.select(
        "entity_id",
        F.greatest("event_time", "created_at").alias("at"),
        F.lit(not inclusive).alias("behind"),
        state.alias(_STATE),
    )
    so_far = (
        Window.partitionBy("entity_id")
        .orderBy("at", "behind")
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    found = (
        wanted.unionByName(known, allowMissingColumns=True)
        .withColumn(_STATE, F.max(_STATE).over(so_far))
        .where(F.col(_LABEL).isNotNull())
    )
    return _named(found, view)


def _named(found: DataFrame, view: View) -> DataFrame:
    from pyspark.sql import functions as F  # noqa: N812

    age = F.col("at") - F.col(f"{_STATE}.event_time")
    kept = F.col(_STATE).isNotNull()
    if view.keep_micros is not None:
        kept &= age < view.keep_micros
    there = kept & ~F.col(f"{_STATE}.{DELETED}")
    status = F.when(there, F.lit(str(Status.PRESENT))).otherwise(F.lit(str(Status.MISSING)))
    if view.ttl_micros is not None:
        status = F.when(there & (age > view.ttl_micros), F.lit(str(Status.STALE))).otherwise(status)
    values = [F.when(there, F.col(f"{_STATE}.values.{name}")).alias(column_name(view, name)) for name in view.names]
    event_time = F.when(kept, F.col(f"{_STATE}.event_time")).alias(column_name(view, EVENT_TIME))
    return found.select(f"{_LABEL}.*", *values, event_time, status.alias(column_name(view, STATUS)))
