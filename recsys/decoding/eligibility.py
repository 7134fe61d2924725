"""Eligibility: which items, and through them which prefixes, a request may show."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.trie import SidTrie

_NO_ITEMS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Eligibility:
    """What may be shown to a batch of requests.

    Attributes:
        shared: (I,) bool for all requests of the batch; None lets every item through.
        excluded: item indices per request that may not be shown besides (seen, denied); None excludes nothing.
        version: raise it when `shared` was changed in place: the live prefixes are kept per (array, version).
        live: of `shared`, where they are known already (`recsys.decoding.segments`); None has them counted.
    """

    shared: npt.NDArray[np.bool_] | None = None
    excluded: Sequence[npt.NDArray[np.integer]] | None = None
    version: int = 0
    live: LivePrefixes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LivePrefixes:
    """The prefixes that lead to at least one item of a shared bitset.

    Attributes:
        shared: the bitset, None where every item is live.
        counts: for depth d in 1..L (index d - 1), (n_d,) int32 live items under each node.
        alive: the same as booleans, () where every node is alive.
        tally: (2,) int64, the number of live items, and how often all this was changed in place.
    """

    shared: npt.NDArray[np.bool_] | None
    counts: tuple[npt.NDArray[np.int32], ...]
    alive: tuple[npt.NDArray[np.bool_], ...]
    tally: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of live items."""
        return int(self.tally[0])

    @property
    def changes(self) -> int:
        """How often it was changed in place."""
        return int(self.tally[1])


@dataclass(frozen=True, slots=True, eq=False)
class RequestMask:
    """What one request may not show, in trie terms.

    Attributes:
        live: the shared part.
        excluded: (m,) int64 distinct excluded items, ascending.
        hidden: how many of them were live.
        dead: for depth d in 1..L (index d - 1), ascending int64 nodes all of whose live items are excluded.
        log_prior: what is added to the items' scores; None = nothing. It hides no item.
    """

    live: LivePrefixes
    excluded: npt.NDArray[np.int64]
    hidden: int
    dead: tuple[npt.NDArray[np.int64], ...]
    log_prior: LogPrior | None = None

    @property
    def eligible(self) -> int:
        """Number of items that may be shown."""
        return self.live.total - self.hidden

    def keeps(self, items: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """(n,) bool, whether each of these items may be shown."""
        kept = np.ones(len(items), dtype=bool) if self.live.shared is None else self.live.shared[items]
        if len(self.excluded):
            at = np.minimum(np.searchsorted(self.excluded, items), len(self.excluded) - 1)
            kept = kept & (self.excluded[at] != items)
        return kept


class EligibilityIndex:
    """Turns eligibility into masks over the nodes of one trie.

    The shared bitset costs one pass over the catalog, made once per (array, version) and kept for the last few; named
    bitsets that change are kept current by `recsys.decoding.segments`. A request costs work in proportion to its own
    excluded list. Safe to share between threads.

    Args:
        trie: the model's trie.
        keep: how many shared bitsets to remember.
    """

    def __init__(self, trie: SidTrie, *, keep: int = 4) -> None:
        self._trie = trie
        self._keep = keep
        self._lock = Lock()
        # the array is held with its entry, so that its id cannot be given to another array
        self._known: OrderedDict[tuple[int, int], LivePrefixes] = OrderedDict()
        self._item_start = _item_ranges(trie)
        counts = tuple(np.diff(start).astype(np.int32) for start in self._item_start)
        self._everything = LivePrefixes(None, counts, (), np.array([trie.items, 0]))

    def live(self, eligibility: Eligibility) -> LivePrefixes:
        """The live prefixes of a shared bitset.

        Raises:
            InputError: the bitset is not (I,) bool.
        """
        if eligibility.live is not None:
            return eligibility.live
        shared = eligibility.shared
        if shared is None:
            return self._everything
        key = (id(shared), eligibility.version)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self.count(shared)
            self._known.move_to_end(key)
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        return known

    def masks(self, eligibility: Eligibility, requests: int, log_prior: LogPrior | None = None) -> list[RequestMask]:
        """One mask per request of a batch, the log-prior shared by all.

        Raises:
            InputError: `excluded` has another length than the batch or holds an index outside the catalog.
        """
        live = self.live(eligibility)
        if eligibility.excluded is None:
            return [self._mask(live, _NO_ITEMS, log_prior)] * requests
        if len(eligibility.excluded) != requests:
            raise InputError(
                f"excluded must name one list for each of {requests} requests",
                field="excluded",
                value=len(eligibility.excluded),
            )
        return [self._mask(live, items, log_prior) for items in eligibility.excluded]

    def count(self, shared: npt.NDArray[np.bool_]) -> LivePrefixes:
        """The live prefixes of a bitset (I,), counted anew.

        Raises:
            InputError: the bitset is not (I,) bool.
        """
        if shared.shape != (self._trie.items,) or shared.dtype != np.bool_:
            raise InputError(
                f"shared eligibility must be ({self._trie.items},) bool",
                field="shared",
                value=(shared.shape, str(shared.dtype)),
            )
        running = np.zeros(self._trie.items + 1, dtype=np.int32)
        np.cumsum(shared[self._trie.bucket_items], out=running[1:])
        counts = tuple(np.diff(running[start]) for start in self._item_start)
        return LivePrefixes(shared, counts, tuple(count > 0 for count in counts), np.array([running[-1], 0]))

    def _mask(self, live: LivePrefixes, items: npt.NDArray[np.integer], log_prior: LogPrior | None) -> RequestMask:
        trie = self._trie
        if not len(items):
            return RequestMask(live, _NO_ITEMS, 0, (_NO_ITEMS,) * trie.levels, log_prior)
        excluded = np.unique(np.asarray(items, dtype=np.int64))
        if excluded[0] < 0 or excluded[-1] >= trie.items:
            raise InputError(
                f"excluded items must lie in 0..{trie.items - 1}",
                field="excluded",
                value=(int(excluded[0]), int(excluded[-1])),
            )
        hidden = excluded if live.shared is None else excluded[live.shared[excluded]]
        nodes = trie.item_node[hidden]  # (m, L)
        dead = []
        for depth in range(trie.levels):
            node, count = np.unique(nodes[:, depth], return_counts=True)
            dead.append(node[live.counts[depth][node] == count])
        return RequestMask(live, excluded, len(hidden), tuple(dead), log_prior)


def _item_ranges(trie: SidTrie) -> tuple[npt.NDArray[np.int64], ...]:
    """For depth 1..L, (n_d + 1,) int64: the items under node r are bucket_items[start[r] : start[r + 1]]."""
    ranges = [trie.bucket_start]
    for depth in range(trie.levels - 1, 0, -1):
        ranges.append(ranges[-1][trie.child_start[depth]])
    return tuple(reversed(ranges))
