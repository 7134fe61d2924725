from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.settings import read_feature_settings
from feature_store.store import Write, now_micros
from feature_store.views import View
from recsys.errors import ConfigError, InputError, WindfireError
from windfire.commands.features import app

NOW = now_micros()
COUNTS = View(
    "counts", "user", (Field("clicks", Kind.INT64), Field("vector", Kind.FLOAT16_VECTOR, 2)), 2, "growth",
    ttl=timedelta(hours=1), description="what people did",
)  # fmt: skip
RECENT = View("recent", "user", (Field("item", Kind.STRING),), 1, "growth", history=2)
VIEWS = [COUNTS, RECENT]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    address = f"lmdb:{tmp_path / 'store'}"
    monkeypatch.setenv("WINDFIRE_FEATURES_STORE", address)
    monkeypatch.setenv("WINDFIRE_FEATURES_VIEWS", f"{__name__}:VIEWS")
    return address


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, WindfireError):
        raise done.exception
    return done


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    rows = [
        {"user_id": f"u{n % 4}", "event_time": NOW - n * 10**8, "created_at": NOW - 5, "clicks": n, "vector": [0.1, n]}
        for n in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "counts.parquet")
    return tmp_path / "counts.parquet"


@pytest.fixture
def recent(tmp_path: Path) -> Path:
    """An events table: the columns have names of their own, and `time` stands for `created_at` too."""
    rows = [
        {"user_id": f"u{n % 2}", "time": n, "seq": n, "event_id": f"e{n}", "item": f"i{n}", "action": "click"}
        for n in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    return tmp_path / "events.parquet"


USER = ("--column", "entity_id=user_id")
EVENTS = (*USER, "--column", "created_at=time")


def test_declared_views_are_listed(store: str) -> None:
    shown = call("list").stdout
    assert "counts:2" in shown
    assert "float16_vector of 2" in shown
    assert "growth" in shown
    assert "user_recent:1" in call("list", "--views", "feature_store.standard").stdout


def test_a_table_is_materialised_read_and_verified(store: str, counts: Path) -> None:
    assert call("materialize", "counts", "--table", counts, *USER).stdout == "counts:2: 8 rows\n"
    (line,) = call("get", "u1", "--view", "counts").stdout.splitlines()
    reading: dict[str, Any] = json.loads(line)
    assert reading["status"] == "PRESENT"
    assert reading["event_time"] == NOW - 10**8
    assert reading["values"] == {"clicks": 1, "vector": [0.0999755859375, 1.0]}
    done = call("verify", "counts", "--table", counts, *USER)
    assert (done.exit_code, done.stdout) == (0, "counts:2: 0 of 4 differ (0.0000)\n")


def test_what_differs_is_shown_and_is_a_failure(store: str, counts: Path) -> None:
    call("materialize", "counts", "--table", counts, *USER)
    opened = EmbeddedFeatureStore(Path(store.removeprefix("lmdb:")))
    opened.put([Write(COUNTS, "u2", {"clicks": 9, "vector": [0, 0]}, NOW), Write(COUNTS, "u3", None, NOW)])
    opened.close()
    done = call("verify", "counts", "--table", counts, *USER)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "counts:2: 2 of 4 differ (0.5000)"
    assert '"clicks": 9' in done.stdout
    assert "u3 online" in done.stdout
    assert "of 1 differ" in call("verify", "counts", "--table", counts, *USER, "--sample", 1).stdout


def test_a_history_is_materialised_and_verified(store: str, recent: Path) -> None:
    call("materialize", "recent", "--table", recent, *EVENTS)
    done = call("verify", "recent", "--table", recent, *EVENTS)
    assert (done.exit_code, done.stdout) == (0, "recent:1: 0 of 2 differ (0.0000)\n")
    lines = [json.loads(line) for line in call("get", "u0").stdout.splitlines()]
    assert [line["view"] for line in lines] == ["counts:2", "recent:1"]
    assert [entry["event_id"] for entry in lines[1]["entries"]] == ["e4", "e6"]


def test_freshness_counts_statuses_and_ages(store: str, counts: Path) -> None:
    call("materialize", "counts", "--table", counts, *USER)
    lines = call("freshness", "counts", "--table", counts, *USER).stdout.splitlines()
    assert lines[0] == "counts:2 PRESENT: 4"
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"counts:2 age p{p}" for p in (50, 99, 100)]
    empty = call("freshness", "counts", "--table", counts, *USER, "--store", store + "-empty")
    assert empty.stdout == "counts:2 MISSING (absent): 4\n"


def test_a_deleted_entity_is_gone_from_all_its_views(store: str, counts: Path, recent: Path) -> None:
    call("materialize", "counts", "--table", counts, *USER)
    call("materialize", "recent", "--table", recent, *EVENTS)
    assert call("delete", "u0").stdout == "u0: counts:2, recent:1 deleted\n"
    call("materialize", "recent", "--table", recent, *EVENTS)
    call("materialize", "counts", "--table", counts, *USER)
    lines = [json.loads(line) for line in call("get", "u0").stdout.splitlines()]
    assert [(line["status"], line["reason"]) for line in lines] == [("MISSING", "deleted")] * 2
    assert [json.loads(line)["status"] for line in call("get", "u1").stdout.splitlines()] == ["PRESENT"] * 2


def test_freshness_and_skew_are_written_for_prometheus(store: str, counts: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.prom"
    call("materialize", "counts", "--table", counts, *USER)
    call("freshness", "counts", "--table", counts, *USER, "--metrics", file)
    assert 'windfire_feature_sample_entities{status="PRESENT",view="counts:2"} 4.0' in file.read_text()
    assert 'windfire_feature_sample_age_seconds{percentile="99",view="counts:2"} ' in file.read_text()
    call("delete", "u1")
    assert call("verify", "counts", "--table", counts, *USER, "--metrics", file).exit_code == 1
    assert 'windfire_feature_skew{view="counts:2"} 0.25' in file.read_text()
    assert 'windfire_feature_compared_entities{view="counts:2"} 4.0' in file.read_text()


def test_bad_calls_are_named(store: str, counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="counts:2, recent:1"):
        call("get", "u1", "--view", "nothing")
    with pytest.raises(InputError, match="entity_id"):
        call("materialize", "counts", "--table", counts)
    with pytest.raises(ConfigError, match="COLUMN=NAME"):
        call("materialize", "counts", "--table", counts, "--column", "entity_id")
    with pytest.raises(ConfigError, match="lmdb:DIRECTORY"):
        call("get", "u1", "--store", "nowhere")
    monkeypatch.setenv("WINDFIRE_FEATURES_ANSWER_TIMEOUT", "PT0S")
    with pytest.raises(ConfigError, match="WINDFIRE_FEATURES_ANSWER_TIMEOUT"):
        read_feature_settings()
