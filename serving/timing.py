"""Where the time of one request goes, stage by stage.

The stages of a request are noted in the context of the task that serves it, so that a function is timed by one line
above it, whoever calls it. Outside a request nothing is noted.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from serving.engine import EngineAnswer

P = ParamSpec("P")
T = TypeVar("T")

VALIDATION: Final = "validation"
"""From the first byte to the route: body, JSON, fields."""

FEATURES: Final = "features"
"""The user's history."""

WAIT: Final = "wait"
"""For the engine: its queue, the way there and back, and other requests of the batch."""

ENGINE_STAGES: Final = ("filter", "decode", "slate")
"""What the engine says of itself, in the order of `EngineAnswer.times`."""

EXPOSURE: Final = "exposure"
"""Handing the exposure over, or waiting for the disk."""

STAGES: Final = (VALIDATION, FEATURES, WAIT, *ENGINE_STAGES, EXPOSURE)
"""All, in the order in which they happen."""


class Stage(NamedTuple):
    """Part of a request.

    Attributes:
        name: one of `STAGES`.
        began: seconds after the request.
        seconds: it took.
    """

    name: str
    began: float
    seconds: float


class StageTimes:
    """The stages of one request.

    Attributes:
        started: when the request came, on `time.perf_counter`.
        stages: in the order of their ends.
        traceparent: of the request's span, for those who are asked on its behalf; None where nothing is traced.
    """

    __slots__ = ("stages", "started", "traceparent")

    def __init__(self, started: float) -> None:
        self.started = started
        self.stages: list[Stage] = []
        self.traceparent: str | None = None

    def begin(self) -> float:
        """A stage begins; what was before the first one is `VALIDATION`."""
        now = time.perf_counter()
        if not self.stages:
            self.stages.append(Stage(VALIDATION, 0.0, now - self.started))
        return now

    def end(self, name: str, began: float) -> None:
        """A stage that began then has ended."""
        self.stages.append(Stage(name, began - self.started, time.perf_counter() - began))

    def end_engine(self, began: float, answer: EngineAnswer) -> None:
        """The engine has answered a question asked then; its parts are the end of that time, the rest is `WAIT`."""
        times = answer.times or ()
        waited = max(0.0, time.perf_counter() - began - sum(times))
        at = began - self.started
        for name, seconds in zip((WAIT, *ENGINE_STAGES), (waited, *times), strict=False):
            self.stages.append(Stage(name, at, seconds))
            at += seconds

    def milliseconds(self) -> dict[str, float]:
        """For a log line."""
        return {stage.name: round(stage.seconds * 1e3, 3) for stage in self.stages}


_current: ContextVar[StageTimes | None] = ContextVar("windfire_stages", default=None)


def follow(times: StageTimes) -> None:
    """Note the stages of the request that the running task serves."""
    _current.set(times)


def traceparent() -> str | None:
    """That of the request which the running task serves."""
    times = _current.get()
    return None if times is None else times.traceparent


def timed(name: str) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Let a coroutine function be a stage."""

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @wraps(function)
        async def measured(*arguments: P.args, **named: P.kwargs) -> T:
            times = _current.get()
            if times is None:
                return await function(*arguments, **named)
            began = times.begin()
            try:
                return await function(*arguments, **named)
            finally:
                times.end(name, began)

        return measured

    return decorate


def timed_engine(
    function: Callable[P, Awaitable[EngineAnswer]],
) -> Callable[P, Coroutine[Any, Any, EngineAnswer]]:
    """Let a coroutine function that asks the engine be its stages; where it fails, all of its time is `WAIT`."""

    @wraps(function)
    async def measured(*arguments: P.args, **named: P.kwargs) -> EngineAnswer:
        times = _current.get()
        if times is None:
            return await function(*arguments, **named)
        began = times.begin()
        try:
            answer = await function(*arguments, **named)
        except BaseException:
            times.end(WAIT, began)
            raise
        times.end_engine(began, answer)
        return answer

    return measured
