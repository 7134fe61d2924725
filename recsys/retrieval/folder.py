"""All indexes of one catalogue in one folder: `retrieval/` of a work directory, and of the bundle made of it.

`retrieval.json` says which indexes there are, over which catalogue, and which encoder belongs to the text vectors; each
index has a folder of its own (`recsys.retrieval.files`).
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.catalog.arrays import load_json
from recsys.errors import DataError, InputError, VersionMismatchError, WindfireError
from recsys.retrieval.files import load_index, read_origin, save_index
from recsys.retrieval.query_encoder import EncoderSpec, QueryEncoder
from recsys.retrieval.settings import NAMES, IndexSettings, VectorsName
from recsys.retrieval.vector_index import Found, VectorIndex, build_index
from recsys.storage import sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from recsys.decoding.packed import Bools
    from recsys.retrieval.checks import Vectors

RETRIEVAL: Final = "retrieval"  # of a work directory; `recsys.bundle.bundle` has the same word
RETRIEVAL_FORMAT: Final = "windfire.retrieval/1"
MANIFEST: Final = "retrieval.json"
_ROWS_AT_ONCE: Final = 2**16


@dataclass(frozen=True, slots=True)
class Similar:
    """Items like an item.

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
    """

    def __init__(self, indexes: Mapping[VectorsName, VectorIndex], encoder: QueryEncoder | None) -> None:
        self.indexes = dict(indexes)
        self.encoder = encoder if "text" in indexes else None

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
        return self.indexes["text"].search(self.encoder.encode(text), n, allowed)


def write_retrieval(
    folder: Path,
    vectors: Mapping[VectorsName, npt.NDArray[Any]],
    settings: IndexSettings,
    *,
    item_ids: Sequence[str],
    encoder: EncoderSpec | None = None,
    own: Collection[VectorsName] = (),
    progress: Callable[[str, int], None] = lambda _, __: None,
) -> list[VectorsName]:
    """Build what changed of a catalogue's indexes; an index over the same vectors with the same settings stays.

    Args:
        folder: kept between calls.
        vectors: (I, D) by name, row r = item index r.
        settings: of every index.
        item_ids: (I,) of the catalogue.
        encoder: of the text vectors.
        own: names of vectors that were made for the index and are not the work directory's.
        progress: told the name of an index and how many vectors are in.

    Returns:
        The names that were built.

    Raises:
        InputError: vectors that are not finite, or another number of them than of items.
        VersionMismatchError: the encoder's vectors have another dimension than the items'.
        ConfigError: the encoder holds pickled weights.
    """
    for name, values in vectors.items():
        if len(values) != len(item_ids):
            raise InputError(
                f"{len(item_ids)} items need as many vectors",
                field=name,
                value=len(values),
                remedy="give one row per item, in the order of item ids; zeros where an item has none",
            )
    if encoder is not None and "text" in vectors and vectors["text"].shape[1] != encoder.dimension:
        raise _other_dimension(encoder.dimension, vectors["text"].shape[1])
    (folder / MANIFEST).unlink(missing_ok=True)  # until all is there, there is nothing to publish
    built: list[VectorsName] = []
    for name, values in vectors.items():
        origin = {"vectors": name, "own": name in own, "sha256": vectors_checksum(values)}
        if _unchanged(folder / name, origin, settings):
            continue
        index = build_index(values, settings, progress=lambda count, name=name: progress(name, count))  # type: ignore[misc]
        save_index(index, folder / name, origin=origin)
        built.append(name)
    _finish(folder, list(vectors), item_ids, encoder)
    return built


def _finish(folder: Path, names: Sequence[str], item_ids: Sequence[str], encoder: EncoderSpec | None) -> None:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
    placed = None if encoder is None else encoder.placed(folder)
    value = {
        "format": RETRIEVAL_FORMAT,
        "items": len(item_ids),
        "item_ids": sha256_parts(item_ids),
        "indexes": list(names),
        "encoder": None if placed is None else asdict(placed),
    }
    write_json_atomically(folder / MANIFEST, value)


def _unchanged(directory: Path, origin: dict[str, Any], settings: IndexSettings) -> bool:
    try:
        known = read_origin(directory)
        return known == origin and load_index(directory).settings == settings
    except (WindfireError, OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another form: built again
        return False


def load_retrieval(folder: Path, *, verify: bool = True, encoder: bool = True) -> Retrieval:
    """Open a folder of indexes.

    Args:
        folder: what `write_retrieval` wrote, or a bundle's copy.
        verify: hash every file; False where somebody else has.
        encoder: load the text encoder where there is one.

    Raises:
        DataError: no indexes there, of another format, or not what their manifests say.
        CorruptionError: a file is missing, cut, changed or unreadable; names it.
        ConfigError, VersionMismatchError: see `EncoderSpec.load`.
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
    loaded = EncoderSpec(**value["encoder"]).load(folder) if encoder and value["encoder"] is not None else None
    if loaded is not None and "text" in indexes and indexes["text"].dimension != loaded.dimension:
        raise _other_dimension(loaded.dimension, indexes["text"].dimension)
    return Retrieval(indexes, loaded)


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


def _other_dimension(encoder: int, vectors: int) -> VersionMismatchError:
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
