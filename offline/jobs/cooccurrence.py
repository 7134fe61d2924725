"""cooccurrence, item_to_item and popularity: counts of training interactions.

The counts are integers and the scores functions of one pair's counts, so no output depends on the partitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from offline.job import Outcome
from offline.jobs.sequences import renumbering

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from offline.job import JobContext
    from offline.settings import CooccurrenceSettings, ItemToItemSettings

VERSION: Final = 1
NEIGHBOURS_VERSION: Final = 1
POPULARITY_VERSION: Final = 1


def cooccurrence(context: JobContext, settings: CooccurrenceSettings) -> Outcome:
    """Count item pairs at most `window` positions apart: `recsys.collaborative.cooccurrence.count_pairs` on Spark.

    Where less than half of the users changed since the previous run, their pairs are subtracted as they were and
    added as they are; integer sums make that exact.
    """
    from pyspark.sql import functions as F  # noqa: N812

    changed = _changed_sequences(context)
    if changed is None:
        sequences = context.read("training").select(F.lit(1).alias("sign"), "items")
        pairs = _sum(_pairs(sequences, settings.window))
    else:
        previous, sequences = changed
        pairs = _sum(previous.unionByName(_pairs(sequences, settings.window))).where(F.col("count") != 0)
    written = context.write(pairs)
    return Outcome({"written": written}, increment=changed is not None)


def _changed_sequences(context: JobContext) -> tuple[DataFrame, DataFrame] | None:
    """The previous pairs under the present index, and the signed sequences that changed; None to count all."""
    from pyspark.sql import functions as F  # noqa: N812

    renumber = renumbering(context)
    counts = context.manifest("training").counts
    if renumber is None or not context.delta_from("training"):
        return None
    if counts["changed_sequences"] >= counts["written"]:
        return None
    previous = renumber(context.read("cooccurrence").select(F.array("item_a", "item_b").alias("items"), "count"))
    kept = previous.where("items[0] >= 0 AND items[1] >= 0")
    pairs = kept.select(F.col("items")[0].alias("item_a"), F.col("items")[1].alias("item_b"), "count")
    return pairs, context.read("training", "delta").select("sign", "items")


def _pairs(sequences: DataFrame, window: int) -> DataFrame:
    """item_a, item_b, count (signed weight), one row per pair of positions."""
    from pyspark.sql import functions as F  # noqa: N812

    # One row per event with its next `window` events: a row never carries the whole sequence.
    following = F.transform(
        "items", lambda item, i: F.struct(item.alias("item"), F.slice("items", i + 2, window).alias("next"))
    )
    events = sequences.select("sign", F.explode(following).alias("e"))
    pairs = events.select("sign", F.col("e.item").alias("left"), F.posexplode("e.next").alias("j", "right"))
    weight = (F.col("sign") * (F.lit(window) - F.col("j"))).cast("long")
    real = pairs.where("left <> right AND left >= 0 AND right >= 0")  # -1: an item that left the catalog
    return real.select(
        F.least("left", "right").alias("item_a"), F.greatest("left", "right").alias("item_b"), weight.alias("count")
    )


def _sum(pairs: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F  # noqa: N812

    return pairs.groupBy("item_a", "item_b").agg(F.sum("count").alias("count"))


def item_to_item(context: JobContext, settings: ItemToItemSettings) -> Outcome:
    """Neighbours by c_ab / (sqrt(c_a * c_b) + shrink), where c_a sums the counts of a's pairs; ties by index."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    pairs = context.read("cooccurrence")
    both = pairs.select(F.col("item_a").alias("item_index"), F.col("item_b").alias("neighbour"), "count").unionByName(
        pairs.select(F.col("item_b").alias("item_index"), F.col("item_a").alias("neighbour"), "count")
    )
    total = both.groupBy("item_index").agg(F.sum("count").alias("total"))
    other = total.select(F.col("item_index").alias("neighbour"), F.col("total").alias("other"))
    product = F.col("total").cast("double") * F.col("other").cast("double")
    score = F.col("count") / (F.sqrt(product) + F.lit(settings.shrink))
    scored = both.join(total, "item_index").join(other, "neighbour").withColumn("score", score)
    best = Window.partitionBy("item_index").orderBy(F.col("score").desc(), "neighbour")
    ranked = scored.withColumn("rank", (F.row_number().over(best) - 1).cast("int"))
    kept = ranked.where(F.col("rank") < settings.neighbours)
    written = context.write(kept.select("item_index", "neighbour", "rank", "score"))
    return Outcome({"written": written})


def popularity(context: JobContext) -> Outcome:
    """Count training interactions per scene and item; the scene '' counts all of them."""
    from pyspark.sql import functions as F  # noqa: N812

    zipped = F.explode(F.arrays_zip("items", "scenes")).alias("e")
    events = context.read("training").select(zipped)
    scenes = F.array_distinct(F.array(F.lit(""), F.coalesce("e.scenes", F.lit(""))))
    rows = events.select(F.explode(scenes).alias("scene"), F.col("e.items").alias("item_index"))
    counted = rows.groupBy("scene", "item_index").agg(F.count(F.lit(1)).alias("count"))
    return Outcome({"written": context.write(counted)})
