"""collaborative: matrix work on the driver, on what the Spark jobs counted; and item vectors as arrays and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from offline.job import Outcome
from recsys.collaborative.cooccurrence import PairCounts
from recsys.collaborative.vectors import collaborative_vectors
from recsys.datasets.prepared import read_job

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.job import JobContext
    from offline.settings import CollaborativeSettings

COLLABORATIVE_VERSION: Final = 1


def collaborative(context: JobContext, settings: CollaborativeSettings) -> Outcome:
    """Item vectors by truncated SVD of the positive pointwise mutual information of the pair counts."""
    table = read_job(context.work, "cooccurrence").sort_by([("item_a", "ascending"), ("item_b", "ascending")])
    num_items = context.manifest("catalog").counts["written"]
    pairs = PairCounts(*(table[name].to_numpy() for name in ("item_a", "item_b", "count")))
    # The order of a threaded sum depends on the number of threads, and with it the last bits.
    with threadpool_limits(limits=1):
        vectors = collaborative_vectors(
            pairs, num_items=num_items, dimension=settings.dimension, seed=settings.seed, exponent=settings.exponent
        )
    written = write_rows(context, vectors, "vector", pa.float32())
    empty = int((np.abs(vectors).sum(axis=1) == 0).sum())
    return Outcome({"written": written, "without_pairs": empty})


def write_rows(context: JobContext, values: npt.NDArray[Any], column: str, kind: pa.DataType) -> int:
    """Write `values` (I, D) as the lists of a column beside item_index; returns I."""
    folder = context.output / "data"
    folder.mkdir()
    index = pa.array(np.arange(len(values), dtype=np.int32))
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), type=kind))
    pq.write_table(pa.table({"item_index": index, column: lists}), folder / "part-0.parquet")
    return len(values)


def matrix(context: JobContext, job: str) -> npt.NDArray[np.float32]:
    """The vectors (I, D) that an earlier job wrote."""
    values = read_job(context.work, job).sort_by("item_index")["vector"].combine_chunks()
    flat: npt.NDArray[np.float32] = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(values), -1)
