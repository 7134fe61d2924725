"""The item embedding that semantic IDs are made from: text and collaboration side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def fuse(
    text: npt.NDArray[np.float32], collaborative: npt.NDArray[np.float32], *, collaborative_weight: float
) -> npt.NDArray[np.float32]:
    """Concatenate unit-length parts, scaled by sqrt(1 - w) and sqrt(w): squared distances mix linearly.

    Args:
        text: (I, D_t); zero rows stay zero.
        collaborative: (I, D_c); zero rows stay zero.
        collaborative_weight: w in [0, 1].

    Returns:
        (I, D_t + D_c) float32.
    """
    parts = [
        np.sqrt(1.0 - collaborative_weight) * unit_length(text),
        np.sqrt(collaborative_weight) * unit_length(collaborative),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def unit_length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows (N, D) of length 1; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)
    return unit
