"""What is in the catalogue now: the items a model was frozen with, less those removed, and the items added since.

An addition or removal costs work in proportion to the items it names, is seen by the next request that asks for an
eligibility (`recsys.decoding.segments`), and blocks none that names sets whose intersection is known: requests read
immutable runs of added items and one bit per item. Merging keeps the runs few; it changes no answer.
"""

from __future__ import annotations

from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Self

import numpy as np

from recsys.decoding.added import AddedItems, ColdPrior, merged
from recsys.decoding.item_set import ItemSet
from recsys.decoding.packed import bits_of
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy.typing as npt

    from recsys.decoding.packed import Bools, Ints
    from recsys.decoding.trie import SidTrie

    Items = npt.NDArray[np.integer]
    Watcher = Callable[[Ints, Bools], None]


class LiveCatalogue:
    """The live items over one frozen trie. Safe to share between threads.

    Args:
        trie: the model's.
        cold: the declared prior of items that are added.

    Attributes:
        trie: as given.
        added: the items added since.
        lock: held by whoever changes the catalogue or sets of its items.
        valid: the live items.
        removed: how many frozen items are not live.
    """

    def __init__(self, trie: SidTrie, *, cold: ColdPrior | None = None) -> None:
        self.trie = trie
        self.lock = RLock()
        self.added = AddedItems(trie, cold or ColdPrior())
        self.valid = ItemSet(bits_of(np.ones(trie.items, dtype=np.bool_)), trie.items)
        self.removed = 0
        self._watchers: list[Watcher] = []

    @property
    def items(self) -> int:
        """Indices that were ever given, frozen items and added ones."""
        return self.trie.items + self.added.count

    def add(self, codes: npt.NDArray[np.integer]) -> Ints:
        """Add items that the tokenizer has given semantic IDs.

        Args:
            codes: (n, L) integers, known prefixes or not.

        Returns:
            (n,) int64, their indices: the next ones behind all that were ever given.

        Raises:
            InputError: wrong shape or a code out of range; then nothing was added.
        """
        with self.lock:
            items = self.added.add(codes)
            self._set(items, np.ones(len(items), dtype=np.bool_))
            return items

    def remove(self, items: Items) -> None:
        """Take items out of the catalogue, frozen or added; those that are out stay out.

        Raises:
            InputError: an index that was never given.
        """
        with self.lock:
            self._set(self.checked(items, "items"), np.zeros(len(items), dtype=np.bool_))

    def restore(self, items: Items) -> None:
        """Put removed items back, under their old index and semantic ID; those that are in stay in.

        Raises:
            InputError: an index that was never given.
        """
        with self.lock:
            wanted = self.checked(items, "items")
            self.added.list(wanted[wanted >= self.trie.items])
            self._set(wanted, np.ones(len(wanted), dtype=np.bool_))

    def paths(self, items: Ints) -> list[Ints]:
        """For depth 1..L, (m,) frozen nodes above items; -1 beyond an added item's known prefix."""
        added = items >= self.trie.items
        if not added.any():
            return list(self.trie.ascend(self.trie.leaves(items)))[::-1]
        if added.all():
            return self.added.paths(items)
        nodes = list(self.trie.ascend(self.trie.leaves(np.where(added, 0, items))))[::-1]
        for depth, below in zip(nodes, self.added.paths(items[added]), strict=True):
            depth[added] = below
        return nodes

    def merge(self) -> int:
        """Make one run of the added items, without those removed; requests and changes go on meanwhile.

        Returns:
            How many added items a search now looks through.
        """
        with self.lock:
            runs = self.added.seal()
        if runs:
            whole = merged(runs)
            kept = whole.without(~self.valid.holds(whole.item))
            with self.lock:
                dropped = self.added.replace(runs, kept)
                self.added.list(dropped[self.valid.holds(dropped)])  # restored in the meantime
        return sum(len(run.key) for run in self.added.runs)

    def watch(self, watcher: Watcher) -> None:
        """Have a function called with each change, (m,) distinct items and whether each came, under the lock."""
        self._watchers.append(watcher)

    def checked(self, items: Items, field: str) -> Ints:
        """(m,) int64 indices.

        Raises:
            InputError: an index that was never given.
        """
        found = np.asarray(items, dtype=np.int64)
        if found.size and (found.min() < 0 or found.max() >= self.items):
            raise InputError(
                f"items must lie in 0..{self.items - 1}", field=field, value=(int(found.min()), int(found.max()))
            )
        return found

    def _set(self, items: Ints, came: Bools) -> None:
        changed = self.valid.holds(items) != came
        items, first = np.unique(items[changed], return_index=True)
        if not len(items):
            return
        came = came[changed][first]
        self.valid.put(items, came)
        frozen = items < self.trie.items
        self.removed += int((frozen & ~came).sum()) - int((frozen & came).sum())
        for watcher in self._watchers:
            watcher(items, came)


class Merging:
    """Merges a catalogue's added items in a thread of its own, from entering to leaving a `with` block.

    Args:
        catalogue: whose.
        seconds: between two merges.
    """

    def __init__(self, catalogue: LiveCatalogue, *, seconds: float = 1.0) -> None:
        self._catalogue, self._seconds = catalogue, seconds
        self._stop = Event()
        self._thread = Thread(target=self._run, name="catalogue-merge", daemon=True)
        self.merges = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._catalogue.merge()
            self.merges += 1
