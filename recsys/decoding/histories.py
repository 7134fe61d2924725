"""Histories of unequal length as one padded tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

PADDING = -1
_CPU = torch.device("cpu")


def pad_histories(
    histories: Sequence[npt.NDArray[np.integer]],
    *,
    items: int,
    limit: int | None = None,
    device: torch.device = _CPU,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put histories side by side, oldest item first, padding behind the newest.

    Args:
        histories: item indices per request.
        items: I; every index lies in 0..I-1.
        limit: keep only the newest items of a longer history.
        device: where the tensors go.

    Returns:
        (B, n) int64 item indices with -1 as padding, and (B,) int64 lengths; n is the longest length, at least 1.

    Raises:
        InputError: an index outside the catalogue.
    """
    kept = [np.asarray(history) if limit is None else np.asarray(history)[-limit:] for history in histories]
    sizes = [len(history) for history in kept]
    width = max(1, *sizes) if sizes else 1
    padded = np.full((len(kept), width), PADDING, dtype=np.int64)
    for row, history in enumerate(kept):
        if len(history):
            padded[row, : len(history)] = history
            given = padded[row, : len(history)]
            if int(given.view(np.uint64).max()) >= items:  # a negative number is a large one there
                _refuse(given, items)
    found, lengths = torch.from_numpy(padded), torch.from_numpy(np.array(sizes, dtype=np.int64))
    return (found, lengths) if device == _CPU else (found.to(device), lengths.to(device))


def _refuse(history: npt.NDArray[np.int64], items: int) -> NoReturn:
    value = (int(history.min()), int(history.max()))
    raise InputError(f"items of a history must lie in 0..{items - 1}", field="histories", value=value)


def counts(histories: Sequence[npt.NDArray[np.integer]], limit: int) -> list[int]:
    """Items that a model reads of each history."""
    return [min(len(history), limit) for history in histories]
