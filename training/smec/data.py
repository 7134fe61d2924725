"""What a compressor is trained on: cached vectors of documents, and of queries where labels say what is right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.datasets.prepared import load_sequences, read_job
from recsys.errors import ConfigError, DataError, InputError
from recsys.evaluation.judged import Judgements
from recsys.evaluation.metrics import top_items
from recsys.models.smec import check_vectors
from recsys.storage import sha256_parts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from recsys.datasets.prepared import Sequences

_QUERIES_AT_ONCE: Final = 512


@dataclass(frozen=True)
class VectorData:
    """Vectors of a frozen encoder.

    Attributes:
        documents: (D, N) float32.
        queries: (Q, N) float32; (0, N) without labels.
        judgements: the documents that are right for each query; None without labels.
        own: (Q,) the document that a query is itself: neither right nor wrong, and no answer; -1 where it is none,
            None where no query is one.

    Raises:
        InputError: widths that differ, values that are not finite, a label beyond the documents, or an own document
            that is right.
    """

    documents: npt.NDArray[np.float32]
    queries: npt.NDArray[np.float32]
    judgements: Judgements | None
    own: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.documents.ndim != 2:
            raise InputError("vectors must be (D, N)", field="vectors", value=self.documents.shape)
        for vectors in (self.documents, self.queries):
            check_vectors(vectors, self.dimension)
        if (0 if self.judgements is None else len(self.judgements)) != len(self.queries):
            raise InputError("every query needs labels", field="queries", value=len(self.queries))
        if self.judgements is not None and self.judgements.documents.max(initial=0) >= len(self.documents):
            raise InputError(
                f"a label names a document beyond the {len(self.documents)} there are",
                field="labels",
                value=int(self.judgements.documents.max()),
                remedy="number documents from 0 in the order of the vectors",
            )

        if self.own is not None:
            self._check_own(self.own)

    def _check_own(self, own: npt.NDArray[np.int64]) -> None:
        if self.judgements is None or own.shape != (len(self.queries),) or own.max(initial=-1) >= len(self.documents):
            raise InputError("every query is one document or none", field="own", value=own.shape)
        for query, document in enumerate(own.tolist()):
            if document in self.judgements[query]:
                raise InputError("a query's own document is no answer to it", field="own", value=f"query {query}")

    @classmethod
    def unlabelled(cls, documents: npt.NDArray[np.float32]) -> VectorData:
        """Documents alone."""
        return cls(documents, documents[:0], None)

    @property
    def dimension(self) -> int:
        """N."""
        return int(self.documents.shape[1])

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """(D + Q, N) documents, then queries, of unit length; a zero vector stays one."""
        return unit(np.concatenate([self.documents, self.queries]))

    @cached_property
    def pool(self) -> npt.NDArray[np.int64]:
        """Rows of the table that have a direction; a query that is a document stands there once, as the document.

        Raises:
            DataError: fewer than two have one.
        """
        rows = np.flatnonzero((self.table != 0).any(axis=1))
        if self.own is not None:  # a vector would be its own nearest neighbour, from which nothing can be learned
            rows = np.setdiff1d(rows, np.flatnonzero(self.own >= 0) + len(self.documents), assume_unique=True)
        if len(rows) < 2:
            raise DataError("fewer than two vectors are not zero", field="vectors", value=len(rows))
        return rows.astype(np.int64)

    def hard_negatives(self, count: int) -> npt.NDArray[np.int32]:
        """(Q, count) the nearest documents of each query that are wrong for it; -1 where there are fewer.

        Raises:
            DataError: there are no labels.
        """
        if self.judgements is None:
            raise DataError("there are no labels", field="labels", value=None)
        documents, queries = np.split(self.table, [len(self.documents)])
        found = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            block = queries[start : start + _QUERIES_AT_ONCE]
            left_out = [self._no_wrong(start + row) for row in range(len(block))]
            found.append(top_items(block @ documents.T, count, mask=left_out))
        return np.concatenate(found)

    def _no_wrong(self, query: int) -> npt.NDArray[np.int64]:
        """Documents that are right for a query, and its own."""
        assert self.judgements is not None  # noqa: S101 - for the type checker
        own = () if self.own is None or self.own[query] < 0 else (self.own[query],)
        return np.append(self.judgements[query], np.array(own, dtype=np.int64))

    def some(self, queries: npt.NDArray[np.integer]) -> VectorData:
        """With these queries only, documents as they are.

        Raises:
            DataError: there are no labels.
        """
        if self.judgements is None:
            raise DataError("there are no labels", field="labels", value=None)
        own = None if self.own is None else self.own[queries]
        return VectorData(self.documents, self.queries[queries], self.judgements.some(queries), own)

    def without_labels(self) -> VectorData:
        """Documents, and queries that are none of them, alike as vectors of which nothing is known."""
        others = self.queries if self.own is None else self.queries[self.own < 0]
        return VectorData.unlabelled(np.concatenate([self.documents, others]))

    def split(self, share: float, *, seed: int) -> tuple[VectorData, VectorData]:
        """Queries apart at random: the rest, and this share of them (at least one, where there is one)."""
        order = np.random.default_rng([seed, len(self.queries)]).permutation(len(self.queries))
        count = min(max(1, round(share * len(order))), len(order) - 1)
        return self.some(np.sort(order[count:])), self.some(np.sort(order[:count]))

    def fingerprint(self) -> str:
        """Of all values."""
        parts: list[str | bytes] = [self.documents.tobytes(), self.queries.tobytes(), str(self.documents.shape)]
        if self.judgements is not None:
            parts += [self.judgements.offsets.tobytes(), self.judgements.documents.tobytes()]
        if self.own is not None:
            parts.append(self.own.tobytes())
        return sha256_parts(parts)


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(B, N) of unit length; a zero vector stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return scaled


def read_vectors(source: Path) -> npt.NDArray[np.float32]:
    """Cached vectors: a .npy file (B, N) of floats, or the text vectors of a work directory.

    Raises:
        DataError: neither, or not such a file.
    """
    if source.is_dir():
        table = read_job(source, "text_embeddings").sort_by("item_index")
        column = table["vector"].combine_chunks()
        flat: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1).astype(np.float32)
    try:
        vectors = np.load(source, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no readable vectors: {error}",
            field="data",
            value=str(source),
            remedy="give a .npy file (B, N) of floats, or a work directory of `windfire offline run`",
        ) from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise DataError(
            "vectors must be floating (B, N)", field="data", value=(str(source), vectors.shape, str(vectors.dtype))
        )
    return np.asarray(vectors, dtype=np.float32)


def read_labels(path: Path, queries: int) -> Judgements:
    """Pairs of a query's and a right document's number, both from 0, separated by a tab, one pair a line.

    Raises:
        DataError: another form.
        InputError: a query without a pair.
    """
    lists: list[list[int]] = [[] for _ in range(queries)]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            query, document = (int(part) for part in line.split("\t"))
            if document < 0 or query < 0:
                raise ValueError("a negative number")
            lists[query].append(document)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"line {number} is no pair of a query below {queries} and a document: {error}",
                field="labels",
                value=line,
                remedy="QUERY<tab>DOCUMENT, both counted from 0 in the order of the vectors",
            ) from error
    return Judgements.of(lists)


def load_data(
    source: Path, *, queries: Path | None = None, labels: Path | None = None, from_log: bool = False
) -> VectorData:
    """What `windfire train smec` is given.

    Args:
        source: see `read_vectors`.
        queries: .npy (Q, N), with `labels`.
        labels: see `read_labels`.
        from_log: `source` is a work directory, and labels are made by `next_items`.

    Raises:
        ConfigError: options that do not go together.
        DataError: a file that cannot be read, or labels of another form.
    """
    if (queries is None) != (labels is None) or (from_log and labels is not None):
        raise ConfigError(
            "queries go with labels, and neither with labels from the log",
            field="labels",
            value=None if labels is None else str(labels),
            remedy="give --queries and --labels, or --next-items, or none of them",
        )
    vectors = read_vectors(source)
    if from_log:
        if not source.is_dir():
            raise ConfigError("only a work directory has a log", field="next-items", value=str(source))
        return next_items(source, vectors)
    if queries is None or labels is None:
        return VectorData.unlabelled(vectors)
    asked = read_vectors(queries)
    return VectorData(vectors, asked, read_labels(labels, len(asked)))


def next_items(work: Path, vectors: npt.NDArray[np.float32]) -> VectorData:
    """Labels out of a log: an item's vector is the query, what users took next in training is right, itself no answer.

    Args:
        work: directory of `windfire offline run`.
        vectors: (I, N) of its items.

    Raises:
        DataError: no user took two items.
    """
    pairs = successors(load_sequences(work))
    if not len(pairs):
        raise DataError("no user has two training events", field="data", value=str(work))
    items, starts = np.unique(pairs[:, 0], return_index=True)
    return VectorData(vectors, vectors[items], Judgements.of(np.split(pairs[:, 1], starts[1:])), items)


def successors(sequences: Sequences) -> npt.NDArray[np.int64]:
    """(P, 2) distinct pairs of different items that followed one another in training, sorted."""
    pairs = [np.empty((0, 2), np.int64)]
    for user in range(sequences.users):
        items = sequences.training(user).astype(np.int64)
        pairs.append(np.stack([items[:-1], items[1:]], axis=1))
    flat = np.concatenate(pairs)
    distinct: npt.NDArray[np.int64] = np.unique(flat[flat[:, 0] != flat[:, 1]], axis=0)
    return distinct
