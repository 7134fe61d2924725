"""What travels over the engine's socket: msgpack messages in frames of a 4-byte big-endian length and a body.

Both sides begin with a `Hello`. Only its form is fixed for ever; all others may change with `VERSION`, and a side that
reads another version in a hello hangs up. No message can name code: there is no pickle.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from recsys import errors
from recsys.catalog import CatalogFilter
from recsys.errors import InputError, WindfireError
from serving.engine import (  # msgspec reads the annotations
    EngineAnswer,
    EngineRequest,
    EngineVersions,
    Seek,
    after_waiting,
)
from serving.item_changes import ItemChange, ItemChanged  # likewise
from serving.layout import Layout  # likewise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION: Final = 5
MAX_FRAME: Final = 16 << 20  # bytes of a body; a request is bounded by the 1 MiB of HTTP, an answer by 500 titles
TICK: Final = 1.0  # seconds between two signs of life of the engine
_LENGTH: Final = 4
_LONGEST_TEXT: Final = 4_000  # characters of what a failure says, so that it always fits
_CLASSES: Final = {
    each.code: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, WindfireError) and each is not WindfireError
}


class BrokenWireError(Exception):
    """The other side does not speak as agreed; the connection is of no further use."""


class EngineFaultError(Exception):
    """The engine process failed where it should not; its log has the traceback."""


class Hello(msgspec.Struct, frozen=True, tag="windfire.engine"):
    """The first message of both sides; a map, so that every later version can read it."""

    version: int = VERSION


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A recommendation asked; see `serving.engine.EngineRequest`.

    Attributes:
        number: names the request on this connection; rises.
        budget: seconds that were left until the deadline when it was sent.
        sent: when that was, in monotonic seconds of the sender.
        traceparent: of the span that it belongs to; None where nothing is traced.
    """

    number: int
    budget: float | None
    sent: float
    history: list[str]
    n: int
    time: int
    scene: str | None
    categories: tuple[tuple[str, ...], ...]
    brands: tuple[str, ...]
    price_min_micros: int | None
    price_max_micros: int | None
    allow: list[str] | None
    deny: list[str]
    exclude_seen: bool
    seek: Seek | None = None
    layout: Layout = Layout()
    shown: list[str] = []
    request_id: str | None = None
    unit: str | None = None
    traceparent: str | None = None

    @classmethod
    def of(cls, number: int, request: EngineRequest, now: float, traceparent: str | None = None) -> Ask:
        """A request as sent at a monotonic time."""
        conditions = request.conditions
        return cls(
            number,
            None if request.deadline is None else request.deadline - now,
            now,
            _listed(request.history),
            request.n,
            request.time,
            request.scene,
            conditions.categories,
            conditions.brands,
            conditions.price_min_micros,
            conditions.price_max_micros,
            None if request.allow is None else _listed(request.allow),
            _listed(request.deny),
            request.exclude_seen,
            request.seek,
            request.layout,
            _listed(request.shown),
            request.request_id,
            request.unit,
            traceparent=traceparent,
        )

    def request(self, now: float) -> EngineRequest:
        """The request as read at a monotonic time.

        Front-end and engine are on one host and share its monotonic clock, so that the time on the way counts. Where
        the sender's clock is ahead for all that, the budget begins when the request is read.
        """
        return after_waiting(self._as_sent(now), now - min(now, self.sent))

    def _as_sent(self, now: float) -> EngineRequest:
        return EngineRequest(
            history=self.history,
            n=self.n,
            time=self.time,
            scene=self.scene,
            conditions=CatalogFilter(self.categories, self.brands, self.price_min_micros, self.price_max_micros),
            allow=self.allow,
            deny=self.deny,
            exclude_seen=self.exclude_seen,
            deadline=None if self.budget is None else min(now, self.sent) + self.budget,
            seek=self.seek,
            layout=self.layout,
            shown=self.shown,
            request_id=self.request_id,
            unit=self.unit,
        )


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody waits for this answer any more."""

    number: int


class Figures(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The engine's counters asked."""

    number: int


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answer to an `Ask`."""

    number: int
    answer: EngineAnswer


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The error that answers an `Ask`, `Figures` or `Change`; see `recsys.errors.WindfireError`.

    Attributes:
        code: of the class; empty where it was no error of ours.
    """

    number: int
    code: str
    message: str
    remedy: str = ""
    field: str | None = None
    value: str | int | float | bool | None = None

    @classmethod
    def of(cls, number: int, error: BaseException) -> Failed:
        """An error as it is sent."""
        if not isinstance(error, WindfireError) or error.code not in _CLASSES:
            return cls(number, "", printable(f"{type(error).__name__}: {error}"))
        field = None if error.field is None else printable(error.field)
        return cls(number, error.code, printable(error.message), printable(error.remedy), field, _portable(error.value))

    def error(self) -> Exception:
        """The error as it is raised again."""
        if self.code not in _CLASSES:
            return EngineFaultError(self.message)
        return _CLASSES[self.code](self.message, remedy=self.remedy, field=self.field, value=self.value)


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The answer to `Figures`, in the Prometheus text format."""

    number: int
    text: bytes


class Change(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A change of an item asked."""

    number: int
    asked: ItemChange


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The answer to a `Change`."""

    number: int
    changed: ItemChanged


class Status(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """How the engine is; sent behind the hello, at every change and every `TICK` as a sign of life.

    Attributes:
        versions: what runs, None before the first bundle.
        refused: why the newest bundle could not be loaded.
        draining: the process ends soon.
    """

    versions: EngineVersions | None
    refused: str | None
    draining: bool


FromFrontEnd = Ask | Cancel | Figures | Change
FromEngine = Answered | Failed | Counted | Changed | Status
Message = Hello | FromFrontEnd | FromEngine

_encoder: Final = msgspec.msgpack.Encoder()
_hellos: Final = msgspec.msgpack.Decoder(Hello)
front_end_messages: Final = msgspec.msgpack.Decoder(FromFrontEnd)
engine_messages: Final = msgspec.msgpack.Decoder(FromEngine)


def frame(message: Message) -> bytearray:
    """A message with its length before it, to be written in one go.

    Raises:
        InputError: it is over MAX_FRAME, or holds text or a number that cannot travel.
    """
    buffer = bytearray(_LENGTH)
    try:
        _encoder.encode_into(message, buffer, _LENGTH)
    except (UnicodeEncodeError, OverflowError) as error:
        raise InputError(
            f"this cannot travel between front-end and engine: {error}",
            remedy="send ids as Unicode text and numbers that fit 64 bits",
        ) from error
    size = len(buffer) - _LENGTH
    if size > MAX_FRAME:
        raise InputError(
            f"a message of {size} bytes is over the {MAX_FRAME} that travel between front-end and engine",
            remedy="ask with a shorter history and fewer ids",
        )
    buffer[:_LENGTH] = size.to_bytes(_LENGTH, "big")
    return buffer


def greeted(body: bytes) -> None:
    """Check the other side's hello.

    Raises:
        BrokenWireError: it is none, or of another version.
    """
    try:
        hello = _hellos.decode(body)
    except msgspec.DecodeError as error:
        raise BrokenWireError(f"the other side is no Windfire process: {error}") from error
    if hello.version != VERSION:
        raise BrokenWireError(
            f"the other side speaks version {hello.version}, this one {VERSION}: run both from one release"
        )


class Cutter:
    """Cuts what arrives into the bodies of frames, wherever the stream was split."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def cut(self, data: bytes) -> Iterator[bytes]:
        """Yield what is complete now.

        Raises:
            BrokenWireError: a frame announces more than MAX_FRAME.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH:
                body = start + _LENGTH
                size = int.from_bytes(buffer[start:body], "big")
                if size > MAX_FRAME:
                    raise BrokenWireError(f"a frame of {size} bytes was announced; {MAX_FRAME} is the limit")
                if len(buffer) - body < size:
                    return
                start = body + size
                yield bytes(buffer[body:start])
        finally:
            del buffer[:start]


class Speaker(asyncio.Protocol):
    """One end of a connection: says hello, cuts frames, hangs up on nonsense.

    A protocol rather than a stream: a message is handled where it arrives, without a task that wakes up for it.
    """

    def __init__(self) -> None:
        self._cutter = Cutter()
        self._greeted = False
        self.transport: asyncio.Transport | None = None
        self.broken: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self.send(Hello())

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for body in self._cutter.cut(data):
                if self._greeted:
                    self.heard(body)
                else:
                    greeted(body)
                    self._greeted = True
                    self.welcome()
        except (BrokenWireError, msgspec.DecodeError, ValueError, RecursionError) as error:
            self.hang_up(str(error))

    def send(self, message: Message) -> None:
        """Write a message; where the connection is gone, into nowhere.

        Raises:
            InputError: see `frame`.
        """
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame(message))

    def hang_up(self, why: str) -> None:
        """Break the connection because the other side is at fault."""
        self.broken = self.broken or why
        self.abort()

    def abort(self) -> None:
        """Break the connection, whatever waits to be written."""
        if self.transport is not None:
            self.transport.abort()

    def welcome(self) -> None:
        """The other side has said a good hello."""

    def heard(self, body: bytes) -> None:
        """A message has arrived.

        Raises:
            BrokenWireError, msgspec.DecodeError, ValueError, RecursionError: nobody should have sent it.
        """
        raise NotImplementedError


def _listed(ids: Sequence[str]) -> list[str]:
    return ids if isinstance(ids, list) else list(ids)


def printable(text: str) -> str:
    """Cut to 4,000 characters, and without lone surrogates, which cannot travel."""
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode()


def _portable(value: Any) -> str | int | float | bool | None:
    """A value of an error as it is where it can travel, else as it would be shown."""
    if value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 64):
        return value
    return printable(value if isinstance(value, str) else repr(value))
