"""What the `fused` decoder ranks by, as a folder of a run and of a bundle.

fusion/manifest.json and the three arrays of the item-to-item table; where a second model has a weight, its config.json
and weights.safetensors in fusion/second.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from recsys.bundle.manifest import MANIFEST
from recsys.catalog.arrays import REPUBLISH, load_array, load_json, save_array
from recsys.decoding.fused import Fusion, Second
from recsys.decoding.neighbours import Neighbours
from recsys.errors import DataError, VersionMismatchError
from recsys.storage import restore_directory, sha256_file, sha256_parts, staged_directory, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recsys.decoding.second import SecondModel

    ReadModel = Callable[[Path], SecondModel]

FUSION: Final = "fusion"
"""The folder's name."""

FUSION_MANIFEST: Final = MANIFEST
FUSION_FORMAT: Final = "windfire.fusion/1"
SECOND: Final = "second"
"""The folder of a second model, in that of the fusion."""

SECOND_FILES: Final = ("config.json", "weights.safetensors")
_ARRAYS: Final = ("offsets", "items", "similarity")
_NUMBERS: Final = ("weight", "floor", "decay", "max_history", "candidates")


class SecondFiles(NamedTuple):
    """A second model as it is written.

    Attributes:
        folder: holds config.json and weights.safetensors.
        weight: of its scores.
    """

    folder: Path
    weight: float


def save_fusion(
    directory: Path, fusion: Fusion, details: dict[str, Any], *, second: SecondFiles | None = None
) -> dict[str, Any]:
    """Write a fusion, whole or not at all, in the place of an earlier one.

    Args:
        directory: becomes the folder.
        fusion: the table and the numbers that are written; of a second model `second` speaks.
        details: what the manifest says besides.
        second: a second model that is copied into it.

    Returns:
        The manifest.
    """
    numbers = {name: getattr(fusion, name) for name in _NUMBERS}
    manifest = {"format": FUSION_FORMAT, "items": fusion.neighbours.count, **numbers, **details}
    with staged_directory(directory) as staged:
        for name in _ARRAYS:
            save_array(staged / f"{name}.npy", getattr(fusion.neighbours, name))
        if second is not None:
            _copy(second.folder, staged / SECOND, SECOND_FILES)
            manifest |= {"second": {"weight": second.weight, "version": second_version(staged / SECOND)}}
        write_json_atomically(staged / FUSION_MANIFEST, manifest)
    return manifest


def second_version(folder: Path) -> str:
    """The name of a second model, derived from the bytes of its two files."""
    return sha256_parts([sha256_file(folder / name) for name in SECOND_FILES])[:12]


def load_fusion(directory: Path, read_second: ReadModel | None = None) -> Fusion:
    """Open a fusion; its arrays are memory maps.

    Args:
        directory: the folder.
        read_second: opens the folder of a second model; None = the fusion is read without it, for its numbers.

    Raises:
        CorruptionError: a file is missing or cannot be read; names it.
        DataError: another format, or arrays that do not fit together.
        ConfigError: a number out of range, or a second model for another number of items.
    """
    manifest = load_json(directory / FUSION_MANIFEST)
    if manifest.get("format") != FUSION_FORMAT:
        raise DataError(
            f"the fusion has another format than {FUSION_FORMAT}",
            field="format",
            value=manifest.get("format"),
            remedy="run `windfire train fusion` and `windfire publish` again with this version of windfire",
        )
    _check_numbers(manifest, _NUMBERS)
    table = Neighbours(*(load_array(directory / f"{name}.npy") for name in _ARRAYS))
    second = _second(directory, manifest, read_second)
    return Fusion(table, **{name: manifest[name] for name in _NUMBERS}, second=second)


def _second(directory: Path, manifest: dict[str, Any], read: ReadModel | None) -> Second | None:
    described = manifest.get("second")
    if described is None:
        return None
    if not isinstance(described, dict):
        raise DataError("must be an object", field="second", value=described, remedy=REPUBLISH)
    _check_numbers(described, ("weight",))
    return None if read is None else Second(read(directory / SECOND), described["weight"])


def _check_numbers(manifest: dict[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if not isinstance(manifest.get(name), int | float)]
    if missing:
        value = manifest.get(missing[0])
        raise DataError("the fusion's manifest has no such number", field=missing[0], value=value, remedy=REPUBLISH)


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    target.mkdir()
    for name in names:
        shutil.copyfile(source / name, target / name)


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
    manifest = load_json(source / FUSION_MANIFEST)
    fitted, second = manifest.get("model_version"), manifest.get("second")
    if fitted != model_version:
        raise VersionMismatchError(
            f"the fusion in {source} was fitted to other weights than {model_version}",
            field="model_version",
            value=fitted,
            remedy="run `windfire train fusion` on this run again, or remove the folder",
        )
    _copy(source, target, (FUSION_MANIFEST, *(f"{name}.npy" for name in _ARRAYS)))
    if second is not None:
        _copy(source / SECOND, target / SECOND, SECOND_FILES)
        found = second_version(target / SECOND)
        if found != second.get("version"):
            raise VersionMismatchError(
                f"the second model in {source / SECOND} is not the one that the fusion was fitted with",
                field="second.version",
                value=found,
                remedy="run `windfire train fusion` on this run again, or remove the folder",
            )
