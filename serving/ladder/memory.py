"""The last tier: the most popular items of a bundle, in this process's memory."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from recsys.catalog.live_rows import ItemRow
from serving.engine import EngineAnswer, EngineCounts, SlateItem
from serving.recheck import Look, Row
from serving.schemas import ServedBy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.catalog.log import CatalogLog
    from serving.engine import EngineRequest
    from serving.live_items import LiveItems

MOST: Final = 1_000
_AT_ONCE: Final = 5_000  # records of the log that one answer waits for
_COLUMNS: Final = (*Row._fields, "text")
_log = structlog.stdlib.get_logger(__name__)


class _Item(NamedTuple):
    """How the last look sees an item, and how an answer shows it."""

    row: Row
    shown: SlateItem


class _State(NamedTuple):
    """The list as of a sequence number of the catalogue log; never changed, always replaced as a whole.

    Attributes:
        rows: by rank.
        listed: the same for answers; None = it is gone, or out of stock.
        sequence: all records before it are in.
    """

    rows: list[ItemRow]
    listed: list[_Item | None]
    sequence: int


class Memory:
    """Answers from a short list of rows that are made beforehand, and looks into the log for what became of them.

    It waits for no lock that is held while anybody works. Of the log it reads what was appended since the last look,
    which is in the page cache; where it cannot be read, what is known holds on.

    Args:
        bundle: opened; not held.
        ranking: item indices, best first; the first `MOST` are kept.
        items: the bundle's as they are now; read here and in `refresh` only.
        log: of the catalogue, for this reader alone.

    Attributes:
        trouble: why the last look into the log failed; empty where it did not.
    """

    def __init__(self, bundle: Bundle, ranking: npt.NDArray[np.int32], items: LiveItems, log: CatalogLog) -> None:
        self._indices = ranking[:MOST].tolist()
        self._cut = len(ranking) > MOST
        self._bundle = bundle.manifest.version
        self._log = log
        table = bundle.shown.take(ranking[:MOST]).select(_COLUMNS).to_pylist()
        self._snapshot = [ItemRow(**{**row, "category_path": tuple(row["category_path"] or ())}) for row in table]
        self._rank = {row.item_id: rank for rank, row in enumerate(self._snapshot)}
        self._newer = threading.Lock()
        self._now = self._of(items)
        self.trouble = ""

    @property
    def sequence(self) -> int:
        """Of the catalogue log: all records before it are known."""
        return self._now.sequence

    def refresh(self, items: LiveItems) -> None:
        """Take over what changed, in any thread; the caller holds the items' guard."""
        self._advance(self._of(items))

    def follow(self) -> None:
        """Apply what the log holds by now, if it can be read; on the event loop only. Never raises."""
        try:
            now, end = self._now, self._log.end
            if end != now.sequence:
                self._take(now, min(end, now.sequence + _AT_ONCE))
        except Exception as error:  # noqa: BLE001 - whatever the log holds, what is known answers on
            trouble = str(error) or type(error).__name__
            if trouble != self.trouble:  # once, not with every answer
                _log.warning("memory_not_followed", error=trouble)
            self.trouble = trouble
        else:
            self.trouble = ""

    def _take(self, now: _State, end: int) -> None:
        """Apply the records before `end`; what stands before a damaged one is applied all the same."""
        rows, touched, sequence = list(now.rows), set(), now.sequence
        try:
            for number, change in self._log.read(now.sequence, end):
                rank = self._rank.get(change.item_id)
                if rank is not None:
                    rows[rank] = rows[rank].after(change)
                    touched.add(rank)
                sequence = number + 1
        finally:
            listed = list(now.listed)
            for rank in touched:
                listed[rank] = _item(rank, rows[rank])
            self._advance(_State(rows, listed, sequence))

    def _advance(self, state: _State) -> None:
        with self._newer:  # the tables' thread may have come further meanwhile
            if state.sequence > self._now.sequence:
                self._now = state

    def _of(self, items: LiveItems) -> _State:
        rows = [items.rows.row(index) or row for index, row in zip(self._indices, self._snapshot, strict=True)]
        return _State(rows, [_item(rank, row) for rank, row in enumerate(rows)], items.sequence)

    def answer(self, request: EngineRequest) -> EngineAnswer:
        """Those of the list that the request may be shown, by what the log holds now and the request's time."""
        self.follow()
        now, look = self._now, Look(request)  # one state: an answer that is being made must not mix two catalogues
        eligible = (item.shown for item in now.listed if item is not None and look.takes(item.row))
        found = list(islice(eligible, request.n + 1))  # one more says whether there is a next page
        items = found[: request.n]
        return EngineAnswer(
            items=items,
            served_by=ServedBy.POPULAR_MEMORY,
            decoder=None,
            bundle_version=self._bundle,
            catalog_version=f"{self._bundle}.{now.sequence}",
            truncated=len(items) < request.n,
            counts=EngineCounts(len(request.history), 0, 0, 0),
            more=len(found) > request.n or look.passed_over > 0 or self._cut,  # nobody looks behind a cut list
        )


def _item(rank: int, row: ItemRow) -> _Item | None:
    if not row.live:
        return None
    shown = SlateItem(row.item_id, 1.0 / (1 + rank), ServedBy.POPULAR_MEMORY, row.title)
    return _Item(Row(*(getattr(row, name) for name in Row._fields)), shown)
