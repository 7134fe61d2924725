"""One interface for everything that turns vectors into codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from recsys.errors import DataError, VersionMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from recsys.semantic_ids.settings import Kind, TokenizerSettings


class Tokenizer(Protocol):
    """Fitted codebooks, and the way from a vector to its codes and back."""

    @property
    def kind(self) -> Kind:
        """The name under which `tokenizer_from_state` knows it."""

    @property
    def centroids(self) -> tuple[npt.NDArray[np.float32], ...]:
        """L codebooks (T_l, d_l)."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""

    @property
    def dimension(self) -> int:
        """D, the length of the vectors that it encodes."""

    def encode(self, vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Take the nearest code level by level.

        Args:
            vectors: (N, D).

        Returns:
            codes (N, L), and (N, d_L) what the last code has to stand for: its squared distance to a row of the last
            codebook is the cost of that code.
        """

    def reconstruct(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The vectors (N, D) that codes (N, L) stand for."""

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """Everything that `tokenizer_from_state` needs, by name; the codebooks first, as `codebook_<level>`."""

    def relabelled(self, order: Sequence[npt.NDArray[np.intp]]) -> Self:
        """The same tokenizer under other numbers: code c of level l is what was code order[l][c]."""


def fit_tokenizer(
    vectors: npt.NDArray[np.float32], settings: TokenizerSettings, *, seed: int, warm: Tokenizer | None = None
) -> Tokenizer:
    """Fit a tokenizer; the same vectors, settings, seed and threads give the same bits.

    A seed instead of a generator: the k-means of faiss takes nothing else.

    Args:
        vectors: (N, D) item embeddings.
        settings: the kind and what it reads.
        seed: of every random choice.
        warm: an earlier tokenizer to begin with, of the same kind, sizes and dimension.

    Raises:
        DataError: no vectors, or vectors that are not finite.
        VersionMismatchError: `warm` has another kind, other sizes or another dimension.
    """
    if len(vectors) == 0:
        raise DataError("no item embeddings to build semantic IDs from", field="items", value=0)
    if not np.isfinite(vectors).all():
        broken = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise DataError("item embeddings that are not finite", field="items", value=broken, remedy="embed them again")
    if warm is not None:
        _require_same(warm, settings, vectors.shape[1])
    sizes = settings.codebook_sizes
    if settings.kind == "rq_vae":
        from recsys.semantic_ids.rq_vae import RqVae
        from recsys.semantic_ids.rq_vae_training import fit_rq_vae

        start = warm if isinstance(warm, RqVae) else None
        return fit_rq_vae(vectors, sizes, settings.rq_vae, seed=seed, iterations=settings.iterations, warm=start)
    if settings.kind == "product":
        from recsys.semantic_ids.product import ProductCodes, fit_product

        begin = warm if isinstance(warm, ProductCodes) else None
        rounds = settings.product.rounds
        return fit_product(vectors, sizes, rounds=rounds, iterations=settings.iterations, seed=seed, warm=begin)
    from recsys.semantic_ids.residual_kmeans import Codebooks, fit_residual_kmeans

    books = warm if isinstance(warm, Codebooks) else None
    return fit_residual_kmeans(vectors, sizes, seed=seed, iterations=settings.iterations, warm=books)


def tokenizer_from_state(kind: Kind, state: Mapping[str, npt.NDArray[np.float32]]) -> Tokenizer:
    """The tokenizer whose `state()` this is; arrays of other names are left alone.

    Raises:
        DataError: an array is missing.
    """
    try:
        if kind == "rq_vae":
            from recsys.semantic_ids.rq_vae import RqVae

            return RqVae.from_state(state)
        if kind == "product":
            from recsys.semantic_ids.product import ProductCodes

            return ProductCodes.from_state(state)
        from recsys.semantic_ids.residual_kmeans import Codebooks

        return Codebooks.from_state(state)
    except KeyError as error:
        raise DataError(
            f"the state of a tokenizer of kind {kind} is incomplete",
            field="array",
            value=error.args[0],
            remedy="build the semantic IDs again",
        ) from error


def _require_same(warm: Tokenizer, settings: TokenizerSettings, dimension: int) -> None:
    wanted = {"tokenizer": settings.kind, "codebook_sizes": settings.codebook_sizes, "dimension": dimension}
    found = {"tokenizer": warm.kind, "codebook_sizes": warm.sizes, "dimension": warm.dimension}
    for name, value in wanted.items():
        if found[name] != value:
            raise VersionMismatchError(
                f"the earlier tokenizer cannot be the start of this one: its {name} is {found[name]}",
                field=name,
                value=value,
                remedy="take the earlier settings, or build without a warm start",
            )
