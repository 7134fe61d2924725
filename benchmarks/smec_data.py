"""What `windfire bench smec` measures on: SciFact encoded once, and the items of a work directory."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import ROOT
from recsys.datasets.prepared import load_sequences
from recsys.errors import DataError
from recsys.evaluation.judged import Judgements
from recsys.processor import has_bfloat16
from recsys.storage import write_bytes_atomically
from recsys.text.encoder import PACKAGED_MODEL, load_encoder
from training.smec.data import VectorData, next_items, read_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

_FOLDER: Final = "beir_scifact"
CHUNK: Final = 1024  # texts encoded before they are written; fewer leave the batches of their widths half empty
_SEED: Final = 20251012  # of the rows and cases that are measured; the same for every method


@dataclass(frozen=True)
class Subject:
    """One data set.

    Attributes:
        name: in the figures.
        train: documents, and queries with their labels.
        queries: (Q, N) of the test.
        judgements: of the test queries.
        rows: documents whose neighbours are counted.
        own: as of `VectorData`, of the test queries.
    """

    name: str
    train: VectorData
    queries: npt.NDArray[np.float32]
    judgements: Judgements
    rows: npt.NDArray[np.int64]
    own: npt.NDArray[np.int64] | None = None

    @property
    def test(self) -> VectorData:
        """What is measured."""
        return VectorData(self.train.documents, self.queries, self.judgements, self.own)


def scifact(work: Path, *, rows: int, say: Callable[[str], None]) -> Subject:
    """SciFact by all-MiniLM-L6-v2, title and text of a document as one; encoded once, kept in `work`.

    Args:
        work: cache of the vectors.
        rows: documents whose neighbours are counted.
        say: told in one line what is done.

    Raises:
        DataError: the data set is not there.
    """
    folder = Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data")) / _FOLDER
    if not folder.is_dir():
        raise DataError(
            "SciFact is absent", field="data", value=str(folder), remedy="set WINDFIRE_DATA to the public data's folder"
        )
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [f"{document['title']} {document['text']}".strip() for document in documents]
    vectors = encoded(texts, work / "scifact" / "documents", say)
    asked = encoded([query["text"] for query in queries], work / "scifact" / "queries", say)
    place = {document["_id"]: row for row, document in enumerate(documents)}
    row_of = {query["_id"]: row for row, query in enumerate(queries)}
    parts = {}
    for part in ("train", "test"):
        lists: dict[int, list[int]] = {}
        for line in (folder / "qrels" / f"{part}.tsv").read_text().splitlines()[1:]:
            query, document, score = line.split("\t")
            if int(score) > 0:
                lists.setdefault(row_of[query], []).append(place[document])
        parts[part] = asked[list(lists)], Judgements.of(list(lists.values()))
    return Subject("scifact", VectorData(vectors, *parts["train"]), *parts["test"], _some(len(vectors), rows))


def items(work: Path, name: str, *, rows: int, cases: int) -> Subject:
    """Text vectors of a work directory; the query is the newest item of a history, right is what came next.

    Users who took the same item again are left out: an item is no answer to itself.

    Args:
        work: of `windfire offline run`.
        name: of the data set in the figures.
        rows: items whose neighbours are counted.
        cases: test users, at most.

    Raises:
        DataError: an offline job has not run, or no user has a test event.
    """
    vectors = read_vectors(work)
    _, histories, targets = load_sequences(work).targets("test")
    if not len(targets):
        raise DataError("no user has a test event", field="data", value=str(work))
    newest = np.array([history[-1] for history in histories], dtype=np.int64)
    others = np.flatnonzero(newest != targets)
    chosen = others[_some(len(others), cases)]
    own, judgements = newest[chosen], Judgements.of([[target] for target in targets[chosen].tolist()])
    return Subject(name, next_items(work, vectors), vectors[own], judgements, _some(len(vectors), rows), own)


def encoded(texts: Sequence[str], cache: Path, say: Callable[[str], None]) -> npt.NDArray[np.float32]:
    """(B, 384) unit vectors; a call that was interrupted goes on where it was."""
    parts = []
    encoder = None
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        path = cache / f"{start:06}-{start + len(chunk):06}.npy"
        if not path.exists():
            if encoder is None:
                say(f"encoding {len(texts)} texts of {cache.name} by {PACKAGED_MODEL}")
                encoder = load_encoder(PACKAGED_MODEL, max_tokens=256, bfloat16=has_bfloat16())
            _save(path, encoder.encode(chunk))
        parts.append(np.load(path))
    return np.concatenate(parts)


def _save(path: Path, vectors: npt.NDArray[np.float32]) -> None:
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, vectors)
    write_bytes_atomically(path, buffer.getvalue())


def _some(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of `count` rows, ascending, the same at every call."""
    return np.sort(np.random.default_rng([_SEED, count]).permutation(count)[:most])
