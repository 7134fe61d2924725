from __future__ import annotations

import heapq
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ladder.limit import ConcurrencyLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limit(clock: Clock, *, first: int = 10, most: int = 50, target: float = 1.0) -> ConcurrencyLimit:
    return ConcurrencyLimit(most=most, first=first, target=target, clock=clock)


def test_what_is_beyond_the_limit_is_not_let_in() -> None:
    tested = limit(Clock(), first=3)
    assert [tested.enter() for _ in range(5)] == [True, True, True, False, False]
    tested.leave(100.0, None)
    assert (tested.enter(), tested.enter()) == (True, False)


def test_a_round_of_late_calls_lets_it_fall_once() -> None:
    clock = Clock()
    tested = limit(clock)
    began = [clock.now for _ in range(10) if tested.enter()]
    clock.now += 1.5
    for each in began:
        tested.leave(each, True)
    assert (tested.limit, tested.inside) == (8, 0)


def test_refusals_without_any_latency_let_it_fall_once_per_usual_latency() -> None:
    clock = Clock()
    tested = limit(clock)
    tested.enter()
    clock.now += 0.5
    tested.leave(clock.now - 0.5, True)  # the usual latency
    for _ in range(20):
        clock.now += 0.01
        assert tested.enter()
        tested.leave(clock.now, False)
    assert tested.limit == 8


def test_it_grows_by_one_per_round_and_only_where_it_is_used() -> None:
    clock = Clock()
    tested = limit(clock)
    for _ in range(100):  # one call at a time
        tested.enter()
        tested.leave(clock.now, True)
    assert tested.limit == 10
    for _ in range(3):
        inside = tested.limit
        assert [tested.enter() for _ in range(inside)] == [True] * inside
        for _ in range(inside):
            tested.leave(clock.now, True)
    assert 11 <= tested.limit <= 12  # the last of a round find it half empty


def test_what_says_nothing_changes_nothing() -> None:
    clock = Clock()
    tested = limit(clock)
    for _ in range(10):
        tested.enter()
    clock.now += 9
    for _ in range(10):
        tested.leave(clock.now - 9, None)
    assert (tested.limit, tested.inside) == (10, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from([True, False, None]), st.integers(0, 5)), max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_it_stays_in_its_bounds_and_counts_right(
    steps: list[tuple[float, bool | None, int]], first: int, most: int
) -> None:
    clock = Clock()
    tested = limit(clock, first=first, most=most)
    under_way: deque[float] = deque()
    for seconds, well, calls in steps:
        allowed = max(0, tested.limit - len(under_way))
        let_in = sum(tested.enter() for _ in range(calls))
        assert let_in == min(calls, allowed)
        under_way.extend([clock.now] * let_in)
        clock.now += seconds
        for _ in range(min(len(under_way), calls)):
            tested.leave(under_way.popleft(), well)
        assert 1 <= tested.limit <= most
        assert tested.inside == len(under_way)


class Server:
    """Serves calls one after the other, so many a second; calls arrive evenly, on a clock of its own.

    Attributes:
        late: answers after the deadline.
        good: answers within it.
        refused: calls that were not let in.
    """

    def __init__(self, capacity: float, deadline: float) -> None:
        self.clock = Clock()
        self.limit = limit(self.clock, first=32, most=256, target=0.8 * deadline)
        self._takes, self._deadline = 1 / capacity, deadline
        self._under_way: list[tuple[float, float]] = []
        self._free_at = 0.0
        self.late = self.good = self.refused = 0

    def run(self, rate: float, calls: int) -> None:
        self.late = self.good = self.refused = 0
        for _ in range(calls):
            self._until(self.clock.now + 1 / rate)
            if self.limit.enter():
                self._free_at = max(self._free_at, self.clock.now) + self._takes
                heapq.heappush(self._under_way, (self._free_at, self.clock.now))
            else:
                self.refused += 1

    def _until(self, moment: float) -> None:
        while self._under_way and self._under_way[0][0] <= moment:
            self.clock.now, began = heapq.heappop(self._under_way)
            late = self.clock.now - began > self._deadline
            self.late += late
            self.good += not late
            self.limit.leave(began, not late)
        self.clock.now = moment


@pytest.mark.parametrize("capacity", [40.0, 400.0])
def test_at_twice_the_capacity_the_server_stays_busy_and_the_answers_in_time(capacity: float) -> None:
    server = Server(capacity, deadline=0.25)
    server.run(2 * capacity, 4_000)  # until it has found itself
    server.run(2 * capacity, 4_000)
    assert server.good >= 0.9 * 4_000 / 2
    assert server.late <= 0.01 * server.good
    assert server.refused > 0


def test_below_the_capacity_nobody_is_refused_once_it_has_recovered() -> None:
    server = Server(100.0, deadline=0.25)
    server.run(300.0, 3_000)
    server.run(80.0, 1_000)
    server.run(80.0, 3_000)
    assert (server.refused, server.late) == (0, 0)
