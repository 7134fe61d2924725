"""A log-prior over items: what is added to an item's log-probability, and the bound by which prefixes are chosen.

The one hook for bids, cold boosts, corrections of popularity and merchandising. An item's score is log p(item) plus its
prior; a prefix stands for log p(prefix) plus the largest prior below it, so that a lifted item is not lost to the beam
before its prior counts. For an added item the bound holds its cold prior and its log-prior together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.added import AddedSnapshot
    from recsys.decoding.packed import Ints
    from recsys.decoding.trie import SidTrie

    Floats = npt.NDArray[np.floating]


class LogPrior:
    """Priors of all items and their maximum per prefix; one pass over the catalogue when it is made.

    Args:
        trie: the model's trie.
        values: (I,) floating, finite.
        added: (n,) floating, finite, of the items I, I + 1, .. that were added since; those behind have 0.

    Attributes:
        values: (I,) as given.
        added: (n,) as given.
        bounds: for depth d in 1..L (index d - 1), (n_d,) the largest value of the frozen items below each node.

    Raises:
        InputError: not (I,) floating, or a value that is not finite.
    """

    def __init__(self, trie: SidTrie, values: Floats, added: Floats | None = None) -> None:
        if values.shape != (trie.items,) or not np.issubdtype(values.dtype, np.floating):
            raise InputError(
                f"a log-prior must be ({trie.items},) floating", field="values", value=(values.shape, str(values.dtype))
            )
        self.added = np.zeros(0) if added is None else added
        if self.added.ndim != 1 or not np.issubdtype(self.added.dtype, np.floating):
            raise InputError(
                "the log-prior of added items must be (n,) floating",
                field="added",
                value=(self.added.shape, str(self.added.dtype)),
            )
        _check_finite(values, 0)
        _check_finite(self.added, trie.items)
        self.values = values
        below = np.maximum.reduceat(values[trie.bucket_items], trie.bucket_start[:-1])
        bounds = [below]
        for start in trie.child_start[:0:-1]:
            below = np.maximum.reduceat(below, start[:-1])
            bounds.append(below)
        self.bounds = tuple(reversed(bounds))

    def of_added(self, items: Ints) -> npt.NDArray[np.float64]:
        """(m,) values of added items."""
        place = items - len(self.values)
        found = np.zeros(len(items))
        known = place < len(self.added)
        found[known] = self.added[place[known]]
        return found


class Bounds:
    """The largest value below each prefix, for one batch of requests.

    With added items, the first call for a depth costs work in proportion to their number.

    Args:
        prior: the log-prior.
        added: the added items that the batch sees; None where there is none.

    Attributes:
        prior: as given.
        frozen: whether the prior's own bounds say all.
    """

    def __init__(self, prior: LogPrior, added: AddedSnapshot | None) -> None:
        self.prior, self._added = prior, added
        self.frozen = added is None
        self._raised: dict[int, tuple[Ints, npt.NDArray[np.float64]]] = {}

    def below(self, depth: int, nodes: Ints) -> Floats:
        """(m,) of nodes of a depth in 1..L."""
        values = self.prior.bounds[depth - 1][nodes]
        if self._added is None:
            return values
        known = self._raised.get(depth)
        if known is None:
            known = self._raised[depth] = self._raise(depth, self._added)
        raised, best = known
        if len(raised):
            at = np.minimum(np.searchsorted(raised, nodes), len(raised) - 1)
            values = np.maximum(values, np.where(raised[at] == nodes, best[at], -np.inf))
        return values

    def _raise(self, depth: int, added: AddedSnapshot) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Ascending nodes with an added item below, and the largest of these items' values."""
        node = added.items.places.node(depth, np.concatenate([run.key for run in added.runs]))
        values = np.concatenate([run.cold + self.prior.of_added(run.item) for run in added.runs])
        nodes, at = np.unique(node, return_inverse=True)
        best = np.full(len(nodes), -np.inf)
        np.maximum.at(best, at, values)
        first = int(len(nodes) > 0 and nodes[0] < 0)  # -1: their known prefix is less deep
        return nodes[first:], best[first:]


def _check_finite(values: Floats, first: int) -> None:
    wrong = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))  # scores may be float32
    if len(wrong):
        raise InputError(
            f"the log-prior of item {first + wrong[0]} is not finite in float32",
            field="values",
            value=float(values[wrong[0]]),
            remedy="items that may not be shown belong into the eligibility",
        )
