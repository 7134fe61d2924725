"""The last tier: the most popular items of a bundle, in this process's memory."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from serving.engine import EngineAnswer, EngineCounts, SlateItem
from serving.recheck import Look, Row
from serving.schemas import ServedBy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from serving.engine import EngineRequest
    from serving.live_items import LiveItems

MOST: Final = 1_000


class _Item(NamedTuple):
    """How the last look sees an item, and how an answer shows it."""

    row: Row
    shown: SlateItem


class Memory:
    """Answers from a short list of rows that are made beforehand; reads no file and waits for no lock.

    Args:
        bundle: opened; not held.
        ranking: item indices, best first; the first `MOST` are kept.
        items: the bundle's as they are now; read here and in `refresh` only.
    """

    def __init__(self, bundle: Bundle, ranking: npt.NDArray[np.int32], items: LiveItems) -> None:
        self._indices = ranking[:MOST].tolist()
        self._cut = len(ranking) > MOST
        self._bundle = bundle.manifest.version
        table = bundle.shown.take(ranking[:MOST]).select(Row._fields)
        self._snapshot = [_item(rank, Row(**columns)) for rank, columns in enumerate(table.to_pylist())]
        self.refresh(items)

    @property
    def version(self) -> str:
        """Of the catalogue, as of the last refresh."""
        return self._now[1]

    def refresh(self, items: LiveItems) -> None:
        """Take over what changed; the caller holds the items' guard."""
        listed: list[_Item | None] = list(self._snapshot)
        for rank, index in enumerate(self._indices):
            if (row := items.rows.row(index)) is not None:
                seen = Row(*(getattr(row, name) for name in Row._fields))
                listed[rank] = _item(rank, seen) if row.live else None
        # One object, which is replaced: an answer that is being made must not mix two catalogues.
        self._now = [item for item in listed if item is not None], items.version

    def answer(self, request: EngineRequest) -> EngineAnswer:
        """Those of the list that the request may be shown, as of the last refresh and the request's time."""
        (listed, version), look = self._now, Look(request)
        eligible = (item.shown for item in listed if look.takes(item.row))
        found = list(islice(eligible, request.n + 1))  # one more says whether there is a next page
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


def _item(rank: int, row: Row) -> _Item:
    return _Item(row, SlateItem(row.item_id, 1.0 / (1 + rank), ServedBy.POPULAR_MEMORY, row.title))
