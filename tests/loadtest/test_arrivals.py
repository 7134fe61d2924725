from __future__ import annotations

import asyncio
import time
from itertools import islice

import numpy as np

from loadtest.alarm import Alarm
from loadtest.arrivals import poisson_arrivals


def times(rate: float, seed: int, count: int) -> np.ndarray:
    return np.array(list(islice(poisson_arrivals(rate, np.random.default_rng(seed)), count)))


def test_gaps_are_exponential_across_blocks() -> None:
    gaps = np.diff(times(200.0, 1, 100_000), prepend=0.0)
    assert gaps.min() > 0
    assert abs(gaps.mean() * 200 - 1) < 0.02
    # of an exponential: mean = deviation, and the share of gaps beyond t means is exp(-t)
    assert abs(gaps.std() * 200 - 1) < 0.02
    for means in (0.5, 1.0, 2.0, 4.0):
        assert abs((gaps * 200 > means).mean() - np.exp(-means)) < 0.005
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.01


def test_the_seed_decides() -> None:
    assert times(10, 7, 5000).tolist() == times(10, 7, 5000).tolist()
    assert times(10, 7, 10).tolist() != times(10, 8, 10).tolist()


def test_an_alarm_rings_once_per_setting_and_never_early() -> None:
    rung: list[float] = []

    async def ring_thrice() -> list[float]:
        done = asyncio.Event()

        def ring() -> None:
            rung.append(time.monotonic())
            done.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        due = []
        for delay in (0.0123, 0.0004, -1.0):
            done.clear()
            due.append(time.monotonic() + delay)
            alarm.set(due[-1])
            await asyncio.wait_for(done.wait(), 5)
        alarm.set(time.monotonic() + 0.01)
        alarm.set(time.monotonic() + 0.02)  # forgets the one before
        done.clear()
        await asyncio.wait_for(done.wait(), 5)
        alarm.set(time.monotonic() + 0.005)
        alarm.close()
        await asyncio.sleep(0.02)
        return due

    due = asyncio.run(ring_thrice())
    assert len(rung) == 4
    assert all(at >= then for at, then in zip(rung, due, strict=False))
