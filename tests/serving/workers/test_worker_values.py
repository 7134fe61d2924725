"""Metrics of several processes as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import CrewMetrics, EngineMetrics, Metrics
from serving.worker_values import PARENT, Counter, Gauge, Histogram, Registry, WorkerValues, clean

if TYPE_CHECKING:
    from pathlib import Path

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    """What a scrape shows, without the times at which series began."""
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def count(metrics: Metrics, seconds: list[float]) -> None:
    """Some traffic."""
    for n, second in enumerate(seconds):
        metrics.observe("/v1/recommend", "nezha", (200, 503)[n % 2], second)
        metrics.events.labels("accepted").inc(n)
        metrics.ineligible.inc()


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(0, 5), max_size=6), min_size=1, max_size=6))
def test_workers_add_up_to_one_registry(tmp_path_factory: pytest.TempPathFactory, lives: list[list[float]]) -> None:
    folder, alone = tmp_path_factory.mktemp("metrics"), Metrics()
    for number, seconds in enumerate(lives):  # two workers, each dies and is followed by another life
        values = WorkerValues(folder, str(number % 2))
        count(Metrics(values), seconds)
        values.close()
        count(alone, seconds)
    last = WorkerValues(folder, "1")
    shown = samples(Metrics(last).render())
    last.close()
    expected = {key: value for key, value in samples(alone.render()).items() if "connected" not in key[0]}
    for key, value in expected.items():
        # A worker's gauges carry its number.
        place = (key[0], (*key[1], ("worker", "1"))) if key[0] == "windfire_histories_behind" else key
        assert shown[place] == pytest.approx(value), key


def test_counters_never_go_back(tmp_path: Path) -> None:
    before: Samples = {}
    for life in range(6):
        values = WorkerValues(tmp_path, str(life % 3))
        metrics = Metrics(values)
        count(metrics, [0.01 * life] * life)
        now = {key: value for key, value in samples(metrics.render()).items() if "worker" not in dict(key[1])}
        assert all(now[key] >= value for key, value in before.items())
        before = now
        values.close()
    assert before["windfire_ineligible_items_total", ()] == 15


def test_a_gauge_lives_as_long_as_its_worker(tmp_path: Path) -> None:
    first, second = WorkerValues(tmp_path, "0"), WorkerValues(tmp_path, "1")
    metrics = [EngineMetrics(first), EngineMetrics(second)]
    metrics[0].queue.set_function(lambda: 3)
    metrics[1].queue.set(4)
    metrics[0].bundle.labels("v1").set(1)
    metrics[0].bundle.remove("v1")
    metrics[0].bundle.labels("v2").set(1)
    first.refresh()
    parent = WorkerValues(tmp_path, PARENT)
    CrewMetrics(parent).wanted.set(2)
    shown = samples(second.render())
    assert {key: value for key, value in shown.items() if "queue" in key[0] or key[0] == "windfire_bundle"} == {
        ("windfire_engine_queue", (("worker", "0"),)): 3,
        ("windfire_engine_queue", (("worker", "1"),)): 4,
        ("windfire_bundle", (("version", "v2"), ("worker", "0"))): 1,
    }
    assert shown["windfire_workers_wanted", ()] == 2
    first.close()
    assert {dict(key[1]).get("worker") for key in samples(second.render()) if "queue" in key[0]} == {"1"}
    again = WorkerValues(tmp_path, "0")
    EngineMetrics(again)
    left = samples(second.render())
    assert left["windfire_engine_queue", (("worker", "0"),)] == 0
    assert ("windfire_bundle", (("version", "v2"), ("worker", "0"))) not in left
    for values in (second, parent, again):
        values.close()


def test_a_new_parent_begins_at_nothing(tmp_path: Path) -> None:
    values = WorkerValues(tmp_path, "0")
    Metrics(values).ineligible.inc(3)
    values.close()
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == []
    values = WorkerValues(tmp_path, "0")
    assert samples(Metrics(values).render())["windfire_ineligible_items_total", ()] == 0
    values.close()


def test_without_a_file_they_are_the_librarys() -> None:
    ours, theirs = Registry(), CollectorRegistry()
    Counter("a", "A.", ["x"], registry=ours).labels("1").inc(2)
    Gauge("b", "B.", registry=ours).set(3)
    Histogram("c", "C.", buckets=(1, 2), registry=ours).observe(1.5)
    prometheus_client.Counter("a", "A.", ["x"], registry=theirs).labels("1").inc(2)
    prometheus_client.Gauge("b", "B.", registry=theirs).set(3)
    prometheus_client.Histogram("c", "C.", buckets=(1, 2), registry=theirs).observe(1.5)
    assert samples(generate_latest(ours)) == samples(generate_latest(theirs))


def test_a_metric_that_others_would_not_show_is_refused() -> None:
    with pytest.raises(TypeError, match=r"serving\.worker_values"):
        prometheus_client.Counter("a", "A.", registry=Registry())


def test_a_count_is_found_again_under_the_labels_that_it_shows() -> None:
    """Of other types than text several are equal and yet written in different ways."""
    counter = Counter("c", "C.", ["a", "b"], registry=Registry())
    for labels in [("1", "x"), (1, "x"), (True, "x"), (1.0, "x"), ("1", "x"), (1, "x")]:
        counter.labels(*labels).inc()
    counter.labels(a="1", b="x").inc()
    shown = {tuple(sample.labels.values()): sample.value for sample in next(iter(counter.collect())).samples[::2]}
    assert shown == {("1", "x"): 5, ("True", "x"): 1, ("1.0", "x"): 1}
    assert counter.labels("1", "x") is counter.labels("1", "x")
    with pytest.raises(ValueError, match="label count"):
        counter.labels("1")
    with pytest.raises(TypeError, match="stay"):
        counter.remove("1", "x")


@given(st.lists(st.floats() | st.sampled_from([0.1, 0.5, 1.0, 2.5]), max_size=8))
def test_a_histogram_counts_as_the_librarys(amounts: list[float]) -> None:
    ours = Histogram("h", "H.", ["a"], buckets=(0.1, 0.5, 1.0, 2.5), registry=Registry())
    theirs = prometheus_client.Histogram("h", "H.", ["a"], buckets=(0.1, 0.5, 1.0, 2.5), registry=CollectorRegistry())
    for histogram in (ours, theirs):
        for amount in amounts:
            histogram.labels("x").observe(amount)
    kept = [
        [sample for sample in next(iter(each.collect())).samples if "_created" not in sample.name]
        for each in (ours, theirs)
    ]
    assert repr(kept[0]) == repr(kept[1])
    with pytest.raises(ValueError, match="missing label"):
        ours.observe(1.0)
