"""clean: events without duplicates and without unknown items; what is rejected is kept with its reason.

data/             the columns of `recsys.records.EVENTS`
rejected/         the same columns and `reason`
delta/added.json  the files of data/ that a daily increment added; absent after a full run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from offline.job import Outcome, count_rows
from recsys.errors import DataError
from recsys.records import EVENTS, RejectReason
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import DataFrame

    from offline.job import JobContext
    from offline.tables import Tables

VERSION: Final = 2
_ADDED: Final = "delta/added.json"
# The canonical order, continued over all other columns: which of two equal-looking rows wins must not depend on luck.
_TIES: Final = (
    "user_id", "time", "seq", "item_id", "action", "scene", "created_at", "value_micros", "request_id", "position",
)  # fmt: skip
_UNKNOWN: Final = str(RejectReason.UNKNOWN_ITEM)
_DUPLICATE: Final = str(RejectReason.DUPLICATE_EVENT_ID)


def clean(context: JobContext, tables: Tables) -> Outcome:
    """Reject events of unknown items, then all but the first (canonical order) of each event_id.

    With new table directories behind those of the previous run, only their rows are judged, against the rows kept
    so far; where a new row precedes the one that was kept under its event_id, everything is judged again.
    """
    done = _directories_done(context)
    if 0 < done < len(tables.directories) and _append(context, tables, done):
        return Outcome(_counts(context, tables), has_delta=True, increment=True)
    judged = _judge(tables.read(context.session, "events").drop("source"), _known_items(context, tables)).persist()
    context.write(judged.where("reason IS NULL").drop("reason"))
    context.write(judged.where("reason IS NOT NULL"), "rejected")
    judged.unpersist()
    return Outcome(_counts(context, tables))


def added_files(directory: Path) -> list[str] | None:
    """Names of the files that the last increment added to a job's data/, None after a full run."""
    path = directory / _ADDED
    return list(read_json(path)) if path.is_file() else None


def append_rows(context: JobContext, rows: DataFrame) -> None:
    """Take over the previous data/, add a frame's rows to it and note which files are new."""
    context.link_previous()
    before = {file.name for file in (context.output / "data").iterdir()}
    context.write(rows)
    after = {file.name for file in (context.output / "data").glob("*.parquet")}
    write_json_atomically(context.output / _ADDED, sorted(after - before))


def added_rows(context: JobContext, job: str) -> DataFrame | None:
    """The rows by which a job's output differs from what the previous run of this job read; None if unknown."""
    files = added_files(context.work / job)
    if files is None or not context.delta_from(job):
        return None
    folder = context.work / job / "data"
    return context.session.read.parquet(*(f"file:{folder / name}" for name in files))


def _known_items(context: JobContext, tables: Tables) -> DataFrame:
    return tables.read(context.session, "items").select("item_id").distinct()


def _judge(events: DataFrame, known: DataFrame) -> DataFrame:
    """Add `reason`: null for a row to keep."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812

    flagged = events.join(known.withColumn("known", F.lit(True)), "item_id", "left")
    attributes = F.array_sort(F.map_entries("attributes"))  # a map itself has no order
    first = Window.partitionBy("event_id", "known").orderBy(*_TIES, attributes)
    reason = (
        F.when(F.col("known").isNull(), F.lit(_UNKNOWN))
        .when(F.row_number().over(first) > 1, F.lit(_DUPLICATE))
        .otherwise(F.lit(None))
    )
    others = [name for name in events.columns if name not in EVENTS.names]
    return flagged.select(*EVENTS.names, *others, reason.alias("reason"))


def _directories_done(context: JobContext) -> int:
    """How many leading table directories the previous output holds; 0 where it is no prefix of the present ones."""
    if context.previous is None:
        return 0
    before = context.previous.inputs
    unchanged = all(context.inputs.get(name) == value for name, value in before.items())
    return sum(name.startswith("events[") for name in before) if unchanged else 0


def _append(context: JobContext, tables: Tables, done: int) -> bool:
    from pyspark.sql import functions as F  # noqa: N812

    session = context.session
    known = _known_items(context, tables)
    columns = [F.col(name) for name in EVENTS.names]
    rejected = context.read("clean", "rejected")
    revived = rejected.where(F.col("reason") == _UNKNOWN).join(known, "item_id", "left_semi")
    fresh = tables.read(session, "events", start=done).select(*columns).unionByName(revived.select(*columns))
    rivals = context.read("clean").join(F.broadcast(fresh.select("event_id").distinct()), "event_id", "left_semi")
    candidates = fresh.withColumn("kept", F.lit(False)).unionByName(rivals.withColumn("kept", F.lit(True)))
    judged = _judge(candidates, known).persist()
    try:
        if judged.where("kept AND reason IS NOT NULL").limit(1).count():
            return False
        new = judged.where("NOT kept").drop("kept")
        append_rows(context, new.where("reason IS NULL").drop("reason"))
        still = rejected.where(F.col("reason") != _UNKNOWN).unionByName(
            rejected.where(F.col("reason") == _UNKNOWN).join(known, "item_id", "left_anti")
        )
        context.write(still.unionByName(new.where("reason IS NOT NULL")), "rejected")
    finally:
        judged.unpersist()
    return True


def _counts(context: JobContext, tables: Tables) -> dict[str, int]:
    rejected = context.session.read.parquet(f"file:{context.output / 'rejected'}").groupBy("reason").count()
    reasons = {_UNKNOWN: 0, _DUPLICATE: 0} | {row["reason"]: row["count"] for row in rejected.collect()}
    counts = {
        "read": tables.rows("events"),
        "written": count_rows(context.output / "data"),
        "rejected": sum(reasons.values()),
        **reasons,
    }
    if counts["read"] != counts["written"] + counts["rejected"]:
        raise DataError(
            "the counts of read, written and rejected events do not add up",
            field="counts",
            value=counts,
            remedy="the tables changed during the run: run again",
        )
    return counts
