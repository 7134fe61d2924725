"""A bundle's items as they are now: its snapshot, and behind it the catalogue log up to a sequence number.

Everything that answers or filters reads from here: attributes, prefixes that live, what a history may hold, the text
index. A batch is answered under `guard`, which a writer takes only to look and to apply, never while the disk works.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import structlog

from recsys.catalog.changes import Upsert
from recsys.catalog.live_rows import ItemRow, LiveRows
from recsys.errors import WindfireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.bundle.item_encoder import ItemEncoder
    from recsys.catalog import CatalogFilter
    from recsys.catalog.changes import Change
    from recsys.catalog.log import CatalogLog
    from recsys.decoding.added import ColdPrior
    from recsys.decoding.decoder import Decoder
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.live_catalogue import LiveCatalogue
    from recsys.decoding.segments import Segments
    from recsys.retrieval.folder import Retrieval

    Bools = npt.NDArray[np.bool_]
    Items = npt.NDArray[np.int32]

_MASKS: Final = 8  # whose live prefixes are kept
_log = structlog.stdlib.get_logger(__name__)


class Shared(NamedTuple):
    """What a group of requests may be shown.

    Attributes:
        items: (I + A,) read-only bool; None = every item.
        whole: `items` hides nothing but what is gone or out of stock.
    """

    items: Bools | None
    whole: bool


@dataclass(slots=True)
class _Arrived:
    """New items of one stretch of the log."""

    codes: list[tuple[int, ...]]
    text: list[npt.NDArray[np.float32]]


class LiveItems:
    """The items of one bundle as of a sequence number of the catalogue log.

    Args:
        bundle: opened.
        decoder: of its model; is told of new items. None where only rows and masks are wanted: then nothing is
            encoded, every new item is taken in, and neither torch nor the trie is loaded.
        retrieval: its indexes; new items are put into the one of texts.
        log: of the catalogue; None where the snapshot is all there is.
        cold: the declared prior of new items.

    Attributes:
        guard: held by whoever reads or changes the items.
        rows: of what changed.
        sequence: all records before it are applied.
        unplaced: new items of the log that this bundle cannot encode; they are not shown.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder | None,
        retrieval: Retrieval | None = None,
        log: CatalogLog | None = None,
        cold: ColdPrior | None = None,
    ) -> None:
        self.guard = threading.RLock()
        self.rows = LiveRows(bundle.catalog)
        self.sequence = bundle.manifest.catalog_sequence
        self.unplaced: set[str] = set()
        self._told: dict[int, tuple[object, ...]] = {}  # words of a vector, where they are not the row's
        self._bundle, self._decoder, self._retrieval, self._log = bundle, decoder, retrieval, log
        self._cold = cold
        self._segments: Segments | None = None  # made with the first new item
        self._takes_live = decoder is not None and _extends(decoder)  # else it takes a bitset of the snapshot's items
        self._reads = self._takes_live or decoder is None
        self._live: OrderedDict[int, tuple[Bools, Eligibility]] = OrderedDict()  # by id of the mask
        self._rebuild: Future[None] | None = None
        self._encoder: ItemEncoder | None = None
        self._trouble = ""
        self._refused: str | None = None
        self._tried = False
        if decoder is not None:
            _ = self._catalogue  # now rather than in the first request
        self._take(bundle.changes)

    @cached_property
    def _catalogue(self) -> LiveCatalogue:
        from recsys.decoding.live_catalogue import LiveCatalogue

        return LiveCatalogue(self._bundle.trie, cold=self._cold)

    @property
    def version(self) -> str:
        """`<bundle>.<sequence>`."""
        return self.version_at(self.sequence)

    def version_at(self, sequence: int) -> str:
        """The same at another sequence number."""
        return f"{self._bundle.manifest.version}.{sequence}"

    @property
    def encoder(self) -> ItemEncoder | None:
        """Of new items; None where none can come, see `refused`. Read with the first of them."""
        with self.guard:
            if not self._tried and self._decoder is not None:
                from recsys.bundle.item_encoder import load_item_encoder

                self._tried = True
                try:
                    self._encoder = load_item_encoder(self._bundle, self._retrieval)
                except WindfireError as error:
                    self._refused = f"{error.message}; {error.remedy}"  # who asks over HTTP need not know directories
            return self._encoder

    @property
    def refused(self) -> str | None:
        """Why new items cannot be encoded; None = they can."""
        if self.encoder is not None and not self.encoder.reads_text:
            return "no text encoder is loaded that made the text vectors of the bundle"
        return self._refused

    def follow(self) -> None:
        """Apply what the log holds by now; what stands before a damaged record is applied all the same.

        Raises:
            DataError: the log is not the one that the bundle's snapshot was taken from.
            CorruptionError: a record of the log is damaged.
        """
        if self._log is None:
            return
        if self._log.end == self.sequence:
            return
        with self.guard:  # asked again: another thread may have gone beyond the first answer
            changes: list[Change] = []
            try:
                for _, change in self._log.read(self.sequence, self._log.end):
                    changes.append(change)
            finally:
                if changes:
                    self.apply(changes)

    def try_to_follow(self) -> None:
        """As `follow`, but what is wrong with the log is logged, once."""
        try:
            self.follow()
        except (WindfireError, OSError) as error:
            if str(error) != self._trouble:
                _log.error("catalogue_not_followed", error=str(error))
            self._trouble = str(error)
        else:
            self._trouble = ""

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply the next records of the log."""
        with self.guard:
            self._take(changes)
            self.sequence += len(changes)

    def _take(self, changes: Sequence[Change]) -> None:
        if changes:
            touched: dict[int, Change] = {}
            unplaced = len(self.unplaced)
            vectors: dict[int, npt.NDArray[np.float32]] = {}
            arrived = _Arrived([], [])
            for change in changes:
                item = self._applied(change, arrived, vectors)
                if item is not None:
                    touched[item] = change
            self._arrive(arrived)
            self._put(vectors)
            items = np.array(sorted(touched), dtype=np.int64)
            if self._decoder is not None:
                live = np.array([self._is_live(item) for item in items.tolist()], dtype=np.bool_)
                self._catalogue.restore(items[live])
                self._catalogue.remove(items[~live])
            self._live.clear()
            if len(self.unplaced) > unplaced:
                _log.warning("items_not_shown", count=len(self.unplaced), error=self.refused)

    def known(self, item_id: str) -> tuple[bool, bool]:
        """Whether an item has an index, and whether it is not deleted."""
        item = int(self.rows.lookup([item_id])[0])
        return item >= 0, item >= 0 and not self.deleted(item)

    def row(self, item_id: str) -> ItemRow | None:
        """The row of an item, changed or not; None where it was never given."""
        item = int(self.rows.lookup([item_id])[0])
        return None if item < 0 else self.rows.row(item) or self._snapshot(item)

    def deleted(self, item: int) -> bool:
        """Whether an item was taken out of the catalogue."""
        row = self.rows.row(item)
        return row is not None and row.deleted

    def readable(self, items: Items) -> Items:
        """The items of a history that the decoder can read."""
        return items if self._reads else items[items < len(self._bundle.catalog)]

    def newer(self, items: Items) -> bool:
        """Whether an item came after the snapshot."""
        return bool((items >= len(self._bundle.catalog)).any())

    def prefixes(self, items: Items) -> list[npt.NDArray[np.int64]]:
        """For each level of a semantic ID, (m,) number of the beginning up to there; -1 = none that the model knows."""
        return self._catalogue.paths(items.astype(np.int64))

    def shared(self, conditions: CatalogFilter, now: int) -> Shared:
        """What matches a filter and may be shown at a time, UTC microseconds."""
        mask = self.rows.mask(conditions, now)
        if mask is None:
            return Shared(self._bundle.catalog.eligible(conditions, now), whole=False)
        return Shared(mask.items, mask.whole)

    def eligibility(self, shared: Shared, excluded: Sequence[Items]) -> Eligibility:
        """The same for a decoder, with a list of hidden items per request."""
        from recsys.decoding.eligibility import Eligibility
        from recsys.decoding.segments import Segments

        count = len(self._bundle.catalog)
        if not self.rows.added:
            return Eligibility(shared.items, excluded)
        if not self._takes_live:
            known = None if shared.items is None else self._frozen_part(shared.items)
            return Eligibility(known, [items[items < count] for items in excluded])
        if self._segments is None:
            self._segments = Segments(self._bundle.trie, catalogue=self._catalogue)
        if shared.items is None or shared.whole:
            return self._segments.eligibility((), excluded)
        segments, mask = self._segments, shared.items
        return Eligibility(None, excluded, live=self._kept(mask, lambda: segments.arbitrary(mask)).live)

    def _frozen_part(self, items: Bools) -> Bools:
        """(I,) of a mask; the same array as long as it is the same mask, so that its prefixes are counted once."""
        from recsys.decoding.eligibility import Eligibility

        count = len(self._bundle.catalog)
        part = self._kept(items, lambda: Eligibility(items[:count].copy())).shared
        return items[:count] if part is None else part

    def _kept(self, mask: Bools, make: Callable[[], Eligibility]) -> Eligibility:
        """What a decoder is given for a mask, made once for each of the last few masks."""
        known = self._live.get(id(mask))
        if known is None or known[0] is not mask:
            known = self._live[id(mask)] = mask, make()
        self._live.move_to_end(id(mask))
        while len(self._live) > _MASKS:
            self._live.popitem(last=False)
        return known[1]

    def _applied(self, change: Change, arrived: _Arrived, vectors: dict[int, npt.NDArray[np.float32]]) -> int | None:
        """Take one record into the rows; the index of its item, None where there is none."""
        item = int(self.rows.lookup([change.item_id])[0])
        if item >= 0:
            before = self.rows.row(item) or self._snapshot(item)
            after = before.after(change)
            self.rows.put(item, after)
            if isinstance(change, Upsert) and self._decoder is not None:
                self._reword(item, change, before, after, vectors)
            return item
        if not isinstance(change, Upsert):
            return None
        if self._decoder is None:
            return self.rows.add(ItemRow(change.item_id).after(change))
        made = self._made(change)
        if made is None:
            self.unplaced.add(change.item_id)
            return None
        self.unplaced.discard(change.item_id)
        item = self.rows.add(ItemRow(change.item_id).after(change))
        arrived.codes.append(made[0])
        arrived.text.append(made[1])
        vectors[item] = made[1]
        return item

    def _made(self, change: Upsert) -> tuple[tuple[int, ...], npt.NDArray[np.float32]] | None:
        try:
            return None if self.encoder is None else self.encoder.known(change)
        except WindfireError as error:
            _log.error("item_not_encoded", item_id=change.item_id, error=str(error))
            return None

    def _reword(
        self,
        item: int,
        change: Upsert,
        before: ItemRow,
        after: ItemRow,
        vectors: dict[int, npt.NDArray[np.float32]],
    ) -> None:
        """Other words: another vector in the text index; the semantic ID stays.

        Words that cannot be read leave the old vector, and are remembered as not its own: it is always that of the last
        words that could be read, whatever came between.
        """
        told = self._told.pop(item, words(before))
        if told == words(after):
            return
        try:
            vector = None if self.encoder is None else self.encoder.read(change)
        except WindfireError:  # no words are left
            vector = None
        if vector is None:
            self._told[item] = told
        else:
            vectors[item] = vector

    def _arrive(self, arrived: _Arrived) -> None:
        if not arrived.codes:
            return
        codes, text = np.array(arrived.codes, dtype=np.int32), np.stack(arrived.text)
        self._catalogue.add(codes)
        if self._decoder is not None:
            from recsys.decoding.decoder import extend

            self._reads = extend(self._decoder, codes, text)

    def _put(self, vectors: dict[int, npt.NDArray[np.float32]]) -> None:
        retrieval = self._retrieval
        kept = {item: vector for item, vector in vectors.items() if vector.any()}
        if retrieval is None or not kept or len(next(iter(kept.values()))) != retrieval.dimension("text"):
            return
        retrieval.put("text", np.array(list(kept), dtype=np.int64), np.stack(list(kept.values())))
        index = retrieval.indexes["text"]
        if index.crowded and (self._rebuild is None or self._rebuild.done()):
            self._rebuild = index.rebuild_in_background()

    def _is_live(self, item: int) -> bool:
        row = self.rows.row(item)
        return row is None or row.live

    def _snapshot(self, item: int) -> ItemRow:
        """The row that a snapshot's item has before its first change."""
        names = ("item_id", "title", "brand", "price_micros", "text", "available_from", "available_until")
        values = self._bundle.shown.select([*names, "category_path"]).slice(item, 1).to_pylist()[0]
        path = tuple(values.pop("category_path") or ())
        return ItemRow(**values, category_path=path)


def _extends(decoder: Decoder) -> bool:
    from recsys.decoding.decoder import ExtendsItems

    return isinstance(decoder, ExtendsItems)


def words(row: ItemRow | None) -> tuple[object, ...]:
    """What an item's text vector is made of."""
    return () if row is None else (row.title, row.category_path, row.brand, row.text)
