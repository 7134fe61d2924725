"""Semantic IDs by residual k-means, made unique by an optimal assignment of the last code.

Source: residual k-means as in OneRec's tokenizer (arXiv:2502.18965, section 3); the last level is reassigned inside
each prefix so that the summed squared distance is least among the assignments without a collision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import faiss
import numpy as np
from scipy.optimize import linear_sum_assignment

from recsys.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

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
    """Centroids per level.

    Attributes:
        centroids: L arrays (T_l, D) float32.
    """

    centroids: tuple[npt.NDArray[np.float32], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""
        return tuple(len(level) for level in self.centroids)

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
            index = faiss.IndexFlatL2(centroids.shape[1])
            index.add(centroids)
            _, nearest = index.search(residual, 1)
            codes[:, level] = nearest[:, 0]
            residual = residual - centroids[codes[:, level]]
        return codes, before


def fit_residual_kmeans(
    vectors: npt.NDArray[np.float32], sizes: tuple[int, ...], *, seed: int, iterations: int = 25
) -> Codebooks:
    """Fit one k-means per level on what the levels before left over.

    Args:
        vectors: (N, D) item embeddings.
        sizes: T_1..T_L; a level gets at most N distinct centroids, the rest repeat the zero residual.
        seed: of the initial centroids.
        iterations: Lloyd iterations per level.

    Raises:
        DataError: no vectors.
    """
    if len(vectors) == 0:
        raise DataError("no item embeddings to build semantic IDs from", field="items", value=0)
    residual = np.ascontiguousarray(vectors, dtype=np.float32).copy()
    centroids: list[npt.NDArray[np.float32]] = []
    for level, size in enumerate(sizes):
        level_centroids = _fit_level(residual, size, seed=seed + level, iterations=iterations)
        centroids.append(level_centroids)
        codes, _ = Codebooks((level_centroids,)).encode(residual)
        residual = residual - level_centroids[codes[:, 0]]
    return Codebooks(tuple(centroids))


def _fit_level(residual: npt.NDArray[np.float32], size: int, *, seed: int, iterations: int) -> npt.NDArray[np.float32]:
    count, dimension = residual.shape
    clusters = min(size, count)
    kmeans = faiss.Kmeans(
        dimension,
        clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=1024,
    )
    kmeans.train(residual)
    centroids = np.zeros((size, dimension), dtype=np.float32)  # (T, D)
    centroids[:clusters] = kmeans.centroids
    # Centroids without a point of their own stay usable for the reassignment of the last level: spread them.
    if clusters < size:
        spare = np.random.default_rng(seed).standard_normal((size - clusters, dimension))
        centroids[clusters:] = (spare * residual.std()).astype(np.float32)
    return centroids


def reassign_last_level(
    codes: npt.NDArray[np.int32], residuals: npt.NDArray[np.float32], last: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """Give the items that share a prefix different last codes, at the least summed squared distance.

    A prefix with n items and T codes gets at most ceil(n / T) items per code, so that every semantic ID is unique
    while n <= T.

    Args:
        codes: (N, L) greedy codes.
        residuals: (N, D) what the first L - 1 levels left over.
        last: (T, D) last codebook.

    Returns:
        (N, L) codes; only the last column differs.
    """
    result = codes.copy()
    size = len(last)
    order = np.lexsort(codes.T[::-1])
    prefixes = codes[order, :-1]
    starts = np.flatnonzero(np.r_[True, (prefixes[1:] != prefixes[:-1]).any(axis=1)])
    for group in np.split(order, starts[1:]):
        if len(np.unique(codes[group, -1])) == len(group):
            continue
        capacity = -(-len(group) // size)
        distance = ((residuals[group, None, :] - last[None, :, :]) ** 2).sum(axis=2)  # (n, T)
        rows, columns = linear_sum_assignment(np.tile(distance, (1, capacity)))
        result[group[rows], -1] = (columns % size).astype(np.int32)
    return result


def assign_new(
    vectors: npt.NDArray[np.float32], codebooks: Codebooks, taken: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Semantic IDs for items that come after the tokenizer was built.

    Each takes the nearest free last code in its greedy prefix, in the order given; where the prefix is full it joins
    the bucket of its nearest code.

    Args:
        vectors: (N, D) embeddings of the new items.
        codebooks: of this tokenizer version.
        taken: (M, L) every semantic ID ever given in this version, dead ones included.

    Returns:
        (N, L) codes.
    """
    codes, residuals = codebooks.encode(vectors)
    last = codebooks.centroids[-1]
    used: dict[tuple[int, ...], set[int]] = {}
    for row in taken.tolist():
        used.setdefault(tuple(row[:-1]), set()).add(row[-1])
    for row, residual in zip(codes, residuals, strict=True):
        occupied = used.setdefault(tuple(row[:-1].tolist()), set())
        nearest = np.argsort(((residual - last) ** 2).sum(axis=1), kind="stable")
        row[-1] = next((code for code in nearest.tolist() if code not in occupied), int(nearest[0]))
        occupied.add(int(row[-1]))
    return codes
