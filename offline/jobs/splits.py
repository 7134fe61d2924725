"""splits: which events of a user training may see, and which are held out; training: what it may see.

Every later job reads `training` instead of the sequences: what is held out cannot leak, and a change in the held-out
events leaves all of them skipped. delta/ of `training` holds the users that changed: sign (-1 before, +1 now) and
items under the present index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from offline.job import Outcome
from offline.jobs.sequences import renumbering
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from offline.job import JobContext
    from offline.settings import SplitSettings

VERSION: Final = 1
TRAINING_VERSION: Final = 1
_DAY_MICROS: Final = 86_400_000_000
_NONE: Final = -1
_HELD_OUT_ONE: Final = 1  # events held out; a user with no more than these only trains
_HELD_OUT_TWO: Final = 2


def no_times_error(strategy: str) -> ConfigError:
    """What a source without times answers to a split by time."""
    return ConfigError(
        "this source has an order but no times, so it cannot be split by time",
        field="split.strategy",
        value=strategy,
        remedy="use leave_one_out or latest",
    )


def splits(context: JobContext, settings: SplitSettings) -> Outcome:
    """Split every user's sequence; see `SplitSettings`."""
    from pyspark.sql import functions as F  # noqa: N812

    frame = context.read("sequences").select("user_id", "times", F.size("times").alias("n"))
    cuts: tuple[int, int] | None = None
    if settings.strategy == "global_time":
        cuts = settings.cut_times or _cut_times(frame, settings.quantiles)
    train_end, valid, test = _positions(settings.strategy, cuts)
    columns = {"train_end": train_end, "valid_index": valid, "test_index": test}
    frame = frame.select("user_id", *(column.cast("int").alias(name) for name, column in columns.items()))
    written = context.write(frame)
    totals = context.session.read.parquet(f"file:{context.output / 'data'}").agg(
        F.sum("train_end").cast("long").alias("training_events"),
        F.sum((F.col("valid_index") >= 0).cast("long")).alias("valid"),
        F.sum((F.col("test_index") >= 0).cast("long")).alias("test"),
    )
    row = totals.collect()[0]
    found = {} if cuts is None else {"first_cut": cuts[0], "second_cut": cuts[1]}
    return Outcome({"written": written, **row.asDict(), **found})


def _positions(strategy: str, cuts: tuple[int, int] | None) -> tuple[Column, Column, Column]:
    """train_end, valid_index and test_index from the columns n and times."""
    from pyspark.sql import functions as F  # noqa: N812

    n, none = F.col("n"), F.lit(_NONE)
    if strategy == "leave_one_out":
        last, before = n - 1, n - 2
        enough = n > F.lit(_HELD_OUT_TWO)
        train_end = F.when(enough, before).otherwise(n)
        return train_end, F.when(enough, before).otherwise(none), F.when(enough, last).otherwise(none)
    if strategy == "latest":
        enough = n > F.lit(_HELD_OUT_ONE)
        return F.when(enough, n - 1).otherwise(n), F.when(enough, n - 1).otherwise(none), none
    if cuts is None:
        raise ConfigError("a split by time needs two cuts", field="split.cut_times", value=None)
    first, second = (F.size(F.expr(f"filter(times, time -> time < {cut})")) for cut in cuts)
    valid = F.when((first >= 1) & (second > first), first).otherwise(none)
    test = F.when((second >= 1) & (n > second), second).otherwise(none)
    return first, valid, test


def _cut_times(frame: DataFrame, quantiles: tuple[float, float]) -> tuple[int, int]:
    """The times of rank floor(q * events), exactly: by day first, then inside the day."""
    from pyspark.sql import functions as F  # noqa: N812

    times = frame.select(F.explode("times").alias("time"))
    day = F.floor(F.col("time") / F.lit(_DAY_MICROS)).cast("long")
    days = times.groupBy(day.alias("day")).count().orderBy("day").toPandas()
    until = np.cumsum(days["count"].to_numpy())

    def at_rank(rank: int) -> int:
        position = int(np.searchsorted(until, rank, side="right"))
        inside = rank - (int(until[position - 1]) if position else 0)
        rows = times.where(day == int(days["day"][position])).groupBy("time").count().orderBy("time").toPandas()
        return int(rows["time"][int(np.searchsorted(np.cumsum(rows["count"]), inside, side="right"))])

    first, second = (at_rank(min(int(quantile * until[-1]), int(until[-1]) - 1)) for quantile in quantiles)
    return first, second


def training(context: JobContext) -> Outcome:
    """Cut every sequence at train_end; users without a training event are left out."""
    from pyspark.sql import functions as F  # noqa: N812

    joined = context.read("sequences").join(context.read("splits"), "user_id").where("train_end > 0")
    parts = [F.slice(name, F.lit(1), F.col("train_end")).alias(name) for name in ("items", "scenes")]
    written = context.write(joined.select("user_id", *parts))
    now = context.session.read.parquet(f"file:{context.output / 'data'}")
    row = now.agg(F.sum(F.size("items")).cast("long").alias("events")).collect()[0]
    counts = {"written": written, "events": int(row["events"] or 0)}
    renumber = renumbering(context)
    if renumber is None:
        return Outcome(counts)
    before = renumber(context.read("training").select("user_id", "items"))
    both = before.withColumnRenamed("items", "old").join(now.select("user_id", "items"), "user_id", "full")
    changed = both.where(~F.col("old").eqNullSafe(F.col("items")))
    sides = F.array(
        F.struct(F.lit(-1).alias("sign"), F.col("old").alias("items")),
        F.struct(F.lit(1).alias("sign"), F.col("items")),
    )
    delta = changed.select(F.explode(sides).alias("side")).select("side.sign", "side.items").where("items IS NOT NULL")
    rows = context.write(delta, "delta")
    return Outcome({**counts, "changed_sequences": rows}, has_delta=True)
