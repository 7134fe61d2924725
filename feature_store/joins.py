"""Point-in-time join: what a store would have said at each label's time, from tables that hold everything.

A row is known from the later of its event time and its `created_at` on, so a row that was back-filled is not known
before it was written, whatever its event time; the labelled event itself, and all that happened with it, is never
known. Of the rows known at a time the one with the greatest (event time, created_at) counts, as online.

Sorted by the time from which they are known, the best row so far is a running maximum of ranks, so that the join costs
one sort of rows and labels together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.reading import Status
from feature_store.tables import DELETED, conform
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from feature_store.views import View

    Int64s = npt.NDArray[np.int64]

NOBODY: Final = -1
EVENT_TIME: Final = "event_time"
STATUS: Final = "status"


def column_name(view: View, field: str) -> str:
    """`view__field`: the name of a joined column; `event_time` and `status` are told too."""
    return f"{view.name}__{field}"


def point_in_time_join(
    labels: pa.Table,
    features: Sequence[tuple[View, pa.Table]],
    *,
    entities: Mapping[str, str] | None = None,
    time_column: str = "time",
    inclusive: bool = False,
) -> pa.Table:
    """Labels with the features that were known before them.

    Args:
        labels: any columns, among them the time in UTC microseconds and the ids of the entities.
        features: views and their tables (`feature_store.tables`); of one value each, no histories.
        entities: column of the labels by kind of entity; `<entity>_id` unless named.
        time_column: of the labels.
        inclusive: rows of exactly the label's time count too. Never for training: the label's own event is among them.

    Returns:
        The labels in their order; per view its fields, `event_time` and `status` (PRESENT, STALE, MISSING).

    Raises:
        InputError: an absent or unfit column, or a name that occurs twice.
    """
    times = label_times(labels, time_column)
    joined = labels
    for view, table in features:
        check_joinable(view, joined.column_names)
        rows = conform(view, table)
        column = (entities or {}).get(view.entity, f"{view.entity}_id")
        if column not in labels.column_names:
            raise InputError(f"the labels name no {view.entity}", field="entities", value=labels.column_names,
                             remedy=f"add a column {column} or name another")  # fmt: skip
        found = _known(view, rows, labels[column], times, inclusive=inclusive)
        joined = _with_columns(joined, view, rows, found, times)
    return joined


def label_times(labels: pa.Table, time_column: str) -> Int64s:
    """The times of the labels.

    Raises:
        InputError: no such column, another type, or a label without a time.
    """
    if time_column not in labels.column_names:
        raise InputError("the labels have no time", field="time_column", value=time_column,
                         remedy=f"take one of {', '.join(labels.column_names)}")  # fmt: skip
    column = labels[time_column]
    if not pa.types.is_int64(column.type) or column.null_count:
        raise InputError("the labels' time is an int64 of UTC microseconds in every row", field=time_column,
                         value=str(column.type), remedy="convert it, and drop labels without a time")  # fmt: skip
    return _numbers(column)


def check_joinable(view: View, taken: Sequence[str]) -> None:
    """Refuse what has no value at a time.

    Raises:
        InputError: a history, or a view whose columns would meet others of the same name.
    """
    if view.history is not None:
        raise InputError("a history is not joined: its sequences are made by `windfire offline run`", field="view",
                         value=view.label, remedy="join views of one value")  # fmt: skip
    if double := [name for name in joined_names(view) if name in taken]:
        raise InputError("columns of this name are there already", field="view", value=double,
                         remedy="join one version of a view, and rename the labels' columns")  # fmt: skip


def joined_names(view: View) -> list[str]:
    """The columns that a join adds."""
    return [column_name(view, name) for name in (*view.names, EVENT_TIME, STATUS)]


def encoded_ties(view: View, table: pa.Table) -> list[bytes]:
    """What decides between rows of equal times: the bytes that the store would hold; empty for deletions."""
    columns = [table[name].to_pylist() for name in view.names]
    return [
        b"" if deleted else view.codec.encode(dict(zip(view.names, values, strict=True)), 0, 0)
        for deleted, *values in zip(table[DELETED].to_pylist(), *columns, strict=True)
    ]


def _known(view: View, rows: pa.Table, labelled: Any, times: Int64s, *, inclusive: bool) -> Int64s:
    """For each label the number of the row that counts, or NOBODY."""
    codes, label_codes = _codes(rows["entity_id"], labelled)
    event, created = _numbers(rows["event_time"]), _numbers(rows["created_at"])
    by_rank = _ranked(view, rows, codes, event, created)
    rank = np.empty(len(by_rank), np.int64)
    rank[by_rank] = np.arange(len(by_rank))
    # At one time strict labels come before rows, inclusive ones behind them.
    kind = np.concatenate([np.full(len(rank), not inclusive), np.full(len(times), inclusive)])
    entity = np.concatenate([codes, label_codes])
    order = np.lexsort((kind, np.concatenate([np.maximum(event, created), times]), entity))
    # Ranks grow with the entity, so that a running maximum over all entities never carries one over into the next
    # except where that has no row yet.
    best = np.maximum.accumulate(np.concatenate([rank, np.full(len(times), NOBODY)])[order])
    found = np.empty(len(order), np.int64)
    found[order] = best
    found = found[len(rank) :]
    found[found != NOBODY] = by_rank[found[found != NOBODY]]
    known = (found != NOBODY) & (label_codes != NOBODY)
    known[known] = codes[found[known]] == label_codes[known]
    return np.where(known, found, NOBODY)


def _ranked(view: View, rows: pa.Table, codes: Int64s, event: Int64s, created: Int64s) -> Int64s:
    """Numbers of the rows by entity, event time, created_at, value before deletion, bytes."""
    deleted = np.asarray(rows[DELETED].to_numpy(zero_copy_only=False), bool)
    order = np.lexsort((deleted, created, event, codes))
    keys = np.stack([codes[order], event[order], created[order], deleted[order]])
    same = np.zeros(len(order) + 1, bool)
    same[1:-1] = (keys[:, 1:] == keys[:, :-1]).all(axis=0)
    tied = np.flatnonzero(same[:-1] | same[1:])  # places of rows that equal a neighbour
    if not len(tied):
        return order
    ties = encoded_ties(view, rows.take(pa.array(order[tied])))
    runs = np.cumsum(~same[:-1])[tied]
    inner = sorted(range(len(tied)), key=lambda number: (runs[number], ties[number]))
    order[tied] = order[tied][inner]
    return order


def _codes(known: Any, labelled: Any) -> tuple[Int64s, Int64s]:
    """Integers for entities; NOBODY for a label without one or with one that no row has."""
    distinct = pc.unique(known)
    codes = [
        pc.index_in(column.cast(pa.string()), value_set=distinct).fill_null(NOBODY) for column in (known, labelled)
    ]
    return _numbers(codes[0]), _numbers(codes[1])


def _with_columns(joined: pa.Table, view: View, rows: pa.Table, found: Int64s, times: Int64s) -> pa.Table:
    known = found != NOBODY
    event = np.zeros(len(found), np.int64)
    deleted = np.zeros(len(found), bool)
    event[known] = _numbers(rows["event_time"])[found[known]]
    deleted[known] = np.asarray(rows[DELETED].to_numpy(zero_copy_only=False), bool)[found[known]]
    age = times - event
    if view.keep_micros is not None:
        known &= age < view.keep_micros
    status = np.where(known & ~deleted, str(Status.PRESENT), str(Status.MISSING)).astype(object)
    if view.ttl_micros is not None:
        status[known & ~deleted & (age > view.ttl_micros)] = str(Status.STALE)
    places = pa.array(found, mask=~known | deleted)
    for name in view.names:
        joined = joined.append_column(column_name(view, name), rows[name].take(places))
    joined = joined.append_column(column_name(view, EVENT_TIME), pa.array(event, mask=~known))
    return joined.append_column(column_name(view, STATUS), pa.array(status, pa.string()))


def _numbers(column: Any) -> Int64s:
    return np.asarray(column.to_numpy(), np.int64)
