from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys.datasets.marketplace import DAY, START, Marketplace, WorldSize, simulate
from recsys.errors import ConfigError, DataError
from recsys.records import TABLES, TablesManifest
from recsys.storage import read_json, read_parquet_directory, sorted_row_checksum

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, tiny: WorldSize) -> Path:
    out = tmp_path_factory.mktemp("marketplace") / "tables"
    simulate(tiny, 5, out)
    return out


def _checksums(directory: Path) -> dict[str, str]:
    return {name: sorted_row_checksum(read_parquet_directory(directory / name)) for name in TABLES}


def _rows(directory: Path, name: str) -> pa.Table:
    return read_parquet_directory(directory / name)


def test_tables_have_the_contract_s_schemas_and_counts(tables: Path) -> None:
    manifest = TablesManifest.load(tables)
    assert manifest.dataset == "marketplace-tiny"
    assert not manifest.time_is_order
    for name, schema in TABLES.items():
        rows = _rows(tables, name)
        assert rows.schema == schema
        assert manifest.counts[name].written == manifest.counts[name].read == rows.num_rows
        assert all(rows[field.name].null_count == 0 for field in schema if not field.nullable)
    assert manifest.counts["events"].written > 500
    actions = ("impressions", "clicks", "carts", "purchases")
    assert sum(manifest.notes[name] for name in actions) == manifest.counts["events"].written


def test_events_name_known_items_and_users_at_possible_times(tables: Path) -> None:
    events, items, users = (_rows(tables, name) for name in ("events", "items", "users"))
    assert len(set(events["event_id"].to_pylist())) == events.num_rows
    assert set(events["user_id"].to_pylist()) <= set(users["user_id"].to_pylist())
    joined = events.select(["item_id", "time"]).join(
        items.select(["item_id", "created_at", "available_until"]), "item_id"
    )
    assert joined["created_at"].null_count == 0
    assert pc.all(pc.less_equal(joined["created_at"], joined["time"])).as_py()
    assert pc.all(pc.less(joined["time"], pc.coalesce(joined["available_until"], 2**62))).as_py()
    assert pc.all(pc.less(events["time"], START + 8 * DAY)).as_py()
    assert pc.all(pc.greater_equal(events["created_at"], events["time"])).as_py()
    assert pc.max(items["created_at"]).as_py() < START + 8 * DAY


def test_seq_follows_time_within_a_user(tables: Path) -> None:
    events = _rows(tables, "events").to_pandas()
    ordered = events.sort_values(["user_id", "time", "seq"])
    assert (ordered.groupby("user_id")["seq"].diff().dropna() > 0).all()
    assert events["event_id"].equals(ordered["event_id"])


def test_what_was_done_was_shown(tables: Path) -> None:
    events = _rows(tables, "events").to_pandas()
    browsed = events[events["scene"] == "browse"]
    assert browsed["request_id"].isna().all()
    assert browsed["position"].isna().all()
    assert browsed["attributes"].isna().all()
    assert {"click"} <= set(browsed["action"]) <= {"click", "cart", "purchase"}
    slates = events[events["scene"] != "browse"]
    key = ["request_id", "position", "item_id"]
    shown = slates[slates["action"] == "impression"]
    assert not shown.duplicated(key).any()
    assert slates.merge(shown[key], on=key).shape[0] == slates.shape[0]
    assert (shown.groupby("request_id")["position"].max() == 5).all()
    bought = events[events["action"] == "purchase"]
    prices = _rows(tables, "items").to_pandas().set_index("item_id")["price_micros"]
    assert (bought["value_micros"].to_numpy() == prices[bought["item_id"]].to_numpy()).all()
    assert events[events["action"] != "purchase"]["value_micros"].isna().all()


def test_propensities_stand_on_impressions_and_their_clicks(tables: Path) -> None:
    events = _rows(tables, "events").to_pylist()
    shown = [event for event in events if event["action"] in ("impression", "click") and event["request_id"]]
    values = [float(dict(event["attributes"])["propensity"]) for event in shown]
    assert all(0 < value <= 1 for value in values)
    sources = {dict(event["attributes"]).get("source") for event in shown}
    assert sources <= {None, "explore"}
    explored = [e for e in shown if e["action"] == "impression" and "source" in dict(e["attributes"])]
    assert len(explored) == TablesManifest.load(tables).notes["explored_slots"]


