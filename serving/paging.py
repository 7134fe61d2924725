"""Pages of one recommendation without state on the server: the cursor says what the pages before have shown.

A cursor is URL-safe text: base64 of a byte for its form, a CRC-32 and msgpack, deflated where it is long. It is no
secret and not signed: all that a forged one can do is to leave out items, and to file its own answers under another
request's id.
"""

from __future__ import annotations

import re
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Final

import msgspec

from recsys.errors import InputError

MOST_SHOWN: Final = 500  # items of all pages together
_ID_BYTES: Final = 256  # of an item id or a request id, as everywhere
_MOST_BYTES: Final = MOST_SHOWN * (_ID_BYTES + 3) + 1_024  # of a page as msgpack
MAX_CURSOR: Final = (
    _MOST_BYTES * 138 // 100
)  # characters; base64 takes a third more, and what deflate cannot shrink grows
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+")
_DEFLATED, _PLAIN = b"\x01", b"\x02"
_SHORT: Final = 1_024  # bytes of msgpack up to which deflating costs more than it spares
_HEAD: Final = 5  # bytes of form and checksum
_LEVEL, _WINDOW = 6, -13  # deflate without a header, over 8 KiB

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=_ID_BYTES)]


class Page(msgspec.Struct, frozen=True, array_like=True):
    """One page of a recommendation.

    Attributes:
        request_id: of the first page; joins the exposures of all.
        number: from 0.
        shown: item ids of the pages before, in the order of their positions.
    """

    request_id: _Id
    number: Annotated[int, msgspec.Meta(ge=0, le=MOST_SHOWN)] = 0
    shown: Annotated[list[_Id], msgspec.Meta(max_length=MOST_SHOWN - 1)] = []

    @property
    def left(self) -> int:
        """Items that may still be shown under this request id."""
        return MOST_SHOWN - len(self.shown)

    def next(self, items: list[str]) -> Page | None:
        """The page behind this one, which showed these items; None where the pages have shown all they may."""
        if len(items) >= self.left:
            return None
        return Page(self.request_id, min(self.number + 1, MOST_SHOWN), [*self.shown, *items])

    def cursor(self) -> str:
        """The page as text of at most `MAX_CURSOR` characters."""
        form, body = _PLAIN, _encoder.encode(self)
        if len(body) > _SHORT:
            packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW)
            form, body = _DEFLATED, packer.compress(body) + packer.flush()
        return urlsafe_b64encode(form + zlib.crc32(body).to_bytes(4, "little") + body).rstrip(b"=").decode()


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Page)


def read_cursor(text: str) -> Page:
    """Undo `Page.cursor`.

    Raises:
        InputError: too long, damaged, or not ours.
    """
    if len(text) > MAX_CURSOR:
        raise _refused(f"a cursor has at most {MAX_CURSOR} characters", text)
    if not _FORM.fullmatch(text):
        raise _refused("a cursor is made of letters, digits, '-' and '_'", text)
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise _refused("the cursor is cut off", text) from error
    form = data[:1]
    if form not in (_DEFLATED, _PLAIN):
        raise _refused("the cursor is of another release, or none at all", text)
    body = data[_HEAD:]
    if zlib.crc32(body).to_bytes(4, "little") != data[1:_HEAD]:
        raise _refused("the cursor is damaged", text)
    try:
        page = _decoder.decode(body if form == _PLAIN else zlib.decompressobj(_WINDOW).decompress(body, _MOST_BYTES))
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refused("the cursor holds no page", text) from error
    if not (page.shown and page.number):
        raise _refused("the cursor holds no page", text)
    return page


def _refused(what: str, text: str) -> InputError:
    return InputError(what, field="cursor", value=text[:40], remedy="send the `next_cursor` of an answer as it is")
