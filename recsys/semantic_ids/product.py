"""Product quantisation: the vector is rotated and cut into L blocks, and each code stands for one block.

Source: Ge, He, Ke and Sun, "Optimized Product Quantization" (2013): the start of the rotation is section 3.2
(eigenvalue allocation), its improvement the alternation of section 3.1. RPG (arXiv:2506.05781) writes such codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.semantic_ids.residual_kmeans import Codebooks, fit_kmeans, nearest_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from recsys.semantic_ids.settings import Kind

    Floats = npt.NDArray[np.float32]

_SMALLEST_EIGENVALUE = 1e-10  # of the largest
_LLOYD_PER_ROUND = 2


@dataclass(frozen=True, slots=True, eq=False)
class ProductCodes:
    """The tokenizer `product`.

    Attributes:
        centroids: L arrays (T_l, d), L d >= D.
        rotation: (D, L d), orthonormal rows.
    """

    centroids: tuple[Floats, ...]
    rotation: Floats

    @property
    def kind(self) -> Kind:
        """`product`."""
        return "product"

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""
        return tuple(len(level) for level in self.centroids)

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.rotation)

    def encode(self, vectors: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
        """Codes (N, L) of vectors (N, D): the nearest centroid in each block; and the last block (N, d)."""
        blocks = _blocks(vectors @ self.rotation, len(self.centroids))
        nearest = [nearest_rows(block, rows) for block, rows in zip(blocks, self.centroids, strict=True)]
        return np.stack(nearest, axis=1).astype(np.int32), blocks[-1]

    def reconstruct(self, codes: npt.NDArray[np.int32]) -> Floats:
        """Vectors (N, D) of codes (N, L)."""
        return _joined(self.centroids, codes) @ self.rotation.T

    def state(self) -> dict[str, Floats]:
        """`codebook_<level>` and `rotation`."""
        return {**Codebooks(self.centroids).state(), "rotation": self.rotation}

    @classmethod
    def from_state(cls, state: Mapping[str, Floats]) -> ProductCodes:
        """Undo `state`.

        Raises:
            KeyError: naming what is missing.
        """
        return cls(Codebooks.from_state(state).centroids, state["rotation"])

    def relabelled(self, order: Sequence[npt.NDArray[np.intp]]) -> ProductCodes:
        """The same centroids in another order per block."""
        return ProductCodes(Codebooks(self.centroids).relabelled(order).centroids, self.rotation)


def fit_product(
    vectors: Floats,
    sizes: tuple[int, ...],
    *,
    rounds: int,
    iterations: int,
    seed: int,
    warm: ProductCodes | None = None,
) -> ProductCodes:
    """Fit a rotation and one codebook per block.

    Args:
        vectors: (N, D), N >= 1.
        sizes: T_1..T_L; D need not be a multiple of L.
        rounds: alternations of codebooks and rotation; 0 leaves the vectors as they are.
        iterations: Lloyd iterations of the final codebooks.
        seed: of the initial centroids.
        warm: an earlier fit, whose rotation is kept, since its codes mean nothing under another one.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    levels = len(sizes)
    width = -(-vectors.shape[1] // levels) * levels  # L d
    centroids: Sequence[Floats | None] = [None] * levels if warm is None else warm.centroids
    rotation = np.eye(vectors.shape[1], width, dtype=np.float32) if warm is None else warm.rotation
    if warm is None and rounds:
        rotation = _allocated(vectors, levels, width)
        for _ in range(rounds):
            rotated = vectors @ rotation  # (N, L d)
            centroids = _fit_blocks(rotated, sizes, centroids, seed, _LLOYD_PER_ROUND)
            found = ProductCodes(tuple(c for c in centroids if c is not None), rotation)
            quantised = _joined(found.centroids, found.encode(vectors)[0])
            # Procrustes: of all rotations this one brings the vectors nearest to what their codes stand for.
            left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ quantised, full_matrices=False)
            rotation = (left @ right).astype(np.float32)  # (D, L d)
    fitted = _fit_blocks(vectors @ rotation, sizes, centroids, seed, iterations)
    return ProductCodes(tuple(fitted), rotation)


def _fit_blocks(
    rotated: Floats, sizes: tuple[int, ...], initial: Sequence[Floats | None], seed: int, iterations: int
) -> list[Floats]:
    parts = zip(_blocks(rotated, len(sizes)), sizes, initial, strict=True)
    return [
        fit_kmeans(block, size, seed=seed + level, iterations=iterations, initial=start)
        for level, (block, size, start) in enumerate(parts)
    ]


def _allocated(vectors: Floats, levels: int, width: int) -> Floats:
    """Principal axes (D, L d), dealt out so that the products of the blocks' eigenvalues are about equal."""
    centred = vectors - vectors.mean(axis=0)
    padded = np.pad(centred, ((0, 0), (0, width - vectors.shape[1]))).astype(np.float64)
    values, axes = np.linalg.eigh(padded.T @ padded / len(padded))
    largest = max(float(values[-1]), np.finfo(np.float32).tiny)
    logs = np.log(np.maximum(values / largest, _SMALLEST_EIGENVALUE)) - np.log(_SMALLEST_EIGENVALUE)  # >= 0
    blocks: list[list[int]] = [[] for _ in range(levels)]
    weight = np.zeros(levels)
    for axis in range(width - 1, -1, -1):
        free = [level for level in range(levels) if len(blocks[level]) < width // levels]
        taker = min(free, key=lambda level: (weight[level], level))
        blocks[taker].append(axis)
        weight[taker] += logs[axis]
    order = [axis for block in blocks for axis in block]
    return np.ascontiguousarray(axes[: vectors.shape[1], order], dtype=np.float32)


def _blocks(rotated: Floats, levels: int) -> list[Floats]:
    return [np.ascontiguousarray(block) for block in np.split(rotated, levels, axis=1)]


def _joined(centroids: Sequence[Floats], codes: npt.NDArray[np.int32]) -> Floats:
    """(N, L d), the centroids of all blocks side by side."""
    return np.concatenate([rows[codes[:, level]] for level, rows in enumerate(centroids)], axis=1)
