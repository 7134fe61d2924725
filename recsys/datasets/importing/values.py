"""From source values to the types of the table contract.

A `Converter` has two ways: `one` defines what a value becomes, element by element; `fast` does the same for a whole
Arrow array and gives up (an Arrow error or `DoubtError`) on anything it is not sure of. Empty strings are missing
values.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recsys.records import RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recsys.datasets.importing.chunks import Column

_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHOWN: Final = 80
_MAX_DIGITS: Final = 30


class DoubtError(ValueError):
    """The fast way is not sure of this array."""


class BadValueError(ValueError):
    """A value that does not become what the field wants."""

    def __init__(self, value: Any, wanted: str, reason: RejectReason = RejectReason.WRONG_TYPE) -> None:
        shown = value if isinstance(value, str) else repr(value)
        shown = shown.encode("utf-8", "backslashreplace").decode()
        super().__init__(f"{shown[:_SHOWN]!r} is not {wanted}")
        self.reason = reason


class Unreadable:
    """Stands for a stored value that has no Python form (text that is not UTF-8, a time out of range)."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def __repr__(self) -> str:
        return f"unreadable ({self.cause})"


@dataclass(frozen=True, slots=True)
class Converter:
    """How a field's values are made.

    Attributes:
        type: the Arrow type of the result.
        one: a present Python value to the result, None for missing; raises `BadValueError`.
        fast: the same for an array, or None where there is no faster way.
    """

    type: pa.DataType
    one: Callable[[Any], Any]
    fast: Callable[[pa.Array], pa.Array] | None = None

    def convert(self, column: Column) -> tuple[pa.Array, dict[int, BadValueError]]:
        """Convert a column of N values.

        Returns:
            (N,) results, null where the value is missing or bad, and the bad rows.
        """
        if self.fast is not None:
            try:
                array = column if isinstance(column, pa.Array) else pa.array(column)
                return self.fast(decoded(array)), {}
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                pass  # the careful way below says which rows are to blame
        values: Sequence[Any] = column.to_pylist() if isinstance(column, pa.Array) else column
        results: list[Any] = []
        bad: dict[int, BadValueError] = {}
        for row, value in enumerate(values):
            try:
                results.append(self._careful(value))
            except BadValueError as error:
                results.append(None)
                bad[row] = error
        return pa.array(results, self.type), bad

    def _careful(self, value: Any) -> Any:
        if value is None or value == "":
            return None
        if isinstance(value, Unreadable):
            encoding = isinstance(value.cause, UnicodeDecodeError)
            raise BadValueError(value, "readable", RejectReason.BAD_ENCODING if encoding else RejectReason.WRONG_TYPE)
        return self.one(value)


