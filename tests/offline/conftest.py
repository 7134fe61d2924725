"""Small logs written straight as tables, and one Spark session per test process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.session import start_session, stop_session
from offline.settings import OfflineSettings
from recsys.records import TABLES, TableCounts, TablesManifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyspark.sql import SparkSession

DAY = 86_400_000_000
FRUGAL = {
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
Row = dict[str, Any]


class WriteTables(Protocol):
    def __call__(
        self, directory: Path, items: list[Row], events: list[Row], *, files: int = 1, time_is_order: bool = False
    ) -> Path: ...


class RandomLog(Protocol):
    def __call__(
        self, seed: int, *, users: int, items: int, events: int, first: int = 0, day: int = 0
    ) -> tuple[list[Row], list[Row]]: ...


def _item(name: str) -> Row:
    return {"item_id": name, "title": f"Title of {name}", "category_path": ["All", name[-1]], "brand": "B"}


def _random_log(
    seed: int, *, users: int, items: int, events: int, first: int = 0, day: int = 0
) -> tuple[list[Row], list[Row]]:
    """Items and events with ties in time, all scenes and actions, duplicated ids and items that the catalog lacks."""
    rng = np.random.default_rng(seed)
    names = [f"item{number:03d}" for number in rng.permutation(items)]
    rows = [_item(name) for name in names]
    drawn = zip(
        rng.integers(users, size=events).tolist(),
        (rng.zipf(1.3, size=events) % (items + 2)).tolist(),
        np.sort(rng.integers(day * DAY, (day + 20) * DAY, size=events) // (DAY // 4) * (DAY // 4)).tolist(),
        rng.choice(["click", "impression", "purchase"], size=events, p=[0.6, 0.2, 0.2]).tolist(),
        rng.choice(["home", "search", ""], size=events).tolist(),
        strict=True,
    )
    logged = [
        {
            "event_id": f"e{first + number}",
            "user_id": f"u{user}",
            "item_id": f"item{item:03d}",
            "time": time,
            "seq": first + number,
            "action": action,
            "scene": scene or None,
        }
        for number, (user, item, time, action, scene) in enumerate(drawn)
    ]
    repeated = [logged[number] | {"time": logged[number]["time"] + DAY} for number in rng.integers(events, size=9)]
    return rows, logged + repeated


def _write_table(folder: Path, table: str, rows: Sequence[Row], files: int) -> None:
    folder.mkdir(parents=True)
    for number in range(files):
        part = pa.Table.from_pylist(list(rows[number::files]), schema=TABLES[table])
        pq.write_table(part, folder / f"part-{number}.parquet")


@pytest.fixture(scope="session")
def write_tables() -> WriteTables:
    def write(
        directory: Path, items: list[Row], events: list[Row], *, files: int = 1, time_is_order: bool = False
    ) -> Path:
        _write_table(directory / "items", "items", items, files)
        _write_table(directory / "events", "events", events, files)
        counts = {
            "items": TableCounts(len(items), len(items), 0),
            "events": TableCounts(len(events), len(events), 0),
        }
        TablesManifest("test", time_is_order, {}, counts).save(directory)
        return directory

    return write


@pytest.fixture(scope="session")
def random_log() -> RandomLog:
    return _random_log


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A session that plans and compiles little, for logs of a few hundred rows; commands in `test_faults.py` have the
    defaults and end with the same bits.
    """
    session = start_session("local[2]", tmp_path_factory.mktemp("spark"), FRUGAL, brief=True)
    yield session
    stop_session(session)


@pytest.fixture(scope="session")
def quick() -> OfflineSettings:
    """Settings that need no model: hashed text, few dimensions, small codebooks."""
    return OfflineSettings.parse(
        {
            "text": {"model": "hashing"},
            "collaborative": {"dimension": 8},
            "semantic_ids": {"codebook_sizes": [4, 4, 32], "iterations": 5},
        }
    )
