from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.running import Run
from loadtest.samples import Names, Recorder
from loadtest.summary import FEWEST, QUANTILES, quantile, summarize

TIERS = ["", "nezha", "item_to_item"]
MakeRun = Callable[..., Run]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.sampled_from(list(QUANTILES.values())))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    wanted = Fraction(str(q)) * len(values)
    best = min(value for value in values if sum(other <= value for other in values) >= wanted)
    assert quantile(np.array(values), q) == best


def test_no_p999_from_fewer_than_20_000_samples(run_of: MakeRun) -> None:
    few, enough = (summarize(run_of(list(np.linspace(0.001, 0.2, n)))) for n in (19_999, 20_000))
    refused = few.latency_ms["p999"]
    assert (refused.value, refused.low, refused.reason) == (None, None, "19999 samples, at least 20,000 are needed")
    assert enough.latency_ms["p999"].value == pytest.approx(199.8, abs=0.05)
    assert few.latency_ms["p99"].value == pytest.approx(198.0, abs=0.05)


@pytest.mark.parametrize("name", list(QUANTILES))
def test_each_percentile_has_its_least_number_of_samples(run_of: MakeRun, name: str) -> None:
    assert summarize(run_of([0.01] * (FEWEST[name] - 1))).latency_ms[name].value is None
    assert summarize(run_of([0.01] * FEWEST[name])).latency_ms[name].value == pytest.approx(10)


def test_what_was_never_answered_is_endlessly_late(run_of: MakeRun) -> None:
    lost = summarize(run_of([0.01] * 980 + [0.5] * 20, [0] * 980 + [2] * 20))
    assert lost.latency_ms["p99"].value is None
    assert "never answered" in lost.latency_ms["p99"].reason
    assert lost.latency_ms["p95"].value == pytest.approx(10)
    assert lost.errors == {"timeout": 20}
    assert lost.from_send_ms["p99"].value == pytest.approx(9)  # how it looks to who counts answers only


def test_refusals_are_errors_and_no_latencies(run_of: MakeRun) -> None:
    refused = summarize(run_of([0.05] * 500 + [0.0001] * 500, [0] * 500 + [1] * 500))
    assert refused.latency_ms["p50"].value == pytest.approx(50)
    assert refused.goodput_share.value == 0.5
    assert refused.errors == {"http_503": 500}
    assert refused.answered_rps == 50


def test_goodput_counts_good_answers_within_the_deadline(run_of: MakeRun) -> None:
    latency = [0.0999] * 300 + [0.1001] * 100 + [0.01] * 100
    summary = summarize(run_of(latency, [0] * 400 + [4] * 100))
    assert (summary.offered, summary.offered_rps, summary.answered_rps) == (500, 50.0, 40.0)
    assert (summary.goodput_rps.value, summary.goodput_share.value) == (30.0, 0.6)
    low, high = summary.goodput_share.low, summary.goodput_share.high
    assert low is not None
    assert high is not None
    assert low < 0.6 < high


def test_shares_of_tiers_are_of_good_answers_that_name_one(run_of: MakeRun) -> None:
    summary = summarize(run_of([0.01] * 100, [0] * 90 + [1] * 10, [1] * 60 + [2] * 20 + [0] * 10 + [1] * 10))
    assert summary.tiers == {"nezha": 0.75, "item_to_item": 0.25}


def test_an_interval_covers_what_seconds_differ_by(run_of: MakeRun) -> None:
    generator = np.random.default_rng(3)
    slow = np.repeat(generator.random(60) < 0.3, 100)
    latency = np.where(slow, 0.08, 0.02) + generator.random(6000) / 1000
    value = summarize(run_of(latency.tolist(), seconds=60.0)).latency_ms["p50"]
    assert value.value is not None
    assert value.low is not None
    assert value.high is not None
    assert value.low <= value.value <= value.high
    steady = summarize(run_of((0.02 + generator.random(6000) / 1000).tolist(), seconds=60.0)).latency_ms["p50"]
    assert steady.high is not None
    assert steady.low is not None
    assert steady.high - steady.low < 0.2


def test_a_window_of_one_second_has_no_interval(run_of: MakeRun) -> None:
    value = summarize(run_of([0.01] * 300, seconds=1.0)).latency_ms["p99"]
    assert value.value == pytest.approx(10)
    assert (value.low, value.high) == (None, None)


def test_nothing_offered_gives_nothing(run_of: MakeRun) -> None:
    summary = summarize(run_of([]))
    assert (summary.offered, summary.goodput_share.value, summary.tiers) == (0, None, {})
    assert [value.value for value in summary.latency_ms.values()] == [None] * 4


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 10), st.sampled_from(["ok", "http_503", "x"]), st.sampled_from(TIERS)
        ),
        max_size=60,
    )
)
def test_the_recorder_gives_back_what_it_was_given(rows: list[tuple[float, float, str, str]]) -> None:
    recorder = Recorder()
    for at, latency, outcome, tier in rows:
        recorder.add(at, latency, math.nan, outcome, tier)
    samples = recorder.finish(5.0)
    assert samples.at.tolist() == [row[0] for row in rows]
    assert samples.latency == pytest.approx([row[1] for row in rows], rel=1e-6)
    assert np.isnan(samples.from_send).all()
    assert [samples.outcomes[number] for number in samples.outcome] == [row[2] for row in rows]
    assert [samples.tiers[number] for number in samples.tier] == [row[3] for row in rows]


def test_samples_are_kept_over_many_blocks() -> None:
    recorder = Recorder()
    for number in range(100_000):
        recorder.add(float(number), 0.1, 0.1, "ok", "nezha")
    assert recorder.finish(1.0).at.tolist() == list(range(100_000))


def test_memory_does_not_grow_with_the_samples() -> None:
    recorder = Recorder()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(100_000):
        recorder.add(float(number), 0.1, 0.1, "ok", "nezha")
    growth = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    recorder.close()
    assert growth < 20_000


def test_endless_new_names_do_not_need_endless_numbers() -> None:
    names = Names("ok")
    numbers = [names.number(f"kind{n}") for n in range(1000)]
    assert max(numbers) == 254
    assert names.all()[-1] == "other"
    assert names.number("ok") == 0
