"""The three kinds of faiss indexes behind one protocol: they propose positions, whoever asks computes the scores."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import faiss
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from recsys.decoding.packed import Bits
    from recsys.retrieval.checks import Vectors
    from recsys.retrieval.compressing import Shortener
    from recsys.retrieval.settings import IndexSettings, Kind

    Positions = npt.NDArray[np.int64]

_wrapped: Final[Any] = faiss  # its annotations are of the C++ classes, not of the arguments that Python adds
_AT_ONCE: Final = 2**16  # vectors added together
_PER_LIST: Final = 40  # vectors that a list's centre is fitted to
_CODEBOOK: Final = 256 * _PER_LIST  # vectors that a codebook of one byte wants
_LARGEST_BYTE: Final = 8  # bits


class Proposer(Protocol):
    """An index of one kind over vectors that are named by position.

    Attributes:
        kind: its name.
        count: N, vectors in it.
        exact: whether it proposes the nearest, not near ones.
    """

    @property
    def kind(self) -> Kind:
        """See the class."""

    @property
    def count(self) -> int:
        """See the class."""

    @property
    def exact(self) -> bool:
        """See the class."""

    def propose(self, query: Vectors, wanted: int, bits: Bits | None, share: float) -> Positions:
        """Positions of vectors with a large inner product, all of them in the set; perhaps fewer than wanted.

        Args:
            query: (D,).
            wanted: how many.
            bits: the set, (ceil(N / 8),) uint8 with the lowest bit first; None = all.
            share: of the vectors that are in the set, above 0: the fewer, the wider is searched.
        """

    def stored(self) -> Vectors | None:
        """(N, D) the vectors where the index holds them, without a copy; None where it has them quantised only."""


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Give faiss a number of threads in this thread for a while."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True, slots=True, eq=False)
class FaissIndex:
    """A faiss index with the settings it is searched by.

    Attributes:
        kind: see `Proposer`.
        index: of the class that belongs to the kind.
        settings: of the search.
        shortener: made the vectors in it, and makes the queries; None = it holds them as they are compared.
    """

    kind: Kind
    index: Any
    settings: IndexSettings
    shortener: Shortener | None = None

    @property
    def count(self) -> int:
        """See `Proposer`."""
        return int(self.index.ntotal)

    @property
    def dimension(self) -> int:
        """D of the vectors in it."""
        return int(self.index.d)

    @property
    def exact(self) -> bool:
        """See `Proposer`."""
        return self.kind == "flat" and self.shortener is None

    def propose(self, query: Vectors, wanted: int, bits: Bits | None, share: float) -> Positions:
        """See `Proposer.propose`."""
        selector = None if bits is None else _wrapped.IDSelectorBitmap(bits)
        many = wanted if self._whole else wanted * self.settings.rescore
        if self.shortener is not None:
            query = self.shortener(query[None])[0]
        many = min(many, self.count)
        with faiss_threads(self.settings.threads):
            _, found = self.index.search(query[None], many, params=self._parameters(selector, many, share))
        kept: Positions = found[0][found[0] >= 0]
        return kept

    def stored(self) -> Vectors | None:
        """See `Proposer.stored`."""
        if not self._whole:
            return None
        flat: Any = self.index if self.kind == "flat" else _wrapped.downcast_index(self.index.storage)
        if not self.count:
            return np.empty((0, self.dimension), dtype=np.float32)
        # a view of faiss's memory: whoever holds it holds this object, too
        view: Vectors = faiss.rev_swig_ptr(flat.get_xb(), self.count * self.dimension)
        return view.reshape(self.count, self.dimension)

    @property
    def _whole(self) -> bool:
        """Whether it holds vectors as they are compared, so that what it proposes needs no second look."""
        return self.kind != "ivf_pq" and self.shortener is None

    def _parameters(self, selector: Any, wanted: int, share: float) -> Any:
        """A search among few looks at more, as if it were among all: the hidden ones take their places."""
        if self.kind == "flat":
            return _wrapped.SearchParameters(sel=selector)
        if self.kind == "hnsw":
            width = min(self.count, math.ceil(max(self.settings.hnsw_search, wanted) / share))
            return _wrapped.SearchParametersHNSW(sel=selector, efSearch=width)
        probes = min(self.index.nlist, math.ceil(self.settings.ivf_probes / share))
        return _wrapped.SearchParametersIVF(sel=selector, nprobe=probes)


CLASSES: Final[dict[str, Any]] = {
    "flat": faiss.IndexFlat,
    "hnsw": faiss.IndexHNSWFlat,
    "ivf_pq": faiss.IndexIVFPQ,
}


def build(
    vectors: Vectors,
    settings: IndexSettings,
    progress: Callable[[int], None] = lambda _: None,
    shortener: Shortener | None = None,
) -> FaissIndex:
    """Build the index that the settings name over (N, D) float32 vectors, N above 0, by inner product.

    Args:
        vectors: finite.
        settings: kind and sizes.
        progress: told how many vectors are in.
        shortener: makes what it holds.
    """
    vectors = vectors if shortener is None else shortener(vectors)
    kind = settings.kind_for(len(vectors))
    index = _EMPTY[kind](vectors, settings)
    with faiss_threads(settings.threads):
        if kind == "ivf_pq":
            index.train(_sample(vectors, index.nlist, settings.seed))
        for begin in range(0, len(vectors), _AT_ONCE):
            index.add(vectors[begin : begin + _AT_ONCE])
            progress(min(begin + _AT_ONCE, len(vectors)))
    return FaissIndex(kind, index, settings, shortener)


def _flat(vectors: Vectors, _: IndexSettings) -> Any:
    return faiss.IndexFlatIP(vectors.shape[1])


def _hnsw(vectors: Vectors, settings: IndexSettings) -> Any:
    """Malkov and Yashunin (2016): a graph whose links lead from far to near."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.hnsw_build
    return index


def _ivf_pq(vectors: Vectors, settings: IndexSettings) -> Any:
    """Jégou et al. (2011): lists of nearest centres, in them the residuals' parts as codes."""
    count, width = vectors.shape
    lists = settings.ivf_lists or round(4 * math.sqrt(count))
    lists = max(1, min(lists, count // _PER_LIST))
    # a byte per part wants 256 vectors; fewer vectors get shorter codes
    bits = min(_LARGEST_BYTE, max(1, int(math.log2(count))))
    parts = largest_divisor(width, settings.pq_bytes or max(1, width // 8))
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
    # the sample was chosen for its size already
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = index.pq.cp.seed = settings.seed
    return index


_EMPTY: Final[dict[str, Callable[[Vectors, IndexSettings], Any]]] = {"flat": _flat, "hnsw": _hnsw, "ivf_pq": _ivf_pq}


def _sample(vectors: Vectors, lists: int, seed: int) -> Vectors:
    """What lists and codebooks are fitted to."""
    wanted = max(lists * _PER_LIST, _CODEBOOK)
    if wanted >= len(vectors):
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), wanted, replace=False))]


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
