"""The join on Spark says what the local one says, which is held against a naive one in its own tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from feature_store import joins
from feature_store.fields import Field, Kind
from feature_store.opening import open_store
from feature_store.store import now_micros
from feature_store.views import View
from offline.materialize import materialize_frame
from offline.point_in_time import point_in_time_join
from recsys.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import DataFrame, SparkSession

# PySpark leaves its sockets to the garbage collector, and asks setuptools to compare versions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]
MICRO = timedelta(microseconds=1)
FIELDS = (Field("clicks", Kind.INT64, optional=True), Field("vector", Kind.INT8_VECTOR, 2, optional=True))
USERS = View("users", "user", FIELDS, 1, "team", ttl=3 * MICRO, keep=6 * MICRO)
ITEMS = View("items", "item", FIELDS[:1], 1, "team")


def drawn(seed: int, rows: int) -> list[dict[str, Any]]:
    """Rows with ties, late and back-filled ones and deletions; about ten per entity."""
    rng = np.random.default_rng(seed)
    clicks = rng.integers(-2, 3, rows).tolist()
    return [
        {"entity_id": f"e{entity}", "event_time": event, "created_at": created, "deleted": deleted,
         "clicks": None if number == -2 else number, "vector": None if number == -1 else [number, 1]}
        for entity, event, created, deleted, number in zip(
            rng.integers(0, rows // 10, rows).tolist(), rng.integers(0, 10, rows).tolist(),
            rng.integers(0, 10, rows).tolist(), (rng.random(rows) < 0.2).tolist(), clicks, strict=True,
        )
    ]  # fmt: skip


def frame(spark: SparkSession, table: pa.Table) -> DataFrame:
    rows = [tuple(row.values()) for row in table.to_pylist()]
    kinds = {pa.int64(): "long", pa.string(): "string", pa.bool_(): "boolean", pa.list_(pa.int8()): "array<tinyint>"}
    schema = ", ".join(f"{field.name} {kinds[field.type]}" for field in table.schema)
    return spark.createDataFrame(rows, schema)


@pytest.mark.parametrize("inclusive", [False, True])
def test_spark_says_what_the_local_join_says(spark: SparkSession, inclusive: bool) -> None:
    types = {"vector": pa.list_(pa.int8())}
    users = pa.Table.from_pylist(drawn(1, 800))
    users = users.set_column(5, "vector", users["vector"].cast(types["vector"]))
    items = pa.Table.from_pylist(drawn(2, 200)).drop(["vector", "deleted"])
    rng = np.random.default_rng(3)
    labels = pa.table(
        {
            "number": pa.array(range(600), pa.int64()),
            "user_id": [None if n == 7 else f"e{n}" for n in rng.integers(0, 90, 600).tolist()],
            "item": [f"e{n}" for n in rng.integers(0, 22, 600).tolist()],
            "time": rng.integers(0, 12, 600),
        }
    )
    settings: Any = {"entities": {"item": "item"}, "inclusive": inclusive}
    local = joins.point_in_time_join(labels, [(USERS, users), (ITEMS, items)], **settings)
    found = point_in_time_join(
        frame(spark, labels), [(USERS, frame(spark, users)), (ITEMS, frame(spark, items))], **settings
    )
    rows = [row.asDict(recursive=True) for row in found.collect()]
    assert sorted(rows, key=lambda row: row["number"]) == local.to_pylist()
    assert len({row["users__status"] for row in rows}) == 3


def test_what_cannot_be_joined_is_named(spark: SparkSession) -> None:
    labels = spark.createDataFrame([("a", 1)], "user_id string, time long")
    rows = spark.createDataFrame([("a", 1)], "entity_id string, event_time long")
    with pytest.raises(InputError, match="created_at"):
        point_in_time_join(labels, [(USERS, rows)])
    with pytest.raises(InputError, match="item_id"):
        point_in_time_join(labels, [(ITEMS, rows)])


def test_partitions_bring_a_table_into_the_store(spark: SparkSession, tmp_path: Path) -> None:
    now = now_micros()
    rows = [(f"u{n % 5}", now - 10**6 + n, now, n, None) for n in range(40)]
    schema = "user_id string, event_time long, created_at long, clicks long, vector array<tinyint>"
    table = spark.createDataFrame(rows, schema).repartition(4)
    address = f"lmdb:{tmp_path}"
    view = replace(USERS, ttl=timedelta(days=1), keep=None)
    for _ in range(2):
        assert materialize_frame(view, table, address, columns={"entity_id": "user_id"}) == 40
    store = open_store(address)
    readings = store.read([(view, f"u{n}") for n in range(5)])
    store.close()
    assert [(reading.values or {})["clicks"] for reading in readings] == [35, 36, 37, 38, 39]
