"""What is written down about finished requests besides their count: stages, slow ones, traces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from serving.timing import StageTimes, follow

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from starlette.types import Scope

    from serving.metrics import Metrics
    from serving.tracing import Span, Tracing

_PER_SECOND: Final = 10  # log lines about slow requests: overload must not fill the disk
_log = structlog.stdlib.get_logger(__name__)


class Watched:
    """One request under way.

    Attributes:
        times: of its stages.
        span: its trace; None where nothing is traced.
    """

    __slots__ = ("span", "times")

    def __init__(self, times: StageTimes, span: Span | None) -> None:
        self.times = times
        self.span = span


class RequestWatch:
    """Follows requests from their first byte to their last.

    Args:
        metrics: gets the seconds of the stages.
        slow: a request that takes longer is logged, ten a second at most.
        tracing: gets a span per request and stage; None where nothing is traced.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        slow: timedelta,
        tracing: Tracing | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._slow = slow.total_seconds()
        self._tracing = tracing
        self._clock = clock
        self._second, self._lines, self._omitted = -1, 0, 0

    def begin(self, scope: Scope, started: float) -> Watched:
        """A request has come; the running task serves it.

        Args:
            scope: of ASGI.
            started: on `time.perf_counter`.
        """
        times = StageTimes(started)
        span = None if self._tracing is None else self._tracing.begin(scope)
        if span is not None:
            times.traceparent = span.traceparent
        follow(times)
        return Watched(times, span)

    def end(self, watched: Watched, request_id: str, route: str, tier: str, status: int, seconds: float) -> None:
        """A request is over."""
        for stage in watched.times.stages:
            self._metrics.stages.labels(stage.name).observe(stage.seconds)
        if seconds > self._slow and self._may_log():
            _log.warning(
                "request_slow",
                request_id=request_id,
                route=route,
                tier=tier,
                status=status,
                milliseconds=round(seconds * 1e3, 3),
                stages=watched.times.milliseconds(),
                omitted=self._omitted,
            )
            self._omitted = 0
        if watched.span is not None:
            watched.span.end(request_id, route, tier, status, watched.times.stages)

    def _may_log(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= _PER_SECOND:
            return True
        self._omitted += 1
        return False
