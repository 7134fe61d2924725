"""The last tier: the most popular items of a bundle, in this process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from serving.engine import EngineAnswer, EngineCounts, SlateItem
from serving.recheck import Look, SlateCheck
from serving.schemas import ServedBy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from serving.engine import EngineRequest
    from serving.live_items import LiveItems

MOST: Final = 1_000
_BLOCK: Final = 64  # items that are looked at in one go


class Memory:
    """Answers from a short list; reads no file and waits for no lock.

    Args:
        bundle: opened; not held.
        ranking: item indices, best first; the first `MOST` are kept.
        items: the bundle's as they are now; read here and in `refresh` only.
    """

    def __init__(self, bundle: Bundle, ranking: npt.NDArray[np.int32], items: LiveItems) -> None:
        self._indices = ranking[:MOST].tolist()
        self._cut = len(ranking) > MOST
        self._bundle = bundle.manifest.version
        self._table = SlateCheck(bundle.shown.take(ranking[:MOST]))
        self.refresh(items)

    @property
    def version(self) -> str:
        """Of the catalogue, as of the last refresh."""
        return self._now[1]

    def refresh(self, items: LiveItems) -> None:
        """Take over what changed; the caller holds the items' guard."""
        rows = ((rank, items.rows.row(index)) for rank, index in enumerate(self._indices))
        changed = {rank: row for rank, row in rows if row is not None}
        # One object, which is replaced: an answer that is being made must not mix two catalogues.
        self._now = self._table.after(changed.get), items.version

    def answer(self, request: EngineRequest) -> EngineAnswer:
        """Those of the list that the request may be shown, as of the last refresh and the request's time."""
        (check, version), look = self._now, Look(request)
        found: list[SlateItem] = []
        for start in range(0, len(self._indices), _BLOCK):
            ranks = range(start, min(start + _BLOCK, len(self._indices)))
            found += [
                SlateItem(row.item_id, 1.0 / (1 + rank), ServedBy.POPULAR_MEMORY, row.title)
                for rank, row in zip(ranks, check.rows(request, ranks, look), strict=True)
                if row.eligible
            ]
            if len(found) > request.n:
                break
        items = found[: request.n]
        return EngineAnswer(
            items=items,
            served_by=ServedBy.POPULAR_MEMORY,
            decoder=None,
            bundle_version=self._bundle,
            catalog_version=version,
            truncated=len(items) < request.n,
            counts=EngineCounts(len(request.history), 0, 0, 0),
            more=len(found) > request.n or look.passed_over > 0 or self._cut,  # nobody looks behind a cut list
        )
