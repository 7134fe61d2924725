"""semantic_ids: matrix work on the driver, on the vectors of text and collaboration.

Beside data/ stand the files of `recsys.semantic_ids.artefact`. An item keeps its codes for as long as the tokenizer
version lives, and codes of items that are gone are not given away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from offline.job import Outcome
from offline.jobs.vectors import matrix, write_rows
from recsys.errors import ConfigError, DataError, VersionMismatchError
from recsys.semantic_ids.artefact import Artefact, artefact_checksum, read_description, version_of
from recsys.storage import read_parquet_directory, sha256_file, sha256_parts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from offline.job import JobContext
    from recsys.semantic_ids.settings import SemanticIdSettings
    from recsys.semantic_ids.sources import EmbeddingSource, Shortening
    from recsys.semantic_ids.tokenizer import Tokenizer

    Codes = npt.NDArray[np.int32]

VERSION: Final = 1
JOB: Final = "semantic_ids"


def build_semantic_ids(context: JobContext, settings: SemanticIdSettings) -> Outcome:
    """Build a tokenizer, new codebooks and an assignment of all items, with `warm_start` from an earlier one.

    Raises:
        DataError: the earlier work directory holds no tokenizer of our own, or there is no compressor in the run.
        ConfigError: the compressor has no such width.
        VersionMismatchError: the earlier tokenizer has another kind, other sizes, another source or another compressor,
            or the compressor was trained on vectors of another dimension.
    """
    import faiss  # noqa: F401 - threadpool_limits only reaches libraries that are loaded

    from recsys.semantic_ids.collisions import settle
    from recsys.semantic_ids.residual_kmeans import choose_codebook_sizes
    from recsys.semantic_ids.sources import fillable, fit_source
    from recsys.semantic_ids.tokenizer import fit_tokenizer

    if settings.tokenizer == "rq_vae":
        import torch  # noqa: F401 - as above
    text, other = matrix(context, "text_embeddings"), matrix(context, "collaborative")
    encoder = context.manifest("text_embeddings").settings
    earlier = None if settings.warm_start is None else _earlier(settings.warm_start, settings, encoder)
    shortening = _shortening(settings, text.shape[1])
    ids = _item_ids(context)
    with threadpool_limits(limits=settings.threads):
        source, fit = fit_source(settings, text, other, shortening)
    if earlier is not None:
        _require_shortening(earlier.source, source)
    vectors = source.embed(text, other)
    sizes = settings.codebook_sizes or (earlier.tokenizer.sizes if earlier else choose_codebook_sizes(len(vectors)))
    with threadpool_limits(limits=settings.threads):
        warm = None if earlier is None else earlier.tokenizer
        tokenizer = fit_tokenizer(vectors, settings.fitting(sizes), seed=settings.seed, warm=warm)
        if earlier is not None:
            tokenizer = _renamed(tokenizer, vectors, ids, earlier)
        greedy, residuals = tokenizer.encode(vectors)
        codes, settled = settle(settings.collisions, greedy, residuals, tokenizer)
    description = {
        "tokenizer_version": version_of(tokenizer, source, ids, codes),
        "codebook_sizes": list(settled),
        "settings": settings.described(),
        "text": encoder,
        **({} if earlier is None else {"warm_start": earlier.version}),
    }
    Artefact(description, settings, tokenizer, source, ids, codes).save(context.output)
    written = write_rows(context, codes, "codes", pa.int32())
    counts = {"written": written, **_collisions(greedy, codes), "new": written}
    measures: dict[str, float] = {}
    if fit is not None:
        counts["predicted"] = len(fillable(text, other))
        measures["prediction_cosine"] = fit.cosine
    if earlier is not None:
        counts["kept"], changed = _changed(ids, codes, earlier)
        measures |= changed
    return Outcome(counts, measures=measures)


def extend_semantic_ids(context: JobContext) -> Outcome:
    """Keep the tokenizer: items keep their codes, new ones get theirs under the tokenizer's collision policy.

    A new item is encoded by its text alone, as it is when it is upserted while serving.

    Raises:
        VersionMismatchError: the text encoder is not the one that the tokenizer was built on.
    """
    import faiss  # noqa: F401 - threadpool_limits only reaches libraries that are loaded

    from recsys.semantic_ids.collisions import place_new

    before = Artefact.load(context.work / context.job)
    _require_encoder(before, context.manifest("text_embeddings").settings)
    ids = _item_ids(context)
    known = {item_id: row for row, item_id in enumerate(before.item_ids)}
    rows = np.array([known.get(item_id, -1) for item_id in ids], dtype=np.int64)
    new = np.flatnonzero(rows < 0)
    text = matrix(context, "text_embeddings")[new]
    with threadpool_limits(limits=1):
        vectors = before.source.embed(text)
        given = place_new(before.settings.collisions, vectors, before.tokenizer, before.codes, before.sizes)
    codes = before.codes[rows]
    codes[new] = given
    Artefact(
        before.description,
        before.settings,
        before.tokenizer,
        before.source,
        np.concatenate([before.item_ids, ids[new]]),
        np.concatenate([before.codes, given]),
    ).save(context.output)
    written = write_rows(context, codes, "codes", pa.int32())
    return Outcome({"written": written, **_collisions(codes, codes), "new": len(new)}, increment=True)


def tokenizer_version(work: Path) -> str | None:
    """The tokenizer that a work directory holds, None without one."""
    description = read_description(work / JOB)
    return None if description is None else str(description["tokenizer_version"])


def warm_start_files(work: Path, settings: SemanticIdSettings) -> dict[str, str]:
    """Checksum of the tokenizer to begin with, by name; empty without one.

    Raises:
        ConfigError: it is the very one that would be replaced.
        DataError: there is none.
    """
    if settings.warm_start is None:
        return {}
    if settings.warm_start.resolve() == work.resolve():
        raise ConfigError(
            "a tokenizer cannot begin with the one that it replaces: the next run would begin with another",
            field="warm_start",
            value=str(settings.warm_start),
            remedy="write into a new work directory, or begin with a copy of the old one",
        )
    return {"warm_start": artefact_checksum(settings.warm_start / JOB)}


def compressor_files(settings: SemanticIdSettings) -> dict[str, str]:
    """Checksum of the compressor that makes text vectors shorter, by name; empty without one.

    Raises:
        DataError: there is none in the run.
    """
    if settings.compressor is None:
        return {}
    files = [settings.compressor / "model" / name for name in ("config.json", "weights.safetensors")]
    if not all(file.is_file() for file in files):
        raise DataError(
            "no compressor is here",
            field="compressor",
            value=str(settings.compressor),
            remedy="give a run of `windfire train smec`",
        )
    return {"compressor": sha256_parts([sha256_file(file) for file in files])}


def _shortening(settings: SemanticIdSettings, dimension: int) -> Shortening | None:
    """The compressor of the text, as one map."""
    if settings.compressor is None:
        return None
    from recsys.bundle.compressor import load_compressor
    from recsys.semantic_ids.sources import Shortening

    compressor = load_compressor(settings.compressor / "model")
    if compressor.config.dimension != dimension:
        raise VersionMismatchError(
            f"the compressor was trained on vectors of {compressor.config.dimension} dimensions",
            field="compressor",
            value=dimension,
            remedy="train one on this work directory's text vectors: `windfire train smec`",
        )
    return Shortening(*(part.numpy() for part in compressor.fold(settings.compressor_width)))


def _require_shortening(earlier: EmbeddingSource, source: EmbeddingSource) -> None:
    """Codebooks say nothing in a space that another compressor made."""
    was, wanted = earlier.shortening, source.shortening
    same = (was is None) == (wanted is None)
    if same and was is not None and wanted is not None:
        same = all(np.array_equal(a, b) for a, b in zip(was, wanted, strict=True))
    if not same:
        raise VersionMismatchError(
            "the earlier tokenizer was built on text of another compressor",
            field="compressor",
            value=None if wanted is None else wanted.matrix.shape,
            remedy="take the earlier compressor and width, or build without a warm start",
        )


def _earlier(work: Path, settings: SemanticIdSettings, encoder: dict[str, Any]) -> Artefact:
    """The tokenizer to begin with, of the same space as the new one."""
    earlier = Artefact.load(work / JOB)
    _require_encoder(earlier, encoder)
    for name in ("source", "collaborative_weight"):
        was, wanted = getattr(earlier.settings, name), getattr(settings, name)
        if was != wanted:
            raise VersionMismatchError(
                f"the earlier tokenizer was built on other vectors: its {name} is {was!r}",
                field=name,
                value=wanted,
                remedy="take the earlier settings, or build without a warm start",
            )
    return earlier


def _require_encoder(artefact: Artefact, encoder: dict[str, Any]) -> None:
    if artefact.description["text"] != encoder:
        raise VersionMismatchError(
            "the tokenizer was built on another text encoder",
            field="text",
            value=encoder,
            remedy="go back to the former text settings, or build a new tokenizer",
        )


def _renamed(
    tokenizer: Tokenizer, vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.object_], earlier: Artefact
) -> Tokenizer:
    """The tokenizer under the code numbers of the earlier one."""
    from recsys.semantic_ids.retraining import match_codes

    now, then = _common(ids, earlier)
    after, _ = tokenizer.encode(vectors[now])
    order = match_codes(earlier.codes[then, : after.shape[1]], after, tokenizer.sizes)
    return tokenizer.relabelled(order)


def _changed(ids: npt.NDArray[np.object_], codes: Codes, earlier: Artefact) -> tuple[int, dict[str, float]]:
    """Number of items that the earlier tokenizer knew, and by level the share of them whose prefix changed."""
    from recsys.semantic_ids.retraining import changed_prefixes

    now, then = _common(ids, earlier)
    levels = min(codes.shape[1], earlier.codes.shape[1])
    shares = changed_prefixes(earlier.codes[then, :levels], codes[now, :levels])
    return len(now), {f"changed_prefix_{level}": share for level, share in enumerate(shares.tolist(), start=1)}


def _common(ids: npt.NDArray[np.object_], earlier: Artefact) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the items that both know, here and there."""
    known = {item_id: row for row, item_id in enumerate(earlier.item_ids)}
    then = np.array([known.get(item_id, -1) for item_id in ids], dtype=np.int64)
    now = np.flatnonzero(then >= 0)
    return now, then[now]


def _collisions(greedy: Codes, codes: Codes) -> dict[str, int]:
    def shared(values: Codes) -> int:
        _, inverse, sizes = np.unique(values, axis=0, return_inverse=True, return_counts=True)
        return int((sizes[inverse.ravel()] > 1).sum())

    return {"colliding_before": shared(greedy), "colliding": shared(codes)}


def _item_ids(context: JobContext) -> npt.NDArray[np.object_]:
    table = read_parquet_directory(context.work / "catalog" / "data", ["item_index", "item_id"])
    return np.asarray(table.sort_by("item_index")["item_id"].to_pylist(), dtype=object)
