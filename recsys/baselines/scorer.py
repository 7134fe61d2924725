"""The one thing every baseline can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt


class Scorer(Protocol):
    """Scores every item of the catalogue behind a batch of histories."""

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Score all items.

        Args:
            histories: B arrays of item indices, oldest first; may be empty.

        Returns:
            (B, I), a new array the caller may change.
        """
