"""From a request to a slate: sources, eligibility, order, and a last independent look.

The sources stand in a fixed order (decoder, item-to-item, popular in the scene, everything else) and each fills only
the places that the ones before it left open. Eligibility is applied behind every source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.bundle.bundle import ALL_SCENES
from recsys.decoding.eligibility import Eligibility
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.recheck import SlateCheck
from serving.schemas import MAX_HISTORY, ServedBy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.decoding.decoder import Decoder, Ranked

    Items = npt.NDArray[np.int32]

_RECENT: Final = 20  # history items whose neighbours are read
_FADING: Final = 0.8  # weight of a history item over that of its successor
_BLOCK: Final = 4_096  # items of a popularity list that are looked at in one go


@dataclass(slots=True)
class Slate:
    """The places of one answer, filled source by source.

    Attributes:
        size: places.
        shared: (I,) bool, None = every item may be shown.
        excluded: items that may not be shown besides.
        items: chosen so far.
        scores: theirs.
        sources: theirs.
    """

    size: int
    shared: npt.NDArray[np.bool_] | None
    excluded: Items
    items: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    @property
    def open(self) -> int:
        """Places still empty."""
        return self.size - len(self.items)

    def add(self, items: Items, scores: npt.NDArray[np.floating], source: str) -> None:
        """Fill open places with the eligible items of a source, in its order.

        Args:
            items: (m,) without repetition, best first.
            scores: (m,) non-increasing.
            source: its name.
        """
        allowed = ~np.isin(items, self.excluded) & ~np.isin(items, self.items)
        if self.shared is not None:
            allowed &= self.shared[items]
        chosen = np.flatnonzero(allowed)[: self.open]
        self.items += items[chosen].tolist()
        self.scores += scores[chosen].tolist()
        self.sources += [source] * len(chosen)

    def complete(self) -> bool:
        """Whether no source could add anything: no place is open or no eligible item is left."""
        if not self.open:
            return True
        if self.shared is None:
            return False  # then the catalog is either large enough or quickly walked through
        eligible = int(np.count_nonzero(self.shared)) - int(self.shared[np.unique(self.excluded)].sum())
        return len(self.items) >= eligible


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request in item indices."""

    request: EngineRequest
    history: Items
    slate: Slate
    counts: EngineCounts


