"""What the `fused` decoder ranks by, as a folder of a run and of a bundle: fusion/manifest.json and three arrays."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from recsys.bundle.manifest import MANIFEST
from recsys.catalog.arrays import REPUBLISH, load_array, load_json, save_array
from recsys.decoding.fused import Fusion
from recsys.decoding.neighbours import Neighbours
from recsys.errors import DataError, VersionMismatchError
from recsys.storage import restore_directory, staged_directory, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

FUSION: Final = "fusion"
"""The folder's name."""

FUSION_MANIFEST: Final = MANIFEST
FUSION_FORMAT: Final = "windfire.fusion/1"
_ARRAYS: Final = ("offsets", "items", "similarity")
_NUMBERS: Final = ("weight", "floor", "decay", "max_history", "candidates")


def save_fusion(directory: Path, fusion: Fusion, details: dict[str, Any]) -> dict[str, Any]:
    """Write a fusion, whole or not at all, in the place of an earlier one.

    Args:
        directory: becomes the folder.
        fusion: what is written.
        details: what the manifest says besides.

    Returns:
        The manifest.
    """
    numbers = {name: getattr(fusion, name) for name in _NUMBERS}
    manifest = {"format": FUSION_FORMAT, "items": fusion.neighbours.count, **numbers, **details}
    with staged_directory(directory) as staged:
        for name in _ARRAYS:
            save_array(staged / f"{name}.npy", getattr(fusion.neighbours, name))
        write_json_atomically(staged / FUSION_MANIFEST, manifest)
    return manifest


def load_fusion(directory: Path) -> Fusion:
    """Open a fusion; its arrays are memory maps.

    Raises:
        CorruptionError: a file is missing or cannot be read; names it.
        DataError: another format, or arrays that do not fit together.
        ConfigError: a number out of range.
    """
    manifest = load_json(directory / FUSION_MANIFEST)
    if manifest.get("format") != FUSION_FORMAT:
        raise DataError(
            f"the fusion has another format than {FUSION_FORMAT}",
            field="format",
            value=manifest.get("format"),
            remedy="run `windfire train fusion` and `windfire publish` again with this version of windfire",
        )
    missing = [name for name in _NUMBERS if not isinstance(manifest.get(name), int | float)]
    if missing:
        value = manifest.get(missing[0])
        raise DataError("the fusion's manifest has no such number", field=missing[0], value=value, remedy=REPUBLISH)
    table = Neighbours(*(load_array(directory / f"{name}.npy") for name in _ARRAYS))
    return Fusion(table, **{name: manifest[name] for name in _NUMBERS})


def copy_fusion(source: Path, target: Path, *, model_version: str) -> None:
    """Copy a run's fusion into a bundle; nothing where the run has none.

    Args:
        source: the run's folder.
        target: the bundle's.
        model_version: of the weights in the bundle.

    Raises:
        VersionMismatchError: it was fitted to other weights.
        CorruptionError, DataError, ConfigError: it is not whole; see `load_fusion`.
    """
    restore_directory(source)
    if not source.is_dir():
        return
    load_fusion(source).neighbours.check()
    fitted = load_json(source / FUSION_MANIFEST).get("model_version")
    if fitted != model_version:
        raise VersionMismatchError(
            f"the fusion in {source} was fitted to other weights than {model_version}",
            field="model_version",
            value=fitted,
            remedy="run `windfire train fusion` on this run again, or remove the folder",
        )
    target.mkdir()
    for name in (FUSION_MANIFEST, *(f"{name}.npy" for name in _ARRAYS)):
        shutil.copyfile(source / name, target / name)
