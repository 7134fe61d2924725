"""Named sets of items, and the prefixes that live in their intersections, kept current item by item.

A request names the sets that its items must all lie in (its scene, what is in stock, a category, a campaign); what is
in the catalogue (`recsys.decoding.live_catalogue`) is a set that every request names. Each intersection that is asked
for is counted once, one pass over the catalogue; from then on a change of a set costs one step per changed item, depth
and intersection it is part of, and a request costs nothing. The next request sees it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from recsys.decoding import trie_kernels
from recsys.decoding.eligibility import Eligibility, EligibilityIndex, LiveAdded, LivePrefixes, living_leaves
from recsys.decoding.item_set import ItemSet
from recsys.decoding.live_catalogue import LiveCatalogue
from recsys.decoding.packed import put_bits
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from recsys.decoding.packed import Bools, Ints
    from recsys.decoding.trie import SidTrie

    Items = npt.NDArray[np.integer]
    Names = frozenset[str]

_CAUGHT_UP: Final = 64  # items of a change that a copy on a device catches up with
_NO_ITEMS: Final = np.empty(0, dtype=np.int64)


class _Intersection(NamedTuple):
    """What lies in several sets, and the prefixes that lead there."""

    shared: ItemSet
    live: LivePrefixes


@dataclass(slots=True)
class _Segment:
    """A named set, and how often it was changed."""

    members: ItemSet
    version: int


class Segments:
    """The named sets of one catalogue. Safe to share between threads.

    A decoder may read an intersection while it changes. It looks at the items' own bits last, so that a request that
    begins after a removal has returned never answers with the removed item; one that is under way may answer with an
    item less than it could.

    Args:
        trie: the model's trie.
        keep: how many intersections to keep current; beyond, the one that was not asked for longest is counted anew
            when it is asked for again.
        catalogue: over the same trie, what is live of it; None = all of it for ever.
    """

    def __init__(self, trie: SidTrie, *, keep: int = 64, catalogue: LiveCatalogue | None = None) -> None:
        self._trie = trie
        self._keep = keep
        self._index = EligibilityIndex(trie)
        self._catalogue = catalogue = catalogue or LiveCatalogue(trie)
        self._lock = catalogue.lock
        self._segments: dict[str, _Segment] = {}
        self._live: OrderedDict[Names, _Intersection] = OrderedDict()
        with self._lock:
            self._all = self._counted(catalogue.valid)
            live = self._all.live
            # the same arrays; while no frozen item is removed, a search need not look whether a prefix is alive
            self._whole = LivePrefixes(None, live.counts, (), live.tally, live.added)
            catalogue.watch(self._changed)

    @property
    def nbytes(self) -> int:
        """Bytes held for the live catalogue, and all sets and intersections."""
        with self._lock:
            intersections = [self._all, *self._live.values()]
            sets = [segment.members for segment in self._segments.values()]
            sets += [intersection.shared for intersection in intersections]
            counted = sum(one.live.nbytes - one.shared.bits.nbytes for one in intersections)
            return counted + sum(one.nbytes for one in sets)

    @property
    def names(self) -> list[str]:
        """The sets there are, sorted."""
        return sorted(self._segments)

    def version(self, name: str) -> int:
        """How often a set was put or changed.

        Raises:
            InputError: there is no such set.
        """
        return self._known(name).version

    def put(self, name: str, members: npt.NDArray[np.bool_]) -> int:
        """Make a set, or replace it; intersections with it are counted anew when they are asked for.

        Args:
            name: of the set.
            members: (I,) bool; copied. Longer where it speaks of added items I, I + 1, .. too: those behind it are
                no members.

        Returns:
            The set's new version.

        Raises:
            InputError: `members` is not (I,) bool.
        """
        self._check_members(name, members)
        with self._lock:
            before = self._segments.get(name)
            version = 1 if before is None else before.version + 1
            self._segments[name] = _Segment(ItemSet.of(members, self._trie.items), version)
            self._forget(name)
        return version

    def drop(self, name: str) -> None:
        """Remove a set; a request that still names it is refused.

        Raises:
            InputError: there is no such set.
        """
        with self._lock:
            self._known(name)
            del self._segments[name]
            self._forget(name)

    def change(self, name: str, *, add: Items = _NO_ITEMS, remove: Items = _NO_ITEMS) -> int:
        """Add items to a set and remove others; an item that is named by both is removed.

        Args:
            name: of the set.
            add: (m,) item indices; those that are members already stay so.
            remove: (n,) item indices; those that are none already stay so.

        Returns:
            The set's new version.

        Raises:
            InputError: there is no such set, or an index lies outside the catalogue; then nothing was changed.
        """
        add, remove = self._catalogue.checked(add, name), self._catalogue.checked(remove, name)
        with self._lock:
            segment = self._known(name)
            segment.members.put(add, np.ones(len(add), dtype=np.bool_))
            segment.members.put(remove, np.zeros(len(remove), dtype=np.bool_))
            segment.version += 1
            touched = np.unique(np.concatenate([add, remove]))
            nodes = self._catalogue.paths(touched)
            for names, intersection in self._live.items():
                if name in names:
                    self._update(names, intersection, touched, nodes)
            return segment.version

    def live(self, names: Iterable[str]) -> LivePrefixes:
        """The prefixes that lead to an item of every named set; no name means every item.

        The first call for an intersection passes over the catalogue: make it before the intersection is served.

        Raises:
            InputError: there is no such set.
        """
        wanted = frozenset(names)
        if not wanted:
            return self._all.live if self._catalogue.removed else self._whole
        known = self._live.get(wanted)
        if known is not None:  # no waiting for a change that is under way
            self._used(wanted)
            return known.live
        with self._lock:
            known = self._live.get(wanted)
            if known is None:
                shared = self._catalogue.valid.copy()
                for name in wanted:
                    shared.intersect(self._known(name).members)
                known = self._live[wanted] = self._counted(shared)
            self._live.move_to_end(wanted)
            while len(self._live) > self._keep:
                self._live.popitem(last=False)
        return known.live

    def _used(self, names: Names) -> None:
        """The order of use is a hint: it is not worth waiting for."""
        if self._lock.acquire(blocking=False):
            try:
                if names in self._live:
                    self._live.move_to_end(names)
            finally:
                self._lock.release()

    def eligibility(self, names: Iterable[str], excluded: Sequence[Items] | None = None) -> Eligibility:
        """What a batch of requests may show that names these sets.

        Args:
            names: the sets.
            excluded: item indices per request that may not be shown besides.

        Raises:
            InputError: there is no such set.
        """
        return Eligibility(None, excluded, live=self.live(names))

    def arbitrary(self, members: Bools, excluded: Sequence[Items] | None = None) -> Eligibility:
        """What a batch of requests may show that comes with a set of its own: one pass over the catalogue each time.

        Args:
            members: as for `put`.
            excluded: item indices per request that may not be shown besides.

        Raises:
            InputError: `members` is not (I,) bool.
        """
        self._check_members("members", members)
        shared = ItemSet.of(members, self._trie.items)
        with self._lock:
            shared.intersect(self._catalogue.valid)
            return Eligibility(None, excluded, live=self._counted(shared).live)

    def _known(self, name: str) -> _Segment:
        known = self._segments.get(name)
        if known is None:
            raise InputError("there is no such segment", field="segment", value=name, remedy=f"one of {self.names}")
        return known

    def _forget(self, name: str) -> None:
        for names in [names for names in self._live if name in names]:
            del self._live[names]

    def _check_members(self, name: str, members: Bools) -> None:
        first, limit = self._trie.items, self._catalogue.items
        if members.ndim != 1 or not first <= len(members) <= limit or members.dtype != np.bool_:
            raise InputError(
                f"the members of a segment must be ({first},) bool, up to ({limit},) with the added items",
                field=name,
                value=(members.shape, str(members.dtype)),
            )

    def _counted(self, shared: ItemSet) -> _Intersection:
        """The prefixes that live in a set, which is held and not copied."""
        added = LiveAdded(self._catalogue.added, shared)
        live = self._index.count_bits(shared.bits, added)
        newer = shared.added()
        if len(newer):
            self._recount(live, newer, np.ones(len(newer), dtype=np.bool_), self._catalogue.paths(newer))
        return _Intersection(shared, live)

    def _changed(self, items: Ints, came: Bools) -> None:
        """The catalogue's items have come or gone; its own set is changed already."""
        nodes = self._catalogue.paths(items)
        self._recount(self._all.live, items, came, nodes)
        for names, intersection in self._live.items():
            self._update(names, intersection, items, nodes)

    def _update(self, names: Names, intersection: _Intersection, touched: Ints, nodes: list[Ints]) -> None:
        """Bring one intersection up to date with the touched items, distinct ones, and the nodes above them."""
        now = self._catalogue.valid.holds(touched)
        for name in names:
            now &= self._segments[name].members.holds(touched)
        changed = now != intersection.shared.holds(touched)
        if changed.any():
            items, gained = touched[changed], now[changed]
            intersection.shared.put(items, gained)
            self._recount(intersection.live, items, gained, [node[changed] for node in nodes])

    def _recount(self, live: LivePrefixes, items: Ints, gained: Bools, nodes: list[Ints]) -> None:
        """Count distinct items in or out, L times (m,) nodes; they are in the set, or out of it, already."""
        step = np.where(gained, 1, -1)
        for counts, alive, node in zip(live.counts, live.alive, nodes, strict=False):
            trie_kernels.recount(counts, alive, node, step)
        leaves = nodes[-1]
        if live.added is not None and live.added.items.count and int(items.max()) >= self._trie.items:
            newer = (leaves >= 0) & (items >= self._trie.items)
            _join(live.added.joined, leaves[newer].tolist(), step[newer].tolist())
            leaves = leaves[leaves >= 0]
        leaves = np.unique(leaves)  # a bucket is passed over once, however many of its items change
        if len(leaves) and live.shared is not None:
            put_bits(live.alive[-1], leaves, living_leaves(self._trie, live.shared, live.added, leaves) > 0)
        live.tally[0] += step.sum()
        if len(items) > _CAUGHT_UP:
            live.journal.clear()  # a copy elsewhere is made anew
        else:
            live.journal.append((int(live.tally[1]) + 1, nodes))
        live.tally[1] += 1


def _join(joined: dict[int, int], leaves: list[int], step: list[int]) -> None:
    """Count added items in or out of the leaves they joined."""
    for leaf, change in zip(leaves, step, strict=True):
        joined[leaf] = joined.get(leaf, 0) + change
        if not joined[leaf]:
            del joined[leaf]
