from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SettingsError
from loadtest.running import Run
from loadtest.summary import Summary, Value, summarize
from loadtest.sweep import Step, Sweep, find_knee, held

Search = Callable[..., Sweep]


@pytest.fixture(scope="session")
def search(run_of: Callable[..., Run]) -> Iterator[Search]:
    """Sweeps a server that holds exactly what is not above its capacity, with a client that has a price per request."""
    base = run_of([0.01] * 300)
    summary = summarize(base)

    def sweep(
        capacity: float, *, cpu_per_request: float = 0.0, cpu_above: float | None = None, **bounds: float
    ) -> Sweep:
        async def measure(rate: float) -> Step:
            cpu = cpu_above if cpu_above is not None and rate > capacity else rate * cpu_per_request
            run = Run(base.load, base.samples, cpu, 0, {})
            return Step(rate, rate <= capacity, run, summary)

        return runner.run(
            find_knee(
                measure, start=bounds.get("start", 50.0), lowest=bounds.get("lowest", 1.0),
                highest=bounds.get("highest", 10_000.0), precision=bounds.get("precision", 0.05),
            )
        )  # fmt: skip

    with asyncio.Runner() as runner:
        yield sweep


@given(st.floats(1.0, 9_999.0), st.floats(0.01, 0.5), st.floats(1.0, 5_000.0))
def test_the_knee_is_held_and_a_little_more_is_not(
    search: Search, capacity: float, precision: float, start: float
) -> None:
    sweep = search(capacity, precision=precision, start=start)
    assert sweep.knee is not None
    assert sweep.knee <= capacity < sweep.knee * (1 + precision) * (1 + 1e-9)
    assert sweep.knee == max(step.rate for step in sweep.steps if step.held)
    assert sweep.reason == ""
    assert len(sweep.steps) <= math.log2(10_000) + math.log2(2 / precision) + 3


def test_a_server_that_holds_nothing_has_no_knee(search: Search) -> None:
    sweep = search(0.5)
    assert (sweep.knee, sweep.reason) == (None, "not even 1 requests/s were held")
    assert min(step.rate for step in sweep.steps) == 1.0


def test_a_server_that_holds_everything_is_only_bounded_from_below(search: Search) -> None:
    sweep = search(1e9)
    assert (sweep.knee, sweep.reason) == (10_000.0, "the highest rate of the settings was held")


def test_a_client_that_is_too_busy_says_so_and_stops(search: Search) -> None:
    sweep = search(1e9, cpu_per_request=0.001)
    assert sweep.knee == 800.0
    assert sweep.reason == "at 800 requests/s the client used 80% of a core"
    assert len(sweep.steps) == 5


def test_a_client_that_is_too_busy_between_two_rates_says_so_and_stops(search: Search) -> None:
    """A server that cannot keep up answers less, so that the client has less to do above the knee."""
    sweep = search(600.0, cpu_per_request=0.00125, cpu_above=0.5)
    assert [step.rate for step in sweep.steps] == [50.0, 100.0, 200.0, 400.0, 800.0, 600.0]
    assert (sweep.knee, sweep.reason) == (600.0, "at 600 requests/s the client used 75% of a core")


@pytest.mark.parametrize(
    ("p99", "share", "expected"),
    [(100.0, 0.99, True), (100.1, 1.0, False), (50.0, 0.9899, False), (None, 1.0, False), (50.0, None, False)],
)
def test_held_needs_both_the_tail_and_the_goodput(p99: float | None, share: float | None, expected: bool) -> None:
    summary = Summary(
        300, 30.0, 30.0, Value(30.0), Value(share), {"p99": Value(p99)}, {}, Value(None), {}, {},
    )  # fmt: skip
    assert held(summary, 0.1) is expected


@pytest.mark.parametrize("bounds", [{"start": 0.5}, {"lowest": 0.0}, {"highest": 10.0}, {"precision": 0.0}])
def test_bounds_that_contradict_each_other(search: Search, bounds: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        search(100, **bounds)
