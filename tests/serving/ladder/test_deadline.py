from __future__ import annotations

from datetime import timedelta

import pytest

from serving.ladder.deadline import Deadline
from serving.settings import Settings

SETTINGS = Settings(deadline=timedelta(seconds=1), fallback_reserve=timedelta(seconds=0.2))


def test_what_was_waited_before_is_taken_from_all_points() -> None:
    plain, waited = (Deadline.within(None, SETTINGS, 100.0, waited=seconds) for seconds in (0.0, 0.25))
    assert (plain.answer, plain.engine, plain.began) == pytest.approx((101.0, 100.8, 100.0))
    assert (waited.answer, waited.engine, waited.began) == pytest.approx((100.75, 100.55, 100.0))


def test_slow_turns_of_the_loop_leave_less_time() -> None:
    slow = Deadline.within(None, SETTINGS, 100.0, turn=0.05)
    assert (slow.answer, slow.engine) == pytest.approx((100.85, 100.65))


def test_the_tables_answer_between_engine_and_memory() -> None:
    assert Deadline.within(None, SETTINGS, 100.0).tables == pytest.approx(100.88)
