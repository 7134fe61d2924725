"""What a user's history asks an index for: the newest items' vectors as one, newer ones weighing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.retrieval.checks import Rows, Vectors
    from recsys.retrieval.vector_index import VectorIndex

RECENT: Final = 20  # items of a history that are read
FADING: Final = 0.8  # weight of an item over that of its successor


def taste(
    index: VectorIndex, history: Rows | Sequence[int], *, recent: int = RECENT, fading: float = FADING
) -> Vectors | None:
    """The weighted sum of the vectors of a history's newest items.

    Items without a vector are left out before they are counted, so that the newest one that has a vector weighs 1.

    Args:
        index: holds the vectors.
        history: catalogue rows, oldest first; a negative one is an item that is not there.
        recent: items that are read, at least 1.
        fading: weight of an item over that of its successor, above 0 and at most 1.

    Returns:
        (D,), not of unit length; None where no item has a vector, or the sum has no direction.

    Raises:
        InputError: `recent` or `fading` out of its range.
    """
    if recent < 1:
        raise InputError("at least one item must be read", field="recent", value=recent, remedy="give 1 or more")
    if not 0 < fading <= 1:
        raise InputError("newer items weigh more, or as much", field="fading", value=fading, remedy="above 0, up to 1")
    found: list[Vectors] = []
    for row in reversed([int(row) for row in history]):
        vector = index.vector(row) if row >= 0 else None
        if vector is not None:
            found.append(vector)
        if len(found) == recent:
            break
    if not found:
        return None
    weights = fading ** np.arange(len(found), dtype=np.float64)
    asked: Vectors = (weights @ np.stack(found).astype(np.float64)).astype(np.float32)
    return asked if asked.any() else None
