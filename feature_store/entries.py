"""The bytes of a history: a compact base and a tail to which every merge appends.

A merge appends its entries to the tail and touches nothing else, so that a new event does not rewrite a thousand old
ones; a tail that has grown is folded into the base. What a history holds is a function of the *set* of everything
that was ever merged: entries are told apart by (time, seq, event_id), of two that agree in these the greater bytes
stay, entries up to the latest deletion's time are forgotten, the newest N are kept. So neither the order nor the
repetition of merges matters, nor when the tail is folded.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from operator import itemgetter, lt
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from feature_store.encoding import UnknownFormatError, check_time, pack_fields
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feature_store.views import View

Entry = tuple[Any, ...]
"""(time, seq, event_id), then the view's fields in their declared order."""

ORDER_FIELDS: Final = ("time", "seq", "event_id")
NEVER: Final = -(1 << 63)
"""The floor of a history from which nothing was deleted."""
_BASE: Final = 1
_ENTRY: Final = 1
_FLOOR: Final = 2
_BASE_HEADER: Final = struct.Struct(">B8sqq")  # format, generation, floor, created_at
_TAIL_HEADER: Final = struct.Struct(">BqI")  # kind, created_at, length of the body
_FLOOR_BODY: Final = struct.Struct(">q")
_NO_GENERATION: Final = b"\0" * 8
_MAX_EVENT_ID: Final = 1024  # characters, as in the event log
_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDER: Final = itemgetter(0, 1, 2)


class Held(NamedTuple):
    """A history in memory.

    Attributes:
        entries: in order, at most as many as the view keeps.
        floor: entries up to this time were deleted; NEVER for none.
        created_at: of the latest write.
        generation: changes whenever a tail is folded in.
    """

    entries: list[Entry]
    floor: int
    created_at: int
    generation: bytes


