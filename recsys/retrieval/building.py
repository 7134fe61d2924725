"""Building what `recsys.retrieval.folder` opens: the indexes of one catalogue, each anew only where it changed."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from recsys.errors import ConfigError, InputError, VersionMismatchError, WindfireError
from recsys.retrieval.compressing import compressor_file, open_compressor, place_compressor
from recsys.retrieval.files import load_index, read_origin, save_index
from recsys.retrieval.folder import MANIFEST, RETRIEVAL_FORMAT, other_dimension, vectors_checksum
from recsys.retrieval.settings import NAMES
from recsys.retrieval.vector_index import build_index
from recsys.storage import sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from recsys.retrieval.compressing import CompressorSpec, Shortener
    from recsys.retrieval.query_encoder import EncoderSpec
    from recsys.retrieval.settings import IndexSettings, VectorsName


def write_retrieval(
    folder: Path,
    vectors: Mapping[VectorsName, npt.NDArray[Any]],
    settings: IndexSettings,
    *,
    item_ids: Sequence[str],
    encoder: EncoderSpec | None = None,
    own: Collection[VectorsName] = (),
    compressors: Mapping[VectorsName, Path] | None = None,
    second_look: bool = False,
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
        compressors: ONNX files of `windfire train smec` by the name of the vectors that they shorten.
        second_look: shorter vectors only propose; the vectors as they are lie on the disk, and candidates are scored
            by them.
        progress: told the name of an index and how many vectors are in.

    Returns:
        The names that were built.

    Raises:
        InputError: vectors that are not finite, or another number of them than of items.
        VersionMismatchError: the items' vectors have another dimension than those of the encoder, or than those that
            the compressor was trained on.
        ConfigError: the encoder holds pickled weights, a compressor without vectors, or ONNX Runtime is not installed.
        CorruptionError, DataError: no compressor in such a file.
    """
    _check(vectors, item_ids, encoder)
    shorteners = _opened(compressors or {}, vectors)
    (folder / MANIFEST).unlink(missing_ok=True)  # until all is there, there is nothing to publish
    built: list[VectorsName] = []
    placed: dict[VectorsName, CompressorSpec] = {}
    for name, values in vectors.items():
        shortener, origin = shorteners.get(name), _origin(name, values, own=name in own)
        looks_twice = second_look and shortener is not None
        if shortener is not None:
            origin |= {"compressor": sha256_parts([shortener.graph]), "second_look": second_look}
        if shortener is not None and not looks_twice:
            placed[name] = place_compressor(shortener, folder, name)
        if _unchanged(folder / name, origin, settings):
            continue
        index = build_index(
            values if shortener is None or looks_twice else shortener(values),
            settings,
            progress=partial(progress, name),
            shortener=shortener if looks_twice else None,
        )
        save_index(index, folder / name, origin=origin)
        built.append(name)
    _finish(folder, list(vectors), item_ids, encoder, placed)
    return built


def _check(
    vectors: Mapping[VectorsName, npt.NDArray[Any]], item_ids: Sequence[str], encoder: EncoderSpec | None
) -> None:
    for name, values in vectors.items():
        if len(values) != len(item_ids):
            raise InputError(
                f"{len(item_ids)} items need as many vectors",
                field=name,
                value=len(values),
                remedy="give one row per item, in the order of item ids; zeros where an item has none",
            )
    if encoder is not None and "text" in vectors and vectors["text"].shape[1] != encoder.dimension:
        raise other_dimension(encoder.dimension, vectors["text"].shape[1])


def _origin(name: VectorsName, values: npt.NDArray[Any], *, own: bool) -> dict[str, Any]:
    return {"vectors": name, "own": own, "sha256": vectors_checksum(values)}


def _opened(
    compressors: Mapping[VectorsName, Path], vectors: Mapping[VectorsName, npt.NDArray[Any]]
) -> dict[VectorsName, Shortener]:
    """Every compressor, once it is sure that it fits; before anything is written."""
    opened: dict[VectorsName, Shortener] = {}
    for name, path in compressors.items():
        if name not in vectors:
            raise ConfigError(
                "a compressor of vectors that no index is built over",
                field="compressor",
                value=name,
                remedy=f"one of {', '.join(vectors)}",
            )
        opened[name] = open_compressor(path)
        if vectors[name].shape[1] != opened[name].dimension:
            raise VersionMismatchError(
                f"the compressor was trained on vectors of {opened[name].dimension} dimensions",
                field=f"{name}.dimension",
                value=vectors[name].shape[1],
                remedy="train one on these vectors: `windfire train smec`",
            )
    return opened


def _finish(
    folder: Path,
    names: Sequence[str],
    item_ids: Sequence[str],
    encoder: EncoderSpec | None,
    compressors: Mapping[VectorsName, CompressorSpec],
) -> None:
    files = {spec.file for spec in compressors.values()}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
        elif path.name in {compressor_file(name) for name in NAMES} - files:
            path.unlink()
    placed = None if encoder is None else encoder.placed(folder)
    value = {
        "format": RETRIEVAL_FORMAT,
        "items": len(item_ids),
        "item_ids": sha256_parts(item_ids),
        "indexes": list(names),
        "encoder": None if placed is None else asdict(placed),
        "compressors": {name: asdict(spec) for name, spec in compressors.items()},
    }
    write_json_atomically(folder / MANIFEST, value)


def _unchanged(directory: Path, origin: dict[str, Any], settings: IndexSettings) -> bool:
    try:
        known = read_origin(directory)
        return known == origin and load_index(directory).settings == settings
    except (WindfireError, OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another form: built again
        return False
