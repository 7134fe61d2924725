"""All indexes of one catalogue in one folder: `retrieval/` of a work directory, and of the bundle made of it.

`retrieval.json` says which indexes there are, over which catalogue, which encoder belongs to the text vectors, and by
which compressor an index holds shorter ones; each index has a folder of its own (`recsys.retrieval.files`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.catalog.arrays import load_json
from recsys.errors import DataError, VersionMismatchError
from recsys.retrieval.compressing import CompressorSpec
from recsys.retrieval.files import load_index, read_origin
from recsys.retrieval.query_encoder import EncoderSpec, QueryEncoder
from recsys.retrieval.settings import NAMES, VectorsName
from recsys.retrieval.taste import taste
from recsys.retrieval.vector_index import Found, VectorIndex
from recsys.storage import sha256_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from recsys.decoding.packed import Bools
    from recsys.retrieval.checks import Rows, Vectors
    from recsys.retrieval.compressing import Shortener

RETRIEVAL: Final = "retrieval"  # of a work directory; `recsys.bundle.bundle` has the same word
RETRIEVAL_FORMAT: Final = "windfire.retrieval/1"
MANIFEST: Final = "retrieval.json"
_ROWS_AT_ONCE: Final = 2**16


@dataclass(frozen=True, slots=True)
class Similar:
    """Items like an item, or like those of a history.

    Attributes:
        vectors: which were compared.
        found: see `Found`.
    """

    vectors: VectorsName
    found: Found


class Retrieval:
    """The indexes of a catalogue, opened.

    Args:
        indexes: by what they are over.
        encoder: of the text vectors; None = texts cannot be searched for.
        compressors: of the indexes that hold shorter vectors than were made.
    """

    def __init__(
        self,
        indexes: Mapping[VectorsName, VectorIndex],
        encoder: QueryEncoder | None,
        compressors: Mapping[VectorsName, Shortener] | None = None,
    ) -> None:
        self.indexes = dict(indexes)
        self.encoder = encoder if "text" in indexes else None
        self.compressors = dict(compressors or {})

    def put(self, name: VectorsName, rows: npt.NDArray[np.integer], vectors: npt.NDArray[Any]) -> None:
        """Put items into an index, by vectors as their encoder made them; the next search finds them.

        Args:
            name: of the index.
            rows: (N,) catalogue rows, each once.
            vectors: (N, D), D of the encoder.

        Raises:
            DataError: there is no such index.
            InputError: see `VectorIndex.put`. Nothing is changed then.
        """
        index = self.indexes.get(name)
        if index is None:
            raise DataError(
                "there is no index over these vectors",
                field="vectors",
                value=name,
                remedy="run `windfire index build` with them, and publish again",
            )
        index.put(rows, self.short(name, np.asarray(vectors)))

    def dimension(self, name: VectorsName) -> int | None:
        """D of the vectors that `put` takes; None where there is no such index."""
        index, compressor = self.indexes.get(name), self.compressors.get(name)
        if index is None:
            return None
        return index.dimension if compressor is None else compressor.dimension

    def short(self, name: VectorsName, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Vectors as an index holds and compares them: (N, d) from the (N, D) of their encoder.

        Raises:
            InputError: of another dimension, or not finite, where a compressor reads them.
        """
        compressor = self.compressors.get(name)
        return vectors if compressor is None else compressor(vectors)

    def similar(self, row: int, n: int, allowed: Bools | None, vectors: VectorsName | None = None) -> Similar | None:
        """Items like an item.

        Args:
            row: of the item in the catalogue.
            n: items wanted.
            allowed: (I,) by row; None = every item may be shown.
            vectors: what to compare; None = the first of `NAMES` that the item has.

        Returns:
            None where the item has no such vector.
        """
        for name in NAMES if vectors is None else (vectors,):
            index = self.indexes.get(name)
            own = None if index is None else index.vector(row)
            if index is not None and own is not None:
                return Similar(name, index.search(own, n, allowed))
        return None

    def candidates(
        self, history: Rows | Sequence[int], n: int, allowed: Bools | None, vectors: VectorsName | None = None
    ) -> Similar | None:
        """Candidates for a user: items near what the newest of a history have in common (`recsys.retrieval.taste`).

        Items of the history are candidates like all others unless `allowed` says otherwise.

        Args:
            history: catalogue rows, oldest first; a negative one is an item that is not there.
            n: items wanted.
            allowed: (I,) by row; None = every item may be shown.
            vectors: what to compare; None = the first of `NAMES` that an item of the history has.

        Returns:
            None where no item of the history has such a vector, or their sum has no direction.
        """
        for name in NAMES if vectors is None else (vectors,):
            index = self.indexes.get(name)
            asked = None if index is None else taste(index, history)
            if index is not None and asked is not None:
                return Similar(name, index.search(asked, n, allowed))
        return None

    def search(self, text: str, n: int, allowed: Bools | None) -> Found:
        """Items whose text is near a text.

        Raises:
            DataError: there is no encoder, or no index over text vectors.
            InputError: the text is blank, or the encoder finds nothing in it.
        """
        if self.encoder is None:
            raise DataError(
                "no text encoder belongs to the indexes",
                field="encoder",
                value=None,
                remedy="run `windfire index build` with --encoder, and publish again",
            )
        query = self.short("text", self.encoder.encode(text)[None])[0]
        return self.indexes["text"].search(query, n, allowed)


