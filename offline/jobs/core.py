"""core: positive events of users and items that have enough of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from offline.job import Outcome, count_rows
from offline.jobs.clean import added_rows, append_rows
from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame

    from offline.job import JobContext
    from offline.settings import CoreSettings

VERSION: Final = 1
COLUMNS: Final = ("user_id", "item_id", "time", "seq", "event_id", "scene", "action")


def core(context: JobContext, positive_actions: Sequence[str], settings: CoreSettings) -> Outcome:
    """Keep positive events; then drop users and items below their minimum until none is left below.

    Raises:
        DataError: no positive event, or none that survives.
    """
    from pyspark.sql import functions as F  # noqa: N812

    def positive(events: DataFrame) -> DataFrame:
        return events.where(F.col("action").isin(list(positive_actions))).select(*COLUMNS)

    is_filter = settings.min_user_events == 1 and settings.min_item_events == 1
    added = added_rows(context, "clean") if is_filter else None
    rounds = 0
    if added is not None:
        append_rows(context, positive(added))
    else:
        kept, rounds = _fixpoint(positive(context.read("clean")), settings)
        context.write(kept)
    read, written = context.manifest("clean").counts["written"], count_rows(context.output / "data")
    if written == 0:
        raise DataError(
            "no positive events: nothing to learn from",
            field="positive_actions",
            value=list(positive_actions),
            remedy="name the actions of your log that count as positive, or lower the core's minimum",
        )
    counts = {"read": read, "written": written, "left_out": read - written, "rounds": rounds}
    return Outcome(counts, has_delta=added is not None, increment=added is not None)


def _fixpoint(events: DataFrame, settings: CoreSettings) -> tuple[DataFrame, int]:
    """The largest set of events in which every user and item has its minimum: unique, whatever the order."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    minimum = {"user_id": settings.min_user_events, "item_id": settings.min_item_events}
    rounds, before = 0, -1
    while max(minimum.values()) > 1:
        for column, least in minimum.items():
            count = F.count(F.lit(1)).over(Window.partitionBy(column))
            events = events.withColumn("n", count).where(F.col("n") >= least).drop("n")
        # Without a checkpoint the plan doubles with every round.
        events = events.localCheckpoint()
        rounds += 1
        rows = events.count()
        if rows == before:
            break
        before = rows
    return events, rounds
