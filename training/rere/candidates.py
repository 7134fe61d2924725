"""What rollouts may show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.eligibility import Eligibility, EligibilityIndex
from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.eligibility import RequestMask
    from recsys.decoding.trie import SidTrie


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """n histories to roll out behind.

    Attributes:
        histories: n arrays of items, oldest first.
        targets: (n,) int64.
    """

    histories: Sequence[npt.NDArray[np.integer]]
    targets: npt.NDArray[np.int64]

    def some(self, rows: npt.NDArray[np.int64]) -> Requests:
        """Those of some rows."""
        return Requests([self.histories[row] for row in rows], self.targets[rows])


class Candidates:
    """Turns eligibility and hints into masks over the trie.

    Args:
        trie: of the policy.
        eligible: (I,) bool items that may ever be shown; None = all.
        exclude_history: whether a request's own history may not be shown.

    Raises:
        DataError: no item may be shown.
    """

    def __init__(
        self, trie: SidTrie, eligible: npt.NDArray[np.bool_] | None = None, *, exclude_history: bool = False
    ) -> None:
        self.trie = trie
        self._eligible = np.ones(trie.items, dtype=np.bool_) if eligible is None else eligible
        if not self._eligible.any():
            raise DataError("no item may be shown", field="eligible", value=0, remedy="check the items' availability")
        self._shared = None if eligible is None else eligible
        self._exclude = exclude_history
        self._index = EligibilityIndex(trie)
        self._nodes = trie.item_node  # (I, L)

    def masks(self, requests: Requests, hint: int = 0) -> list[RequestMask]:
        """One mask per request; with a hint, only items that share the target's first `hint` codes may be shown."""
        histories = [np.asarray(history, dtype=np.int64) for history in requests.histories]
        if not hint:
            excluded = histories if self._exclude else None
            return self._index.masks(Eligibility(self._shared, excluded), len(histories))
        prefixes = self._nodes[requests.targets, hint - 1]
        found: dict[int, RequestMask] = {}
        for prefix in np.unique(prefixes):
            rows = np.flatnonzero(prefixes == prefix)
            shared = self._eligible & (self._nodes[:, hint - 1] == prefix)
            excluded = [histories[row] for row in rows] if self._exclude else None
            found |= zip(rows.tolist(), self._index.masks(Eligibility(shared, excluded), len(rows)), strict=True)
        return [found[row] for row in range(len(histories))]


def available_items(data: PreparedData) -> npt.NDArray[np.bool_]:
    """(I,) items that are available at the newest training event; a missing bound, or column, is no bound."""
    sequences = data.sequences
    counts = sequences.train_end.astype(np.int64)
    last = (sequences.offsets[:-1] + counts - 1)[counts > 0]
    now = int(sequences.times[last].max()) if len(last) else 0
    available = np.ones(data.items.num_rows, dtype=np.bool_)
    columns = set(data.items.column_names)
    if "available_from" in columns:
        values = data.items["available_from"].to_pylist()
        available &= np.array([value is None or value <= now for value in values], dtype=np.bool_)
    if "available_until" in columns:
        values = data.items["available_until"].to_pylist()
        available &= np.array([value is None or now < value for value in values], dtype=np.bool_)
    return available
