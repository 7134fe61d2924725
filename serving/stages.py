"""From a request to a slate: sources, eligibility, order, and a last independent look.

The sources stand in a fixed order (decoder, item-to-item, the indexes, popular in the scene, everything else) and each
fills only the places that the ones before it left open. Eligibility is applied behind every source.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from recsys.bundle.bundle import ALL_SCENES
from recsys.catalog.live_rows import NO_ITEMS
from serving.arranging import arranged, opened
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.live_items import LiveItems, Shared
from serving.recheck import SlateCheck
from serving.schemas import MAX_HISTORY, ServedBy
from serving.seeking import fill_from_history, fill_from_indexes, without_itself

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.catalog.log import CatalogLog
    from recsys.decoding.added import ColdPrior
    from recsys.decoding.decoder import Decoder, Ranked
    from recsys.retrieval.folder import Retrieval
    from serving.engine import Refusal
    from serving.slate import Slate

    Items = npt.NDArray[np.int32]

_RECENT: Final = 20  # history items whose neighbours are read
_FADING: Final = 0.8  # weight of a history item over that of its successor
_BLOCK: Final = 4_096  # items of a popularity list that are looked at in one go


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request in item indices."""

    request: EngineRequest
    history: Items
    shared: Shared
    slate: Slate
    counts: EngineCounts


