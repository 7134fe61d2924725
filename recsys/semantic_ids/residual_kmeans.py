"""Semantic IDs by residual k-means.

Source: residual k-means as in OneRec's tokenizer (arXiv:2502.18965, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Final

import faiss
import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from recsys.semantic_ids.settings import Kind

LEVELS: Final = 3
_SMALLEST, _LARGEST = 32, 8192


def choose_codebook_sizes(num_items: int) -> tuple[int, ...]:
    """Three equal codebooks: T is the smallest power of two with T^2 >= 4 I, between 32 and 8,192.

    T^2 prefixes of two codes for I items leave about 1.5 items per prefix that is used, so that the last code has
    room for all of them and for later items: 10^4 items get 256 codes, 10^5 1,024, 10^6 2,048, 10^7 and 10^8 8,192.
    """
    size = _SMALLEST
    while size * size < 4 * num_items and size < _LARGEST:
        size *= 2
    return (size,) * LEVELS


@dataclass(frozen=True, slots=True)
class Codebooks:
    """Centroids per level: the tokenizer `residual_kmeans`.

    Attributes:
        centroids: L arrays (T_l, D) float32.
    """

    centroids: tuple[npt.NDArray[np.float32], ...]

    @property
    def kind(self) -> Kind:
        """`residual_kmeans`."""
        return "residual_kmeans"

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""
        return tuple(len(level) for level in self.centroids)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.centroids[0].shape[1])

    def encode(self, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Take the nearest centroid level by level.

        Args:
            vectors: (N, D).

        Returns:
            codes (N, L), and the residuals (N, D) before the last level.
        """
        residual = np.ascontiguousarray(vectors, dtype=np.float32).copy()  # (N, D)
        before = residual
        codes = np.empty((len(residual), len(self.centroids)), dtype=np.int32)
        for level, centroids in enumerate(self.centroids):
            before = residual
            codes[:, level] = nearest_rows(residual, centroids)
            residual = residual - centroids[codes[:, level]]
        return codes, before

    def reconstruct(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The sum (N, D) of the centroids that codes (N, L) name."""
        parts = [centroids[codes[:, level]] for level, centroids in enumerate(self.centroids)]
        total: npt.NDArray[np.float32] = np.sum(parts, axis=0, dtype=np.float32)
        return total

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """`codebook_<level>`."""
        return {f"codebook_{level}": centroids for level, centroids in enumerate(self.centroids)}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[np.float32]]) -> Codebooks:
        """Undo `state`.

        Raises:
            KeyError: there is no `codebook_0`.
        """
        first = state["codebook_0"]
        names = takewhile(lambda name: name in state, (f"codebook_{level}" for level in count(1)))
        return cls((first, *(state[name] for name in names)))

    def relabelled(self, order: Sequence[npt.NDArray[np.intp]]) -> Codebooks:
        """The same centroids in another order per level."""
        return Codebooks(tuple(level[rows] for level, rows in zip(self.centroids, order, strict=True)))


def nearest_rows(vectors: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """(N,) the row of `centroids` (T, d) that is nearest to each of `vectors` (N, d), C-contiguous float32 both."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    _, nearest = index.search(vectors, 1)
    found: npt.NDArray[np.int64] = nearest[:, 0]
    return found


def fit_residual_kmeans(
    vectors: npt.NDArray[np.float32],
    sizes: tuple[int, ...],
    *,
    seed: int,
    iterations: int = 25,
    warm: Codebooks | None = None,
) -> Codebooks:
    """Fit one k-means per level on what the levels before left over.

    Args:
        vectors: (N, D) item embeddings.
        sizes: T_1..T_L; a level gets at most N distinct centroids, the rest repeat the zero residual.
        seed: of the initial centroids.
        iterations: Lloyd iterations per level.
        warm: initial centroids of every level, of the same sizes.

    Raises:
        DataError: no vectors.
    """
    if len(vectors) == 0:
        raise DataError("no item embeddings to build semantic IDs from", field="items", value=0)
    residual = np.ascontiguousarray(vectors, dtype=np.float32).copy()
    centroids: list[npt.NDArray[np.float32]] = []
    for level, size in enumerate(sizes):
        initial = None if warm is None else warm.centroids[level]
        fitted = fit_kmeans(residual, size, seed=seed + level, iterations=iterations, initial=initial)
        centroids.append(fitted)
        codes, _ = Codebooks((fitted,)).encode(residual)
        residual = residual - fitted[codes[:, 0]]
    return Codebooks(tuple(centroids))


def fit_kmeans(
    vectors: npt.NDArray[np.float32],
    size: int,
    *,
    seed: int,
    iterations: int,
    initial: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Centroids (T, d) of vectors (N, d), C-contiguous float32; beyond N of them the rest lie at random."""
    number, dimension = vectors.shape
    clusters = min(size, number)
    kmeans = faiss.Kmeans(
        dimension,
        clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1024,
    )
    kmeans.train(vectors, init_centroids=None if initial is None else np.ascontiguousarray(initial[:clusters]))
    centroids = np.zeros((size, dimension), dtype=np.float32)  # (T, d)
    centroids[:clusters] = kmeans.centroids
    # Centroids without a point of their own stay usable for the reassignment of the last level: spread them.
    if clusters < size and initial is None:
        spare = np.random.default_rng(seed).standard_normal((size - clusters, dimension))
        centroids[clusters:] = (spare * vectors.std()).astype(np.float32)
    elif clusters < size and initial is not None:
        centroids[clusters:] = initial[clusters:]
    return centroids
