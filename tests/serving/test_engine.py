from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from recsys.errors import UnavailableError
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, InProcessEngine
from serving.metrics import EngineMetrics
from serving.schemas import ServedBy


class Scripted:
    """Answers with the request's n in place of a bundle version; waits at a gate, fails for n = 13.

    For a history it asks a model, which is away if `away`.
    """

    def __init__(self, name: str = "one") -> None:
        self.versions = EngineVersions(name, f"{name}.0", "nezha")
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.small: list[list[bool]] = []
        self.away = False

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        self.batches.append([request.n for request in requests])
        self.small.append([request.small for request in requests])
        self.entered.set()
        assert self.gate.wait(10)
        if any(request.n == 13 for request in requests):
            raise ValueError("thirteen")
        if self.away and any(request.history for request in requests):
            raise UnavailableError("the model is away")
        counts = EngineCounts(0, 0, 0, 0)
        tier = ServedBy.POPULAR_MEMORY
        return [EngineAnswer([], tier, None, self.versions.bundle, str(each.n), True, counts) for each in requests]


@pytest.fixture
def engine() -> Iterator[InProcessEngine]:
    engine = InProcessEngine(EngineMetrics(), queue_limit=4, batch_limit=3, torch_threads=1)
    yield engine
    engine.close()


def request(n: int, deadline: float | None = None, history: Sequence[str] = ()) -> EngineRequest:
    return EngineRequest(history=history, n=n, time=0, deadline=deadline)


async def busy(engine: InProcessEngine, scripted: Scripted) -> asyncio.Task[EngineAnswer]:
    """Make the thread wait at the gate with request 1."""
    engine.swap(scripted)
    first = asyncio.create_task(engine.recommend(request(1)))
    assert await asyncio.to_thread(scripted.entered.wait, 10)
    return first


def test_requests_that_wait_are_decoded_together(engine: InProcessEngine) -> None:
    async def scenario() -> list[str]:
        scripted = Scripted()
        first = await busy(engine, scripted)
        rest = [asyncio.create_task(engine.recommend(request(n))) for n in (2, 3, 4, 5)]
        await asyncio.sleep(0)
        scripted.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert scripted.batches == [[1], [2, 3, 4], [5]]
        return [answer.catalog_version for answer in answers]

    assert asyncio.run(scenario()) == ["1", "2", "3", "4", "5"]


def test_a_full_queue_refuses_at_once_and_recovers(engine: InProcessEngine) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(engine, scripted)
        waiting = [asyncio.create_task(engine.recommend(request(n))) for n in range(2, 6)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="too many requests"):
            await engine.recommend(request(6))
        scripted.gate.set()
        await asyncio.gather(first, *waiting)
        assert (await engine.recommend(request(7))).catalog_version == "7"

    asyncio.run(scenario())


def test_a_cancelled_request_is_not_decoded(engine: InProcessEngine) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(engine, scripted)
        gone, stays = (asyncio.create_task(engine.recommend(request(n))) for n in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        scripted.gate.set()
        await asyncio.gather(first, stays)
        assert scripted.batches == [[1], [3]]

    asyncio.run(scenario())


def test_cancelled_requests_hold_no_place(engine: InProcessEngine) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(engine, scripted)
        gone = [asyncio.create_task(engine.recommend(request(n))) for n in range(2, 6)]
        await asyncio.sleep(0)
        for task in gone[1:]:
            task.cancel()
        await asyncio.sleep(0)
        stays = asyncio.create_task(engine.recommend(request(6)))
        await asyncio.sleep(0)
        scripted.gate.set()
        await asyncio.gather(first, gone[0], stays)
        assert scripted.batches == [[1], [2, 6]]

    asyncio.run(scenario())


def test_only_the_request_that_breaks_a_batch_fails(engine: InProcessEngine) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(engine, scripted)
        batch = [asyncio.create_task(engine.recommend(request(n))) for n in (2, 13, 3)]
        await asyncio.sleep(0)
        scripted.gate.set()
        await first
        good, bad, also_good = await asyncio.gather(*batch, return_exceptions=True)
        assert isinstance(good, EngineAnswer)
        assert isinstance(bad, ValueError)
        assert isinstance(also_good, EngineAnswer)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "asked", "wanted"),
    [
        (((2, ["a"]), (3, []), (4, ["b"])), [[3]], [UnavailableError, EngineAnswer, UnavailableError]),
        (((13, []), (3, ["a"]), (4, ["b"])), [[13], [3]], [ValueError, UnavailableError, UnavailableError]),
    ],
    ids=["the batch found it", "a single request found it"],
)
def test_a_model_that_is_away_is_waited_for_once(
    engine: InProcessEngine, given: Sequence[tuple[int, list[str]]], asked: list[list[int]], wanted: list[type]
) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(engine, scripted)
        batch = [asyncio.create_task(engine.recommend(request(n, history=history))) for n, history in given]
        await asyncio.sleep(0)
        scripted.away = True
        scripted.gate.set()
        await first
        found = await asyncio.gather(*batch, return_exceptions=True)
        assert [type(one) for one in found] == wanted
        assert scripted.batches == [[1], [n for n, _ in given], *asked]

    asyncio.run(scenario())


