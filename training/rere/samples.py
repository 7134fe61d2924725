"""The prompts: every training event that has others of its user before it, in an order that a seed gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import DataError
from training.rere.candidates import Requests

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.datasets.prepared import Sequences

    Ints = npt.NDArray[np.int64]


class Samples:
    """An endless, seekable stream of sample ids; every sample comes once per epoch.

    Args:
        sequences: whose training part is read.
        seed: of the epochs' orders.
        limit: newest items of a history that are kept.

    Raises:
        DataError: no user has two training events.
    """

    def __init__(self, sequences: Sequences, *, seed: int, limit: int) -> None:
        self._sequences, self._seed, self._limit = sequences, seed, limit
        each = np.maximum(sequences.train_end.astype(np.int64) - 1, 0)
        users = np.repeat(np.arange(sequences.users), each)
        places = np.arange(len(users)) - np.repeat(np.cumsum(each) - each, each) + 1
        self._all = np.stack([users, places], axis=1)  # (N, 2)
        if not len(self._all):
            raise DataError(
                "no user has two training events: there is no history to roll out behind",
                field="train_end",
                value=int(sequences.train_end.max(initial=0)),
                remedy="give a log with longer histories, or another split",
            )
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """N."""
        return len(self._all)

    def at(self, step: int, count: int) -> Ints:
        """(count, 2) the sample ids of a step: user row, and the target's position among the user's events.

        A pure function of the seed, the step and the count.
        """
        places = np.arange(step * count, (step + 1) * count)
        epochs, within = places // len(self), places % len(self)
        return np.concatenate([self._all[self._of(epoch)[within[epochs == epoch]]] for epoch in np.unique(epochs)])

    def requests(self, samples: Ints) -> Requests:
        """Histories and targets of samples (n, 2)."""
        sequences = self._sequences
        starts = sequences.offsets[samples[:, 0]]
        ends = starts + samples[:, 1]
        begins = np.maximum(starts, ends - self._limit)
        histories = [sequences.items[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        return Requests(histories, sequences.items[ends].astype(np.int64))

    def _of(self, epoch: int) -> Ints:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, int(epoch)]).permutation(len(self))
        return self._order
