"""A new bundle answers recorded requests before anybody sees it, and its answers are looked at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import DataError
from serving.engine import EngineRequest, Seek

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from serving.engine import EngineAnswer
    from serving.stages import BundleRecommender

_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What was tried.

    Attributes:
        answered: recorded requests that were answered.
        left_out: those for which no time was left.
    """

    answered: int
    left_out: int


def smoke(recommender: BundleRecommender, history: Sequence[str]) -> None:
    """Ask for a recommendation, for somebody unknown, and for what the indexes hold.

    Raises:
        DataError: an answer is not fit to be shown; see `fault`.
    """
    now = time.time_ns() // 1_000
    asked = [EngineRequest(history=history, n=10, time=now), EngineRequest(history=(), n=10, time=now)]
    sought = (*(Seek(item_id=item) for item in history[:1]), Seek(text="anything"))
    _check(recommender, asked, recommender.recommend(asked))
    recommender.recommend([EngineRequest(history=history, n=10, time=now, seek=seek) for seek in sought])


def warm_up(
    recommender: BundleRecommender,
    requests: Sequence[EngineRequest],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> WarmUp:
    """Answer requests in batches as long as the time lasts, and look at every answer.

    Args:
        recommender: loaded, not yet in use.
        requests: recorded ones.
        seconds: no batch begins later than this.
        clock: monotonic seconds.

    Raises:
        DataError: an answer is not fit to be shown; see `fault`.
    """
    end = clock() + seconds
    answered = 0
    while answered < len(requests) and clock() < end:
        batch = requests[answered : answered + _BATCH]
        _check(recommender, batch, recommender.recommend(batch))
        answered += len(batch)
    return WarmUp(answered, len(requests) - answered)


def fault(recommender: BundleRecommender, request: EngineRequest, answer: EngineAnswer) -> str | None:
    """What is wrong with an answer; None = nothing.

    It must come from this bundle, hold at most n items, each once, each known, none seen or caught by the last look,
    with finite scores, and it must not be empty where an item may be shown.
    """
    shown = [item.item_id for item in answer.items]
    seen = set(request.history) if request.exclude_seen else set()
    found = {
        "it names another bundle": answer.bundle_version != recommender.versions.bundle,
        "too many items": len(shown) > request.n,
        "an item stands twice": len(set(shown)) < len(shown),
        "a score is no number": not all(isfinite(item.score) for item in answer.items),
        "an item may not be shown": answer.ineligible > 0 or not seen.isdisjoint(shown),
        "an item is not in the catalogue": bool((recommender.items.rows.lookup(shown) < 0).any()),
        "it is empty": not shown and _may_show(recommender, request),
    }
    return next((name for name, true in found.items() if true), None)


def _check(recommender: BundleRecommender, requests: Sequence[EngineRequest], answers: Sequence[EngineAnswer]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        wrong = fault(recommender, request, answer)
        if wrong is not None:
            raise DataError(
                f"the bundle answers wrongly before it is put in: {wrong} ({len(request.history)} items of history, "
                f"n {request.n}, scene {request.scene})",
                field="version",
                value=recommender.versions.bundle,
                remedy="train and publish again; the bundle before answers on",
            )


def _may_show(recommender: BundleRecommender, request: EngineRequest) -> bool:
    """Whether an item is left for a request: looked up without the code that makes slates."""
    items = recommender.items
    eligible = items.shared(request.conditions, request.time).items
    left = np.ones(len(items.rows), dtype=np.bool_) if eligible is None else eligible.copy()
    if request.exclude_seen:
        seen = items.rows.lookup(request.history)
        left[seen[seen >= 0]] = False
    return bool(left.any())
