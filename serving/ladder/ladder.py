"""From the best answer that can be made in time down to one that always can.

The engine answers (nezha, nezha_small) unless it is away, fails, or has too much to do; then the user's last answer
(cached), items like the history's (item_to_item), what is popular in the scene (popular_scene) and the most popular
items in memory (popular_memory) take its place. Each is filtered by what is known when it is made.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import structlog

from feature_store.reading import Reason, Status, missing
from recsys.errors import InputError, OverloadedError, UnavailableError
from serving.engine import after_waiting
from serving.ladder.breaker import Breaker
from serving.ladder.cache import AnswerCache
from serving.ladder.fallback import Fallback
from serving.ladder.limit import ConcurrencyLimit
from serving.lifecycle.arms import LastAssignment
from serving.schemas import ServedBy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feature_store.reading import Reading
    from serving.engine import Engine, EngineAnswer, EngineRequest, SlateItem
    from serving.ladder.deadline import Deadline
    from serving.ladder.door import Door
    from serving.ladder.metrics import LadderMetrics
    from serving.settings import Settings

_FIRST_LIMIT: Final = 32  # engine calls at once, before anything is known of their latency
_LATE: Final = 0.4  # of the deadline; an engine that needs longer is asked by fewer
_FAIR: Final = 0.5  # of the deadline; an engine that was given less says nothing by failing to answer
_BY_MODEL: Final = frozenset({ServedBy.NEZHA, ServedBy.NEZHA_SMALL})
_OUTAGES: Final = frozenset({Reason.DEADLINE, Reason.UNAVAILABLE})
_NO_HISTORY: Final = frozenset(str(reason.value) for reason in _OUTAGES)
_log = structlog.stdlib.get_logger(__name__)


class ReadsHistories(Protocol):
    """What the ladder needs of `serving.histories.Histories`."""

    @property
    def deadline(self) -> float:
        """Seconds that a read may take."""

    async def of(self, user_id: str, within: float = ...) -> Reading:
        """What the store says of a user, within so many seconds."""


class Unanswered(NamedTuple):
    """The engine did not answer.

    Attributes:
        reason: a word for the metric.
        error: what happened.
    """

    reason: str
    error: Exception


class Ladder:
    """Answers recommendations by the best tier that can, and asks the indexes for similar items.

    Args:
        settings: deadlines, minima, limits.
        metrics: counts tiers and reasons.
        engine: the upper tiers.
        histories: of users.
        fallback: the lower tiers.
        door: knows when more come than can be answered; the lowest tier answers for the engine then. None = never.
        clock: monotonic seconds, those of the deadlines.

    Attributes:
        cache: the last answers.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: LadderMetrics,
        engine: Engine,
        histories: ReadsHistories,
        fallback: Fallback,
        door: Door | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._engine, self._histories, self._clock = metrics, engine, histories, clock
        self._fallback, self._door = fallback, door
        self._assignment = LastAssignment()
        self._engine_minimum = settings.engine_minimum.total_seconds()
        self._history_minimum = settings.history_minimum.total_seconds()
        self._fair = settings.deadline.total_seconds() * _FAIR
        self._most, self._answering = settings.request_limit, 0
        self._engine_breaker = self._breaker("engine", settings)
        self._history_breaker = self._breaker("history", settings)
        self._limit = ConcurrencyLimit(
            most=settings.engine_calls,
            first=_FIRST_LIMIT,
            target=settings.deadline.total_seconds() * _LATE,
            clock=clock,
        )
        self.cache = AnswerCache(
            most=settings.cache_answers,
            age=settings.cache_age.total_seconds(),
            fresh=settings.cache_fresh.total_seconds(),
            clock=clock,
        )
        metrics.engine_limit.set_function(lambda: self._limit.limit)
        metrics.answering.set_function(lambda: self._answering)
        metrics.kept.set_function(lambda: len(self.cache))

    @property
    def turn(self) -> float:
        """Seconds of one turn of the event loop."""
        return 0.0 if self._door is None else self._door.turn

    @property
    def has_tables(self) -> bool:
        """Whether recommendations can be answered while the engine is away."""
        return self._fallback.loaded is not None

    async def recommend(
        self,
        request: EngineRequest,
        deadline: Deadline,
        *,
        user_id: str | None = None,
        history_missing: str | None = None,
    ) -> EngineAnswer:
        """Answer by the best tier that can.

        Args:
            request: asks no index; its deadline is that of the engine.
            deadline: of the answer.
            user_id: whose answers are kept; None = nobody's.
            history_missing: why there is no stored history, as in the answer.

        Raises:
            OverloadedError: more requests are being answered than may be.
            UnavailableError: the engine does not answer, and no bundle was ever opened here.
        """
        self._enter()
        try:
            return await self._answered(request, deadline, user_id, history_missing)
        finally:
            self._answering -= 1

    async def seek(self, request: EngineRequest) -> EngineAnswer:
        """Ask the engine's indexes; there is no other tier.

        Raises:
            OverloadedError: more requests are being answered than may be.
            UnavailableError: the engine does not answer in time.
            Exception: what the engine raised.
        """
        self._enter()
        try:
            answer = await self._asked(request)
        finally:
            self._answering -= 1
        if isinstance(answer, Unanswered):
            raise answer.error
        return answer

    async def history(self, user_id: str, deadline: Deadline) -> Reading:
        """What the store says of a user; MISSING where it fails all the time, or where there is no time to ask it."""
        left = deadline.engine - self._engine_minimum - self._clock()
        if left < self._history_minimum:
            self._metrics.skipped.labels("history", "no_time").inc()
            return missing(Reason.DEADLINE)
        entered = self._history_breaker.enter()
        if not entered:
            self._metrics.skipped.labels("history", "breaker").inc()
            return missing(Reason.UNAVAILABLE)
        well: bool | None = None
        try:
            reading = await self._histories.of(user_id, within=left)
            if reading.status is not Status.MISSING or reading.reason not in _OUTAGES:
                well = True
            elif reading.reason is Reason.UNAVAILABLE or left >= self._histories.deadline:
                well = False
        finally:
            self._history_breaker.leave(entered, well)
        return reading

    def forget(self, user_id: str) -> int:
        """Drop what is kept of a user; how many answers that were. On the event loop only."""
        return self.cache.forget(user_id)

    @property
    def _late(self) -> bool:
        return self._door is not None and self._door.standing

    def _enter(self) -> None:
        if self._answering >= self._most:
            self._metrics.refused.inc()
            raise OverloadedError("too many requests are being answered")
        self._answering += 1

    async def _answered(
        self, request: EngineRequest, deadline: Deadline, user_id: str | None, history_missing: str | None
    ) -> EngineAnswer:
        cache, below, fingerprint = self.cache, self.has_tables, None
        versions = self._engine.versions
        arms = self._assignment.arms(versions, request.unit)
        if user_id is not None and below:
            if versions is not None and cache.answers_again:
                fingerprint = cache.fingerprint(request, versions)
                fresh = cache.again(user_id, request.scene, fingerprint)
                if fresh is not None and (again := await self._once_more(request, deadline, fresh, arms)) is not None:
                    return again
            if history_missing in _NO_HISTORY and (last := cache.last(user_id, request.scene)):
                return await self._below(request, deadline, "no_history", last, arms)
        answer = await self._asked(request)
        if not isinstance(answer, Unanswered):
            if user_id is not None and answer.served_by in _BY_MODEL and not request.shown:  # a first page
                cache.put(user_id, request.scene, answer, fingerprint, deadline.began)
            return answer
        if not below:
            raise answer.error
        if answer.reason == "fault":
            _log.error("engine_failed", exc_info=answer.error)
        kept = None if user_id is None else cache.last(user_id, request.scene)
        return await self._below(request, deadline, answer.reason, kept or (), arms)

    async def _once_more(
        self, request: EngineRequest, deadline: Deadline, fresh: Sequence[SlateItem], arms: dict[str, str]
    ) -> EngineAnswer | None:
        """The answer to the same question, unless something of it may not be shown any more."""
        answer = await self._by_tables(request, deadline, fresh, arms, until=deadline.engine)
        if [item.item_id for item in answer.items] != [item.item_id for item in fresh]:
            return None
        self._metrics.fallbacks.labels(answer.served_by.value, "fresh").inc()
        return answer

    async def _below(
        self,
        request: EngineRequest,
        deadline: Deadline,
        reason: str,
        kept: Sequence[SlateItem],
        arms: dict[str, str],
    ) -> EngineAnswer:
        until = -math.inf if self._late else deadline.tables  # there is no time for the tables
        answer = await self._by_tables(request, deadline, kept, arms, until=until)
        self._metrics.fallbacks.labels(answer.served_by.value, reason).inc()
        return answer

    async def _by_tables(
        self,
        request: EngineRequest,
        deadline: Deadline,
        kept: Sequence[SlateItem],
        arms: dict[str, str],
        *,
        until: float,
    ) -> EngineAnswer:
        """An answer without the engine, of what may be shown now rather than when the request came."""
        now = after_waiting(request, self._clock() - deadline.began)
        answer = await self._fallback.answer(now, kept, until=until)
        return msgspec.structs.replace(answer, arms=arms)

    async def _asked(self, request: EngineRequest) -> EngineAnswer | Unanswered:
        """The engine's answer, if it may be asked and gives one in time."""
        if self.has_tables and self._engine.versions is None:
            return Unanswered("not_loaded", UnavailableError("no bundle is loaded, or the engine cannot be reached"))
        began = self._clock()
        left = (request.deadline or 0.0) - began
        if left < self._engine_minimum:
            return self._skipped("no_time", "the request's deadline leaves no time for the model")
        entered = self._engine_breaker.enter()
        if not entered:
            return self._skipped("breaker", "the model has failed again and again")
        if not self._limit.enter():
            self._engine_breaker.leave(entered, None)
            return self._skipped("limit", "too many requests are at the model")
        well: bool | None = None  # of the engine
        in_time: bool | None = None  # of its queue
        try:
            async with asyncio.timeout(left):
                answer = await self._engine.recommend(request)
        except TimeoutError:
            if left >= self._fair:
                in_time = False
                well = None if self._late else False  # the answer may be there, and nobody had the time to read it
            return Unanswered("timeout", UnavailableError("the model did not answer in time"))
        except OverloadedError as error:
            well, in_time = True, False if left >= self._fair else None
            return Unanswered("overloaded", error)
        except UnavailableError as error:
            well = False
            return Unanswered("unavailable", error)
        except InputError as error:  # too large to travel: the request's fault
            return Unanswered("fault", error)
        except Exception as error:  # noqa: BLE001 - whatever a model does, the other tiers answer
            well = False
            return Unanswered("fault", error)
        else:
            well = in_time = True
            return answer
        finally:
            self._limit.leave(began, in_time)
            self._engine_breaker.leave(entered, well)

    def _skipped(self, reason: str, message: str) -> Unanswered:
        self._metrics.skipped.labels("engine", reason).inc()
        return Unanswered(reason, OverloadedError(message))

    def _breaker(self, dependency: str, settings: Settings) -> Breaker:
        gauge = self._metrics.breakers.labels(dependency)
        return Breaker(
            failures=settings.breaker_failures,
            pause=settings.breaker_pause.total_seconds(),
            changed=gauge.set,
            clock=self._clock,
        )
