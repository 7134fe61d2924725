from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from recsys.errors import UnavailableError
from recsys.event_log import GroupWriter


class Disk:
    """Remembers every group; waits at a gate."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()

    def write(self, group: list[int]) -> list[int]:
        self.groups.append(group)
        self.entered.set()
        assert self.gate.wait(10)
        if 13 in group:
            raise OSError("disk full")
        return [10 * element for element in group]


class Counted(threading.Condition):
    """Counts how often somebody is woken."""

    woken = 0

    def notify(self, n: int = 1) -> None:
        self.woken += 1
        super().notify(n)


def writer(write: Callable[[list[int]], list[int]], *, limit: int = 100, linger: float = 0.0) -> GroupWriter[int, int]:
    return GroupWriter("test", write, limit=limit, linger=linger)


def test_what_gathers_during_a_write_is_the_next_group() -> None:
    disk = Disk()
    group = writer(disk.write)
    first = group.submit(0)
    assert disk.entered.wait(10)
    rest = [group.submit(n) for n in range(1, 6)]
    disk.gate.set()
    assert [future.result(10) for future in (first, *rest)] == [0, 10, 20, 30, 40, 50]
    assert disk.groups == [[0], [1, 2, 3, 4, 5]]
    group.close()


def test_lingering_gathers_and_closing_does_not_wait_for_it() -> None:
    disk = Disk()
    disk.gate.set()
    group = writer(disk.write, linger=60.0)
    futures = [group.submit(n) for n in range(3)]
    started = time.monotonic()
    group.close()
    assert time.monotonic() - started < 10
    assert [future.result(0) for future in futures] == [0, 10, 20]
    assert disk.groups == [[0, 1, 2]]


def test_what_is_posted_is_written_with_what_is_submitted() -> None:
    disk = Disk()
    group = writer(disk.write, limit=3)
    group.post(0)
    assert disk.entered.wait(10)
    group.post(13)
    asked = group.submit(2)
    group.post(3)
    with pytest.raises(UnavailableError, match="cannot keep up"):
        group.post(4)
    disk.gate.set()
    with pytest.raises(OSError, match="disk full"):
        asked.result(10)
    assert group.submit(5).result(10) == 50
    group.close()
    assert disk.groups == [[0], [13, 2, 3], [5]]
    with pytest.raises(UnavailableError, match="closed"):
        group.post(6)


def test_nobody_is_woken_who_lingers_already() -> None:
    disk = Disk()
    disk.gate.set()
    group = writer(disk.write, linger=60.0)
    group._changed = condition = Counted()
    for number in range(100):
        group.post(number)
    assert condition.woken == 1
    group.close()
    assert disk.groups == [list(range(100))]


def test_a_failure_reaches_its_group_only() -> None:
    disk = Disk()
    disk.gate.set()
    group = writer(disk.write)
    with pytest.raises(OSError, match="disk full"):
        group.submit(13).result(10)
    assert group.submit(1).result(10) == 10
    group.close()


def test_a_full_or_closed_queue_refuses() -> None:
    disk = Disk()
    group = writer(disk.write, limit=2)
    first = group.submit(0)
    assert disk.entered.wait(10)
    waiting = [group.submit(1), group.submit(2)]
    with pytest.raises(UnavailableError, match="cannot keep up"):
        group.submit(3)
    disk.gate.set()
    group.close()
    assert [future.result(0) for future in (first, *waiting)] == [0, 10, 20]
    with pytest.raises(UnavailableError, match="closed"):
        group.submit(4)


def test_a_caller_that_gives_up_takes_nobody_with_it() -> None:
    disk = Disk()
    group = writer(disk.write)
    gone, stays = group.submit(1), group.submit(2)
    assert not gone.cancel(), "what was submitted is written"
    disk.gate.set()
    assert stays.result(10) == 20
    assert group.submit(3).result(10) == 30
    group.close()
