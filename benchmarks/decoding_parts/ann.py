"""Approximate nearest neighbours behind the flat trunk: faiss's HNSW graph and IVF with product quantisation."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import faiss
import numpy as np
import torch

from recsys.decoding.decoder import DecodeResult, Ranked, Spent, check_request
from recsys.decoding.histories import pad_histories
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from benchmarks.decoding_parts.settings import AnnSettings
    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.flat import TwoTower
    from recsys.decoding.log_prior import LogPrior

    Vectors = npt.NDArray[np.float32]

_PER_LIST: Final = 40  # vectors that a list's centre is fitted to
_AT_ONCE: Final = 2**16  # vectors added together


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Give faiss a number of threads for a while."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_hnsw(vectors: Vectors, settings: AnnSettings) -> Any:
    """A graph over (I, d) vectors by inner product."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.hnsw_build
    index.hnsw.efSearch = settings.hnsw_search
    _add(index, vectors)
    return index


def build_ivf_pq(vectors: Vectors, settings: AnnSettings) -> Any:
    """Lists of quantised residuals over (I, d) vectors by inner product."""
    count, width = vectors.shape
    lists = max(1, min(count // _PER_LIST, round(settings.ivf_lists * math.sqrt(count))))
    quantiser = faiss.IndexFlatIP(width)
    # a byte per part wants 256 vectors or more; a toy has fewer
    bits = min(8, max(1, int(math.log2(max(count, 2)))))
    index = faiss.IndexIVFPQ(quantiser, width, lists, settings.pq_bytes, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # said by `count` already
    sample = max(lists * _PER_LIST, 2**15)
    index.train(vectors[:: max(1, count // sample)])
    index.nprobe = settings.ivf_probes
    _add(index, vectors)
    return index


def _add(index: Any, vectors: Vectors) -> None:
    for begin in range(0, len(vectors), _AT_ONCE):
        index.add(vectors[begin : begin + _AT_ONCE])


BUILDERS: Final[dict[str, Callable[[Vectors, AnnSettings], Any]]] = {"ann_hnsw": build_hnsw, "ann_ivfpq": build_ivf_pq}


def index_bytes(index: Any) -> int:
    """Bytes of an index, as written."""
    return int(faiss.serialize_index(index).nbytes)


class AnnDecoder:
    """`Decoder` of the flat shape over an approximate index; scores are dot products, not log-probabilities.

    Args:
        model: in evaluation mode.
        index: over its item vectors.
    """

    name = "ann"

    def __init__(self, model: TwoTower, index: Any) -> None:
        self._model, self._index = model, index

    @torch.inference_mode()
    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`; there is no beam.

        Raises:
            InputError: an eligibility or a log-prior: an index filters behind its search, and then answers less.
        """
        check_request(k, beam)
        if eligibility.shared is not None or eligibility.excluded is not None or log_prior is not None:
            raise InputError(
                "an approximate index answers from the whole catalogue only",
                field="eligibility",
                value="given",
                remedy="use flat or nezha",
            )
        config = self._model.config
        items, lengths = pad_histories(histories, items=config.num_items, limit=config.max_history)
        users = self._model.encode(items, lengths).numpy()  # (B, H)
        scores, found = self._index.search(np.ascontiguousarray(users, dtype=np.float32), k)
        kept = found >= 0
        ranked = [
            Ranked(row[real].astype(np.int32), values[real])
            for row, values, real in zip(found, scores, kept, strict=True)
        ]
        return DecodeResult(ranked, Spent(1, int(lengths.sum()) + len(histories)))
