"""A log-prior over items: what is added to an item's log-probability, and the bound by which prefixes are chosen.

The one hook for bids, cold boosts, corrections of popularity and merchandising. An item's score is log p(item) plus its
prior; a prefix stands for log p(prefix) plus the largest prior below it, so that a lifted item is not lost to the beam
before its prior counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.trie import SidTrie


class LogPrior:
    """Priors of all items and their maximum per prefix; one pass over the catalogue when it is made.

    Args:
        trie: the model's trie.
        values: (I,) floating, finite.

    Attributes:
        values: (I,) as given.
        bounds: for depth d in 1..L (index d - 1), (n_d,) the largest value of the items below each node.

    Raises:
        InputError: not (I,) floating, or a value that is not finite.
    """

    def __init__(self, trie: SidTrie, values: npt.NDArray[np.floating]) -> None:
        if values.shape != (trie.items,) or not np.issubdtype(values.dtype, np.floating):
            raise InputError(
                f"a log-prior must be ({trie.items},) floating", field="values", value=(values.shape, str(values.dtype))
            )
        if not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(
                f"the log-prior of item {place} is not finite",
                field="values",
                value=float(values[place]),
                remedy="items that may not be shown belong into the eligibility",
            )
        self.values = values
        below = np.maximum.reduceat(values[trie.bucket_items], trie.bucket_start[:-1])
        bounds = [below]
        for start in trie.child_start[:0:-1]:
            below = np.maximum.reduceat(below, start[:-1])
            bounds.append(below)
        self.bounds = tuple(reversed(bounds))
