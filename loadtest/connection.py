"""One keep-alive connection: a protocol of the event loop, without tasks, streams or timers per request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

if TYPE_CHECKING:
    from loadtest.target import Request

MALFORMED: Final = "malformed"
DISCONNECTED: Final = "disconnected"
_TOO_LONG: Final = 16 << 20  # bytes of a body; more is no answer of a recommender


class Ticket:
    """A request under way.

    Args:
        request: what is sent.
        intended: monotonic seconds at which it should be sent; its latency and its deadline count from here.

    Attributes:
        sent: monotonic seconds at which it was handed to the socket; 0 before.
    """

    __slots__ = ("intended", "request", "sent")

    def __init__(self, request: Request, intended: float) -> None:
        self.request = request
        self.intended = intended
        self.sent = 0.0


class Owner(Protocol):
    """Whom a connection tells."""

    def answered(self, connection: Connection, status: int, body: bytes, *, keep: bool) -> None:
        """The ticket got its answer; without `keep` the connection must not be used again."""

    def lost(self, connection: Connection, kind: str) -> None:
        """The connection is gone; `connection.ticket`, where there is one, gets no answer."""


class Connection(asyncio.Protocol):
    """Sends one request at a time.

    Args:
        owner: is told of answers and of the end.

    Attributes:
        ticket: under way, or None.
        idle_since: monotonic seconds; meaningful without a ticket.
    """

    __slots__ = (
        "_body", "_closed", "_complete", "_keep", "_length", "_owner", "_parser", "_status", "_transport", "idle_since",
        "ticket",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self.ticket: Ticket | None = None
        self.idle_since = 0.0
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body: list[bytes] = []
        self._length = 0
        self._complete = self._keep = self._closed = False
        self._status = 0

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def send(self, ticket: Ticket, data: bytes) -> None:
        """Hand a request to the socket; the connection must be idle."""
        self.ticket = ticket
        if self._transport is not None:  # it is: only what was opened is handed out
            self._transport.write(data)

    def close(self, *, kind: str = DISCONNECTED) -> None:
        """End it at once; the owner is told if it was not yet."""
        if self._transport is not None:
            self._transport.abort()
        self._end(kind)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        if self._closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close(kind=MALFORMED)
        if self._complete and not self._closed:
            # Behind the parser, so that a second answer in the same bytes is not taken for that of the next request.
            self._complete = False
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._owner.answered(self, self._status, body, keep=self._keep)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        """Of asyncio.Protocol."""
        self._end(DISCONNECTED)

    def on_message_begin(self) -> None:
        """Of httptools."""
        if self.ticket is None or self._complete:  # nobody asked; its end may come when somebody has
            self.close(kind=MALFORMED)
            return
        self._body = []
        self._length = 0

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        self._length += len(body)
        if self._length <= _TOO_LONG:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Of httptools."""
        if self.ticket is None or self._complete or self._length > _TOO_LONG:  # nobody asked, or nobody could want it
            self.close(kind=MALFORMED)
            return
        self._complete = True
        self._status, self._keep = self._parser.get_status_code(), self._parser.should_keep_alive()

    def _end(self, kind: str) -> None:
        if not self._closed:
            self._closed = True
            self._owner.lost(self, kind)
