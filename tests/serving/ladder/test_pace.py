from __future__ import annotations

import math

import pytest

from serving.ladder.pace import Pace


def known(full: float, small: float | None = None) -> Pace:
    pace = Pace(small=True)
    pace.took(False, full)
    for seconds in (small,) if small else ():
        pace.took(True, seconds)
    return pace


@pytest.mark.parametrize(
    ("batch", "first", "waiting", "last", "wise"),
    [
        (4, 0.5, 0, math.inf, False),
        (4, 0.39, 0, math.inf, True),  # the batch itself would be late
        (4, math.inf, 6, 2.1, False),
        (4, math.inf, 6, 1.9, True),  # the queue would take more than half of what its last has
    ],
)
def test_the_small_beam_is_for_a_batch_or_a_queue_that_would_be_late(
    batch: int, first: float, waiting: int, last: float, wise: bool
) -> None:
    assert known(0.1).small_is_wise(batch, first, waiting, last) is wise


def test_without_a_small_beam_it_is_never_wise() -> None:
    pace = Pace(small=False)
    pace.took(False, 5.0)
    assert not pace.small_is_wise(9, 0.1, 9, 0.1)


def test_before_anything_is_known_the_full_beam_is_tried() -> None:
    assert not Pace(small=True).small_is_wise(9, 0.1, 9, 0.1)


def test_the_least_pace_is_that_of_the_small_beam_once_it_was_used() -> None:
    assert (known(0.2).least, known(0.2).of(True), known(0.2, 0.1).least) == (0.2, 0.2, 0.1)


def test_a_slow_moment_does_not_exclude_the_full_beam_for_ever() -> None:
    pace = known(60.0, 0.01)
    batches = 0
    while pace.small_is_wise(1, 2.0, 0, math.inf):
        pace.took(True, 0.01)
        batches += 1
    assert 100 < batches < 300
