"""S-XBM: a cross-batch memory of vectors that never age, because the encoder that made them is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_EMPTY = -1


class CrossBatchMemory:
    """First in, first out; a row that comes again leaves its older place, so that no neighbour counts twice.

    Args:
        size: M, the most vectors held.
        dimension: N of the vectors.
        device: where they are held.
    """

    def __init__(self, size: int, dimension: int, device: torch.device | None = None) -> None:
        self._rows = torch.full((size,), _EMPTY, dtype=torch.long, device=device)  # (M,)
        self._vectors = torch.zeros(size, dimension, device=device)  # (M, N)
        self._next = 0

    def __len__(self) -> int:
        return int((self._rows != _EMPTY).sum())

    @property
    def vectors(self) -> Tensor:
        """(M, N) what is held; places that are empty hold anything."""
        return self._vectors

    @torch.no_grad()
    def push(self, rows: Tensor, vectors: Tensor) -> None:
        """Put in the newest vectors.

        Args:
            rows: (B,) distinct numbers of the vectors, at least 0; of more than M the last M are kept.
            vectors: (B, N) of the frozen encoder; values are copied, gradients are not.
        """
        size = len(self._rows)
        if not size:
            return
        rows, vectors = rows[-size:], vectors[-size:]
        self._rows[torch.isin(self._rows, rows)] = _EMPTY
        places = (self._next + torch.arange(len(rows), device=rows.device)) % size
        self._rows[places] = rows
        self._vectors[places] = vectors
        self._next = (self._next + len(rows)) % size

    @torch.no_grad()
    def nearest(self, rows: Tensor, vectors: Tensor, count: int) -> Tensor | None:
        """The numbers of the most similar vectors held, none of them a row's own.

        Args:
            rows: (B,) numbers of the vectors that ask.
            vectors: (B, N).
            count: neighbours of each.

        Returns:
            (B, count), or None while fewer than count + 1 vectors are held.
        """
        if len(self) <= count:
            return None
        scores = vectors @ self._vectors.T  # (B, M)
        scores.masked_fill_((self._rows == _EMPTY) | (self._rows == rows[:, None]), -torch.inf)
        return self._rows[scores.topk(count, dim=1).indices]

    def state(self) -> dict[str, Tensor]:
        """Rows and the next place; with the table of all vectors this is the whole memory."""
        return {"rows": self._rows.clone(), "next": torch.tensor([self._next])}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], table: Tensor) -> None:
        """Take up what `state` gave.

        Args:
            state: of a memory of the same size.
            table: (T, N) all vectors by number.
        """
        self._rows.copy_(state["rows"])
        self._next = int(state["next"])
        held = self._rows != _EMPTY
        self._vectors[held] = table[self._rows[held]]
