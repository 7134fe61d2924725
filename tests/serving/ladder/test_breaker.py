from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.ladder.breaker import Breaker, State

PAUSE = 2.0


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, pause=PAUSE, clock=clock)
    for _ in range(3):
        breaker.leave(breaker.enter(), False)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not(clock: Clock) -> None:
    seen: list[State] = []
    breaker = Breaker(failures=3, pause=PAUSE, changed=seen.append, clock=clock)
    for well in (False, False, True, False, None, False):
        breaker.leave(breaker.enter(), well)
    assert breaker.enter()
    breaker.leave(breaker.enter(), False)
    assert (breaker.enter(), breaker.state) == (0, State.OPEN)
    assert seen == [State.CLOSED, State.OPEN]


def test_after_the_pause_one_probe_goes_and_closes_it(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += PAUSE - 0.01
    assert breaker.enter() == 0
    clock.now += 0.01
    probe = breaker.enter()
    assert probe
    assert [breaker.enter() for _ in range(3)] == [0, 0, 0]
    clock.now += 10 * PAUSE  # a slow probe is still the only one
    assert (breaker.enter(), breaker.state) == (0, State.HALF_OPEN)
    breaker.leave(probe, True)
    assert breaker.enter()
    assert int(breaker.state) == 0


def test_a_probe_that_fails_costs_another_pause(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += PAUSE
    breaker.leave(breaker.enter(), False)
    clock.now += PAUSE - 0.01
    assert breaker.enter() == 0
    clock.now += 0.01
    assert breaker.enter()


def test_a_probe_that_says_nothing_is_repeated_at_once(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += PAUSE
    breaker.leave(breaker.enter(), None)
    assert breaker.enter()


@pytest.mark.parametrize("well", [True, False])
def test_what_began_before_the_opening_says_nothing_afterwards(clock: Clock, well: bool) -> None:
    breaker = Breaker(failures=1, pause=PAUSE, clock=clock)
    slow, other = breaker.enter(), breaker.enter()
    breaker.leave(breaker.enter(), False)
    breaker.leave(slow, well)
    assert breaker.enter() == 0
    clock.now += PAUSE
    probe = breaker.enter()
    breaker.leave(other, well)
    assert breaker.state is State.HALF_OPEN
    breaker.leave(probe, True)
    assert breaker.enter()


@given(st.lists(st.sampled_from([True, False, None])), st.integers(1, 5))
def test_it_opens_exactly_behind_so_many_failures_in_a_row(outcomes: list[bool | None], failures: int) -> None:
    breaker = Breaker(failures=failures, pause=PAUSE, clock=Clock())
    text = "".join({True: "+", False: "-", None: ""}[well] for well in outcomes)
    for well in outcomes:
        breaker.leave(breaker.enter(), well)
    assert (breaker.state is State.OPEN) == ("-" * failures in text)


class Traffic(RuleBasedStateMachine):
    """Calls that overlap in any way: never two probes, never shut for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(failures=2, pause=PAUSE, clock=self.clock)
        self.under_way: list[tuple[int, bool]] = []

    @rule()
    def call(self) -> None:
        before = self.breaker.state
        entered = self.breaker.enter()
        if entered:
            self.under_way.append((entered, before is not State.CLOSED))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), well=st.sampled_from([True, False, None]))
    def come_back(self, data: st.DataObject, well: bool | None) -> None:
        entered, _ = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.breaker.leave(entered, well)

    @rule(seconds=st.floats(0, 2 * PAUSE))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def one_probe(self) -> None:
        assert sum(probe for _, probe in self.under_way) <= 1
        assert (self.breaker.state is State.HALF_OPEN) == any(probe for _, probe in self.under_way)

    def teardown(self) -> None:
        for entered, _ in self.under_way:
            self.breaker.leave(entered, None)
        self.clock.now += PAUSE
        assert self.breaker.enter()


TestTraffic = Traffic.TestCase
