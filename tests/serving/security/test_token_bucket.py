from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.security.token_bucket import TokenBucket

STEPS = st.lists(st.integers(0, 64), max_size=60)  # in 1/16 seconds, so that sums of floats are exact


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(steps=STEPS, rate=st.sampled_from([0.5, 1.0, 4.0]), burst=st.integers(1, 5))
def test_no_window_holds_more_than_the_burst_and_the_rate(steps: list[int], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    taken = []
    for step in steps:
        clock.now += step / 16
        if bucket.take() == 0.0:
            taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first])


@given(steps=STEPS, rate=st.sampled_from([0.5, 1.0, 4.0]), burst=st.integers(1, 5))
def test_who_waits_as_long_as_told_gets_a_token_and_not_before(steps: list[int], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    for step in steps:
        clock.now += step / 16
        wait = bucket.take()
        clock.now += wait / 2
        assert wait == 0.0 or bucket.take() == pytest.approx(wait / 2)
        clock.now += wait / 2
        assert wait == 0.0 or bucket.take() == 0.0


def test_what_was_refused_costs_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1.0, 1, clock)
    assert bucket.take() == 0.0
    assert [bucket.take() for _ in range(50)] == [1.0] * 50
    clock.now += 1.0
    assert bucket.take() == 0.0
