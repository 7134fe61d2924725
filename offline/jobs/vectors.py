"""collaborative and semantic_ids: matrix work on the driver, on what the Spark jobs counted and encoded.

semantic_ids/ holds beside data/: codebook_<level>.npy, tokenizer.json (tokenizer_version, codebook_sizes, settings)
and assigned/, every semantic ID ever given under this tokenizer version (item_id, codes): an item keeps its codes for
as long as the version lives, and codes of items that are gone are not given away.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from offline.job import Outcome
from recsys.collaborative.cooccurrence import PairCounts
from recsys.collaborative.vectors import collaborative_vectors
from recsys.datasets.prepared import read_job
from recsys.errors import VersionMismatchError
from recsys.storage import read_json, read_parquet_directory, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from offline.job import JobContext
    from offline.settings import CollaborativeSettings, SemanticIdSettings
    from recsys.semantic_ids.residual_kmeans import Codebooks

COLLABORATIVE_VERSION: Final = 1
SEMANTIC_IDS_VERSION: Final = 1
_TOKENIZER: Final = "tokenizer.json"


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
    written = _write_rows(context, vectors, "vector", pa.float32())
    empty = int((np.abs(vectors).sum(axis=1) == 0).sum())
    return Outcome({"written": written, "without_pairs": empty})


def build_semantic_ids(context: JobContext, settings: SemanticIdSettings) -> Outcome:
    """Build a tokenizer: new codebooks, and an assignment of all items that is unique wherever a prefix has room."""
    import faiss  # noqa: F401 - threadpool_limits only reaches libraries that are loaded

    from recsys.semantic_ids.collisions import reassign_last_level
    from recsys.semantic_ids.fusion import fuse
    from recsys.semantic_ids.residual_kmeans import choose_codebook_sizes, fit_residual_kmeans

    text, other = _matrix(context, "text_embeddings"), _matrix(context, "collaborative")
    vectors = fuse(text, other, collaborative_weight=settings.collaborative_weight)
    sizes = settings.codebook_sizes or choose_codebook_sizes(len(vectors))
    with threadpool_limits(limits=settings.threads):
        codebooks = fit_residual_kmeans(vectors, sizes, seed=settings.seed, iterations=settings.iterations)
        greedy, residuals = codebooks.encode(vectors)
        codes = reassign_last_level(greedy, residuals, codebooks.centroids[-1])
    item_ids = _item_ids(context)
    version = _tokenizer_version(codebooks, item_ids, codes)
    tokenizer = {
        "tokenizer_version": version,
        "codebook_sizes": list(codebooks.sizes),
        "settings": settings.model_dump(mode="json"),
        "text": context.manifest("text_embeddings").settings,
    }
    _write_tokenizer(context.output, tokenizer, codebooks)
    _write_assigned(context.output, item_ids, codes)
    written = _write_rows(context, codes, "codes", pa.int32())
    return Outcome({"written": written, **_collisions(greedy, codes), "new": written})


def extend_semantic_ids(context: JobContext) -> Outcome:
    """Keep the tokenizer: items keep their codes, new ones take the nearest free last code of their prefix.

    A new item is encoded by its text alone, as it is when it is upserted while serving.

    Raises:
        VersionMismatchError: the text encoder is not the one that the tokenizer was built on.
    """
    from recsys.semantic_ids.collisions import assign_new
    from recsys.semantic_ids.fusion import fuse
    from recsys.semantic_ids.residual_kmeans import Codebooks

    before = context.work / context.job
    tokenizer: dict[str, Any] = read_json(before / _TOKENIZER)
    encoder = context.manifest("text_embeddings").settings
    if tokenizer["text"] != encoder:
        raise VersionMismatchError(
            "the tokenizer was built on another text encoder",
            field="text",
            value=encoder,
            remedy="go back to the former text settings, or build a new tokenizer",
        )
    levels = len(tokenizer["codebook_sizes"])
    codebooks = Codebooks(tuple(np.load(before / f"codebook_{level}.npy") for level in range(levels)))
    assigned = read_parquet_directory(before / "assigned").sort_by("item_id")
    taken = _stack(assigned["codes"], np.dtype(np.int32))
    item_ids = _item_ids(context)
    known = {item_id: row for row, item_id in enumerate(assigned["item_id"].to_pylist())}
    rows = np.array([known.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    new = np.flatnonzero(rows < 0)
    text = _matrix(context, "text_embeddings")[new]
    nothing = np.zeros((len(new), codebooks.centroids[0].shape[1] - text.shape[1]), dtype=np.float32)
    weight = float(tokenizer["settings"]["collaborative_weight"])
    with threadpool_limits(limits=1):
        given = assign_new(fuse(text, nothing, collaborative_weight=weight), codebooks, taken)
    codes = taken[rows]
    codes[new] = given
    _write_tokenizer(context.output, tokenizer, codebooks)
    _write_assigned(
        context.output,
        np.concatenate([assigned["item_id"].to_numpy(zero_copy_only=False), item_ids[new]]),
        np.concatenate([taken, given]),
    )
    written = _write_rows(context, codes, "codes", pa.int32())
    return Outcome({"written": written, **_collisions(codes, codes), "new": len(new)}, increment=True)


def tokenizer_version(work: Path) -> str | None:
    """The tokenizer that a work directory holds, None without one."""
    path = work / "semantic_ids" / _TOKENIZER
    return str(read_json(path)["tokenizer_version"]) if path.is_file() else None


def _tokenizer_version(codebooks: Codebooks, item_ids: npt.NDArray[np.object_], codes: npt.NDArray[np.int32]) -> str:
    digest = hashlib.sha256()
    for level in codebooks.centroids:
        digest.update(np.ascontiguousarray(level, dtype="<f4").tobytes())
    digest.update("\0".join(item_ids).encode())
    digest.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def _collisions(greedy: npt.NDArray[np.int32], codes: npt.NDArray[np.int32]) -> dict[str, int]:
    def shared(values: npt.NDArray[np.int32]) -> int:
        _, inverse, sizes = np.unique(values, axis=0, return_inverse=True, return_counts=True)
        return int((sizes[inverse.ravel()] > 1).sum())

    return {"colliding_before": shared(greedy), "colliding": shared(codes)}


def _write_tokenizer(output: Path, tokenizer: dict[str, Any], codebooks: Codebooks) -> None:
    write_json_atomically(output / _TOKENIZER, tokenizer)
    for level, centroids in enumerate(codebooks.centroids):
        np.save(output / f"codebook_{level}.npy", centroids, allow_pickle=False)


def _write_assigned(output: Path, item_ids: npt.NDArray[np.object_], codes: npt.NDArray[np.int32]) -> None:
    (output / "assigned").mkdir()
    table = pa.table({"item_id": pa.array(item_ids, pa.string()), "codes": _lists(codes, pa.int32())})
    pq.write_table(table, output / "assigned" / "part-0.parquet")


def _write_rows(context: JobContext, values: npt.NDArray[Any], column: str, kind: pa.DataType) -> int:
    folder = context.output / "data"
    folder.mkdir()
    index = pa.array(np.arange(len(values), dtype=np.int32))
    pq.write_table(pa.table({"item_index": index, column: _lists(values, kind)}), folder / "part-0.parquet")
    return len(values)


def _lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), type=kind))


def _stack(column: pa.ChunkedArray, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    values = column.combine_chunks()
    flat: npt.NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False).astype(kind)
    return flat.reshape(len(values), -1)


def _matrix(context: JobContext, job: str) -> npt.NDArray[np.float32]:
    return _stack(read_job(context.work, job).sort_by("item_index")["vector"], np.dtype(np.float32))


def _item_ids(context: JobContext) -> npt.NDArray[np.object_]:
    table = read_parquet_directory(context.work / "catalog" / "data", ["item_index", "item_id"])
    return np.asarray(table.sort_by("item_index")["item_id"].to_pylist(), dtype=object)
