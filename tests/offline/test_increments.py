"""A new day of tables gives the same outputs as everything made anew; semantic IDs stay."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from offline.job import JobManifest, run_job
from offline.pipeline import JOBS, plan, run_pipeline
from offline.session import LazySession
from offline.tables import Tables
from recsys.datasets.prepared import PreparedData, read_job
from recsys.errors import DataError, VersionMismatchError
from recsys.storage import read_json, read_parquet_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from offline.settings import OfflineSettings
    from tests.offline.conftest import RandomLog, Row, WriteTables

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]
DAY = 86_400_000_000


@dataclass(frozen=True)
class Days:
    """The same two days twice: as base and increment, and made anew; `first` holds the IDs of day one."""

    grown: Path
    anew: Path
    first: dict[str, list[int]]
    second: dict[str, JobManifest]


def codes(work: Path) -> dict[str, list[int]]:
    ids = read_job(work, "catalog").sort_by("item_index")["item_id"].to_pylist()
    return dict(zip(ids, read_job(work, "semantic_ids").sort_by("item_index")["codes"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def days(
    tmp_path_factory: pytest.TempPathFactory,
    random_log: RandomLog,
    write_tables: WriteTables,
    spark: SparkSession,
    quick: OfflineSettings,
) -> Days:
    folder = tmp_path_factory.mktemp("days")
    items, events = random_log(2, users=120, items=30, events=600)
    # Day one lacks some items: their events wait among the rejected rows, and the index shifts when they come.
    missing = {f"item{number:03d}" for number in (14, 19, 22, 25, 27, 28)}
    old = [row for row in items if row["item_id"] not in missing]
    base = write_tables(folder / "base", old, events)
    _, later = random_log(3, users=12, items=30, events=40, first=600, day=21)
    later += [row | {"time": row["time"] + 40 * DAY} for row in events[10:14]]  # sent again
    new = [row for row in items if row["item_id"] in missing]
    renamed = [row | {"title": "Renamed", "text": "and described"} for row in old[:1]]
    day = write_tables(folder / "day", new + renamed, later)
    run_pipeline(base, folder / "grown", quick, session=spark)
    first = codes(folder / "grown")
    second = run_pipeline(base, folder / "grown", quick, increments=[day], tokenizer="extend", session=spark)
    run_pipeline(base, folder / "anew", quick, increments=[day], session=spark)
    return Days(folder / "grown", folder / "anew", first, {manifest.job: manifest for manifest in second})


@pytest.mark.parametrize("job", [job for job in JOBS if job != "semantic_ids"])
def test_an_increment_equals_a_full_run(job: str, days: Days) -> None:
    grown, anew = JobManifest.load(days.grown / job), JobManifest.load(days.anew / job)
    assert grown is not None
    assert anew is not None
    assert grown.content == anew.content


def test_what_an_increment_wrote_is_loaded_as_what_a_full_run_wrote(days: Days) -> None:
    grown, anew = PreparedData.load(days.grown), PreparedData.load(days.anew)
    for name in ("offsets", "items", "times", "train_end", "valid_index", "test_index"):
        np.testing.assert_array_equal(getattr(grown.sequences, name), getattr(anew.sequences, name))
    np.testing.assert_array_equal(grown.text, anew.text)
    np.testing.assert_array_equal(grown.collaborative, anew.collaborative)


@pytest.mark.parametrize("job", ["clean", "core", "sequences", "text_embeddings", "cooccurrence", "semantic_ids"])
def test_the_increment_was_merged_not_made_anew(job: str, days: Days) -> None:
    assert days.second[job].increment


def test_only_new_and_changed_texts_are_encoded(days: Days) -> None:
    assert days.second["text_embeddings"].counts["encoded"] == 6 + 1


def test_rejected_rows_of_both_ways_are_the_same(days: Days) -> None:
    grown, anew = (read_parquet_directory(work / "clean" / "rejected") for work in (days.grown, days.anew))
    names = ["event_id", "time", "item_id", "reason"]
    order = [(name, "ascending") for name in names]
    assert grown.select(names).sort_by(order).to_pylist() == anew.select(names).sort_by(order).to_pylist()


def test_items_keep_their_semantic_ids_and_new_ones_get_free_ones(days: Days) -> None:
    now = codes(days.grown)
    assert {item: now[item] for item in days.first} == days.first
    assert len(now) == 30
    assert len({tuple(code) for code in now.values()}) == 30


def test_the_tokenizer_version_outlives_the_increment(days: Days) -> None:
    version = read_json(days.grown / "semantic_ids" / "tokenizer.json")["tokenizer_version"]
    assert days.second["semantic_ids"].settings == {"tokenizer_version": version}
    assert version != read_json(days.anew / "semantic_ids" / "tokenizer.json")["tokenizer_version"]


def test_a_tokenizer_must_exist_to_be_extended(
    tmp_path: Path, write_tables: WriteTables, quick: OfflineSettings
) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], [])
    with pytest.raises(DataError, match="no tokenizer"):
        run_pipeline(tables, tmp_path / "work", quick, tokenizer="extend")


def test_a_tokenizer_is_not_extended_with_another_text_encoder(
    days: Days, tmp_path: Path, spark: SparkSession, quick: OfflineSettings
) -> None:
    work = shutil.copytree(days.grown, tmp_path / "work")
    path = work / "semantic_ids" / "tokenizer.json"
    path.write_text(path.read_text().replace('"max_tokens": 96', '"max_tokens": 97'))
    jobs = plan(Tables((), time_is_order=False), work, quick, "extend")
    job = next(job for job in jobs if job.name == "semantic_ids")
    with LazySession("", session=spark) as lazy, pytest.raises(VersionMismatchError, match="text encoder"):
        run_job(replace(job, settings={}), work, lazy)


def test_items_that_a_later_log_only_names_keep_their_description(
    tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    days = [
        write_tables(tmp_path / "base", [{"item_id": "a", "title": "Shoe"}, {"item_id": "b", "title": "Hat"}], []),
        write_tables(tmp_path / "day", [{"item_id": "a"}, {"item_id": "b", "brand": "New"}, {"item_id": "c"}], []),
    ]
    tables = Tables.open(days)
    job = next(job for job in plan(tables, tmp_path / "work", quick, "build") if job.name == "catalog")
    with LazySession("", session=spark) as lazy:
        run_job(job, tmp_path / "work", lazy)
    rows = read_job(tmp_path / "work", "catalog").sort_by("item_index").to_pylist()
    assert [(row["title"], row["brand"]) for row in rows] == [("Shoe", None), (None, "New"), (None, None)]


@pytest.mark.parametrize(("time", "kept"), [(5, "new"), (15, "old")])
def test_the_first_of_an_event_id_wins_across_days(
    time: int, kept: str, tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    def event(action: str, at: int) -> Row:
        fields: dict[str, Any] = {"event_id": "e", "user_id": "u", "item_id": "a", "seq": 0}
        return fields | {"time": at, "action": "click", "scene": action}

    days = [
        write_tables(tmp_path / "base", [{"item_id": "a"}], [event("old", 10)]),
        write_tables(tmp_path / "day", [], [event("new", time)]),
    ]
    with LazySession("", session=spark) as lazy:
        for known in (days[:1], days):
            tables = Tables.open(known)
            run_job(plan(tables, tmp_path / "work", quick, "build")[0], tmp_path / "work", lazy)
    assert read_job(tmp_path / "work", "clean")["scene"].to_pylist() == [kept]
    rejected = read_parquet_directory(tmp_path / "work" / "clean" / "rejected")
    assert rejected["reason"].to_pylist() == ["duplicate_event_id"]
