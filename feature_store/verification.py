"""Online beside offline: how old what the store holds is, and whether it is what the tables say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.encoding import pack_fields
from feature_store.joins import EVENT_TIME, STATUS, column_name, point_in_time_join
from feature_store.reading import Reading, Reason, Status, history_reading
from feature_store.tables import merges_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from feature_store.store import FeatureStore
    from feature_store.views import View

_SECOND = 1_000_000
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Freshness:
    """Ages of what a store holds of some entities.

    Attributes:
        statuses: number of entities by status, MISSING with its reason.
        seconds: percentile to age of the event time in seconds, of those that have a value; empty where none has.
    """

    statuses: dict[str, int]
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """An entity of which store and tables do not say the same.

    Attributes:
        entity: its id.
        online: what the store says.
        offline: what the tables say.
    """

    entity: str
    online: Reading
    offline: Reading


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of a comparison.

    Attributes:
        compared: entities.
        differences: in the order of the entities.
    """

    compared: int
    differences: list[Difference] = field(default_factory=list)

    @property
    def skew(self) -> float:
        """Share of the entities that differ."""
        return len(self.differences) / self.compared if self.compared else 0.0


def sample_entities(tables: Iterable[pa.Table], size: int, rng: np.random.Generator) -> list[str]:
    """Up to `size` entities of conforming tables, each with the same chance, in byte order."""
    distinct = pa.chunked_array([pc.unique(table["entity_id"]) for table in tables], pa.string()).unique()
    names = sorted(distinct.to_pylist())
    chosen = rng.choice(len(names), min(size, len(names)), replace=False)
    return [names[place] for place in sorted(chosen.tolist())]


def freshness(store: FeatureStore, view: View, entities: Sequence[str], now: int) -> Freshness:
    """Read the entities and count."""
    readings = _online(store, view, entities)
    statuses = Counter(
        f"{reading.status} ({reading.reason})" if reading.status is Status.MISSING else str(reading.status)
        for reading in readings
    )
    ages = [
        (now - reading.event_time) / _SECOND
        for reading in readings
        if reading.status is not Status.MISSING and reading.event_time is not None
    ]
    return Freshness(dict(statuses), {p: float(np.percentile(ages, p)) for p in (50, 99, 100)} if ages else {})


def verify(
    store: FeatureStore,
    view: View,
    tables: Callable[[], Iterable[pa.Table]],
    entities: Sequence[str],
    now: int,
) -> Verification:
    """Compare what a store holds of some entities with what the tables say of this moment.

    What was written to only one of the two meanwhile is a difference. Times of writing are not compared: a store may
    have been filled from the event log.

    Args:
        store: the online side.
        view: what is compared.
        tables: makes the conforming tables, which are read once.
        entities: of which to compare.
        now: UTC microseconds.
    """
    online = _online(store, view, entities)
    offline = _offline(view, _rows_of(tables(), entities), entities, now)
    differences = [
        Difference(entity, held, told)
        for entity, held, told in zip(entities, online, offline, strict=True)
        if _compared(view, held) != _compared(view, told)
    ]
    return Verification(len(entities), differences)


def _online(store: FeatureStore, view: View, entities: Sequence[str]) -> list[Reading]:
    batches = (entities[start : start + _BATCH] for start in range(0, len(entities), _BATCH))
    return [reading for batch in batches for reading in store.read([(view, entity) for entity in batch])]


def _rows_of(tables: Iterable[pa.Table], entities: Sequence[str]) -> list[pa.Table]:
    wanted = pa.array(entities, pa.string())
    return [table.filter(pc.is_in(table["entity_id"], value_set=wanted)) for table in tables]


def _offline(view: View, tables: list[pa.Table], entities: Sequence[str], now: int) -> list[Reading]:
    if view.history is not None:
        return _histories(view, tables, entities, now)
    labels = pa.table({"entity": pa.array(entities, pa.string()), "time": pa.array([now] * len(entities), pa.int64())})
    joined = point_in_time_join(
        labels, [(view, pa.concat_tables(tables))], entities={view.entity: "entity"}, inclusive=True
    )
    return [_reading(view, row) for row in joined.to_pylist()]


def _reading(view: View, row: dict[str, Any]) -> Reading:
    status = Status(row[column_name(view, STATUS)])
    event_time = row[column_name(view, EVENT_TIME)]
    if status is Status.MISSING:
        return Reading(status, Reason.ABSENT if event_time is None else Reason.DELETED, event_time)
    values = {name: row[column_name(view, name)] for name in view.names}
    return Reading(status, Reason.NONE if status is Status.PRESENT else Reason.TTL, event_time, None, values)


def _histories(view: View, tables: list[pa.Table], entities: Sequence[str], now: int) -> list[Reading]:
    tails: dict[str, bytearray] = {entity: bytearray() for entity in entities}
    for table in tables:
        for merge in merges_of(view, table):
            packed = [view.entries.pack(row) for row in merge.entries]
            tails[merge.entity] += view.entries.tail(packed, merge.created_at or now)
    return [history_reading(view, bytes(tails[entity]) or None, None, now) for entity in entities]


def _compared(view: View, reading: Reading) -> tuple[Any, ...]:
    """Vectors as the bytes that are stored, so that a half compares with the number it was made of."""
    values = None if reading.values is None else pack_fields(view, reading.values)
    return (reading.status, reading.reason, reading.event_time, values, reading.entries)
