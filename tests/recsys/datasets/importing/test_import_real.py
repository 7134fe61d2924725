"""The public data sets come in whole: counts as published, canonical order as in the files."""

from __future__ import annotations

import gzip
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from recsys.storage import read_parquet_directory

if TYPE_CHECKING:
    from pathlib import Path

    from tests.recsys.datasets.importing.conftest import Workplace

pytestmark = pytest.mark.realdata


def sequences(out: Path) -> dict[str, list[str]]:
    """Each user's items in canonical order."""
    events = read_parquet_directory(out / "events", ["user_id", "time", "seq", "item_id"])
    events = events.sort_by([("user_id", "ascending"), ("time", "ascending"), ("seq", "ascending")])
    found: dict[str, list[str]] = defaultdict(list)
    for user, item in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), strict=True):
        found[user].append(item)
    return dict(found)


def test_amazon_beauty(place: Workplace, real_data: Path) -> None:
    source = real_data / "amazon2014_beauty"
    report = place.take(source, "amazon2014")
    counts = report.manifest.counts
    assert (counts["users"].written, counts["items"].written, counts["events"].written) == (22_363, 12_101, 198_502)
    assert report.manifest.reasons == {}
    lines = (line.split() for line in (source / "sequences.txt").read_text().splitlines())
    assert sequences(place.out) == {user: items for user, *items in lines}
    with gzip.open(source / "times.txt.gz", "rt") as file:
        first = int(next(file).split()[1]) * 1_000_000
    assert read_parquet_directory(place.out / "events", ["time"])["time"][0].as_py() == first


def test_amazon_scientific(place: Workplace, real_data: Path) -> None:
    source = real_data / "amazon2018_scientific"
    report = place.take(source, "amazon2018")
    counts = report.manifest.counts
    assert (counts["users"].written, counts["items"].written, counts["events"].written) == (8_317, 4_344, 58_492)
    assert (report.manifest.reasons, report.manifest.time_is_order) == ({}, True)
    stored: dict[str, list[int]] = orjson.loads((source / "inter.json").read_bytes())
    assert sequences(place.out) == {user: [str(item) for item in items] for user, items in stored.items()}
    items = place.rows("items")
    assert sum("brand" not in item for item in items) == 12
    assert sum("text" not in item for item in items) == 123


def test_movielens(place: Workplace, real_data: Path) -> None:
    report = place.take(real_data / "movielens_latest_small", "movielens")
    counts = report.manifest.counts
    assert (counts["users"].written, counts["items"].written, counts["events"].written) == (610, 9_742, 100_836)
    events = read_parquet_directory(place.out / "events", ["action"])["action"].to_pylist()
    assert {action: events.count(action) for action in set(events)} == {"like": 48_580, "rating": 52_256}


def test_kuairand(place: Workplace, real_data: Path) -> None:
    report = place.take(real_data / "kuairand_pure_tabs", "kuairand")
    counts = report.manifest.counts
    assert (counts["events"].read, counts["events"].rejected) == (228_329, 5_460)
    assert report.manifest.reasons == {"duplicate_event_id": 5_460}
    assert counts["users"].written == 25_156
    rows: Any = read_parquet_directory(place.out / "events", ["item_id", "scene"])
    assert len(rows["item_id"].unique()) == 6_361
    assert len(rows["scene"].unique()) == 15
