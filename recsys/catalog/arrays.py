"""NumPy and JSON files of a bundle: written without pickle, arrays read as memory maps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import CorruptionError
from recsys.storage import read_json

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

REPUBLISH = "publish the bundle again, or roll back to another version"


def save_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write one array as .npy; object arrays are refused by NumPy."""
    np.save(path, np.ascontiguousarray(values), allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Map one .npy file read-only.

    Raises:
        CorruptionError: the file is missing or is no array; names the file.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    # A plain view: the memmap subclass costs microseconds at every slice.
    return np.asarray(mapped)


def load_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        CorruptionError: the file is missing or is no JSON; names the file.
    """
    try:
        return read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CorruptionError:
    return CorruptionError(f"{path.name} cannot be read: {error}", field="file", value=str(path), remedy=REPUBLISH)
