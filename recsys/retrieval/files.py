"""An index on the disk: one directory, whole or absent, every file with its checksum.

=====================  =========================================================================================
index.json             format, kind, dimension, settings, origin, files with SHA-256 and size, and its own seal
index.faiss            the faiss index; absent where no item has a vector
vectors.npy            (n, D) float32, where the faiss index holds them quantised or shortened only
compressor.onnx        what shortened them, where they are
rows.npy               (n,) int64 catalogue rows
dead.npy               (n,) bool tombstones
fresh_rows.npy         (m,) int64
fresh_vectors.npy      (m, D) float32
=====================  =========================================================================================
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import faiss
import numpy as np

from recsys.catalog.arrays import load_array, load_json, save_array
from recsys.errors import CorruptionError, DataError
from recsys.retrieval.compressing import open_compressor
from recsys.retrieval.kinds import CLASSES, FaissIndex
from recsys.retrieval.segments import Built, State
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import VectorIndex
from recsys.storage import (
    sha256_file,
    sha256_parts,
    staged_directory,
    write_bytes_atomically,
    write_json_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recsys.retrieval.compressing import Shortener
    from recsys.retrieval.settings import Kind

INDEX_FORMAT: Final = "windfire.index/1"
INDEX: Final = "index.json"
_FAISS: Final = "index.faiss"
_COMPRESSOR: Final = "compressor.onnx"
_REBUILD: Final = "build the index again, or take it from another copy"


def save_index(index: VectorIndex, directory: Path, *, origin: Mapping[str, Any] | None = None) -> None:
    """Write an index with all that was put in and removed since its build.

    Args:
        index: as it is now.
        directory: becomes the index when all is written; what was there before is replaced.
        origin: what the vectors are, JSON-ready; kept in index.json.
    """
    state = index.state
    proposer = state.built.proposer
    with staged_directory(directory) as staged:
        if isinstance(proposer, FaissIndex):
            faiss.write_index(proposer.index, str(staged / _FAISS))
            if proposer.stored() is None:
                save_array(staged / "vectors.npy", state.built.vectors)
        if index.shortener is not None:
            write_bytes_atomically(staged / _COMPRESSOR, index.shortener.graph)
        dead = np.zeros(len(state.built.rows), dtype=np.bool_) if state.dead is None else state.dead
        arrays = {
            "rows": state.built.rows,
            "dead": dead,
            "fresh_rows": state.rows,
            "fresh_vectors": state.vectors,
        }
        for name, values in arrays.items():
            save_array(staged / f"{name}.npy", values)
        value = {
            "format": INDEX_FORMAT,
            "kind": None if proposer is None else proposer.kind,
            "dimension": index.dimension,
            "cosine": index.cosine,
            "settings": index.settings.model_dump(),
            "origin": dict(origin or {}),
            "files": {
                path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                for path in sorted(staged.iterdir())
            },
        }
        write_json_atomically(staged / INDEX, {**value, "seal": _seal(value)})


def read_origin(directory: Path) -> dict[str, Any]:
    """What the vectors of an index are, as `save_index` was told.

    Raises:
        DataError, CorruptionError: see `load_index`.
    """
    origin: dict[str, Any] = _manifest(directory)["origin"]
    return origin


def load_index(directory: Path, *, verify: bool = True) -> VectorIndex:
    """Open what `save_index` wrote; vectors and graphs are mapped, not read.

    Args:
        directory: holds index.json.
        verify: hash every file; False compares sizes only, where somebody else has hashed them.

    Raises:
        ConfigError: it is searched by shorter vectors, and ONNX Runtime is not installed.
        DataError: no index there, one of another format, or a faiss index that is not the one index.json speaks of.
        CorruptionError: a file is missing, cut, changed or unreadable; names it.
    """
    value = _manifest(directory)
    for name, entry in value["files"].items():
        _check_file(directory / name, entry, hashes=verify)
    settings = IndexSettings.parse(value["settings"])
    shortener = open_compressor(directory / _COMPRESSOR) if _COMPRESSOR in value["files"] else None
    rows, dead = load_array(directory / "rows.npy"), load_array(directory / "dead.npy")
    width = int(value["dimension"])
    if value["kind"] is None:
        built = Built(None, rows, np.empty((0, width), dtype=np.float32))
    else:
        proposer = _read(directory / _FAISS, value["kind"], width, len(rows), settings, shortener)
        held = proposer.stored()
        built = Built(proposer, rows, load_array(directory / "vectors.npy") if held is None else held)
    fresh = load_array(directory / "fresh_rows.npy")
    vectors = load_array(directory / "fresh_vectors.npy")
    for name, found, wanted in (
        ("vectors", built.vectors.shape, (len(rows), width)),
        ("dead", dead.shape, (len(rows),)),
        ("fresh_vectors", vectors.shape, (len(fresh), width)),
    ):
        if found != wanted:
            raise _foreign(directory / f"{name}.npy", f"it has the shape {found}", f"{wanted}")
    state = State(built, dead if dead.any() else None, fresh, vectors, np.zeros(len(fresh), dtype=np.int64))
    return VectorIndex(state, settings, cosine=bool(value["cosine"]), shortener=shortener)


def _manifest(directory: Path) -> dict[str, Any]:
    if not (directory / INDEX).is_file():
        raise DataError("no index here", field="path", value=str(directory), remedy="run `windfire index build` first")
    value = load_json(directory / INDEX)
    if not isinstance(value, dict) or value.get("format") != INDEX_FORMAT:
        raise DataError(
            f"{INDEX} has another format than {INDEX_FORMAT}",
            field="file",
            value=str(directory / INDEX),
            remedy="build the index again with this version of windfire",
        )
    seal = value.pop("seal", None)
    if seal != _seal(value):
        raise _corrupt(directory / INDEX, "differs from its own seal")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return sha256_parts([json.dumps(value, sort_keys=True)])


def _check_file(path: Path, entry: Mapping[str, Any], *, hashes: bool) -> None:
    if not path.is_file():
        raise _corrupt(path, "is missing")
    if path.stat().st_size != entry["bytes"]:
        raise _corrupt(path, f"has {path.stat().st_size} bytes instead of {entry['bytes']}")
    if hashes and sha256_file(path) != entry["sha256"]:
        raise _corrupt(path, "differs from its checksum")


def _read(
    path: Path, kind: Kind, width: int, count: int, settings: IndexSettings, shortener: Shortener | None
) -> FaissIndex:
    """The faiss index, if it is of this kind and size.

    faiss trusts what it reads; therefore nothing is read here whose checksum, or the bundle's, was not compared.
    """
    try:
        index = faiss.read_index(str(path), 0 if kind == "ivf_pq" else faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise _corrupt(path, f"cannot be read by faiss: {str(error).splitlines()[0]}") from error
    if shortener is not None and shortener.dimension != width:
        raise _foreign(path.parent / _COMPRESSOR, f"it takes {shortener.dimension} dimensions", f"{width}")
    held = width if shortener is None else shortener.width
    wanted = (CLASSES[kind].__name__, held, count, faiss.METRIC_INNER_PRODUCT)
    found = (type(index).__name__, index.d, index.ntotal, index.metric_type)
    if not isinstance(index, CLASSES[kind]) or found[1:] != wanted[1:]:
        raise _foreign(path, f"it holds class, dimension, vectors and metric {found}", f"{wanted}")
    return FaissIndex(kind, index, settings, shortener)


def _corrupt(path: Path, what: str) -> CorruptionError:
    return CorruptionError(f"{path.name} {what}", field="file", value=str(path), remedy=_REBUILD)


def _foreign(path: Path, found: str, wanted: str) -> DataError:
    return DataError(
        f"{path.name} belongs to another index: {found} instead of {wanted}",
        field="file",
        value=str(path),
        remedy=_REBUILD,
    )