def decoded(array: pa.Array) -> pa.Array:
    """The array without dictionary, in the plain string type where it holds strings, null where a string is empty."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = array.cast(pa.string())
    if pa.types.is_string(array.type) and pc.any(pc.equal(array, ""), min_count=0).as_py():
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    return array


def text() -> Converter:
    """Strings; integers become their digits."""
    return Converter(pa.string(), _text_one, _text_fast)


def _text_one(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode() or None
        except UnicodeDecodeError:
            raise BadValueError(value, "UTF-8 text", RejectReason.BAD_ENCODING) from None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadValueError(value, "UTF-8 text", RejectReason.BAD_ENCODING) from None
        return value
    if isinstance(value, bool):
        raise BadValueError(value, "a string")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise BadValueError(value, "a string")


def _text_fast(array: pa.Array) -> pa.Array:
    if pa.types.is_integer(array.type) or pa.types.is_null(array.type):
        return array.cast(pa.string())
    if not pa.types.is_string(array.type):
        raise DoubtError
    return array


def integer(kind: pa.DataType) -> Converter:
    """Whole numbers that fit `kind`."""

    def one(value: Any) -> int:
        number = _whole(value)
        try:
            pa.scalar(number, kind)
        except (pa.ArrowInvalid, OverflowError):
            raise BadValueError(value, f"within {kind}") from None
        return number

    def fast(array: pa.Array) -> pa.Array:
        return plain_integers(array).cast(kind)

    return Converter(kind, one, fast)


def _whole(value: Any) -> int:
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise BadValueError(value, "a whole number")


def plain_integers(array: pa.Array) -> pa.Array:
    """Cast integers or decimal digits to int64; Arrow alone would also read hexadecimal numbers."""
    if pa.types.is_string(array.type):
        for letter in "xX":
            if pc.any(pc.match_substring(array, letter), min_count=0).as_py():
                raise DoubtError
    elif not (pa.types.is_integer(array.type) or pa.types.is_null(array.type)):
        raise DoubtError
    return array.cast(pa.int64())


def exact_decimal(value: Any, wanted: str, reason: RejectReason = RejectReason.WRONG_TYPE) -> Decimal:
    """A finite decimal number of at most 30 characters; floats are taken at their shortest representation.

    Raises:
        BadValueError: it is not a number.
    """
    if isinstance(value, float) and math.isfinite(value):
        value = repr(value)
    shown = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal) or "_" in shown:
        raise BadValueError(value, wanted, reason)
    try:
        number = Decimal(shown)
    except InvalidOperation:
        raise BadValueError(value, wanted, reason) from None
    if not number.is_finite() or abs(number.adjusted()) > _MAX_DIGITS or len(shown) > _MAX_DIGITS:
        raise BadValueError(value, wanted, reason)
    return number


def money(micros_per_unit: int) -> Converter:
    """Amounts as integer micros; finer than a micro is rounded half to even."""
    factor = pa.scalar(Decimal(micros_per_unit), pa.decimal128(7, 0))

    def one(value: Any) -> int:
        micros = int((exact_decimal(value, "an amount of money") * micros_per_unit).to_integral_value())
        if abs(micros) >= 2**63:
            raise BadValueError(value, "an amount of money in range")
        return micros

    def fast(array: pa.Array) -> pa.Array:
        if not (pa.types.is_string(array.type) or pa.types.is_null(array.type)):
            raise DoubtError
        return pc.multiply(array.cast(pa.decimal128(19, 6)), factor).cast(pa.int64())

    return Converter(pa.int64(), one, fast)


def string_list(separator: str) -> Converter:
    """Lists of strings, given as lists or as one string; blanks around and empty parts are dropped."""

    def one(value: Any) -> list[str] | None:
        if not isinstance(value, list):
            value = (_text_one(value) or "").split(separator)
        parts = [_text_one(part) for part in value if part is not None]
        return [part.strip() for part in parts if part and part.strip()] or None

    return Converter(pa.list_(pa.string()), one)


def string_map() -> Converter:
    """Maps from strings to strings: an object, a list of pairs, or an object written as JSON."""
    kind = pa.map_(pa.string(), pa.string())
    value_of = attribute().one

    def one(value: Any) -> list[tuple[str, str]]:
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                raise BadValueError(value, "a JSON object") from None
        if not isinstance(value, dict | list):
            raise BadValueError(value, "an object")
        try:
            pairs = dict(value)
        except (TypeError, ValueError):
            raise BadValueError(value, "an object") from None
        return [(str(name), value_of(entry)) for name, entry in pairs.items() if entry is not None]

    def fast(array: pa.Array) -> pa.Array:
        if array.type != kind:
            raise DoubtError
        return array

    return Converter(kind, one, fast)


def categorical(one: Callable[[str], str]) -> Converter:
    """Strings of few different values: `one` is asked once per value; it raises `BadValueError`."""

    def fast(array: pa.Array) -> pa.Array:
        encoded = _text_fast(array).dictionary_encode()
        named = pa.array([one(value) for value in encoded.dictionary.to_pylist()], pa.string())
        return named.take(encoded.indices)

    def careful(value: Any) -> str | None:
        plain = _text_one(value)
        return None if plain is None else one(plain)

    return Converter(pa.string(), careful, fast)


def action(names: dict[str, str]) -> Converter:
    """Action words: renamed by `names` where listed there, then lower-cased."""

    def one(value: str) -> str:
        word = names.get(value, value).strip().lower().replace(" ", "_").replace("-", "_")
        if not _WORD.fullmatch(word):
            raise BadValueError(value, "an action (a word of letters, digits and _)")
        return word

    return categorical(one)


def attribute() -> Converter:
    """Anything as text: numbers and truth values as in JSON, lists and objects as JSON."""

    def one(value: Any) -> str | None:
        if isinstance(value, str | bytes):
            return _text_one(value)
        return orjson.dumps(value, default=str).decode()

    return Converter(pa.string(), one, _text_fast)
