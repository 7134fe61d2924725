from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from serving.ladder.door import Door

DEADLINE = 1.0
SHORT, LONG = 0.001, 0.05  # seconds of a turn in which somebody may begin, and of one in which nobody may


class Loop:
    """Turns of an event loop that last as long as a test says; `door` counts who is refused."""

    def __init__(self) -> None:
        self.now = 100.0
        self.refused = 0
        self.soon: list[Callable[[], None]] = []
        self.door = Door(DEADLINE, refused=self._count, clock=lambda: self.now, soon=self.soon.append)
        self.came: list[asyncio.Task[float | None]] = []

    def _count(self) -> None:
        self.refused += 1

    async def come(self, requests: int = 1) -> None:
        self.came += [asyncio.create_task(self.door.enter()) for _ in range(requests)]
        await asyncio.sleep(0)

    async def turn(self, seconds: float = SHORT) -> None:
        self.now += seconds
        due, self.soon[:] = list(self.soon), []
        for call in due:
            call()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def stands(self) -> bool:
        return self.door.standing

    @property
    def waited(self) -> list[float | None]:
        """What those who know were told, in the order of their coming; rounded to milliseconds."""
        told = [task.result() for task in self.came if task.done()]
        return [seconds if seconds is None else round(seconds, 3) for seconds in told]


def test_who_comes_alone_begins_at_once_and_leaves_nothing_to_run() -> None:
    async def scenario() -> None:
        loop = Loop()
        for _ in range(3):
            await loop.come()
            await loop.turn()
        assert loop.waited == [0.0, 0.0, 0.0]
        assert (loop.soon, loop.door.standing) == ([], False)

    asyncio.run(scenario())


def test_one_begins_per_turn_in_the_order_of_arrival() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come(4)
        assert loop.waited == [0.0]
        for _ in range(3):
            await loop.turn()
        assert loop.waited == [0.0, 0.001, 0.002, 0.003]
        await loop.turn()
        assert loop.soon == []

    asyncio.run(scenario())


def test_in_a_long_turn_nobody_begins_before_those_under_way() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come(2)
        await loop.turn(LONG)
        await loop.turn(LONG)
        assert loop.waited == [0.0]
        await loop.turn(SHORT)
        assert loop.waited == [0.0, 0.101]

    asyncio.run(scenario())


def test_a_burst_is_waited_for_and_who_would_be_late_is_refused() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come(3)
        await loop.turn(0.4)
        assert loop.waited == [0.0]
        await loop.turn()
        assert loop.waited == [0.0, 0.401]
        await loop.turn(0.11)
        assert loop.waited == [0.0, 0.401, None]
        assert loop.refused == 1

    asyncio.run(scenario())


def test_in_a_queue_that_does_not_go_nobody_waits_for_long() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come()
        for _ in range(100):  # two begin where three come
            await loop.come(3)
            await loop.turn(0.01)
            await loop.turn(0.01)
        assert loop.stands() is True
        assert loop.refused > 0
        waited = [seconds for seconds in loop.waited[-20:] if seconds is not None]
        assert waited
        assert max(waited) <= 0.11
        while loop.soon:  # the rush is over
            await loop.turn()
        assert loop.stands() is True
        loop.now += DEADLINE
        assert loop.stands() is False
        await loop.come()
        assert loop.waited[-1] == 0.0

    asyncio.run(scenario())


def test_who_goes_away_while_waiting_takes_nobodys_turn() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come(3)
        loop.came[1].cancel()
        await asyncio.sleep(0)
        await loop.turn()
        assert loop.came[2].result() == pytest.approx(SHORT)

    asyncio.run(scenario())


def test_the_longest_turn_is_known_and_fades() -> None:
    async def scenario() -> None:
        loop = Loop()
        await loop.come()
        await loop.turn(0.04)
        assert loop.door.turn == 0.0  # nobody waited
        await loop.come(2)
        await loop.turn(0.04)
        assert loop.door.turn == pytest.approx(0.04)
        await loop.turn(0.001)
        assert loop.door.turn == pytest.approx(0.032)
        await loop.turn()
        await loop.come(2)
        await loop.turn(5.0)  # a halt
        assert loop.door.turn == pytest.approx(0.1)

    asyncio.run(scenario())


def test_on_a_real_loop_everybody_begins() -> None:
    async def scenario() -> list[float | None]:
        door = Door(60.0)
        return await asyncio.gather(*(door.enter() for _ in range(50)))

    assert None not in asyncio.run(scenario())
