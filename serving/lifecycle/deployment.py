"""What the engine runs: the served bundle, perhaps a canary for some users, perhaps a shadow behind the scenes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from serving.lifecycle.arms import CANARY_ARM, EXPERIMENT, arm_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.bundle.pointers import Share
    from serving.engine import EngineAnswer, EngineRequest, EngineVersions, Recommender
    from serving.lifecycle.metrics import LifecycleMetrics
    from serving.lifecycle.recent import RecentRequests
    from serving.lifecycle.shadow import Shadow

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Canary:
    """A bundle and the users that it answers."""

    share: Share
    recommender: Recommender


class Deployment:
    """Answers each request from one bundle; never changes, an engine is given the next one.

    Args:
        main: answers whoever is in no canary.
        canary: answers its share of the users; None = there is none. Where it fails, the main one answers, and the
            assigned arm is named all the same.
        shadow: is told of some requests that the main one has answered.
        recent: keeps some requests for the next warm-up.
        metrics: counts arms.
    """

    def __init__(
        self,
        main: Recommender,
        *,
        canary: Canary | None = None,
        shadow: Shadow | None = None,
        recent: RecentRequests | None = None,
        metrics: LifecycleMetrics,
    ) -> None:
        self.main = main
        self.canary = canary
        self.shadow = shadow
        self._recent = recent
        self._metrics = metrics

    @property
    def versions(self) -> EngineVersions:
        """See `serving.engine.Recommender`."""
        if self.canary is None and self.shadow is None:
            return self.main.versions
        return msgspec.structs.replace(
            self.main.versions,
            canary=None if self.canary is None else self.canary.share.version,
            shadow=None if self.shadow is None else self.shadow.share.version,
            canary_share=None if self.canary is None else self.canary.share,
        )

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        """See `serving.engine.Recommender`."""
        if self._recent is not None:
            self._recent.note(requests)
        if self.canary is None:
            return self._answered(requests)
        arms = [arm_of(self.canary.share, each.unit) for each in requests]
        chosen = [arm == CANARY_ARM for arm in arms]
        control = [each for each, taken in zip(requests, chosen, strict=True) if not taken]
        taken = [each for each, taken in zip(requests, chosen, strict=True) if taken]
        ours = iter(self._answered(control) if control else ())
        theirs = iter(self._by_canary(self.canary, taken) if taken else ())
        return [self._assigned(next(theirs if arm == CANARY_ARM else ours), arm) for arm in arms]

    def _answered(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        started = time.perf_counter()
        answers = self.main.recommend(requests)
        if self.shadow is not None:
            self.shadow.offer(requests, answers, time.perf_counter() - started)
        return answers

    def _by_canary(self, canary: Canary, requests: list[EngineRequest]) -> list[EngineAnswer]:
        try:
            return canary.recommender.recommend(requests)
        except Exception:  # noqa: BLE001 - whatever the bundle under trial raises, its users are answered
            _log.exception("canary_failed", version=canary.share.version, requests=len(requests))
            self._metrics.canary_failures.inc(len(requests))
        return self.main.recommend(requests)

    def _assigned(self, answer: EngineAnswer, arm: str | None) -> EngineAnswer:
        if arm is None:
            return answer
        self._metrics.arms.labels(arm).inc()
        return msgspec.structs.replace(answer, arms={**answer.arms, EXPERIMENT: arm})
