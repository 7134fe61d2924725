"""Typed fields of a view: what a value may be, how it is packed, and its Arrow type."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_TEXT_BYTES: Final = 65_536
_INT64: Final = range(-(2**63), 2**63)


class Kind(StrEnum):
    """The type of a field."""

    INT64 = "int64"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    INT64_LIST = "int64_list"
    STRING_LIST = "string_list"
    FLOAT32_VECTOR = "float32_vector"
    FLOAT16_VECTOR = "float16_vector"
    INT8_VECTOR = "int8_vector"


LISTS: Final = (Kind.INT64_LIST, Kind.STRING_LIST)
_VECTORS: Final[dict[Kind, npt.DTypeLike]] = {
    Kind.FLOAT32_VECTOR: np.dtype("<f4"),
    Kind.FLOAT16_VECTOR: np.dtype("<f2"),
    Kind.INT8_VECTOR: np.dtype("i1"),
}
VECTORS: Final = tuple(_VECTORS)
_ARROW: Final[dict[Kind, pa.DataType]] = {
    Kind.INT64: pa.int64(),
    Kind.FLOAT64: pa.float64(),
    Kind.BOOL: pa.bool_(),
    Kind.STRING: pa.string(),
    Kind.INT64_LIST: pa.list_(pa.int64()),
    Kind.STRING_LIST: pa.list_(pa.string()),
    Kind.FLOAT32_VECTOR: pa.list_(pa.float32()),
    Kind.FLOAT16_VECTOR: pa.list_(pa.float32()),  # Spark has no half; the values are those of a half
    Kind.INT8_VECTOR: pa.list_(pa.int8()),
}
_PACKED: Final[dict[Kind, Any]] = {
    Kind.INT64: int,
    Kind.FLOAT64: float,
    Kind.BOOL: bool,
    Kind.STRING: str,
    Kind.INT64_LIST: list[int],
    Kind.STRING_LIST: list[str],
    **dict.fromkeys(_VECTORS, bytes),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a view.

    Attributes:
        name: lower-case letters, digits and underscores, beginning with a letter; at most 64.
        kind: its type.
        length: of a vector: its dimensions; of a list: the most entries it may have; 0 for a scalar.
        optional: whether None is a value.

    Raises:
        ConfigError: a name of another form, or a length that does not fit the kind.
    """

    name: str
    kind: Kind
    length: int = 0
    optional: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                "a field's name is lower-case letters, digits and underscores",
                field="name",
                value=self.name,
                remedy="begin with a letter and take at most 64 characters",
            )
        if (self.kind in LISTS or self.kind in _VECTORS) != (self.length > 0):
            raise ConfigError(
                f"a {self.kind} field and this length do not fit",
                field=f"{self.name}.length",
                value=self.length,
                remedy="give lists and vectors a length of 1 or more, and scalars none",
            )

    @property
    def arrow(self) -> pa.DataType:
        """Type of the column in offline tables."""
        return _ARROW[self.kind]

    @property
    def packed(self) -> Any:
        """The Python type that MessagePack holds."""
        return _PACKED[self.kind] | None if self.optional else _PACKED[self.kind]

    def pack(self, value: Any) -> Any:
        """Check a value and bring it to the type that is packed.

        Raises:
            InputError: not of this field's type, not finite, out of range, or too long; names the field.
        """
        if value is None and self.optional:
            return None
        try:
            return _CHECKS[self.kind](value, self.length)
        except _UnfitError as error:
            raise InputError(f"a feature's value does not fit: {error}", field=self.name, value=value,
                             remedy=f"give {self.wanted}") from None  # fmt: skip

    def unpack(self, value: Any) -> Any:
        """The value as readers see it: vectors as read-only arrays, all else as it was packed.

        Raises:
            ValueError: a vector of another length.
        """
        if value is None or self.kind not in _VECTORS:
            return value
        vector = np.frombuffer(value, _VECTORS[self.kind])
        if len(vector) != self.length:
            raise ValueError(f"{self.name} has {len(vector)} dimensions in place of {self.length}")
        return vector

    @property
    def wanted(self) -> str:
        """The type in words, such as `float32_vector of 48, or None`."""
        length = "" if self.length == 0 else f" of {self.length}"
        bound = " at most" if self.kind in LISTS else ""
        return f"{self.kind}{bound}{length}{', or None' if self.optional else ''}"


class _UnfitError(ValueError):
    """Why a value was refused."""


def _integer(value: Any, _: int) -> int:
    if isinstance(value, bool | np.bool_):
        raise _UnfitError("a truth value is no integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise _UnfitError(f"{type(value).__name__} is no integer") from None
    if number not in _INT64:
        raise _UnfitError("beyond 64 bits")
    return number


def _real(value: Any, _: int) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise _UnfitError(f"{type(value).__name__} is no number")
    try:
        number = float(value)
    except (OverflowError, TypeError):
        raise _UnfitError("beyond a 64-bit float") from None
    if not math.isfinite(number):
        raise _UnfitError("not finite")
    return number


def _truth(value: Any, _: int) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _UnfitError(f"{type(value).__name__} is no truth value")
    return bool(value)


def _text(value: Any, _: int) -> str:
    if not isinstance(value, str):
        raise _UnfitError(f"{type(value).__name__} is no text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _UnfitError("holds half a surrogate pair") from None
    if size > MAX_TEXT_BYTES:
        raise _UnfitError(f"{size} bytes are more than {MAX_TEXT_BYTES}")
    return value


def _entries(check: Callable[[Any, int], Any]) -> Callable[[Any, int], list[Any]]:
    def entries(value: Any, length: int) -> list[Any]:
        if not isinstance(value, list | tuple | np.ndarray):
            raise _UnfitError(f"{type(value).__name__} is no list")
        if len(value) > length:
            raise _UnfitError(f"{len(value)} entries are more than {length}")
        return [check(entry, 0) for entry in value]

    return entries


def _vector(kind: Kind) -> Callable[[Any, int], bytes]:
    dtype = np.dtype(_VECTORS[kind])

    def vector(value: Any, length: int) -> bytes:
        try:
            given = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise _UnfitError("not numbers") from None
        if given.shape != (length,):
            raise _UnfitError(f"shape {given.shape} in place of ({length},)")
        with np.errstate(over="ignore", invalid="ignore"):
            cast = given.astype(dtype)
        if not np.isfinite(given).all() or not np.isfinite(cast).all():
            raise _UnfitError(f"not finite as {dtype.name}")
        if dtype.kind == "i" and not (cast == given).all():
            raise _UnfitError(f"not whole numbers of {dtype.name}")
        return cast.tobytes()

    return vector


_CHECKS: Final[dict[Kind, Callable[[Any, int], Any]]] = {
    Kind.INT64: _integer,
    Kind.FLOAT64: _real,
    Kind.BOOL: _truth,
    Kind.STRING: _text,
    Kind.INT64_LIST: _entries(_integer),
    Kind.STRING_LIST: _entries(_text),
    **{kind: _vector(kind) for kind in _VECTORS},
}
