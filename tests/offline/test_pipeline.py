"""The pipeline on small random logs, against oracles in plain Python and NumPy."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from offline.job import JobManifest, exclusive
from offline.pipeline import JOBS, run_pipeline
from offline.settings import OfflineSettings, SplitSettings
from recsys.collaborative.cooccurrence import count_pairs
from recsys.datasets.prepared import PreparedData, read_job
from recsys.errors import UnavailableError
from recsys.records import POSITIVE_ACTIONS
from recsys.storage import read_parquet_directory, sorted_row_checksum
from training.recommender.settings import TeacherSettings
from training.recommender.teacher import TeacherTargets, build_teacher

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.offline.conftest import RandomLog, Row, WriteTables

# PySpark leaves its sockets to the garbage collector, and asks setuptools to compare versions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]
DAY = 86_400_000_000
BARE = {"title": None, "category_path": None, "brand": None}


class Log(NamedTuple):
    items: list[Row]
    events: list[Row]


@dataclass(frozen=True)
class Run:
    log: Log
    tables: Path
    work: Path
    manifests: dict[str, JobManifest]


def canonical(row: Row) -> tuple[Any, ...]:
    return row["user_id"], row["time"], row["seq"]


def clean_oracle(log: Log) -> tuple[list[Row], Counter[str]]:
    known = {row["item_id"] for row in log.items}
    valid = sorted((row for row in log.events if row["item_id"] in known), key=canonical)
    first: dict[str, Row] = {}
    for row in valid:
        first.setdefault(row["event_id"], row)
    rejected = {"unknown_item": len(log.events) - len(valid), "duplicate_event_id": len(valid) - len(first)}
    return list(first.values()), Counter(rejected)


def sequences_oracle(log: Log) -> dict[str, list[Row]]:
    sequences: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(clean_oracle(log)[0], key=canonical):
        sequences[row["user_id"]] += [row] * (row["action"] in POSITIVE_ACTIONS)
    return {user: rows for user, rows in sequences.items() if rows}


def contents(work: Path) -> dict[str, str]:
    found = {name: JobManifest.load(work / name) for name in JOBS}
    return {name: manifest.content for name, manifest in found.items() if manifest is not None}


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
    random_log: RandomLog,
    write_tables: WriteTables,
    spark: SparkSession,
    quick: OfflineSettings,
) -> Run:
    folder = tmp_path_factory.mktemp("done")
    log = Log(*random_log(1, users=25, items=30, events=400))
    log.items[0] |= BARE
    log.items[1] |= {"title": None, "text": None}
    tables = write_tables(folder / "tables", *log)
    manifests = run_pipeline(tables, folder / "work", quick, session=spark)
    return Run(log, tables, folder / "work", {manifest.job: manifest for manifest in manifests})


def test_every_job_ran_and_its_counts_add_up(done: Run) -> None:
    counts = done.manifests["clean"].counts
    kept, rejected = clean_oracle(done.log)
    assert list(done.manifests) == list(JOBS)
    assert {name: counts[name] for name in rejected} == rejected
    assert counts["read"] == len(done.log.events) == counts["written"] + counts["rejected"]
    assert counts["written"] == len(kept)


def test_clean_keeps_the_first_of_each_event_id_in_canonical_order(done: Run) -> None:
    rows = read_job(done.work, "clean").select(["event_id", "user_id", "time", "item_id", "scene"]).to_pylist()
    expected = [{name: row[name] for name in rows[0]} for row in clean_oracle(done.log)[0]]
    assert sorted(rows, key=lambda row: row["event_id"]) == sorted(expected, key=lambda row: row["event_id"])


def test_rejected_rows_are_kept_with_their_reason(done: Run) -> None:
    rejected = read_parquet_directory(done.work / "clean" / "rejected")
    assert Counter(rejected["reason"].to_pylist()) == clean_oracle(done.log)[1]
    assert rejected["event_id"].null_count == 0


def test_the_index_is_the_rank_of_the_item_id_in_byte_order(done: Run) -> None:
    catalog = read_job(done.work, "catalog").sort_by("item_index")
    assert catalog["item_index"].to_pylist() == list(range(30))
    assert catalog["item_id"].to_pylist() == sorted(row["item_id"] for row in done.log.items)


def test_sequences_are_the_positive_events_in_canonical_order(done: Run) -> None:
    rank = {item: index for index, item in enumerate(sorted(row["item_id"] for row in done.log.items))}
    found = {row["user_id"]: row for row in read_job(done.work, "sequences").to_pylist()}
    expected = sequences_oracle(done.log)
    assert found.keys() == expected.keys()
    for user, rows in expected.items():
        assert found[user]["items"] == [rank[row["item_id"]] for row in rows]
        for name in ("time", "seq", "scene", "action"):
            assert found[user][f"{name}s"] == [row[name] for row in rows]


def test_leave_one_out_holds_out_the_last_two_where_there_are_three(done: Run) -> None:
    splits = {row["user_id"]: row for row in read_job(done.work, "splits").to_pylist()}
    lengths = {user: len(rows) for user, rows in sequences_oracle(done.log).items()}
    long = {user: n for user, n in lengths.items() if n > 2}
    short = lengths.keys() - long.keys()
    names = ("train_end", "valid_index", "test_index")
    assert {user: tuple(splits[user][name] for name in names) for user in long} == {
        user: (n - 2, n - 2, n - 1) for user, n in long.items()
    }
    assert {user: tuple(splits[user][name] for name in names) for user in short} == {
        user: (lengths[user], -1, -1) for user in short
    }


def test_the_prepared_data_loads(done: Run) -> None:
    data = PreparedData.load(done.work)
    training = np.concatenate([data.sequences.training(user) for user in range(data.sequences.users)])
    np.testing.assert_array_equal(data.train_counts, np.bincount(training, minlength=30))
    assert data.text.shape == (30, 256)
    assert data.collaborative.shape == (30, 8)
    assert len(np.unique(data.codes, axis=0)) == 30
    assert data.codebook_sizes == (4, 4, 32)


def test_items_without_text_get_the_zero_vector_and_are_counted(done: Run) -> None:
    vectors = read_job(done.work, "text_embeddings").sort_by("item_index")
    bare = sorted(row["item_id"] for row in done.log.items).index(done.log.items[0]["item_id"])
    lengths = np.linalg.norm(np.array(vectors["vector"].to_pylist()), axis=1)
    np.testing.assert_allclose(np.delete(lengths, bare), 1.0, rtol=1e-6)
    assert lengths[bare] == 0
    assert vectors["has_text"].to_pylist().count(False) == 1  # category and brand are text enough
    assert done.manifests["text_embeddings"].counts["without_text"] == 1


def test_pair_counts_equal_the_reference(done: Run) -> None:
    sequences = PreparedData.load(done.work).sequences
    parts = [sequences.training(user) for user in range(sequences.users)]
    offsets = np.cumsum([0, *map(len, parts)])
    expected = count_pairs(offsets, np.concatenate(parts), window=5, num_items=30)
    found = read_job(done.work, "cooccurrence").sort_by([("item_a", "ascending"), ("item_b", "ascending")])
    for name, values in zip(("item_a", "item_b", "count"), expected, strict=True):
        np.testing.assert_array_equal(found[name].to_numpy(), values)


def test_popularity_counts_training_events_by_scene_and_overall(done: Run) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    for rows in sequences_oracle(done.log).values():
        seen = rows[: len(rows) - 2 * (len(rows) > 2)]
        expected.update(("", row["item_id"]) for row in seen)
        expected.update((row["scene"], row["item_id"]) for row in seen if row["scene"])
    ids = read_job(done.work, "catalog").sort_by("item_index")["item_id"].to_pylist()
    rows = read_job(done.work, "popularity").to_pylist()
    assert {(row["scene"], ids[row["item_index"]]): row["count"] for row in rows} == expected


def test_neighbours_are_ranked_by_damped_cosine_with_ties_by_index(done: Run) -> None:
    pairs = read_job(done.work, "cooccurrence").to_pylist()
    counts = np.zeros((30, 30))
    for row in pairs:
        counts[row["item_a"], row["item_b"]] = counts[row["item_b"], row["item_a"]] = row["count"]
    total = counts.sum(axis=1)
    scores = counts / (np.sqrt(np.outer(total, total)) + 10.0)
    expected = [
        (item, int(other), rank, scores[item, other])
        for item in range(30)
        for rank, other in enumerate(np.lexsort((np.arange(30), -scores[item])))
        if scores[item, other] > 0
    ]
    found = read_job(done.work, "item_to_item").sort_by([("item_index", "ascending"), ("rank", "ascending")])
    assert [tuple(row.values()) for row in found.to_pylist()] == expected


def test_nothing_runs_again_when_nothing_changed(done: Run, quick: OfflineSettings) -> None:
    # A master that does not exist: a run that is skipped as a whole starts no session.
    again = run_pipeline(done.tables, done.work, quick, master="spark://127.0.0.1:1")
    assert [manifest.skipped for manifest in again] == [True] * len(JOBS)


def test_an_output_that_was_moved_aside_when_a_run_was_killed_is_put_back(done: Run, quick: OfflineSettings) -> None:
    (done.work / "semantic_ids").rename(done.work / ".replaced-00000000-semantic_ids")
    again = run_pipeline(done.tables, done.work, quick)
    assert all(manifest.skipped for manifest in again)


def test_a_held_work_directory_is_refused_and_its_scratch_left_alone(
    done: Run, tmp_path: Path, quick: OfflineSettings
) -> None:
    shuffled = tmp_path / "work" / ".spark" / "shuffled"
    shuffled.mkdir(parents=True)
    with exclusive(tmp_path / "work"), pytest.raises(UnavailableError, match="another run"):
        run_pipeline(done.tables, tmp_path / "work", quick)
    assert shuffled.exists()


def test_no_output_depends_on_files_or_partitions(
    done: Run, tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    order = np.random.default_rng(5).permutation(len(done.log.events))
    shuffled = [done.log.events[number] for number in order]
    tables = write_tables(tmp_path / "tables", done.log.items[::-1], shuffled, files=7)
    conf = {"spark.sql.shuffle.partitions": "7", "spark.sql.adaptive.enabled": "true"}
    before = {name: str(spark.conf.get(name)) for name in conf}
    for name, value in conf.items():
        spark.conf.set(name, value)
    run_pipeline(tables, tmp_path / "work", quick, session=spark)
    for name, value in before.items():
        spark.conf.set(name, value)
    assert contents(tmp_path / "work") == contents(done.work)
    tables_equal = {job: sorted_row_checksum(read_job(tmp_path / "work", job)) for job in ("sequences", "item_to_item")}
    assert tables_equal == {job: sorted_row_checksum(read_job(done.work, job)) for job in tables_equal}


def test_permuting_the_events_behind_the_cut_leaves_every_fitted_job_skipped(
    done: Run, tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    settings = quick.model_copy(update={"split": quick.split.model_copy(update={"strategy": "global_time"})})
    first = {m.job: m for m in run_pipeline(done.tables, tmp_path / "work", settings, session=spark)}
    cut = first["splits"].counts["first_cut"]
    known = {row["item_id"] for row in done.log.items}
    later = [n for n, row in enumerate(done.log.events) if row["time"] >= cut and row["item_id"] in known]
    changed = [dict(row) for row in done.log.events]
    for number, other in zip(later, np.random.default_rng(3).permutation(later), strict=True):
        changed[number] |= {"item_id": done.log.events[other]["item_id"], "scene": "elsewhere"}
    tables = write_tables(tmp_path / "tables", done.log.items, changed)
    second = {m.job: m for m in run_pipeline(tables, tmp_path / "work", settings, session=spark)}
    fitted = JOBS[JOBS.index("items") :]
    assert second["sequences"].content != first["sequences"].content
    assert second["training"].content == first["training"].content
    assert {job: second[job].content for job in fitted} == {job: first[job].content for job in fitted}
    assert all(second[job].skipped for job in fitted)


@dataclass(frozen=True)
class Fitted:
    """All that a split by time fits before its first cut, and the sequences, which it does not."""

    sequences: str
    checksums: dict[str, str]
    training: dict[str, list[int]]
    teachers: list[TeacherTargets]


def fit(tables: Path, work: Path, settings: OfflineSettings, spark: SparkSession) -> Fitted:
    run_pipeline(tables, work, settings, session=spark)
    data, checksums = PreparedData.load(work), contents(work)
    training = {user: data.sequences.training(row).tolist() for row, user in enumerate(data.sequences.user_ids)}
    kinds = [TeacherSettings(kind="ease", top=10), TeacherSettings(kind="item_to_item", top=10)]
    teachers = [build_teacher(data, kind, max_history=50) for kind in kinds]
    return Fitted(
        checksums["sequences"],
        {job: checksums[job] for job in ("training", *JOBS[JOBS.index("items") :])},
        {user: items for user, items in training.items() if items},
        [teacher for teacher in teachers if teacher is not None],
    )


def test_a_log_that_ends_at_the_cut_fits_the_same_as_one_that_goes_on_behind_it(
    done: Run,
    tmp_path: Path,
    random_log: RandomLog,
    write_tables: WriteTables,
    spark: SparkSession,
    quick: OfflineSettings,
) -> None:
    # Cuts by date: quantiles move with the number of events. Two work directories: every job runs twice.
    split = SplitSettings(strategy="global_time", cut_times=(14 * DAY, 17 * DAY))
    settings = quick.model_copy(update={"split": split})
    before = [row for row in done.log.events if row["time"] < 14 * DAY]
    _, behind = random_log(9, users=60, items=30, events=300, first=10_000, day=14)
    ends = write_tables(tmp_path / "ends", done.log.items, before)
    goes_on = write_tables(tmp_path / "goes_on", done.log.items, before + behind)
    one = fit(ends, tmp_path / "one", settings, spark)
    two = fit(goes_on, tmp_path / "two", settings, spark)
    assert one.sequences != two.sequences
    assert one.training == two.training
    assert one.checksums == two.checksums
    for teacher, other in zip(one.teachers, two.teachers, strict=True):
        np.testing.assert_array_equal(teacher.items, other.items)
        np.testing.assert_array_equal(teacher.cumulative, other.cumulative)


def test_a_log_with_one_item_and_users_with_one_event(
    tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    rows = [
        {"event_id": f"e{n}", "user_id": f"u{n}", "item_id": "only", "time": n, "seq": n, "action": "click"}
        for n in range(3)
    ]
    tables = write_tables(tmp_path / "tables", [{"item_id": "only", "title": "Alone"}], rows, time_is_order=True)
    run_pipeline(tables, tmp_path / "work", quick, session=spark)
    data = PreparedData.load(tmp_path / "work")
    np.testing.assert_array_equal(data.sequences.train_end, [1, 1, 1])
    assert len(data.sequences.targets("valid")[0]) == len(data.sequences.targets("test")[0]) == 0
    assert data.codes.shape == (1, 3)
    assert read_job(tmp_path / "work", "item_to_item").num_rows == 0
    assert isinstance(read_job(tmp_path / "work", "cooccurrence"), pa.Table)
