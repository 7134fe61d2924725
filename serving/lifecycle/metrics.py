"""Counters of canary and shadow, beside the engine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.worker_values import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from serving.worker_values import Registry

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class LifecycleMetrics:
    """What happens beside the bundle that is served.

    Attributes:
        beside: 1 for a bundle that runs as canary or shadow.
        arms: answers by assigned arm, while a canary runs.
        canary_failures: batches that the canary could not answer; the served bundle did.
        shadow: sampled requests by what became of them.
        shadow_seconds: of one answer of the shadow.

    Args:
        registry: of the engine's counters.
    """

    def __init__(self, registry: Registry) -> None:
        self.beside = Gauge(
            "windfire_bundle_beside", "1 for a bundle beside the served one.", ["role", "version"], registry=registry
        )
        self.arms = Counter("windfire_arm_answers", "Answers while a canary runs.", ["arm"], registry=registry)
        self.canary_failures = Counter(
            "windfire_canary_failures", "Requests that the canary could not answer.", registry=registry
        )
        self.shadow = Counter("windfire_shadow", "Requests sampled for the shadow.", ["result"], registry=registry)
        self.shadow_seconds = Histogram(
            "windfire_shadow_seconds", "Seconds per answer of the shadow.", buckets=_SECONDS, registry=registry
        )
