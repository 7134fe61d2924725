"""Dictionaries of NumPy arrays as bytes, without pickle, and the checks on what workers return."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Arrays = dict[str, NDArray[Any]]
_LENGTH = 8


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """One message: the length of a JSON head, the head, the arrays as safetensors."""
    text = json.dumps(head).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + pack_arrays(arrays or {})


def unpack(message: bytes) -> tuple[dict[str, Any], Arrays]:
    """The head and the arrays of a message; the arrays are owned and writable."""
    end = _LENGTH + int.from_bytes(message[:_LENGTH], "little")
    return json.loads(message[_LENGTH:end]), unpack_arrays(message[end:])


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the bytes of a safetensors file."""
    return bytes(save({name: np.asarray(value, order="C") for name, value in arrays.items()}))


def unpack_arrays(data: bytes) -> Arrays:
    """The arrays of a safetensors file; owned and writable."""
    return {name: np.array(value) for name, value in load(data).items()}


def split_groups(arrays: Arrays, count: int) -> list[Arrays]:
    """One dictionary for each of `count` groups, whose arrays have a first dimension of 1.

    Raises:
        DataError: there is no array, or one whose first dimension is not `count`.
    """
    if not arrays:
        raise DataError("a worker returned no array", field="groups", value="{}", remedy="return (n, ...) arrays")
    for name, value in arrays.items():
        if value.ndim == 0 or len(value) != count:
            raise DataError(
                f"a worker was given {count} groups and returned another number",
                field=name,
                value=str(value.shape),
                remedy="return arrays whose first dimension is the number of groups, and all groups whole",
            )
    return [{name: value[row : row + 1] for name, value in arrays.items()} for row in range(count)]


def join_groups(groups: Sequence[Arrays]) -> Arrays:
    """The inverse of `split_groups`.

    Raises:
        DataError: groups with other names or other shapes than the first.
    """
    form = {name: (value.shape, value.dtype) for name, value in groups[0].items()}
    for group in groups:
        found = {name: (value.shape, value.dtype) for name, value in group.items()}
        if found != form:
            raise DataError(
                f"groups of one batch differ in form; expected {form}",
                field="group",
                value=str(found),
                remedy="give every group the same names, shapes and types; pad where needed",
            )
    return {name: np.concatenate([group[name] for group in groups]) for name in form}
