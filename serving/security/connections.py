"""Connections with limits that uvicorn does not have: of the head's size, of time, of number.

What a client sends is counted as it comes, and every wait has an end: for the first byte, for the head, for the body,
for the client to read its answer. One timer per connection looks at them now and then; a request only writes down
times.
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from serving.draining import DrainingProtocol
from serving.errors import RETRY_AFTER_SECONDS, UNAVAILABLE, Problem
from serving.middleware import MAX_BODY_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from serving.metrics import Metrics
    from serving.settings import Settings

MAX_HEAD_BYTES: Final = 32 << 10
MAX_HEADERS: Final = 100
# One byte per chunk costs six on the wire; what is beyond that is no body, but extensions and trailers without end.
_MAX_WIRE_BYTES: Final = 8 * MAX_BODY_BYTES
HEAD_TOO_LARGE: Final = Problem(431, "head_too_large", False, "The request's line and headers are over 32 KiB, or 100.")
TOO_SLOW: Final = Problem(408, "too_slow", True, "The request did not come in time; the connection is closed.")
_RESERVED_FILES: Final = 256  # logs, stores, engines, memory-mapped bundles
_AROUND_HEADER: Final = 4  # bytes: colon, space, end of line
_SOON: Final = 0.001  # seconds
_log = structlog.stdlib.get_logger(__name__)


class _State(Enum):
    """Of what a connection's parser has read; the value is the reason where the wait for it is over."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"


@dataclass(eq=False)
class ConnectionLimits:
    """Limits of one server's connections, and which of these may be closed for others.

    Attributes:
        head: seconds for a new connection's first byte, and for a head from its first byte on.
        body: seconds for a body, and for a client to read an answer.
        number: of connections at once.
        ended: told why a connection was ended: `idle` (no request came), `head`, `body`, `size`, `unread`, `evicted` or
            `refused`.
        idle: connections on which no request has come, or not all of its head; the one that waits longest first.
    """

    head: float
    body: float
    number: int
    ended: Callable[[str], None]
    idle: dict[GuardedProtocol, None] = field(default_factory=dict)

    @property
    def period(self) -> float:
        """Seconds after which a connection is looked at: the shorter wait, so that none is over long before."""
        return min(self.head, self.body)


class GuardedProtocol(DrainingProtocol):
    """One connection; made by the class that `guarded_protocol` returns."""

    limits: ConnectionLimits

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._state = _State.IDLE  # of the parser
        self._due = self._unread_due = math.inf  # on the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._wire_bytes = 0  # of the head, or of the body
        self._messages = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, maybe in the place of an idle one, or refuse it."""
        super().connection_made(transport)
        limits = self.limits
        if len(self.connections) > limits.number and not self._evict():
            self._end("refused", UNAVAILABLE)
            return
        limits.idle[self] = None
        self._enter(_State.IDLE, limits.head)
        self._timer = self.loop.call_later(limits.period, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self.limits.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what comes, and count it."""
        before = self._messages, self._state
        super().data_received(data)
        if before != (self._messages, self._state):
            return
        self._wire_bytes += len(data)  # all of it belongs to one head, or to one body
        if self._state is _State.HEAD and self._wire_bytes > MAX_HEAD_BYTES:
            self._end("size", HEAD_TOO_LARGE)
        elif self._wire_bytes > _MAX_WIRE_BYTES:
            self._end("size", None)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._messages += 1
        self._enter(_State.HEAD, self.limits.head)

    def on_headers_complete(self) -> None:
        """The head is there: the application may begin, unless it is too large."""
        size = len(self.url) + sum(len(name) + len(value) + _AROUND_HEADER for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._end("size", HEAD_TOO_LARGE)
        if self.transport.is_closing():
            raise _AnsweredError  # it stops the parser: nothing of this request is acted on
        self.limits.idle.pop(self, None)
        self._enter(_State.BODY, self.limits.body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there; how long the answer takes is the application's matter."""
        super().on_message_complete()
        if self.cycle.response_complete:  # it was refused before its body was there
            self._rest()
        else:
            self._enter(_State.ANSWER, math.inf)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to read the last answer."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_unless_read()
        elif self._state is _State.ANSWER and self.timeout_keep_alive_task is not None:
            self._rest()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._unread_due = self.loop.time() + self.limits.body

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._unread_due = math.inf

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_unless_read()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless something was said already."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _enter(self, state: _State, seconds: float) -> None:
        self._state, self._due, self._wire_bytes = state, self.loop.time() + seconds, 0

    def _rest(self) -> None:
        """Between two requests. Uvicorn's own timer ends with any byte, also with one that begins no request."""
        self._enter(_State.IDLE, self.timeout_keep_alive)
        self.limits.idle[self] = None

    def _look(self) -> None:
        """End the connection if it is due, else look again, no later than the shortest wait could be over."""
        now, limits = self.loop.time(), self.limits
        if now >= self._unread_due:
            limits.ended("unread")
            self.transport.abort()
            return
        if now >= self._due and (self.flow.read_paused or self._unread()):
            self._due = now + limits.period  # it is we who did not read
        if now >= self._due:
            self._end(self._state.value, TOO_SLOW if self._state in {_State.HEAD, _State.BODY} else None)
            return
        due = min(self._due, self._unread_due)
        self._timer = self.loop.call_later(min(limits.period, max(due - now, _SOON)), self._look)

    def _evict(self) -> bool:
        """Close the connection that is idle longest; says whether there was one."""
        oldest = next(iter(self.limits.idle), None)
        if oldest is not None:
            oldest._end("evicted", None)  # noqa: SLF001
        return oldest is not None

    def _end(self, why: str, problem: Problem | None) -> None:
        """Hang up, with an answer where the client waits for one and none has begun."""
        self.limits.ended(why)
        self.limits.idle.pop(self, None)
        cycle = self.cycle
        if self._state is _State.BODY:
            unanswered = not cycle.response_started
        else:
            unanswered = cycle is None or cycle.response_complete
        if problem is not None and unanswered:
            self.transport.write(_answer(problem))
        self.transport.close()
        self._abort_unless_read()

    def _abort_unless_read(self) -> None:
        """Closing waits until the client has read everything, which may be never."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.limits.body, self.transport.abort)


class _AnsweredError(Exception):
    """Of a request whose connection ends."""


def guarded_protocol(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """The protocol of one server's connections, for uvicorn's `http`."""
    return type("Protocol", (GuardedProtocol,), {"limits": limits})


def connection_limits(settings: Settings, metrics: Metrics) -> ConnectionLimits:
    """The limits that the settings name; the process may open as many files as the system lets it from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connection_limit + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    number = settings.connection_limit
    if soft != resource.RLIM_INFINITY and soft < wanted:
        number = max(1, soft - _RESERVED_FILES)
        _log.warning("fewer_connections", limit=number, wanted=settings.connection_limit, open_files=soft)
    return ConnectionLimits(
        head=settings.head_timeout.total_seconds(),
        body=settings.body_timeout.total_seconds(),
        number=number,
        ended=lambda why: metrics.connections.labels(why).inc(),
    )


def _answer(problem: Problem) -> bytes:
    body = orjson.dumps({"code": problem.code, "message": problem.description, "retryable": problem.retryable})
    again = f"retry-after: {RETRY_AFTER_SECONDS}\r\n" if problem.retryable else ""
    head = (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{again}connection: close\r\n\r\n"
    )
    return head.encode() + body
