"""What happens to items after a bundle's snapshot: the records of the catalogue log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from recsys.catalog.index import MAX_ID_BYTES
from recsys.errors import CorruptionError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TITLE: Final = 1_000  # characters, as all below
MAX_TEXT: Final = 20_000
MAX_NAME: Final = 256  # of a brand, one name of a category path, or an attribute's value
MAX_WORD: Final = 64  # of an attribute's name
MAX_DEPTH: Final = 16
MAX_ATTRIBUTES: Final = 64
MAX_MICROS: Final = 10**18
MAX_TIME: Final = 10**17  # UTC microseconds, in the year 5138
MAX_STOCK: Final = 10**15


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """What an item's words gave when it was written, so that no worker computes it a second time.

    Attributes:
        tokenizer: the tokenizer version under which this holds.
        codes: (L,) the semantic ID that was given to a new item; () for one that was known.
        text: (D_t,) the text vector, little-endian float32.
    """

    tokenizer: str
    codes: tuple[int, ...]
    text: bytes


class Upsert(msgspec.Struct, frozen=True, kw_only=True, tag="upsert", omit_defaults=True):
    """An item comes, or all its attributes are replaced; one that was deleted comes back.

    Attributes:
        item_id: of the item.
        time: UTC microseconds, when it was written.
        title: as shown.
        category_path: from the root.
        brand: exact name.
        price_micros: None = unknown.
        text: further text that the item is known by.
        attributes: further values.
        available_from: UTC microseconds, inclusive; None = always.
        available_until: UTC microseconds, exclusive; None = for ever.
        stock: pieces; 0 = may not be shown, None = not counted.
        encoded: of an item that was new; None where every worker encodes it itself.
    """

    item_id: str
    time: int
    title: str | None = None
    category_path: tuple[str, ...] = ()
    brand: str | None = None
    price_micros: int | None = None
    text: str | None = None
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    available_from: int | None = None
    available_until: int | None = None
    stock: int | None = None
    encoded: Encoded | None = None


class Expire(msgspec.Struct, frozen=True, kw_only=True, tag="expire"):
    """An item may be shown until a time, UTC microseconds, exclusive."""

    item_id: str
    time: int
    until: int


class Stock(msgspec.Struct, frozen=True, kw_only=True, tag="stock"):
    """So many pieces are left; with 0 the item may not be shown."""

    item_id: str
    time: int
    stock: int


class Delete(msgspec.Struct, frozen=True, kw_only=True, tag="delete"):
    """An item goes; its semantic ID stays taken."""

    item_id: str
    time: int


Change = Upsert | Expire | Stock | Delete

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Change)


def encode_change(change: Change) -> bytes:
    """A record's bytes.

    Raises:
        InputError: see `check_change`.
    """
    check_change(change)
    return _encoder.encode(change)


def decode_change(data: bytes) -> Change:
    """Undo `encode_change`.

    Raises:
        CorruptionError: the bytes are no change of an item.
    """
    try:
        change: Change = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(
            f"a record of the catalogue log is no change of an item: {error}",
            field="record",
            value=data[:40],
            remedy="read it with the release that wrote it, or restore the log from a copy",
        ) from error
    return change


def check_change(change: Change) -> None:
    """Look at every value.

    Raises:
        InputError: one is too long, out of range, or no Unicode text; names the field.
    """
    _check_id(change.item_id)
    _check_number("time", change.time, MAX_TIME)
    match change:
        case Upsert():
            _check_upsert(change)
        case Expire():
            _check_number("until", change.until, MAX_TIME)
        case Stock():
            _check_number("stock", change.stock, MAX_STOCK)
        case Delete():
            pass


def _check_upsert(change: Upsert) -> None:
    _check_text("title", change.title, MAX_TITLE)
    _check_text("text", change.text, MAX_TEXT)
    _check_text("brand", change.brand, MAX_NAME)
    _check_count("category_path", change.category_path, MAX_DEPTH)
    for name in change.category_path:
        _check_text("category_path", name, MAX_NAME)
    _check_count("attributes", change.attributes, MAX_ATTRIBUTES)
    for name, value in change.attributes.items():
        _check_text("attributes", name, MAX_WORD)
        _check_text("attributes", value, MAX_NAME)
    _check_number("price_micros", change.price_micros, MAX_MICROS)
    _check_number("available_from", change.available_from, MAX_TIME)
    _check_number("available_until", change.available_until, MAX_TIME)
    _check_number("stock", change.stock, MAX_STOCK)


def _check_id(item_id: str) -> None:
    _check_text("item_id", item_id, MAX_ID_BYTES)
    if not item_id or "\0" in item_id or len(item_id.encode()) > MAX_ID_BYTES:
        raise InputError(
            f"an item id must have 1 to {MAX_ID_BYTES} bytes in UTF-8 and no NUL",
            field="item_id",
            value=item_id,
            remedy="shorten or rename it",
        )


def _check_text(field: str, value: str | None, most: int) -> None:
    if value is None:
        return
    if len(value) > most:
        raise InputError(f"at most {most} characters", field=field, value=len(value), remedy="shorten it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"this is no Unicode text: {error}", field=field, value=value, remedy="send UTF-8") from error


def _check_count(field: str, values: Iterable[str], most: int) -> None:
    count = len(list(values))
    if count > most:
        raise InputError(f"at most {most} of them", field=field, value=count, remedy="send fewer")


def _check_number(field: str, value: int | None, most: int) -> None:
    if value is not None and not 0 <= value <= most:
        raise InputError(f"must lie in 0..{most}", field=field, value=value, remedy="send a number of this range")
