"""The bytes of a value: format, event time, created_at, then MessagePack of the fields in their declared order.

Both times are big-endian with the sign bit turned, so that bytes are ordered as the numbers are: whoever compares two
values needs no arithmetic on 64-bit integers, which Redis's Lua does not have.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feature_store.fields import Field
    from feature_store.views import View

VALUE: Final = 1
TOMBSTONE: Final = 2
HEADER: Final = struct.Struct(">BQQ")  # format, event time, created_at
_OFFSET: Final = 1 << 63
_ENCODER: Final = msgspec.msgpack.Encoder()
TIMES: Final = range(-(1 << 62), 1 << 62)  # microseconds; room for an age to be added


class Stored(NamedTuple):
    """A value as it was stored; `packed` is None for a tombstone."""

    event_time: int
    created_at: int
    packed: Any


class UnknownFormatError(ValueError):
    """Bytes of another format."""


class Codec:
    """Packs and unpacks one view's fields; make one per view and keep it.

    Args:
        view: of one value, not a history.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        kinds = tuple(field.packed for field in view.fields)
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(tuple[kinds])  # type: ignore[valid-type]
        self._arrays = [(field.name, field) for field in view.fields if field.kind.endswith("_vector")]

    def encode(self, values: Mapping[str, Any] | None, event_time: int, created_at: int) -> bytes:
        """Bytes of a value, or of a tombstone where `values` is None.

        Raises:
            InputError: an unknown or absent field, or a value or time that does not fit; names it.
        """
        header = (_ordered("event_time", event_time), _ordered("created_at", created_at))
        if values is None:
            return HEADER.pack(TOMBSTONE, *header)
        return HEADER.pack(VALUE, *header) + _ENCODER.encode(pack_fields(self._view, values))

    def decode(self, raw: bytes | memoryview) -> Stored:
        """Split stored bytes.

        Raises:
            UnknownFormatError: of another format.
            ValueError: cut off, or not of this view's types.
        """
        try:
            form, event_time, created_at = HEADER.unpack_from(raw)
        except struct.error as error:
            raise UnknownFormatError(str(error)) from None
        if form == TOMBSTONE:
            return Stored(event_time - _OFFSET, created_at - _OFFSET, None)
        if form != VALUE:
            raise UnknownFormatError(f"format {form}")
        try:
            packed = self._decoder.decode(memoryview(raw)[HEADER.size :])
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None
        return Stored(event_time - _OFFSET, created_at - _OFFSET, packed)

    def named(self, packed: tuple[Any, ...]) -> dict[str, Any]:
        """Values by field.

        Raises:
            ValueError: a vector of another length.
        """
        values = dict(zip(self._view.names, packed, strict=True))
        for name, field in self._arrays:
            values[name] = field.unpack(values[name])
        return values


def order(raw: bytes) -> tuple[bytes, int, bytes]:
    """What decides between two values of one key, the greater one wins: times, tombstone before value, bytes.

    The bytes break ties between values of equal times, so that the order of arrival never matters.
    """
    return raw[1 : HEADER.size], raw[0], raw[HEADER.size :]


def supersedes(new: bytes, old: bytes | None) -> bool:
    """Whether `new` takes the place of `old`; bytes of an unknown format are always replaced."""
    if old is None or len(old) < HEADER.size or old[0] not in (VALUE, TOMBSTONE):
        return True
    return order(new) > order(old)


def pack_fields(view: View, values: Mapping[str, Any]) -> list[Any]:
    """Checked values in the declared order; an absent optional field is None.

    Raises:
        InputError: see `Codec.encode`.
    """
    if unknown := sorted(set(values) - set(view.names)):
        raise InputError(f"the view {view.name} has no such field", field="values", value=unknown,
                         remedy=f"its fields are {', '.join(view.names)}")  # fmt: skip
    return [_pack(view, field, values) for field in view.fields]


def _pack(view: View, field: Field, values: Mapping[str, Any]) -> Any:
    if field.name not in values and not field.optional:
        raise InputError(f"a value of the view {view.name} lacks a field", field=field.name, value=None,
                         remedy=f"give {field.wanted}")  # fmt: skip
    return field.pack(values.get(field.name))


def check_time(name: str, time: Any) -> int:
    """A time in UTC microseconds.

    Raises:
        InputError: no integer, or out of range.
    """
    if isinstance(time, bool) or not isinstance(time, int) or time not in TIMES:
        raise InputError("a time is an integer of UTC microseconds", field=name, value=time,
                         remedy="give microseconds since 1970")  # fmt: skip
    return time


def _ordered(name: str, time: Any) -> int:
    return check_time(name, time) + _OFFSET
