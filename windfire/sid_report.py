"""Semantic IDs of a work directory or of a file, measured: what `windfire offline report-sids` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.figures import Figure
from recsys.datasets.prepared import read_job
from recsys.errors import DataError, InputError
from recsys.imported.sid_file import number_tokens, read_sids
from recsys.semantic_ids.artefact import Artefact, read_description
from recsys.semantic_ids.quality import measure_sids
from recsys.semantic_ids.sources import EmbeddingSource

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from recsys.semantic_ids.quality import SidQuality

Vectors = Literal["own", "text", "collaborative", "fused"]
_UNITS = {
    "size": "codes", "used": "codes", "entropy": "bits", "evenness": "share", "prefixes": "prefixes",
    "children_mean": "prefixes", "children_max": "prefixes", "purity": "share", "purity_chance": "share",
    "kept": "share", "kept_chance": "share", "unexplained": "share", "items": "items", "distinct": "semantic IDs",
    "colliding": "items", "largest_bucket": "items", "reconstruction_error": "share",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        name: of the tokenizer version.
        codes: (I, L).
        sizes: T_1..T_L.
        vectors: (I, D), None without a work directory.
        reconstructed: (I, D), None without a tokenizer that works on these vectors.
        categories: None without a work directory.
        left_out: items of the SID file that the catalogue does not know, and of the catalogue without a semantic ID.
    """

    name: str
    codes: npt.NDArray[np.int32]
    sizes: tuple[int, ...]
    vectors: npt.NDArray[np.float32] | None = None
    reconstructed: npt.NDArray[np.float32] | None = None
    categories: list[str | None] | None = None
    left_out: tuple[int, int] = (0, 0)

    def measure(self, *, neighbours: int, sample: int, seed: int) -> SidQuality:
        """Measure it."""
        return measure_sids(
            self.codes,
            self.sizes,
            vectors=self.vectors,
            reconstructed=self.reconstructed,
            categories=self.categories,
            neighbours=neighbours,
            sample=sample,
            seed=seed,
        )


def subject_of_work(work: Path, *, vectors: Vectors, depth: int) -> Subject:
    """The semantic IDs that the offline jobs made, or that were imported into a work directory.

    Args:
        work: what `windfire offline run` left.
        vectors: which ones say what is alike; `own` are those that the tokenizer was built on, fused ones where it
            was not built here.
        depth: how many names of an item's category path count as its category.

    Raises:
        DataError: a job is missing.
    """
    folder = work / "semantic_ids"
    description = read_description(folder)
    codes = _matrix(read_job(work, "semantic_ids"), "codes").astype(np.int32)
    if description is None:
        raise DataError("no tokenizer is here", field="data", value=str(work), remedy="run `windfire offline run`")
    artefact = Artefact.load(folder) if "settings" in description else None
    embedded = _vectors(work, vectors, None if artefact is None else artefact.source)
    reconstructed = None
    if artefact is not None and vectors == "own":
        reconstructed = artefact.tokenizer.reconstruct(codes[:, : len(artefact.tokenizer.sizes)])
    sizes = tuple(description["codebook_sizes"])
    items = read_job(work, "items").sort_by("item_index")
    return Subject(
        str(description["tokenizer_version"]), codes, sizes, embedded, reconstructed, _categories(items, depth)
    )


def subject_of_file(
    path: Path, pattern: str, *, work: Path | None, shift: int, vectors: Vectors, depth: int
) -> Subject:
    """The semantic IDs of somebody else's file, beside the vectors and categories of a work directory.

    Args:
        path: see `recsys.imported.sid_file`.
        pattern: of tokens where the file holds numbers.
        work: None measures what needs no vectors.
        shift: added to the file's item ids, which must then be numbers.
        vectors: as in `subject_of_work`; `own` are fused ones.
        depth: of the categories.

    Raises:
        DataError: the file and the catalogue have no item in common.
        InputError: the file cannot be read, or its ids are no numbers to add to.
    """
    ids = number_tokens(read_sids(path, pattern))
    if work is None:
        return Subject(ids.version, ids.codes, ids.sizes)
    names = [_shifted(name, shift) for name in ids.item_ids] if shift else ids.item_ids
    items = read_job(work, "items").sort_by("item_index")
    rows = {name: row for row, name in enumerate(names)}
    found = np.array([rows.get(name, -1) for name in items["item_id"].to_pylist()], dtype=np.int64)
    known = np.flatnonzero(found >= 0)
    if len(known) == 0:
        raise DataError(
            "the SID file and the catalogue have no item in common",
            field="item_id",
            value=names[:3],
            remedy=f"the catalogue's ids look like {items['item_id'][:3].to_pylist()}; --shift adds to numbers",
        )
    categories = _categories(items, depth)
    return Subject(
        ids.version,
        ids.codes[found[known]],
        ids.sizes,
        _vectors(work, vectors, None)[known],
        None,
        [categories[row] for row in known],
        (len(names) - len(known), len(found) - len(known)),
    )


def figures_of(quality: SidQuality, *, sample: int) -> list[Figure]:
    """Every number under a name of its own: `sids.<what>` and `sids.level<l>.<what>`."""
    whole: dict[str, Any] = quality._asdict()
    levels = whole.pop("levels")
    figures = [Figure(f"sids.{name}", value, _UNITS[name]) for name, value in whole.items() if value is not None]
    for number, level in enumerate(levels, start=1):
        for name, value in level._asdict().items():
            cases = min(sample, quality.items) if name.startswith("kept") else quality.items
            if value is not None:
                figures.append(Figure(f"sids.level{number}.{name}", value, _UNITS[name], n=cases))
    return figures


def _vectors(work: Path, wanted: Vectors, own: EmbeddingSource | None) -> npt.NDArray[np.float32]:
    text, other = (_matrix(read_job(work, job), "vector") for job in ("text_embeddings", "collaborative"))
    if wanted == "own" and own is not None:
        return own.embed(text, other)
    source = "fused" if wanted == "own" else wanted
    return EmbeddingSource(source, 0.5, text.shape[1] + other.shape[1]).embed(text, other)


def _categories(items: pa.Table, depth: int) -> list[str | None]:
    return [" > ".join(path[:depth]) if path else None for path in items["category_path"].to_pylist()]


def _matrix(table: pa.Table, column: str) -> npt.NDArray[np.float32]:
    values = table.sort_by("item_index")[column].combine_chunks()
    flat: npt.NDArray[np.float32] = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(values), -1)


def _shifted(name: str, shift: int) -> str:
    try:
        return str(int(name) + shift)
    except ValueError:
        raise InputError(
            "an item id that is no number cannot be shifted", field="item_id", value=name, remedy="leave --shift out"
        ) from None
