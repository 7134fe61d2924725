"""Eligibility: which items, and through them which prefixes, a request may show."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.decoding import trie_kernels
from recsys.decoding.added import AddedSnapshot
from recsys.decoding.log_prior import Bounds
from recsys.decoding.packed import bits_of, bools_of
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.decoding.added import AddedItems
    from recsys.decoding.item_set import ItemSet
    from recsys.decoding.log_prior import LogPrior
    from recsys.decoding.packed import Bits, Bools, Ints
    from recsys.decoding.trie import SidTrie

_NO_ITEMS: Final = np.empty(0, dtype=np.int64)
_EVERY: Final = np.empty(0, dtype=np.uint8)  # stands for the set of all items where a loop wants a set
_JOURNAL: Final = 1024  # changes that a copy elsewhere can catch up with


@dataclass(frozen=True, slots=True, eq=False)
class Eligibility:
    """What may be shown to a batch of requests.

    Attributes:
        shared: (I,) bool for all requests of the batch; None lets every item through.
        excluded: item indices per request that may not be shown besides (seen, denied); None excludes nothing.
        version: raise it when `shared` was changed in place: the live prefixes are kept per (array, version).
        live: instead of `shared`, what lives in a catalogue that changes (`recsys.decoding.segments`).
    """

    shared: Bools | None = None
    excluded: Sequence[npt.NDArray[np.integer]] | None = None
    version: int = 0
    live: LivePrefixes | None = None

    def frozen(self, count: int) -> Bools | None:
        """(I,) bool of the frozen items; None where all may be shown."""
        if self.live is None:
            return self.shared
        return None if self.live.shared is None else bools_of(self.live.shared, count)


@dataclass(frozen=True, slots=True, eq=False)
class LiveAdded:
    """The added items in a shared set.

    Attributes:
        items: all added items.
        members: the set.
        joined: by leaf, how many of them joined it; no entry where none did.
    """

    items: AddedItems
    members: ItemSet
    joined: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LivePrefixes:
    """The prefixes that lead to at least one item of a shared set; sets are bits (`recsys.decoding.packed`).

    Attributes:
        shared: the frozen items in it, (ceil(I / 8),) uint8; None where all are.
        counts: for depth d in 1..L-1 (index d - 1), (n_d,) int32 live items under each node. Those of a leaf are
            counted when they are asked for.
        alive: for depth d in 1..L, the nodes with a live item; () where all have one.
        tally: (2,) int64, the number of live items, and how often all this was changed in place.
        added: the added items in it; None where the catalogue does not change.
        journal: (number of the change, nodes by depth) of the newest changes.
    """

    shared: Bits | None
    counts: tuple[npt.NDArray[np.int32], ...]
    alive: tuple[Bits, ...]
    tally: npt.NDArray[np.int64]
    added: LiveAdded | None = None
    journal: deque[tuple[int, list[Ints]]] = field(default_factory=lambda: deque(maxlen=_JOURNAL))

    @property
    def total(self) -> int:
        """Number of live items."""
        return int(self.tally[0])

    @property
    def changes(self) -> int:
        """How often it was changed in place."""
        return int(self.tally[1])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (*self.counts, *self.alive, *(() if self.shared is None else (self.shared,)))
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, slots=True, eq=False)
class RequestMask:
    """What one request may not show, in trie terms.

    Attributes:
        live: the shared part.
        excluded: (m,) int64 distinct excluded items, ascending.
        hidden: how many of them were live.
        dead: for depth d in 1..L (index d - 1), ascending int64 nodes all of whose live items are excluded.
        log_prior: what is added to the items' scores; None = nothing. It hides no item.
        bounds: the log-prior's largest value below each prefix, None without one.
        added: the added items that may be shown; None where there is none.
    """

    live: LivePrefixes
    excluded: Ints
    hidden: int
    dead: tuple[Ints, ...]
    log_prior: LogPrior | None = None
    bounds: Bounds | None = None
    added: AddedSnapshot | None = None

    @property
    def eligible(self) -> int:
        """Number of items that may be shown."""
        return self.live.total - self.hidden

    def keeps(self, items: Ints) -> Bools:
        """(n,) bool, whether each of these items may be shown; asked last, so that a removal counts at once."""
        if self.added is not None:
            return self.added.members.holds(items) & trie_kernels.shown(_EVERY, self.excluded, items)
        return trie_kernels.shown(_EVERY if self.live.shared is None else self.live.shared, self.excluded, items)


class EligibilityIndex:
    """Turns eligibility into masks over the nodes of one trie.

    The shared bitset costs one pass over the catalog, made once per (array, version) and kept for the last few; named
    sets that change are kept current by `recsys.decoding.segments`. A request costs work in proportion to its own
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
        self._known: OrderedDict[tuple[int, int], tuple[Bools, LivePrefixes]] = OrderedDict()

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
                known = self._known[key] = (shared, self.count(shared))
            self._known.move_to_end(key)
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        return known[1]

    def masks(self, eligibility: Eligibility, requests: int, log_prior: LogPrior | None = None) -> list[RequestMask]:
        """One mask per request of a batch, the log-prior shared by all.

        Raises:
            InputError: `excluded` has another length than the batch or holds an index outside the catalog.
        """
        live = self.live(eligibility)
        added = None
        if live.added is not None and live.added.items.count:
            added = AddedSnapshot(live.added.items, live.added.items.runs, live.added.members)
        bounds = None if log_prior is None else Bounds(log_prior, added)
        if eligibility.excluded is None:
            nothing = (_NO_ITEMS,) * self._trie.levels
            return [RequestMask(live, _NO_ITEMS, 0, nothing, log_prior, bounds, added)] * requests
        if len(eligibility.excluded) != requests:
            raise InputError(
                f"excluded must name one list for each of {requests} requests",
                field="excluded",
                value=len(eligibility.excluded),
            )
        masks = []
        for items in eligibility.excluded:
            excluded, hidden, dead = self._exclude(live, added, items)
            masks.append(RequestMask(live, excluded, hidden, dead, log_prior, bounds, added))
        return masks

    def count(self, shared: Bools) -> LivePrefixes:
        """The live prefixes of a bitset (I,), counted anew in one pass over the catalogue.

        Raises:
            InputError: the bitset is not (I,) bool.
        """
        if shared.shape != (self._trie.items,) or shared.dtype != np.bool_:
            raise InputError(
                f"shared eligibility must be ({self._trie.items},) bool",
                field="shared",
                value=(shared.shape, str(shared.dtype)),
            )
        return self.count_bits(bits_of(shared))

    def count_bits(self, shared: Bits, added: LiveAdded | None = None) -> LivePrefixes:
        """As `count`, of bits, which are held and not copied.

        Args:
            shared: (ceil(I / 8),) uint8.
            added: held beside; its items are not counted.
        """
        trie = self._trie
        counts = np.zeros(trie.nodes(trie.levels - 1), dtype=np.int32)
        leaves = np.zeros(-(-trie.nodes(trie.levels) // 8), dtype=np.uint8)
        trie_kernels.count_live(shared, trie.leaf_item.data, trie.leaf_words, trie.child_start[-1], counts, leaves)
        per_depth = self._upwards(counts)
        alive = [*(bits_of(depth > 0) for depth in per_depth), leaves]
        total = np.array([per_depth[0].sum() if trie.levels > 1 else counts.sum(), 0], dtype=np.int64)
        return LivePrefixes(shared, per_depth, tuple(alive), total, added)

    @cached_property
    def _everything(self) -> LivePrefixes:
        """Every frozen item is live."""
        trie = self._trie
        counts = np.diff(trie.starts(trie.child_start[-1].astype(np.int64))).astype(np.int32)
        return LivePrefixes(None, self._upwards(counts), (), np.array([trie.items, 0]))

    def _upwards(self, counts: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], ...]:
        """From live items under the nodes of depth L - 1, (n_{L-1},), to those of depths 1..L-1."""
        per_depth = [counts]
        for start in self._trie.child_start[-2:0:-1]:  # from depth L - 2 up to 1
            per_depth.append(np.add.reduceat(per_depth[-1], start[:-1], dtype=np.int32))
        return tuple(reversed(per_depth)) if self._trie.levels > 1 else ()

    def _exclude(
        self, live: LivePrefixes, added: AddedSnapshot | None, items: npt.NDArray[np.integer]
    ) -> tuple[Ints, int, tuple[Ints, ...]]:
        """The distinct excluded items, how many of them were live, and per depth the nodes that are dead by them."""
        trie = self._trie
        if not len(items):
            return _NO_ITEMS, 0, (_NO_ITEMS,) * trie.levels
        excluded = trie_kernels.distinct(np.asarray(items))
        limit = trie.items if live.added is None else trie.items + live.added.items.count
        if excluded[0] < 0 or excluded[-1] >= limit:
            raise InputError(
                f"excluded items must lie in 0..{limit - 1}",
                field="excluded",
                value=(int(excluded[0]), int(excluded[-1])),
            )
        frozen = excluded[: excluded.searchsorted(trie.items)]
        shared = _EVERY if live.shared is None else live.shared
        leaves = trie_kernels.leaves_of_live(frozen, shared, trie.item_leaf.data)
        if added is None:
            return excluded, len(leaves), self._emptied(live, leaves)
        newer, below = _NO_ITEMS, None
        if added is not None and len(frozen) < len(excluded):
            newer = excluded[len(frozen) :]
            newer = newer[added.members.holds(newer)]
            below = added.items.paths(newer)
        dead = []
        for depth, nodes in zip(range(trie.levels, 0, -1), trie.ascend(leaves), strict=True):
            named = nodes
            if below is not None:
                named = np.sort(np.concatenate([nodes, below[depth - 1][below[depth - 1] >= 0]]))
            dead.append(trie_kernels.emptied(named, self._living(live, depth, named)))
        return excluded, len(leaves) + len(newer), tuple(reversed(dead))

    def _emptied(self, live: LivePrefixes, leaves: Ints) -> tuple[Ints, ...]:
        """Per depth the nodes that the excluded items' leaves, with repetition, leave without a live item."""
        nodes, dead = leaves, [trie_kernels.emptied(leaves, self._living(live, self._trie.levels, leaves))]
        for start, counts in zip(self._trie.child_start[:0:-1], live.counts[::-1], strict=True):
            nodes, empty = trie_kernels.above(start, nodes, counts)
            dead.append(empty)
        return tuple(reversed(dead))

    def _living(self, live: LivePrefixes, depth: int, nodes: Ints) -> npt.NDArray[np.integer]:
        """(m,) live items below nodes."""
        if depth < self._trie.levels:
            return live.counts[depth - 1][nodes]
        return living_leaves(self._trie, _EVERY if live.shared is None else live.shared, live.added, nodes)


def living_leaves(trie: SidTrie, shared: Bits, added: LiveAdded | None, leaves: Ints) -> npt.NDArray[np.int32]:
    """(m,) live items of leaves, frozen and added; an empty set stands for every frozen item."""
    counts = trie_kernels.live_below(shared, trie.leaf_item.data, trie.leaf_words, trie.leaf_sample, leaves)
    if added is not None and added.joined:
        counts += np.array([added.joined.get(leaf, 0) for leaf in leaves.tolist()], dtype=np.int32)
    return counts
