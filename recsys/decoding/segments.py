"""Named sets of items, and the prefixes that live in their intersections, kept current item by item.

A request names the sets that its items must all lie in (its scene, what is in stock, a category, a campaign). Each
intersection that is asked for is counted once, one pass over the catalogue; from then on a change of a set costs one
step per changed item, depth and intersection it is part of, and a request costs nothing. The next request sees it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recsys.decoding import kernels
from recsys.decoding.eligibility import Eligibility, EligibilityIndex, LivePrefixes
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from recsys.decoding.trie import SidTrie

    Items = npt.NDArray[np.integer]
    Names = frozenset[str]

_NO_ITEMS = np.empty(0, dtype=np.int64)


class _Intersection(NamedTuple):
    """What lies in several sets: (I,) bool, and the prefixes that lead there."""

    shared: npt.NDArray[np.bool_]
    live: LivePrefixes


@dataclass(slots=True)
class _Segment:
    """A named set: (I,) bool, and how often it was changed."""

    members: npt.NDArray[np.bool_]
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
    """

    def __init__(self, trie: SidTrie, *, keep: int = 64) -> None:
        self._trie = trie
        self._keep = keep
        self._index = EligibilityIndex(trie)
        self._lock = Lock()
        self._segments: dict[str, _Segment] = {}
        self._live: OrderedDict[Names, _Intersection] = OrderedDict()

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
            members: (I,) bool; copied.

        Returns:
            The set's new version.

        Raises:
            InputError: `members` is not (I,) bool.
        """
        if members.shape != (self._trie.items,) or members.dtype != np.bool_:
            raise InputError(
                f"the members of a segment must be ({self._trie.items},) bool",
                field=name,
                value=(members.shape, str(members.dtype)),
            )
        with self._lock:
            before = self._segments.get(name)
            version = 1 if before is None else before.version + 1
            self._segments[name] = _Segment(members.copy(), version)
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
        add, remove = self._checked(name, add), self._checked(name, remove)
        with self._lock:
            segment = self._known(name)
            segment.members[add] = True
            segment.members[remove] = False
            segment.version += 1
            touched = np.concatenate([add, remove])
            for names, intersection in self._live.items():
                if name in names:
                    self._update(names, intersection, touched)
            return segment.version

    def live(self, names: Iterable[str]) -> LivePrefixes:
        """The prefixes that lead to an item of every named set; no name means every item.

        The first call for an intersection passes over the catalogue: make it before the intersection is served.

        Raises:
            InputError: there is no such set.
        """
        wanted = frozenset(names)
        if not wanted:
            return self._index.live(Eligibility())
        with self._lock:
            known = self._live.get(wanted)
            if known is None:
                shared = np.logical_and.reduce([self._known(name).members for name in sorted(wanted)])
                known = self._live[wanted] = _Intersection(shared, self._index.count(shared))
                while len(self._live) > self._keep:
                    self._live.popitem(last=False)
            self._live.move_to_end(wanted)
        return known.live

    def eligibility(self, names: Iterable[str], excluded: Sequence[Items] | None = None) -> Eligibility:
        """What a batch of requests may show that names these sets.

        Args:
            names: the sets.
            excluded: item indices per request that may not be shown besides.

        Raises:
            InputError: there is no such set.
        """
        live = self.live(names)
        return Eligibility(live.shared, excluded, live=live)

    def _known(self, name: str) -> _Segment:
        known = self._segments.get(name)
        if known is None:
            raise InputError("there is no such segment", field="segment", value=name, remedy=f"one of {self.names}")
        return known

    def _forget(self, name: str) -> None:
        for names in [names for names in self._live if name in names]:
            del self._live[names]

    def _checked(self, name: str, items: Items) -> npt.NDArray[np.int64]:
        checked = np.asarray(items, dtype=np.int64)
        if checked.size and (checked.min() < 0 or checked.max() >= self._trie.items):
            raise InputError(
                f"items of a segment must lie in 0..{self._trie.items - 1}",
                field=name,
                value=(int(checked.min()), int(checked.max())),
            )
        return checked

    def _update(self, names: Names, intersection: _Intersection, touched: npt.NDArray[np.int64]) -> None:
        """Bring one intersection up to date with the touched items."""
        shared, live = intersection
        now = np.logical_and.reduce([self._segments[name].members[touched] for name in names])
        changed = now != shared[touched]
        items, first = np.unique(touched[changed], return_index=True)
        gained = now[changed][first]
        shared[items] = gained
        step = np.where(gained, 1, -1)
        nodes = self._trie.item_node[items]  # (m, L)
        for depth, (counts, alive) in enumerate(zip(live.counts, live.alive, strict=True)):
            kernels.recount(counts, alive, nodes[:, depth], step)
        live.tally[0] += step.sum()
        live.tally[1] += 1
