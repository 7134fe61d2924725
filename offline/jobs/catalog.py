"""catalog: the items under their dense index, the rank of item_id in byte order; items: the same with counts.

A new item shifts the index of all items behind it, so outputs that carry the index are renumbered. delta/ tells how:
old_index, new_index of every item of the previous catalog that is still there.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Final

from offline.job import Outcome
from recsys.records import ITEMS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from offline.job import JobContext
    from offline.settings import CoreSettings
    from offline.tables import Tables

VERSION: Final = 2
ITEMS_VERSION: Final = 1


def catalog(context: JobContext, tables: Tables, settings: CoreSettings) -> Outcome:
    """Number the items; where an item comes in several table directories, the newest row that says anything stands.

    A log without an items file, such as the server's own, names its items and describes none: these rows take no
    title away.

    All items are in the catalog, with or without events, unless the core asks for a minimum per item: then only
    those that survived it are.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    rows = tables.read(context.session, "items")
    described = reduce(or_, (F.col(name).isNotNull() for name in ITEMS.names if name != "item_id"))
    order = (described.desc(), F.col("source").desc(), F.col("title"), F.col("text"))
    newest = Window.partitionBy("item_id").orderBy(*order)
    rows = rows.withColumn("rank", F.row_number().over(newest)).where("rank = 1").drop("rank", "source")
    if settings.min_item_events > 1:
        rows = rows.join(context.read("core").select("item_id").distinct(), "item_id", "left_semi")
    numbered = rows.join(_rank(rows.select("item_id")), "item_id")
    written = context.write(numbered.select("item_index", *ITEMS.names))
    read = tables.rows("items")
    counts = {"read": read, "written": written, "replaced_or_left_out": read - written}
    if context.previous is None:
        return Outcome(counts)
    old = context.read("catalog").select("item_id", F.col("item_index").alias("old_index"))
    new = context.session.read.parquet(f"file:{context.output / 'data'}")
    pairs = old.join(new.select("item_id", F.col("item_index").alias("new_index")), "item_id")
    kept = context.write(pairs.select("old_index", "new_index"), "delta")
    return Outcome({**counts, "kept": kept, "new": written - kept}, has_delta=True)


def items(context: JobContext) -> Outcome:
    """Add the number of training interactions to the catalog."""
    from pyspark.sql import functions as F  # noqa: N812

    counted = context.read("training").select(F.explode("items").alias("item_index"))
    counted = counted.groupBy("item_index").agg(F.count(F.lit(1)).alias("train_count"))
    joined = context.read("catalog").join(counted, "item_index", "left").fillna(0, ["train_count"])
    written = context.write(joined.select("item_index", "train_count", *ITEMS.names))
    unseen = joined.where("train_count = 0").count()
    return Outcome({"written": written, "without_training_interaction": unseen})


def _rank(ids: DataFrame) -> DataFrame:
    """item_id, item_index: sorted in ranges, so that no single task sees all items."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    # The checkpoint pins which range a row is in: the sampled bounds could differ between two evaluations.
    ranged = ids.repartitionByRange("item_id").withColumn("part", F.spark_partition_id()).localCheckpoint()
    sizes = {row["part"]: row["count"] for row in ranged.groupBy("part").count().collect()}
    starts, total = [], 0
    for part in sorted(sizes):
        starts.append((part, total))
        total += sizes[part]
    offsets = ids.sparkSession.createDataFrame(starts, "part int, start long")
    within = Window.partitionBy("part").orderBy("item_id")
    rank = F.row_number().over(within) - 1 + F.col("start")
    return ranged.join(F.broadcast(offsets), "part").select("item_id", rank.cast("int").alias("item_index"))
