"""Times of any source as UTC microseconds since 1970."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import ROUND_FLOOR
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.importing.values import BadValueError, Converter, DoubtError, exact_decimal, plain_integers
from recsys.errors import InputError
from recsys.records import RejectReason

MICROS_PER_UNIT: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}
ISO8601: Final = "iso8601"
EARLIEST: Final = -62_135_596_800_000_000  # year 1
LATEST: Final = 253_402_300_799_999_999  # year 9999
_MANY_DIGITS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN_DIRECTIVES: Final = frozenset("YmdHMS")  # what Arrow and Python read alike
_SECONDS_BELOW, _MILLIS_BELOW = 10**11, 10**14  # years 5138; 1973 counted in milliseconds and in microseconds


def time_converter(form: str) -> Converter:
    """Times written as `form`: "s", "ms", "us" since 1970, "iso8601", or a strptime format; without a zone it is UTC.

    Columns that are stored as timestamps or dates are understood whatever `form` says.

    Raises:
        InputError: the form is none of these.
    """
    if form in MICROS_PER_UNIT:
        return Converter(pa.int64(), *_unit(form))
    if form == ISO8601:
        return Converter(pa.int64(), *_iso())
    if "%" in form:
        return Converter(pa.int64(), *_strptime(form))
    raise InputError(
        "unknown form of time",
        field="time_format",
        value=form,
        remedy=f"use one of {', '.join(MICROS_PER_UNIT)}, {ISO8601}, or a strptime format such as '%d/%m/%Y %H:%M'",
    )


def guess_form(values: list[Any]) -> str:
    """The form of the first value that is a time at all: a number's unit by its size, else ISO 8601."""
    iso = Converter(pa.int64(), *_iso())
    for value in values:
        try:
            size = abs(exact_decimal(value, "a number"))
        except BadValueError:
            if value not in (None, "") and not iso.convert([value])[1]:
                break
        else:
            return "s" if size < _SECONDS_BELOW else "ms" if size < _MILLIS_BELOW else "us"
    return ISO8601


def _unit(unit: str) -> tuple[Any, Any]:
    factor = MICROS_PER_UNIT[unit]
    wanted = f"a time in {unit} since 1970"

    def one(value: Any) -> int:
        if isinstance(value, date):
            return _of_datetime(value)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _MANY_DIGITS:
            return _bounded(int(value) * factor, value)
        number = exact_decimal(value, wanted, RejectReason.BAD_TIME)
        return _bounded(int((number * factor).to_integral_value(ROUND_FLOOR)), value)

    def fast(array: pa.Array) -> pa.Array:
        if pa.types.is_temporal(array.type):
            return _of_timestamps(array)
        return _all_bounded(pc.multiply_checked(plain_integers(array), factor))

    return one, fast


def _iso() -> tuple[Any, Any]:
    def one(value: Any) -> int:
        if isinstance(value, date):
            return _of_datetime(value)
        try:
            return _of_datetime(datetime.fromisoformat(value.strip()))
        except (AttributeError, ValueError, OverflowError):
            raise BadValueError(value, "a time such as 2026-01-31T12:00:00Z", RejectReason.BAD_TIME) from None

    def fast(array: pa.Array) -> pa.Array:
        if pa.types.is_string(array.type):
            try:
                array = array.cast(pa.timestamp("us", "UTC"))
            except pa.ArrowInvalid:
                array = array.cast(pa.timestamp("us"))
        return _of_timestamps(array)

    return one, fast


def _strptime(form: str) -> tuple[Any, Any]:
    directives = {form[index + 1 : index + 2] for index, letter in enumerate(form) if letter == "%"}

    def one(value: Any) -> int:
        if isinstance(value, date):
            return _of_datetime(value)
        try:
            return _of_datetime(datetime.strptime(value, form))  # noqa: DTZ007 - a zone in the form is kept
        except (TypeError, ValueError, OverflowError):
            raise BadValueError(value, f"a time written as {form}", RejectReason.BAD_TIME) from None

    def fast(array: pa.Array) -> pa.Array:
        if pa.types.is_temporal(array.type):
            return _of_timestamps(array)
        if not directives <= _PLAIN_DIRECTIVES:
            raise DoubtError
        times = pc.strptime(array, format=form, unit="s")
        # C's strptime takes 31 February for 3 March: only what is written back the same is sure
        if not pc.all(pc.equal(pc.strftime(times, format=form), array), min_count=0).as_py():
            raise DoubtError
        return _of_timestamps(times)

    return one, fast


def _of_datetime(value: date) -> int:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    elapsed = aware - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def _of_timestamps(array: pa.Array) -> pa.Array:
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    if not pa.types.is_timestamp(array.type):
        raise DoubtError
    if array.type.unit == "ns":
        array = pc.floor_temporal(array, unit="microsecond")
    return _all_bounded(array.cast(pa.timestamp("us", array.type.tz), safe=True).cast(pa.int64()))


def _bounded(micros: int, value: Any) -> int:
    if not EARLIEST <= micros <= LATEST:
        raise BadValueError(value, "between the years 1 and 9999 in this unit", RejectReason.BAD_TIME)
    return micros


def _all_bounded(array: pa.Array) -> pa.Array:
    ends = pc.min_max(array).as_py()
    if ends["min"] is not None and not EARLIEST <= ends["min"] <= ends["max"] <= LATEST:
        raise DoubtError
    return array