class EntryCodec:
    """Packs and folds the entries of one view; make one per view and keep it.

    Args:
        view: a history.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._limit = view.history or 0
        kinds = (int, int, str, *(field.packed for field in view.fields))
        self._one: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(tuple[kinds])  # type: ignore[valid-type]
        self._many: msgspec.msgpack.Decoder[list[Entry]] = msgspec.msgpack.Decoder(list[tuple[kinds]])  # type: ignore[valid-type]

    def pack(self, row: Mapping[str, Any]) -> Entry:
        """Check an entry given as time, seq, event_id and the view's fields.

        Raises:
            InputError: names the field that is absent or does not fit.
        """
        seq, event_id = row.get("seq"), row.get("event_id")
        if isinstance(seq, bool) or not isinstance(seq, int) or seq not in range(-(2**63), 2**63):
            raise InputError("the position of an entry is an integer of 64 bits", field="seq", value=seq,
                             remedy="give the event's position in its source")  # fmt: skip
        if not isinstance(event_id, str) or not 0 < len(event_id) <= _MAX_EVENT_ID or not _is_unicode(event_id):
            raise InputError("the id of an entry is a text", field="event_id", value=event_id,
                             remedy=f"give 1 to {_MAX_EVENT_ID} characters of valid Unicode")  # fmt: skip
        fields = {name: value for name, value in row.items() if name not in ORDER_FIELDS}
        return (check_time("time", row.get("time")), seq, event_id, *pack_fields(self._view, fields))

    def tail(self, entries: Sequence[Entry], created_at: int) -> bytes:
        """What a merge appends."""
        return b"".join(_record(_ENTRY, created_at, _ENCODER.encode(entry)) for entry in entries)

    def floor(self, time: int, created_at: int) -> bytes:
        """What a deletion of everything up to `time` appends."""
        return _record(_FLOOR, created_at, _FLOOR_BODY.pack(time))

    def base(self, held: Held, folded: bytes) -> bytes:
        """The base that stands for `held`, whose tail was `folded`."""
        generation = hashlib.blake2b(held.generation + folded, digest_size=8).digest()
        return _BASE_HEADER.pack(_BASE, generation, held.floor, held.created_at) + _ENCODER.encode(held.entries)

    def fold(self, base: bytes | memoryview | None, tail: bytes | memoryview) -> bytes:
        """The base that stands for both; of the two, what cannot be read is dropped, as a `put` replaces it."""
        for one, other in ((base, tail), (None, tail), (base, None)):
            try:
                return self.base(self.load(one, other), bytes(tail))
            except ValueError:  # another format, or damage
                continue
        return self.base(self.load(None, None), bytes(tail))

    def load(self, base: bytes | memoryview | None, tail: bytes | memoryview | None) -> Held:
        """Fold base and tail.

        Raises:
            UnknownFormatError: a base of another format.
            ValueError: cut off, or not of this view's types.
        """
        try:
            held = self._base(base)
            return self._with_tail(held, tail) if tail else held
        except (msgspec.DecodeError, struct.error) as error:
            raise ValueError(str(error)) from None

    def _base(self, base: bytes | memoryview | None) -> Held:
        if not base:
            return Held([], NEVER, NEVER, _NO_GENERATION)
        if len(base) < _BASE_HEADER.size or base[0] != _BASE:
            raise UnknownFormatError("not a base of this format")
        _, generation, floor, created_at = _BASE_HEADER.unpack_from(base)
        return Held(self._many.decode(memoryview(base)[_BASE_HEADER.size :]), floor, created_at, generation)

    def _with_tail(self, held: Held, tail: bytes | memoryview) -> Held:
        entries, floor, created_at, generation = held
        added: list[Entry] = []
        for kind, created, body in _records(tail):
            created_at = max(created_at, created)
            if kind == _FLOOR:
                floor = max(floor, *_FLOOR_BODY.unpack(body))
                continue
            if kind != _ENTRY:
                raise ValueError(f"a record of kind {kind} in a tail")
            added.append(self._one.decode(body))
        together = [*entries, *added]
        keys = [entry[:3] for entry in together]
        if not all(map(lt, keys, keys[1:])):  # most tails continue in order what stands before them
            together = _in_order(entries, added)
        if together and together[0][0] <= floor:
            together = [entry for entry in together if entry[0] > floor]
        return Held(together[max(0, len(together) - self._limit) :], floor, created_at, generation)


def _in_order(entries: Sequence[Entry], added: Sequence[Entry]) -> list[Entry]:
    """Entries of a base and of its tail, each once; of two under one key the greater bytes."""
    merged: dict[tuple[Any, ...], Entry] = {_ORDER(entry): entry for entry in entries}
    for entry in added:
        other = merged.setdefault(_ORDER(entry), entry)
        if other is not entry and _ENCODER.encode(entry) > _ENCODER.encode(other):
            merged[_ORDER(entry)] = entry
    return sorted(merged.values(), key=_ORDER)


def _is_unicode(text: str) -> bool:
    """Whether it can be encoded: the event log takes all such ids."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def same_generation(base: bytes | None) -> bytes:
    """The beginning of a base that says which generation it is; empty for no base."""
    return (base or b"")[: 1 + len(_NO_GENERATION)]


def distinct(entries: list[Entry]) -> list[Entry]:
    """Each event_id once: the first in order."""
    if len({entry[2] for entry in entries}) == len(entries):
        return entries
    unique: dict[str, Entry] = {}
    for entry in entries:
        unique.setdefault(entry[2], entry)
    return list(unique.values())


def younger(entries: list[Entry], time: int) -> list[Entry]:
    """The entries later than `time`, of a list in order."""
    if not entries or entries[0][0] > time:
        return entries
    return entries[bisect_right(entries, time, key=itemgetter(0)) :]


def _record(kind: int, created_at: int, body: bytes) -> bytes:
    return _TAIL_HEADER.pack(kind, created_at, len(body)) + body


def _records(tail: bytes | memoryview) -> Iterator[tuple[int, int, memoryview]]:
    view, place, end = memoryview(tail), 0, len(tail)
    unpack, header = _TAIL_HEADER.unpack_from, _TAIL_HEADER.size
    while place < end:
        kind, created_at, length = unpack(view, place)
        place += header + length
        if place > end:
            raise ValueError("a tail is cut off")
        yield kind, created_at, view[place - length : place]
