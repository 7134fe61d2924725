"""Controls without training: cutting vectors short, and their principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from recsys.errors import ConfigError
from recsys.models.smec import CompressorConfig, check_vectors
from training.smec.course import principal_axes
from training.smec.data import unit

if TYPE_CHECKING:
    import numpy.typing as npt


class Truncation:
    """The first dimensions.

    Args:
        dimension: N.
        halvings: as of `CompressorConfig`.
    """

    def __init__(self, dimension: int, halvings: int) -> None:
        self._dimension = dimension
        self.widths: Final = CompressorConfig(dimension, halvings).widths

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """See `training.smec.course.Reducer`; at N the vectors themselves."""
        check_vectors(vectors, self._dimension)
        _check_width(width, self._dimension)
        return unit(np.ascontiguousarray(vectors[:, :width]))


class PrincipalComponents:
    """The directions in which the fitted vectors are largest.

    Args:
        vectors: (T, N) of unit length to fit on.
        halvings: as of `CompressorConfig`.
        centred: subtract the mean first, as the textbook does. Without it similarities at N are the vectors' own.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], halvings: int, *, centred: bool = False) -> None:
        self._dimension = vectors.shape[1]
        self.widths: Final = CompressorConfig(self._dimension, halvings).widths
        mean = vectors.mean(axis=0, dtype=np.float64) if centred else np.zeros(self._dimension)
        self._mean = mean.astype(np.float32)
        self._axes = principal_axes(torch.from_numpy(vectors), torch.from_numpy(self._mean)).numpy()  # (N, N)

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """See `training.smec.course.Reducer`."""
        check_vectors(vectors, self._dimension)
        _check_width(width, self._dimension)
        centred = (unit(vectors) - self._mean) * vectors.any(axis=1, keepdims=True)  # a zero vector stays one
        return unit(centred @ self._axes[:width].T)


def _check_width(width: int, dimension: int) -> None:
    if not 1 <= width <= dimension:
        raise ConfigError("no such width", field="width", value=width, remedy=f"1 to {dimension}")
