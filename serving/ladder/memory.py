"""The last tier: the most popular items of a bundle, in this process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from serving.engine import EngineAnswer, EngineCounts, SlateItem
from serving.recheck import SlateCheck
from serving.schemas import ServedBy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.catalog.live_rows import ItemRow
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
        self._bundle = bundle.manifest.version
        self._changed: dict[int, ItemRow] = {}  # by rank; replaced, never changed
        self._check = SlateCheck(bundle.items.take(ranking[:MOST]), self._row)
        self.refresh(items)

    def refresh(self, items: LiveItems) -> None:
        """Take over what changed; the caller holds the items' guard."""
        rows = ((rank, items.rows.row(index)) for rank, index in enumerate(self._indices))
        self._changed = {rank: row for rank, row in rows if row is not None}
        self.version = items.version

    def answer(self, request: EngineRequest) -> EngineAnswer:
        """Those of the list that the request may be shown, as of the last refresh and the request's time."""
        version = self.version
        chosen: list[int] = []
        for start in range(0, len(self._indices), _BLOCK):
            ranks = list(range(start, min(start + _BLOCK, len(self._indices))))
            looked = zip(ranks, self._check.rows(request, ranks), strict=True)
            chosen += [rank for rank, row in looked if row.eligible]
            if len(chosen) >= request.n:
                break
        rows = self._check.rows(request, chosen[: request.n])
        items = [
            SlateItem(row.item_id, 1.0 / (1 + rank), ServedBy.POPULAR_MEMORY, row.title)
            for rank, row in zip(chosen, rows, strict=False)
            if row.eligible
        ]
        return EngineAnswer(
            items=items,
            served_by=ServedBy.POPULAR_MEMORY,
            decoder=None,
            bundle_version=self._bundle,
            catalog_version=version,
            truncated=len(items) < request.n,
            counts=EngineCounts(len(request.history), 0, 0, 0),
        )

    def _row(self, rank: int) -> ItemRow | None:
        return self._changed.get(rank)