def test_a_swap_takes_effect_with_the_next_batch(engine: InProcessEngine) -> None:
    async def scenario() -> None:
        assert engine.versions is None
        with pytest.raises(UnavailableError, match="no bundle"):
            await engine.recommend(request(1))
        one, two = Scripted("one"), Scripted("two")
        first = await busy(engine, one)
        waiting = asyncio.create_task(engine.recommend(request(2)))
        await asyncio.sleep(0)
        engine.swap(two)
        one.gate.set()
        two.gate.set()
        answers = await asyncio.gather(first, waiting)
        assert [answer.bundle_version for answer in answers] == ["one", "two"]
        assert engine.versions == two.versions

    asyncio.run(scenario())


def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        engine = InProcessEngine(EngineMetrics(), queue_limit=4, batch_limit=3, torch_threads=1)
        scripted = Scripted()
        tasks = [await busy(engine, scripted), asyncio.create_task(engine.recommend(request(2)))]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="stopping"):
            await engine.recommend(request(3))
        scripted.gate.set()
        await closing
        assert [answer.catalog_version for answer in await asyncio.gather(*tasks)] == ["1", "2"]

    asyncio.run(scenario())


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(EngineMetrics(), queue_limit=8, batch_limit=3, torch_threads=1, clock=clock)
    yield engine
    engine.close()


def test_what_expires_in_the_queue_is_told_and_not_decoded(timed: InProcessEngine, clock: Clock) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(timed, scripted)
        late, early = (
            asyncio.create_task(timed.recommend(request(n, deadline=d))) for n, d in ((2, 101.0), (3, 105.0))
        )
        await asyncio.sleep(0)
        clock.now += 2
        scripted.gate.set()
        with pytest.raises(UnavailableError, match="passed while it waited"):
            await late
        await asyncio.gather(first, early)
        assert scripted.batches == [[1], [3]]

    asyncio.run(scenario())


def test_a_request_that_would_be_answered_too_late_is_refused_at_once(timed: InProcessEngine, clock: Clock) -> None:
    async def scenario() -> None:
        slow, following = Scripted(), Scripted()
        first = await busy(timed, slow)
        clock.now += 3  # what the first batch takes: the pace is now 3 seconds a request
        slow.gate.set()
        await first
        second = await busy(timed, following)  # done at 106, says the pace
        waiting = asyncio.create_task(timed.recommend(request(2, deadline=109.5)))  # answered at 109
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="before the request's deadline"):
            await timed.recommend(request(3, deadline=111.9))  # would be answered at 112
        admitted = asyncio.create_task(timed.recommend(request(4, deadline=112.1)))
        await asyncio.sleep(0)
        following.gate.set()
        await asyncio.gather(second, waiting, admitted)
        assert following.batches == [[1], [2, 4]]

    asyncio.run(scenario())


def test_a_queue_that_would_be_late_is_worked_off_with_the_small_beam(clock: Clock) -> None:
    engine = InProcessEngine(EngineMetrics(), queue_limit=8, batch_limit=3, torch_threads=1, small=True, clock=clock)

    async def scenario() -> list[list[bool]]:
        slow, following = Scripted(), Scripted()
        first = await busy(engine, slow)
        clock.now += 1  # the pace is now a second a request
        slow.gate.set()
        await first
        second = await busy(engine, following)
        waiting = [asyncio.create_task(engine.recommend(request(n, deadline=108.0))) for n in range(2, 7)]
        await asyncio.sleep(0)
        following.gate.set()
        await asyncio.gather(second, *waiting)
        assert following.batches == [[1], [2, 3, 4], [5, 6]]
        return following.small

    try:
        # Four seconds of work, at .8 s each after a quick batch, of the last's seven; then little is left.
        assert asyncio.run(scenario()) == [[False], [True] * 3, [False] * 2]
    finally:
        engine.close()


def test_an_idle_engine_tries_what_its_pace_forbids(timed: InProcessEngine, clock: Clock) -> None:
    async def scenario() -> None:
        scripted = Scripted()
        first = await busy(timed, scripted)
        clock.now += 60  # a moment in which the machine stood still
        scripted.gate.set()
        await first
        for _ in range(3):
            assert (await timed.recommend(request(2, deadline=clock.now + 1))).catalog_version == "2"

    asyncio.run(scenario())


def test_cancelled_requests_delay_nobody(timed: InProcessEngine, clock: Clock) -> None:
    async def scenario() -> None:
        slow, following = Scripted(), Scripted()
        first = await busy(timed, slow)
        clock.now += 3  # the pace is now 3 seconds a request
        slow.gate.set()
        await first
        second = await busy(timed, following)  # done at 106, says the pace
        gone = [asyncio.create_task(timed.recommend(request(n))) for n in (2, 3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        stays = asyncio.create_task(timed.recommend(request(4, deadline=109.5)))
        await asyncio.sleep(0)
        following.gate.set()
        await asyncio.gather(second, stays)
        assert following.batches == [[1], [4]]

    asyncio.run(scenario())


class Judging(Scripted):
    """Notes the times by which requests are judged."""

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        self.times = [request.time for request in requests]
        return super().recommend(requests)


def test_a_request_that_waited_is_judged_as_of_its_turn() -> None:
    now = [100.0]
    engine = InProcessEngine(EngineMetrics(), queue_limit=4, batch_limit=3, torch_threads=1, clock=lambda: now[0])

    async def scenario() -> list[int]:
        judging = Judging()
        first = await busy(engine, judging)
        second = asyncio.create_task(engine.recommend(request(2)))
        await asyncio.sleep(0)
        now[0] += 1.5
        judging.gate.set()
        await asyncio.gather(first, second)
        return judging.times

    assert asyncio.run(scenario()) == [1_500_000]
    engine.close()
