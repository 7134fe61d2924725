"""Training examples: windows over users' sequences, in batches of about equal size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from recsys.datasets.prepared import Sequences


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of training sequences; every training event is the target of exactly one window.

    Attributes:
        start: (W,) int64 position of the first event in `Sequences.items`.
        length: (W,) int64 number of events, at most max_history.
        first_target: (W,) int64 events before it are context only.
    """

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    first_target: npt.NDArray[np.int64]


def make_windows(sequences: Sequences, max_history: int) -> Windows:
    """Cut every user's training events into windows that overlap by half, so that late targets keep context."""
    rows: list[tuple[int, int, int]] = []
    stride = max(max_history // 2, 1)
    for start, count in zip(sequences.offsets[:-1].tolist(), sequences.train_end.tolist(), strict=True):
        if count == 0:
            continue
        first = min(count, max_history)
        rows.append((start, first, 0))
        while first < count:
            following = min(count, first + stride)
            begin = max(following - max_history, 0)
            rows.append((start + begin, following - begin, first - begin))
            first = following
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 3)
    return Windows(table[:, 0], table[:, 1], table[:, 2])


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step's windows.

    Attributes:
        items: (B, n) int64 events of each window, padded on the right with -1.
        positions: (B, n) int64 their places in `Sequences.items`, padded with -1.
        target: (B, n) bool, whether the event is a target here.
    """

    items: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    target: npt.NDArray[np.bool_]


def thinned(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Leave out events of a batch at random; those that stay close up.

    Args:
        batch: (B, n), every window with one event at least.
        share: chance of an event to be left out; the newest of a window stays where it would be empty.
        rng: of the draws.
    """
    real = batch.items >= 0
    kept = real & (rng.random(real.shape) >= share)
    empty = np.flatnonzero(~kept.any(axis=1))
    kept[empty, real[empty].sum(axis=1) - 1] = True
    counts = kept.sum(axis=1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : int(counts.max())]
    here = np.arange(order.shape[1]) < counts[:, None]

    def moved(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(here, np.take_along_axis(values, order, axis=1), -1)

    return Batch(moved(batch.items), moved(batch.positions), np.take_along_axis(batch.target, order, axis=1) & here)


class BatchSampler:
    """An endless, seekable stream of batches; step s is a pure function of (seed, s).

    Windows are shuffled once per epoch, sorted by length inside pools so that padding stays small, and cut so that
    a batch holds about `tokens` padded positions; then the batches are shuffled.

    Args:
        sequences: whose training part is read.
        max_history: longest input.
        tokens: padded positions per batch, over all ranks.
        seed: of the shuffles.
        drop: share of the events that a step leaves out, drawn anew for each; a window keeps one at least.

    Raises:
        DataError: no user has a training event.
    """

    def __init__(self, sequences: Sequences, *, max_history: int, tokens: int, seed: int, drop: float = 0.0) -> None:
        self._items = sequences.items
        self._windows = make_windows(sequences, max_history)
        if not len(self._windows.start):
            raise DataError(
                "there is no training event to learn from",
                field="train_end",
                value=0,
                remedy="give a log with positive events, or another split",
            )
        self._tokens = tokens
        self._seed = seed
        self._drop = drop
        self._epoch = -1
        self._batches: list[npt.NDArray[np.int64]] = []
        self._first_step = 0

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows.start)

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yield the batches of steps `step`, step + 1, ... for ever."""
        while True:
            self._seek(step)
            for rows in self._batches[step - self._first_step :]:
                batch = self.gather(rows)
                yield thinned(batch, self._drop, np.random.default_rng([self._seed, step, 1])) if self._drop else batch
                step += 1

    def gather(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Build the batch of some windows: (B,) window numbers."""
        start, length = self._windows.start[rows], self._windows.length[rows]
        offset = np.arange(int(length.max()))  # (n,)
        real = offset < length[:, None]
        positions = np.where(real, start[:, None] + offset, -1)
        items = np.where(real, self._items[positions], -1).astype(np.int64)
        return Batch(items, positions, real & (offset >= self._windows.first_target[rows][:, None]))

    def _seek(self, step: int) -> None:
        while self._epoch < 0 or step >= self._first_step + len(self._batches):
            self._first_step += len(self._batches)
            self._epoch += 1
            self._batches = self._cut(np.random.default_rng([self._seed, self._epoch]))

    def _cut(self, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        # Lengths are jittered before sorting: the same neighbours do not meet in every epoch.
        length = self._windows.length + rng.random(len(self._windows.length)) * 2.0
        order = np.argsort(length, kind="stable")
        padded = self._windows.length[order]
        batches: list[npt.NDArray[np.int64]] = []
        begin = 0
        while begin < len(order):
            end = begin + max(1, self._tokens // int(padded[begin] + 1))
            end = begin + max(1, self._tokens // int(padded[min(end, len(order)) - 1] + 1))
            batches.append(order[begin:end])
            begin = end
        rng.shuffle(batches)
        return batches