def test_the_number_of_processes_changes_no_row(tables: Path, tiny: WorldSize, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate(tiny, 5, tmp_path / "two", workers=2, progress=lambda done, total: seen.append((done, total)))
    assert _checksums(tmp_path / "two") == _checksums(tables)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_another_seed_is_another_world(tables: Path, tiny: WorldSize, tmp_path: Path) -> None:
    simulate(tiny, 6, tmp_path / "other")
    mine, other = _checksums(tables), _checksums(tmp_path / "other")
    assert {name for name in TABLES if mine[name] == other[name]} == {"rejected"}


def test_daily_increments_are_the_days_of_one_long_run(tables: Path, tiny: WorldSize, tmp_path: Path) -> None:
    simulate(tiny, 5, tmp_path / "early", days=4)
    simulate(tiny, 5, tmp_path / "late", from_day=4, days=4)
    early, late = _rows(tmp_path / "early", "events"), _rows(tmp_path / "late", "events")
    assert late.num_rows > 0
    assert pc.min(late["time"]).as_py() >= START + 4 * DAY
    assert sorted_row_checksum(pa.concat_tables([early, late])) == _checksums(tables)["events"]
    assert _checksums(tmp_path / "late")["items"] == _checksums(tables)["items"]
    assert _rows(tmp_path / "early", "items").num_rows < _rows(tables, "items").num_rows


def test_the_world_of_the_tables_opens_again(tables: Path, tiny: WorldSize) -> None:
    market = Marketplace.open(tables)
    assert market.size == tiny
    assert market.seed == 5
    events = _rows(tables, "events").to_pylist()
    clicks = [event for event in events if event["action"] == "click"]
    users = market.users_of([event["user_id"] for event in clicks])
    items = market.items_of([event["item_id"] for event in clicks])
    times = np.array([event["time"] for event in clicks])
    chosen = market.utility(users, items[:, None], 0, times).mean()
    others = market.utility(users, np.random.default_rng(0).permutation(items)[:, None], 0, times).mean()
    assert chosen > others + 1


def test_titles_and_texts_carry_the_words_of_the_item(tables: Path) -> None:
    for item in _rows(tables, "items").to_pylist():
        attributes = dict(item["attributes"])
        words = [item["category_path"][2], item["brand"], attributes["colour"], attributes["style"]]
        assert all(word in item["title"] for word in words)
        assert all(word.lower() in (item["text"] or item["title"]).lower() for word in words)
        assert item["category_path"][1] in item["category_path"][2]


def test_some_items_have_no_text_and_are_counted(tmp_path: Path) -> None:
    manifest = simulate(WorldSize("silent", 2_000, 1, 1, 1, 1, 1), 0, tmp_path / "silent")
    texts = _rows(tmp_path / "silent", "items")["text"]
    assert manifest.notes["items_without_text"] == texts.null_count > 0


def test_days_without_a_visit_are_an_empty_table(tmp_path: Path) -> None:
    manifest = simulate(WorldSize("lonely", 100, 1, 1, 1, 1, 1), 2, tmp_path / "lonely")
    assert manifest.counts["events"].written == 0
    assert _rows(tmp_path / "lonely", "events").schema == TABLES["events"]


@pytest.mark.parametrize(
    ("field", "from_day", "days", "workers"),
    [("days", 0, 0, 1), ("from_day", -1, 1, 1), ("workers", 0, 1, 0), ("days", 0, 3_001, 1), ("days", 3_000, 1, 1)],
)
def test_numbers_out_of_range_are_refused(
    tiny: WorldSize, tmp_path: Path, field: str, from_day: int, days: int, workers: int
) -> None:
    with pytest.raises(ConfigError, match=rf"\[{field} ="):
        simulate(tiny, 0, tmp_path / "none", from_day=from_day, days=days, workers=workers)
    assert not (tmp_path / "none").exists()


def test_a_directory_of_other_things_is_left_alone(tiny: WorldSize, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        simulate(tiny, 0, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_tables_of_another_source_have_no_world(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not simulated"):
        Marketplace.open(tmp_path)


def test_world_json_says_what_was_simulated(tables: Path) -> None:
    value = read_json(tables / "world.json")
    assert value["format"] == "windfire.world/1"
    assert (value["seed"], value["from_day"], value["days"]) == (5, 0, 8)