class BundleRecommender:
    """Answers from one bundle.

    Args:
        bundle: opened.
        decoder: of the bundle's model; None = the sources behind it answer, without torch and the trie.
        beam: prefixes kept per level; more where a request asks for more items.
        small_beam: the same for requests that are to be answered with less work.
        retrieval: the bundle's indexes; None = what is asked of them is refused, and they are no source.
        log: of the catalogue; None where nothing changes.
        cold: the declared prior of new items.

    Attributes:
        items: the bundle's, as they are now.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder | None,
        *,
        beam: int,
        small_beam: int | None = None,
        retrieval: Retrieval | None = None,
        log: CatalogLog | None = None,
        cold: ColdPrior | None = None,
    ) -> None:
        self._bundle = bundle
        self._decoder = decoder
        self._retrieval = retrieval
        self._beam, self._small_beam = beam, beam if small_beam is None else small_beam
        self.items = LiveItems(bundle, decoder, retrieval, log, cold)
        self._check = SlateCheck(bundle.shown, self.items.rows.row)
        self._everything = _everything(bundle)

    @property
    def everything(self) -> Items:
        """(I,) every item of the snapshot, the popular ones first."""
        return self._everything

    @property
    def versions(self) -> EngineVersions:
        """See `serving.engine.Recommender`."""
        decoder = self._decoder.name if self._decoder else ""
        return EngineVersions(self._bundle.manifest.version, self.items.version, decoder)

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        """See `serving.engine.Recommender`; what the catalogue log holds when it is called is known.

        A log that cannot be read stops nobody: what was read of it holds on.
        """
        with self.items.guard:
            self.items.try_to_follow()
            return self._recommend(requests)

    def without_model(self, request: EngineRequest, kept: Sequence[SlateItem] = ()) -> EngineAnswer:
        """Answer without decoder and indexes; of the request's layout the caps are kept, diversity is not.

        Args:
            request: asks no index.
            kept: items of an earlier answer, best first; those that this request may be shown now come first.
        """
        with self.items.guard:
            self.items.try_to_follow()
            plan = self._plan(replace(request, layout=msgspec.structs.replace(request.layout, diversity=0.0)))
            if kept:
                found = self.items.rows.lookup([item.item_id for item in kept])
                known = found >= 0
                plan.slate.add(found[known], np.array([item.score for item in kept])[known], ServedBy.CACHED)
            return self._finish(plan)

    def _recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        began = time.perf_counter()
        plans = [self._plan(without_itself(request)) for request in requests]
        groups: dict[tuple[int, int, bool, bool], list[_Plan]] = {}
        for plan in plans:
            if len(plan.history) and plan.request.seek is None:
                # The decoder takes one bitset per batch; k is shared so that a batch never changes an answer. A history
                # with a new item is read another way: it stays among its like.
                request = plan.request
                key = id(plan.slate.shared), _asked(request), self.items.newer(plan.history), request.small
                groups.setdefault(key, []).append(plan)
        planned = time.perf_counter()
        if self._decoder is not None:
            for group in groups.values():
                for plan, ranked in zip(group, self._decode(self._decoder, group), strict=True):
                    plan.slate.add(ranked.items, ranked.scores, self._decoder.name)
        decoded = time.perf_counter()
        answers = [self._finish(plan) if plan.request.seek is None else self._sought(plan) for plan in plans]
        times = planned - began, decoded - planned, time.perf_counter() - decoded
        return [msgspec.structs.replace(answer, times=times) for answer in answers]

    def _plan(self, request: EngineRequest) -> _Plan:
        rows = self.items.rows
        known, denied, shown = (rows.found(ids) for ids in (request.history, request.deny, request.shown))
        excluded = _joined(denied, shown, known if request.exclude_seen else NO_ITEMS)
        shared = self.items.shared(request.conditions, request.time)
        unknown = len(request.deny) - len(denied)
        if request.allow is not None:
            allowed = rows.lookup(request.allow)
            only = np.zeros(len(rows), dtype=np.bool_)
            only[allowed[allowed >= 0]] = True
            shared = Shared(only if shared.items is None else shared.items & only, whole=False)
            unknown += int((allowed < 0).sum())
        counts = EngineCounts(
            history=len(request.history),
            history_unknown=len(request.history) - len(known),
            history_cut=max(0, len(known) - MAX_HISTORY),
            filter_unknown=unknown,
        )
        slate = opened(request, shared.items, excluded, self.items)
        return _Plan(request, self.items.readable(known[-MAX_HISTORY:]), shared, slate, counts)

    def _decode(self, decoder: Decoder, group: list[_Plan]) -> list[Ranked]:
        n = _asked(group[0].request)
        eligibility = self.items.eligibility(group[0].shared, [plan.slate.excluded for plan in group])
        histories = [plan.history for plan in group]
        beam = self._small_beam if group[0].request.small else self._beam
        return decoder.decode(histories, k=n, beam=max(beam, n), eligibility=eligibility).ranked

    def _fill(self, plan: _Plan) -> None:
        """Let the sources behind the decoder fill what is open."""
        slate, popularity = plan.slate, self._bundle.popularity
        if len(plan.history) and not slate.complete():
            slate.add(*self._neighbours(plan.history), ServedBy.ITEM_TO_ITEM)
        if len(plan.history) and self._retrieval is not None and not slate.complete():
            fill_from_history(slate, plan.history, self._retrieval, items=len(self.items.rows))
        ranking = popularity.get(plan.request.scene or ALL_SCENES)
        if ranking is not None and not slate.complete():
            _add_ranking(slate, ranking, ServedBy.POPULAR_SCENE)
        if not slate.complete():
            _add_ranking(slate, self._everything, ServedBy.POPULAR_MEMORY)
        if self.items.rows.added and not slate.complete():
            first = self._bundle.manifest.items
            newer = np.arange(first, first + self.items.rows.added, dtype=np.int32)
            _add_ranking(slate, newer, ServedBy.POPULAR_MEMORY, behind=first)

    def _neighbours(self, history: Items) -> tuple[Items, npt.NDArray[np.float64]]:
        """Items that are seen together with the newest of a history, weighted by recency, best first."""
        known = history[history < self._bundle.manifest.items]
        if not len(known):
            return known, np.empty(0)
        lists = [self._bundle.item_to_item.of(item) for item in known[::-1][:_RECENT].tolist()]
        items = np.concatenate([neighbours for neighbours, _ in lists])
        weighted = np.concatenate([scores * _FADING**age for age, (_, scores) in enumerate(lists)])
        unique, place = np.unique(items, return_inverse=True)
        scores = np.bincount(place, weights=weighted, minlength=len(unique)).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        return unique[order].astype(np.int32), scores[order]

    def _finish(self, plan: _Plan) -> EngineAnswer:
        self._fill(plan)
        if plan.request.layout.diversity:
            plan = replace(plan, slate=arranged(plan.slate, plan.request, self._bundle, self.items))
            self._fill(plan)  # the caps may have passed over too many
        decoder = self._decoder.name if self._decoder and len(plan.history) else None
        return self._answer(plan, self._tier(plan), decoder)

    def _sought(self, plan: _Plan) -> EngineAnswer:
        """The answer to a request that asks the indexes."""
        seek = plan.request.seek
        refusal = None
        if seek is not None:
            row = -1 if seek.item_id is None else int(self.items.rows.lookup([seek.item_id])[0])
            row = -1 if self.items.deleted(row) else row
            refusal = fill_from_indexes(plan.slate, seek, row, self._retrieval, items=len(self.items.rows))
        return self._answer(plan, ServedBy.INDEX, None, refusal)

    def _answer(
        self, plan: _Plan, served_by: ServedBy, decoder: str | None, refusal: Refusal | None = None
    ) -> EngineAnswer:
        slate, request = plan.slate, plan.request
        rows = self._check.rows(request, slate.items)
        ranked = zip(rows, slate.scores, slate.sources, strict=True)
        items = [SlateItem(row.item_id, score, source, row.title) for row, score, source in ranked if row.eligible]
        return EngineAnswer(
            items=items,
            served_by=served_by,
            decoder=decoder,
            bundle_version=self._bundle.manifest.version,
            catalog_version=self.items.version,
            truncated=len(items) < request.n,
            counts=plan.counts,
            ineligible=len(rows) - len(items),
            refusal=refusal,
            more=request.seek is None and self._leaves_any(slate),
        )

    def _leaves_any(self, slate: Slate) -> bool:
        """Whether a next page would have an item; a slate that is not full had all that the sources have."""
        full = not slate.open
        return (full or slate.caps is not None) and slate.leaves_any(self._everything, len(self.items.rows))

    def _tier(self, plan: _Plan) -> ServedBy:
        """The tier of the first item; of an empty slate, the tier that was asked first."""
        first = next(iter(plan.slate.sources), None)
        model = ServedBy.NEZHA_SMALL if plan.request.small else ServedBy.NEZHA
        if self._decoder is None:
            model = ServedBy.ITEM_TO_ITEM
        elif first == self._decoder.name:
            return model
        if first is None:
            return model if len(plan.history) else ServedBy.POPULAR_MEMORY
        return ServedBy(first)


def _asked(request: EngineRequest) -> int:
    """How many candidates the decoder is asked for."""
    return request.layout.candidates(request.n)


def _joined(*parts: Items) -> Items:
    """(m,) of all parts; most requests have one that is not empty."""
    full = [part for part in parts if len(part)]
    return np.concatenate(full) if len(full) > 1 else full[0] if full else NO_ITEMS


def _add_ranking(slate: Slate, ranking: Items, source: str, *, behind: int = 0) -> None:
    """Walk down a popularity list, block by block, until the slate is full; scores are 1 / (1 + rank).

    Args:
        slate: to fill.
        ranking: items, best first.
        source: its name.
        behind: ranks that stand before it.
    """
    for start in takewhile(lambda _: slate.open, range(0, len(ranking), _BLOCK)):
        block, rank = ranking[start : start + _BLOCK], behind + start
        slate.add(block, 1.0 / np.arange(rank + 1, rank + 1 + len(block)), source)


def _everything(bundle: Bundle) -> Items:
    """(I,) every item: by popularity over all scenes, then those without an interaction by index."""
    popular = bundle.popularity[ALL_SCENES]
    rest = np.ones(bundle.manifest.items, dtype=np.bool_)
    rest[popular] = False
    return np.concatenate([popular, np.flatnonzero(rest).astype(np.int32)])
