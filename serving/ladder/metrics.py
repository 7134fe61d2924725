"""What the ladder counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.worker_values import Counter, Gauge

if TYPE_CHECKING:
    from serving.worker_values import Registry


class LadderMetrics:
    """Counters of the front-end; docs/operating.md explains each.

    Attributes:
        fallbacks: answers that the engine did not make, by tier and why.
        breakers: state of each breaker, see `serving.ladder.breaker.State`.
        skipped: calls that a breaker or the lack of time spared, by dependency and why.
        engine_limit: engine calls that may be under way.
        answering: requests that are being answered.
        refused: requests beyond what may be answered at once, or can be in time.
        kept: answers in the cache.
    """

    def __init__(self, registry: Registry) -> None:
        self.fallbacks = Counter(
            "windfire_fallback", "Answers made without the engine.", ["tier", "reason"], registry=registry
        )
        self.breakers = Gauge(
            "windfire_breaker_state", "0 closed, 1 half-open, 2 open.", ["dependency"], registry=registry
        )
        self.skipped = Counter(
            "windfire_skipped_calls", "Calls that were not made.", ["dependency", "reason"], registry=registry
        )
        self.engine_limit = Gauge("windfire_engine_limit", "Engine calls allowed at once.", registry=registry)
        self.answering = Gauge("windfire_requests_answering", "Requests being answered.", registry=registry)
        self.refused = Counter(
            "windfire_requests_refused", "Requests that were refused for their number.", registry=registry
        )
        self.kept = Gauge("windfire_cache_answers", "Answers that are kept.", registry=registry)
