"""What Feast (0.67, entity keys of version 3) writes to Redis: names, keys and protobuf values, read without Feast.

One hash per entity and project. Its key is the serialised entity key with the project's name behind it; a feature's
field is the MurmurHash3 of `view:feature`; `_ts:view` holds the event time as a protobuf Timestamp, each feature a
protobuf Value. Format: feast/infra/key_encoding_utils.py and protos/feast/types/Value.proto of Feast (Apache 2.0).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STRING: Final = 2  # Feast's ValueType, of the join key's name and of a text id
_INT64: Final = 4
_WORD: Final = struct.Struct("<I")
_MASK: Final = 0xFFFFFFFF
_VARINT, _BITS64, _BYTES, _BITS32 = 0, 1, 2, 5  # wire types of protobuf
_MAX_VARINT: Final = 10  # bytes


def entity_key(project: str, join_key: str, entity: str | int) -> bytes:
    """Key of an entity's hash.

    Args:
        project: of Feast.
        join_key: name of the entity's one key.
        entity: the id; an integer where Feast keeps ids as INT64.
    """
    name = join_key.encode()
    if isinstance(entity, int):
        kind, value = _INT64, struct.pack("<q", entity)
    else:
        kind, value = _STRING, entity.encode()
    words = [_WORD.pack(number) for number in (1, _STRING, len(name), kind, len(value))]
    return b"".join([*words[:3], name, *words[3:], value, project.encode()])


def field_name(feature_view: str, feature: str) -> bytes:
    """Field of a feature: 4 bytes, little-endian."""
    return _WORD.pack(_murmur3(f"{feature_view}:{feature}".encode()))


def time_field(feature_view: str) -> bytes:
    """Field of a view's event time."""
    return b"_ts:" + feature_view.encode()


def decode_time(raw: bytes) -> int:
    """UTC microseconds of a protobuf Timestamp.

    Raises:
        ValueError: cut off, or something else.
    """
    seconds = nanos = 0
    for number, wire, value in _fields(raw):
        if wire == _VARINT and number == 1:
            seconds = _signed(value)
        elif wire == _VARINT and number == 2:
            nanos = _signed(value)
    return seconds * 1_000_000 + nanos // 1_000


def decode_value(raw: bytes) -> Any:
    """A protobuf Value: a scalar, a list, or None.

    Raises:
        ValueError: cut off, or of a kind that is not read: maps, sets, structures, decimals, UUIDs.
    """
    found = None
    for number, wire, value in _fields(raw):
        reader = _KINDS.get(number)
        if reader is None:
            raise ValueError(f"a value of the kind {number}")
        found = reader(wire, value)
    return found


def _murmur3(data: bytes) -> int:
    """MurmurHash3 of 32 bits with seed 0 (Appleby)."""
    state, whole = 0, len(data) & ~3
    for (word,) in _WORD.iter_unpack(data[:whole]):
        state ^= _scramble(word)
        state = (_rotated(state, 13) * 5 + 0xE6546B64) & _MASK
    if data[whole:]:
        state ^= _scramble(int.from_bytes(data[whole:], "little"))
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = ((state ^ state >> shift) * factor) & _MASK
    return state ^ state >> 16


def _scramble(word: int) -> int:
    return (_rotated((word * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK


def _rotated(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _MASK


def _fields(raw: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, integer or bytes) of a protobuf message."""
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value: Any
            value, place = _varint(raw, place)
        else:
            if wire == _BYTES:
                length, place = _varint(raw, place)
            elif wire in (_BITS64, _BITS32):
                length = 8 if wire == _BITS64 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value, place = raw[place : place + length], place + length
            if len(value) < length:
                raise ValueError("cut off")
        yield number, wire, value


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(raw[place : place + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    raise ValueError("cut off")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integer(wire: int, value: Any) -> int:
    return _signed(_of(wire, _VARINT, value))


def _boolean(wire: int, value: Any) -> bool:
    return bool(_of(wire, _VARINT, value))


def _bytes(wire: int, value: Any) -> bytes:
    return bytes(_of(wire, _BYTES, value))


def _text(wire: int, value: Any) -> str:
    return _bytes(wire, value).decode()


def _number(form: str, kind: int) -> Callable[[int, Any], float]:
    def read(wire: int, value: Any) -> float:
        return float(struct.unpack(form, _of(wire, kind, value))[0])

    return read


def _none(wire: int, value: Any) -> None:
    _of(wire, _VARINT, value)


def _of(wire: int, wanted: int, value: Any) -> Any:
    if wire != wanted:
        raise ValueError(f"wire type {wire} in place of {wanted}")
    return value


def _listed(one: Callable[[int, Any], Any], width: int = 0) -> Callable[[int, Any], list[Any]]:
    """Reader of a message `repeated ... val = 1`; numbers stand packed in one field, or each in its own.

    Args:
        one: reads an element.
        width: bytes of a packed element; 0: varints.
    """

    def read(wire: int, value: Any) -> list[Any]:
        found: list[Any] = []
        for number, inner, element in _fields(_of(wire, _BYTES, value)):
            if number != 1:
                raise ValueError(f"a list with the field {number}")
            packed = inner == _BYTES and one not in (_bytes, _text)
            found += _unpacked(one, width, element) if packed else [one(inner, element)]
        return found

    return read


def _unpacked(one: Callable[[int, Any], Any], width: int, raw: bytes) -> list[Any]:
    if width:
        if len(raw) % width:
            raise ValueError("cut off")
        kind = _BITS64 if width == 8 else _BITS32
        return [one(kind, raw[place : place + width]) for place in range(0, len(raw), width)]
    found, place = [], 0
    while place < len(raw):
        value, place = _varint(raw, place)
        found.append(one(_VARINT, value))
    return found


_DOUBLE: Final = _number("<d", _BITS64)
_FLOAT: Final = _number("<f", _BITS32)
_KINDS: Final[dict[int, Callable[[int, Any], Any]]] = {
    1: _bytes, 2: _text, 3: _integer, 4: _integer, 5: _DOUBLE, 6: _FLOAT, 7: _boolean, 8: _integer,
    11: _listed(_bytes), 12: _listed(_text), 13: _listed(_integer), 14: _listed(_integer), 15: _listed(_DOUBLE, 8),
    16: _listed(_FLOAT, 4), 17: _listed(_boolean), 18: _listed(_integer), 19: _none,
}  # fmt: skip
