"""sequences: every user's positive events in canonical order, items by their index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from offline.job import Outcome
from offline.jobs.clean import added_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    import pandas as pd
    from pyspark.sql import DataFrame

    from offline.job import JobContext

VERSION: Final = 1
_COLUMNS: Final = ("user_id", "items", "times", "seqs", "scenes", "actions")


def sequences(context: JobContext) -> Outcome:
    """Group the core's events by user.

    After an increment only users with new events are grouped again; the sequences of the others are taken over,
    with their items renumbered.
    """
    from pyspark.sql import functions as F  # noqa: N812

    events = context.read("core")
    added = added_rows(context, "core")
    renumber = renumbering(context)
    if added is None or renumber is None:
        written = context.write(_group(context, events))
        return Outcome({"events": context.manifest("core").counts["written"], "written": written})
    touched = F.broadcast(added.select("user_id").distinct())
    untouched = context.read("sequences").join(touched, "user_id", "left_anti")
    written = context.write(renumber(untouched))
    taken = written
    written = context.write(_group(context, events.join(touched, "user_id", "left_semi")))
    counts = {"events": context.manifest("core").counts["written"], "written": written, "taken_over": taken}
    return Outcome(counts, increment=True)


def renumbering(context: JobContext) -> Callable[[DataFrame], DataFrame] | None:
    """How to bring the column `items` of this job's previous output to the present index; None if unknown."""
    previous = context.previous
    if previous is None:
        return None
    if previous.inputs.get("catalog") == context.inputs["catalog"]:
        return lambda frame: frame
    if not context.delta_from("catalog"):
        return None
    pairs = context.read("catalog", "delta").toPandas()
    if (pairs["old_index"] == pairs["new_index"]).all():
        return lambda frame: frame
    table = np.full(int(pairs["old_index"].max()) + 1, -1, dtype=np.int32)
    table[pairs["old_index"]] = pairs["new_index"]
    shared = context.session.sparkContext.broadcast(table)

    def renumber(frame: DataFrame) -> DataFrame:
        def change(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
            mapping: npt.NDArray[np.int32] = shared.value
            for batch in batches:
                yield batch.assign(items=[mapping[items] for items in batch["items"]])

        return frame.mapInPandas(change, frame.schema)

    return renumber


def _group(context: JobContext, events: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F  # noqa: N812

    index = context.read("catalog").select("item_id", "item_index")
    # A struct sorts by its fields in order: time, seq, then event_id for sources that repeat a seq.
    fields = ("time", "seq", "event_id", "item_index", "scene", "action")
    grouped = (
        events.join(index, "item_id").groupBy("user_id").agg(F.array_sort(F.collect_list(F.struct(*fields))).alias("e"))
    )
    columns = zip(_COLUMNS[1:], ("item_index", "time", "seq", "scene", "action"), strict=True)
    return grouped.select("user_id", *(F.col(f"e.{field}").alias(name) for name, field in columns))
