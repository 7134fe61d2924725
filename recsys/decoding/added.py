"""Items that were added after the model was frozen, and where a search meets them.

The normaliser stays as it is, so no score of an old item ever moves. An added item hangs at its *known prefix*: the
longest prefix of its semantic ID that the frozen trie has, a node v of depth D. Its score is declared:

    score(x) = log p(v) - max(0, sum over the missing levels l = D+1..L of (log(1 + c_l) + penalty) - lift)

where c_l is the number of children that the frozen trie has at that level of its path: those of v at level D + 1, none
below. An item that joins an existing leaf (D = L) has the leaf's score. Else the new branch gets the share that one
more child of v would have if all were alike, times e^lift, and never more than all of v. The sum lies between
log 2 + (L - D) penalty and log(1 + T_{D+1}) + (L - D) penalty; it depends on the frozen trie alone, not on what else
was added.

An added item is a candidate of a request when the beam keeps its known prefix; the prefix counts it among its live
items. At equal scores added items stand behind frozen ones, among themselves by index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from recsys.decoding import trie_kernels
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.item_set import ItemSet
    from recsys.decoding.log_prior import Bounds
    from recsys.decoding.packed import Bools, Ints
    from recsys.decoding.trie import SidTrie

    Floats = npt.NDArray[np.floating]

_HIGHEST: Final = 20.0  # nats per level
_SEALED: Final = 256  # items of the newest run beyond which another is begun
_RUNS: Final = 8  # beyond, an addition merges them itself


@dataclass(frozen=True, slots=True)
class ColdPrior:
    """What an added item loses where the frozen trie does not have its path; declared with the bundle.

    Attributes:
        penalty: nats per missing level beside log(1 + children), 0..20.
        lift: nats that an item with a missing level gets back, 0..20; at most what it lost.

    Raises:
        ConfigError: a value outside its range.
    """

    penalty: float = 0.0
    lift: float = 0.0

    def __post_init__(self) -> None:
        for name, remedy in (
            ("penalty", "raise the lift instead, or lift items by a log-prior"),
            ("lift", "raise the penalty instead"),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= _HIGHEST):
                raise ConfigError(
                    f"the {name} of added items must lie in 0..{_HIGHEST:g}", field=name, value=value, remedy=remedy
                )

    def of(self, children: Ints, missing: Ints) -> npt.NDArray[np.float64]:
        """(m,) what is added to the score of a known prefix; never above 0.

        Args:
            children: (m,) that the known prefix has in the frozen trie.
            missing: (m,) levels below it, L - D.
        """
        lost = np.where(missing > 0, np.log1p(children) + missing * self.penalty, 0.0)
        return -np.maximum(lost - self.lift, 0.0)


class Run(NamedTuple):
    """Added items in the order of their known prefixes; never changed.

    Attributes:
        key: (n,) int64 ascending, `Places.key` of the known prefix.
        item: (n,) int64.
        cold: (n,) float64, what is added to the prefix's score.
    """

    key: Ints
    item: Ints
    cold: npt.NDArray[np.float64]

    def inserted(self, other: Run) -> Run:
        """Both together; the other's items are listed behind those of equal key."""
        at = self.key.searchsorted(other.key, side="right")
        order = np.insert(np.arange(len(self.key)), at, np.arange(len(other.key)) + len(self.key))
        return Run(
            np.concatenate([self.key, other.key])[order],
            np.concatenate([self.item, other.item])[order],
            np.concatenate([self.cold, other.cold])[order],
        )

    def without(self, gone: Bools) -> Run:
        """The same without some, (n,)."""
        return Run(self.key[~gone], self.item[~gone], self.cold[~gone])

    def find(self, keys: Ints) -> tuple[Ints, Ints]:
        """Places in `keys` and in the run, wherever they agree."""
        return trie_kernels.matches(self.key, keys)


_EMPTY: Final = Run(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))