def load_retrieval(folder: Path, *, verify: bool = True, encoder: bool = True) -> Retrieval:
    """Open a folder of indexes.

    Args:
        folder: what `recsys.retrieval.building.write_retrieval` wrote, or a bundle's copy.
        verify: hash every file; False where somebody else has.
        encoder: load the text encoder where there is one.

    Raises:
        DataError: no indexes there, of another format, or not what their manifests say.
        CorruptionError: a file is missing, cut, changed or unreadable; names it.
        ConfigError, VersionMismatchError: see `EncoderSpec.load` and `CompressorSpec.load`.
    """
    value = _manifest(folder)
    indexes = {name: load_index(folder / name, verify=verify) for name in value["indexes"]}
    for name, index in indexes.items():
        rows = np.concatenate([index.state.built.rows[-1:], index.state.rows])
        if len(rows) and int(rows.max()) >= value["items"]:
            raise DataError(
                f"the index speaks of items that the catalogue of {value['items']} does not have",
                field=f"{name}.rows",
                value=int(rows.max()),
                remedy="run `windfire index build` again",
            )
    specs = {name: CompressorSpec(**spec) for name, spec in value.get("compressors", {}).items()}
    dimensions = {name: index.dimension for name, index in indexes.items()}
    for name, spec in specs.items():
        if dimensions.get(name) != spec.width:
            raise VersionMismatchError(
                f"the compressor makes vectors of {spec.width} dimensions",
                field=f"{name}.dimension",
                value=dimensions.get(name),
                remedy="run `windfire index build` again",
            )
        dimensions[name] = spec.dimension
    loaded = EncoderSpec(**value["encoder"]).load(folder) if encoder and value["encoder"] is not None else None
    if loaded is not None and "text" in dimensions and dimensions["text"] != loaded.dimension:
        raise other_dimension(loaded.dimension, dimensions["text"])
    return Retrieval(indexes, loaded, {name: spec.load(folder) for name, spec in specs.items()})


def copy_retrieval(
    work: Path, target: Path, *, item_ids: Sequence[str], vectors: Mapping[str, npt.NDArray[Any]]
) -> bool:
    """Take a work directory's indexes into a bundle.

    Args:
        work: its `retrieval/` is copied, where it is there.
        target: `retrieval/` of the bundle; must not exist.
        item_ids: of the catalogue that is published.
        vectors: of the work directory, by name: an index over earlier ones is refused.

    Returns:
        Whether there were any.

    Raises:
        VersionMismatchError: the indexes are over another catalogue or over earlier vectors.
        DataError, CorruptionError: see `load_retrieval`.
    """
    folder = work / RETRIEVAL
    if not folder.is_dir():
        return False
    value = _manifest(folder)
    stale = None if value["item_ids"] == sha256_parts(item_ids) else "items"
    for name in value["indexes"]:
        load_index(folder / name)
        origin = read_origin(folder / name)
        if name in vectors and not origin["own"] and origin["sha256"] != vectors_checksum(vectors[name]):
            stale = f"{name} vectors"
    if stale is not None:
        raise VersionMismatchError(
            f"the indexes were built over other {stale} than the work directory's",
            field="retrieval",
            value=str(folder),
            remedy="run `windfire index build` again, or remove the folder to publish without indexes",
        )
    shutil.copytree(folder, target)
    return True


def vectors_checksum(vectors: Vectors | npt.NDArray[Any]) -> str:
    """SHA-256 of the shape and of all numbers."""
    parts = range(0, len(vectors), _ROWS_AT_ONCE)
    return sha256_parts(
        [f"{vectors.shape} {vectors.dtype}", *(vectors[begin : begin + _ROWS_AT_ONCE].tobytes() for begin in parts)]
    )


def other_dimension(encoder: int, vectors: int) -> VersionMismatchError:
    """The error of an encoder that does not fit the items' text vectors."""
    return VersionMismatchError(
        f"the encoder writes vectors of dimension {encoder}",
        field="text.dimension",
        value=vectors,
        remedy="give the encoder that made the items' text vectors",
    )


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise DataError(
            "no finished indexes here", field="path", value=str(folder), remedy="run `windfire index build` again"
        )
    value = load_json(folder / MANIFEST)
    if not isinstance(value, dict) or value.get("format") != RETRIEVAL_FORMAT:
        raise DataError(
            f"{MANIFEST} has another format than {RETRIEVAL_FORMAT}",
            field="file",
            value=str(folder / MANIFEST),
            remedy="run `windfire index build` with this version of windfire",
        )
    return value
