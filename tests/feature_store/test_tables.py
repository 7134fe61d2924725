from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.joins import point_in_time_join
from feature_store.store import now_micros
from feature_store.tables import materialize, read_table, table_schema
from feature_store.views import View
from recsys.errors import DataError, InputError

NOW = now_micros()
COUNTS = View("counts", "user", (Field("clicks", Kind.INT64, optional=True),), 1, "team", ttl=timedelta(microseconds=5))
RECENT = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", history=3)
BEFORE = st.integers(0, 9).map(lambda age: NOW - age)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "entity_id": st.sampled_from("abc"),
            "event_time": BEFORE,
            "created_at": BEFORE,
            "deleted": st.booleans(),
            "clicks": st.none() | st.integers(0, 2),
        }
    ),
    max_size=12,
)


def written(path: Path, rows: list[dict[str, Any]], view: View) -> Path:
    path.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows[::2], schema=table_schema(view)), path / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(rows[1::2], schema=table_schema(view)), path / "part-1.parquet")
    return path


@given(rows=ROWS, batch=st.integers(1, 4))
def test_a_materialised_store_says_what_the_join_says_now(rows: list[dict[str, Any]], batch: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name) / "table", rows, COUNTS)
        store = EmbeddedFeatureStore(Path(name) / "store", clock=lambda: NOW)
        tables = list(read_table(COUNTS, path, batch_rows=batch))
        for _ in range(2):
            assert materialize(store, COUNTS, tables, batch=2) == len(rows)
        readings = store.read([(COUNTS, entity) for entity in "abc"])
        store.close()
    labels = pa.table({"user_id": list("abc"), "time": [NOW] * 3})
    table = pa.concat_tables([table_schema(COUNTS).empty_table(), *tables])
    joined = point_in_time_join(labels, [(COUNTS, table)], inclusive=True).to_pylist()
    assert [reading.status for reading in readings] == [row["counts__status"] for row in joined]
    assert [reading.event_time for reading in readings] == [row["counts__event_time"] for row in joined]
    assert [(reading.values or {}).get("clicks") for reading in readings] == [row["counts__clicks"] for row in joined]


def test_a_history_is_materialised_once(tmp_path: Path) -> None:
    rows = [
        {"entity_id": f"u{n % 2}", "time": NOW - n, "seq": n, "event_id": f"e{n}", "created_at": NOW, "item": f"i{n}"}
        for n in range(9)
    ]
    path = written(tmp_path / "table", rows, RECENT)
    store = EmbeddedFeatureStore(tmp_path / "store")
    advanced: list[int] = []
    for _ in range(2):
        assert materialize(store, RECENT, read_table(RECENT, path), batch=1, advance=advanced.append) == 9
    assert sum(advanced) == 18
    assert [entry[1] for entry in store.read([(RECENT, "u0")])[0].entries or []] == [4, 2, 0]
    store.close()


def test_a_path_without_a_table_and_a_bad_value_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        list(read_table(COUNTS, tmp_path / "nowhere"))
    store = EmbeddedFeatureStore(tmp_path / "store")
    ahead = [{"entity_id": "a", "event_time": NOW * 2, "created_at": NOW, "clicks": 1}]
    with pytest.raises(InputError, match="event_time"):
        materialize(store, COUNTS, read_table(COUNTS, written(tmp_path / "ahead", ahead, COUNTS)))
    store.close()