class Places:
    """Numbers for the nodes of all depths in one order: those below a node follow it.

    Args:
        trie: the frozen one.
    """

    def __init__(self, trie: SidTrie) -> None:
        self._ranges = trie.leaf_ranges()
        self.levels = trie.levels

    def key(self, depth: int, nodes: Ints) -> Ints:
        """(m,) int64: the first leaf below each node, then its depth."""
        leaf = nodes if depth == self.levels else self._ranges[depth].take(nodes).astype(np.int64)
        return leaf * (self.levels + 1) + depth

    def node(self, depth: int, key: Ints) -> Ints:
        """(m,) node at a depth in 1..L above or at the node of each key; -1 where that one is less deep."""
        leaf, deepest = np.divmod(key, self.levels + 1)
        nodes = leaf if depth == self.levels else trie_kernels.parents(self._ranges[depth], leaf)
        return np.where(deepest >= depth, nodes, -1)


class AddedItems:
    """All items added to one frozen trie; a writer at a time (`LiveCatalogue` sees to that), readers at any.

    Args:
        trie: the frozen one.
        cold: what they lose for each level they do not know.

    Attributes:
        first: I, the index of the first added item.
        count: how many were ever added.
        places: of the trie's nodes.
        runs: what a search looks through; replaced, never changed.
    """

    def __init__(self, trie: SidTrie, cold: ColdPrior) -> None:
        self._trie, self._cold = trie, cold
        self.first, self.count = trie.items, 0
        self.places = Places(trie)
        self.runs: tuple[Run, ...] = (_EMPTY,)
        self._keys = np.empty(0, dtype=np.int64)  # (room,) of the known prefix by item - I
        self._colds = np.empty(0)
        self._listed = np.zeros(0, dtype=np.bool_)  # (room,) whether it stands in a run

    def add(self, codes: npt.NDArray[np.integer]) -> Ints:
        """Give indices to new items; they are listed at once.

        Args:
            codes: (n, L) semantic IDs.

        Raises:
            InputError: wrong shape or a code out of range; then nothing was added.
        """
        wanted: Ints = np.asarray(codes, dtype=np.int64)
        sizes = np.asarray(self._trie.sizes)
        if wanted.ndim != 2 or wanted.shape[1] != len(sizes):
            raise InputError(f"semantic IDs must be (n, {len(sizes)})", field="codes", value=wanted.shape)
        wrong = ((wanted < 0) | (wanted >= sizes)).any(axis=1)
        if wrong.any():
            raise InputError(
                f"a code lies outside its codebook {self._trie.sizes}",
                field="codes",
                value=wanted[wrong][0].tolist(),
                remedy="encode the item with the tokenizer of the bundle",
            )
        key, cold = self._known(wanted)
        end = self.count + len(wanted)
        self._make_room(end)
        self._keys[self.count : end], self._colds[self.count : end] = key, cold
        items = np.arange(self.count, end) + self.first
        self.count = end
        self.list(items)
        return items

    def paths(self, items: Ints) -> list[Ints]:
        """For depth 1..L, (m,) nodes above added items; -1 beyond their known prefix."""
        key = self._keys[items - self.first]
        return [self.places.node(depth, key) for depth in range(1, self._trie.levels + 1)]

    def list(self, items: Ints) -> None:
        """Let searches find added items; those that are listed already stay so."""
        place = np.unique(items - self.first)
        place = place[~self._listed[place]]
        if not len(place):
            return
        self._listed[place] = True
        order = np.argsort(self._keys[place], kind="stable")
        new = Run(self._keys[place][order], (place + self.first)[order], self._colds[place][order])
        older, newest = self.runs[:-1], self.runs[-1].inserted(new)
        self.runs = (*older, newest) if len(newest.key) < _SEALED else (*older, newest, _EMPTY)
        if len(self.runs) > _RUNS:
            self.replace(self.runs, merged(self.runs))

    def replace(self, runs: tuple[Run, ...], by: Run) -> Ints:
        """Put one run in the place of the oldest ones, if these are `runs` still.

        Returns:
            Items that stand in `runs` and not in `by`: they are listed no more.
        """
        if len(self.runs) < len(runs) or any(now is not then for now, then in zip(self.runs, runs, strict=False)):
            return by.item[:0]  # an addition has merged them already
        dropped = np.setdiff1d(np.concatenate([run.item for run in runs]), by.item)
        self._listed[dropped - self.first] = False
        self.runs = (by, *(self.runs[len(runs) :] or (_EMPTY,)))
        return dropped

    def seal(self) -> tuple[Run, ...]:
        """Begin another run, and give those before it."""
        if len(self.runs[-1].key):
            self.runs = (*self.runs, _EMPTY)
        return self.runs[:-1]

    def _known(self, codes: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Key of each one's known prefix, and its cold prior."""
        trie = self._trie
        node = np.zeros(len(codes), dtype=np.int64)
        key = self.places.key(0, node)
        depth = np.zeros(len(codes), dtype=np.int64)
        children = np.full(len(codes), trie.nodes(1))
        for level in range(trie.levels):
            node = trie_kernels.children(trie.child_start[level], trie.node_code[level], node, codes[:, level].copy())
            known = np.flatnonzero(node >= 0)
            depth[known] = level + 1
            key[known] = self.places.key(level + 1, node[known])
            if level + 1 < trie.levels:
                start = trie.child_start[level + 1]
                children[known] = start[node[known] + 1] - start[node[known]]
        return key, self._cold.of(children, trie.levels - depth)

    def _make_room(self, count: int) -> None:
        if count > len(self._keys):
            more = 2 * count - len(self._keys)
            self._keys = np.concatenate([self._keys, np.zeros(more, dtype=np.int64)])
            self._colds = np.concatenate([self._colds, np.zeros(more)])
            self._listed = np.concatenate([self._listed, np.zeros(more, dtype=np.bool_)])


def merged(runs: tuple[Run, ...]) -> Run:
    """Several runs as one."""
    key, item = np.concatenate([run.key for run in runs]), np.concatenate([run.item for run in runs])
    order = np.argsort(key, kind="stable")
    return Run(key[order], item[order], np.concatenate([run.cold for run in runs])[order])


@dataclass(frozen=True, slots=True, eq=False)
class AddedSnapshot:
    """The added items as one request sees them.

    Attributes:
        items: all of them.
        runs: those that are listed.
        members: what the request may show.
    """

    items: AddedItems
    runs: tuple[Run, ...]
    members: ItemSet


class Newcomers:
    """Takes the prefixes that a search keeps, depth by depth, and gives the added items that hang there.

    Args:
        added: the snapshot of the request.
        bounds: of its log-prior, which stand in the scores of prefixes; None without one.
    """

    def __init__(self, added: AddedSnapshot, bounds: Bounds | None) -> None:
        self._added, self._bounds = added, bounds
        self._items: list[Ints] = []
        self._scores: list[npt.NDArray[np.float64]] = []
        root = np.zeros(1, dtype=np.int64)
        self.kept(0, root, np.zeros(1))

    @classmethod
    def of(cls, mask: RequestMask) -> Newcomers | None:
        """For one search of a request; None where it sees no added item."""
        return None if mask.added is None else cls(mask.added, mask.bounds)

    def kept(self, depth: int, nodes: Ints, scores: Floats) -> None:
        """Nodes (M,) of a depth that a beam kept, and their scores (M,)."""
        keys = self._added.items.places.key(depth, nodes)
        for run in self._added.runs:
            if len(run.key):
                which, at = run.find(keys)
                if len(at):
                    value = scores[which].astype(np.float64)
                    if self._bounds is not None:
                        if depth:
                            value -= self._bounds.below(depth, nodes[which])
                        value += self._bounds.prior.of_added(run.item[at])
                    self._items.append(run.item[at])
                    self._scores.append(value + run.cold[at])

    def found(self) -> tuple[Ints, npt.NDArray[np.float64]]:
        """(n,) items, each once, ascending, and (n,) their scores."""
        if not self._items:
            return np.empty(0, dtype=np.int64), np.empty(0)
        items = np.concatenate(self._items)
        order = np.argsort(items)
        return items[order], np.concatenate(self._scores)[order]