class BundleRecommender:
    """Answers from one bundle.

    Args:
        bundle: opened.
        decoder: of the bundle's model.
        beam: prefixes kept per level; more where a request asks for more items.
    """

    def __init__(self, bundle: Bundle, decoder: Decoder, *, beam: int) -> None:
        self._bundle = bundle
        self._decoder = decoder
        self._beam = beam
        self._check = SlateCheck(bundle.items)
        self._everything = _everything(bundle)
        self._versions = EngineVersions(bundle.manifest.version, bundle.manifest.catalog_version, decoder.name)

    @property
    def versions(self) -> EngineVersions:
        """See `serving.engine.Recommender`."""
        return self._versions

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        """See `serving.engine.Recommender`."""
        plans = [self._plan(request) for request in requests]
        groups: dict[tuple[int, int], list[_Plan]] = {}
        for plan in plans:
            if len(plan.history):
                # The decoder takes one bitset per batch; k is shared so that a batch never changes an answer.
                groups.setdefault((id(plan.slate.shared), plan.request.n), []).append(plan)
        for group in groups.values():
            for plan, ranked in zip(group, self._decode(group), strict=True):
                plan.slate.add(ranked.items, ranked.scores, self._decoder.name)
        return [self._finish(plan) for plan in plans]

    def _plan(self, request: EngineRequest) -> _Plan:
        catalog = self._bundle.catalog
        found = catalog.index.lookup(request.history)
        known = found[found >= 0]
        denied = catalog.index.lookup(request.deny)
        excluded = [denied[denied >= 0], *([known] if request.exclude_seen else [])]
        shared = catalog.eligible(request.conditions, request.time)
        unknown = int((denied < 0).sum())
        if request.allow is not None:
            allowed = catalog.index.lookup(request.allow)
            only = np.zeros(len(catalog), dtype=np.bool_)
            only[allowed[allowed >= 0]] = True
            shared = only if shared is None else shared & only
            unknown += int((allowed < 0).sum())
        counts = EngineCounts(
            history=len(found),
            history_unknown=len(found) - len(known),
            history_cut=max(0, len(known) - MAX_HISTORY),
            filter_unknown=unknown,
        )
        slate = Slate(request.n, shared, np.concatenate(excluded))
        return _Plan(request, known[-MAX_HISTORY:], slate, counts)

    def _decode(self, group: list[_Plan]) -> list[Ranked]:
        n = group[0].request.n
        eligibility = Eligibility(group[0].slate.shared, [plan.slate.excluded for plan in group])
        histories = [plan.history for plan in group]
        return self._decoder.decode(histories, k=n, beam=max(self._beam, n), eligibility=eligibility).ranked

    def _fill(self, plan: _Plan) -> None:
        """Let the sources behind the decoder fill what is open."""
        slate, popularity = plan.slate, self._bundle.popularity
        if len(plan.history) and not slate.complete():
            slate.add(*self._neighbours(plan.history), ServedBy.ITEM_TO_ITEM)
        ranking = popularity.get(plan.request.scene or ALL_SCENES)
        if ranking is not None and not slate.complete():
            _add_ranking(slate, ranking, ServedBy.POPULAR_SCENE)
        if not slate.complete():
            _add_ranking(slate, self._everything, ServedBy.POPULAR_MEMORY)

    def _neighbours(self, history: Items) -> tuple[Items, npt.NDArray[np.float64]]:
        """Items that are seen together with the newest of a history, weighted by recency, best first."""
        lists = [self._bundle.item_to_item.of(item) for item in history[::-1][:_RECENT].tolist()]
        items = np.concatenate([neighbours for neighbours, _ in lists])
        weighted = np.concatenate([scores * _FADING**age for age, (_, scores) in enumerate(lists)])
        unique, place = np.unique(items, return_inverse=True)
        scores = np.bincount(place, weights=weighted, minlength=len(unique)).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        return unique[order].astype(np.int32), scores[order]

    def _finish(self, plan: _Plan) -> EngineAnswer:
        self._fill(plan)
        slate, request = plan.slate, plan.request
        rows = self._check.rows(request, slate.items)
        ranked = zip(rows, slate.scores, slate.sources, strict=True)
        items = [SlateItem(row.item_id, score, source, row.title) for row, score, source in ranked if row.eligible]
        return EngineAnswer(
            items=items,
            served_by=self._tier(plan),
            decoder=self._decoder.name if len(plan.history) else None,
            bundle_version=self._versions.bundle,
            catalog_version=self._versions.catalog,
            truncated=len(items) < request.n,
            counts=plan.counts,
            ineligible=len(rows) - len(items),
        )

    def _tier(self, plan: _Plan) -> ServedBy:
        """The tier of the first item; of an empty slate, the tier that was asked first."""
        first = next(iter(plan.slate.sources), None)
        if first is None:
            return ServedBy.NEZHA if len(plan.history) else ServedBy.POPULAR_MEMORY
        return ServedBy.NEZHA if first == self._decoder.name else ServedBy(first)


def _add_ranking(slate: Slate, ranking: Items, source: str) -> None:
    """Walk down a popularity list, block by block, until the slate is full; scores are 1 / (1 + rank)."""
    for start in takewhile(lambda _: slate.open, range(0, len(ranking), _BLOCK)):
        block = ranking[start : start + _BLOCK]
        slate.add(block, 1.0 / np.arange(start + 1, start + 1 + len(block)), source)


def _everything(bundle: Bundle) -> Items:
    """(I,) every item: by popularity over all scenes, then those without an interaction by index."""
    popular = bundle.popularity[ALL_SCENES]
    rest = np.ones(bundle.manifest.items, dtype=np.bool_)
    rest[popular] = False
    return np.concatenate([popular, np.flatnonzero(rest).astype(np.int32)])
