"""A bounded pool of keep-alive connections. No request is sent twice, and every one ends in exactly one outcome."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from loadtest.connection import Connection, Ticket
from loadtest.errors import UnreachableError

if TYPE_CHECKING:
    from loadtest.target import Target

TIMEOUT: Final = "timeout"
NO_CONNECTION: Final = "no_connection"
CONNECT_REFUSED: Final = "connect_refused"
CONNECT_TIMEOUT: Final = "connect_timeout"
CONNECT_ERROR: Final = "connect_error"
SWEEP_SECONDS: Final = 0.02  # how late a request may be given up
_IDLE_SECONDS: Final = 3.0  # under the keep-alive of usual servers (uvicorn: 5), so that they do not hang up first


class Done(Protocol):
    """Is told the outcome of each request."""

    def __call__(self, ticket: Ticket, status: int, body: bytes, failure: str | None, /) -> None:
        """An answer (status and body), or the kind of the failure with status 0."""


class Pool:
    """Sends tickets in their order over at most `limit` connections.

    A ticket takes an idle connection, the one that was idle longest, so that all of a server's processes get their
    share; else it waits for the first that is free, and one more is opened. An attempt to open one that fails takes
    the ticket that has waited longest with it, so that failures show as what they are.

    Args:
        target: the server.
        limit: connections at most.
        deadline: seconds from the intended time that are told the server.
        timeout: seconds from the intended time after which a request is given up.
        done: is told every outcome.

    Attributes:
        longest_queue: tickets that waited for a connection at once, at most.
    """

    def __init__(self, target: Target, limit: int, *, deadline: float, timeout: float, done: Done) -> None:
        self.longest_queue = 0
        self._target = target
        self._limit = limit
        self._deadline = deadline
        self._timeout = timeout
        self._done = done
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._waiting: deque[Ticket] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._closing = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def under_way(self) -> int:
        """Tickets without an outcome."""
        return self._under_way

    async def warm(self, connections: int) -> None:
        """Open connections before the first request, and begin to watch over timeouts.

        Raises:
            UnreachableError: one could not be opened.
        """
        for _ in range(min(connections, self._limit)):
            try:
                self._add(await self._connect())
            except OSError as error:
                self.close()
                raise UnreachableError(
                    f"no connection: {error}", field="url", value=self._target.url, remedy="start the server first"
                ) from error
        self._sweep()

    def submit(self, ticket: Ticket) -> None:
        """Send it as soon as there is a connection for it."""
        self._under_way += 1
        if self._idle:
            self._send(self._idle.popleft(), ticket)
        else:
            self._waiting.append(ticket)
            self.longest_queue = max(self.longest_queue, len(self._waiting))
            self._open_if_wanted()

    def close(self) -> None:
        """End all connections; what is under way ends without an outcome."""
        self._closing = True
        self._waiting.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._opening:
            task.cancel()
        for connection in list(self._all):
            connection.close()

    def answered(self, connection: Connection, status: int, body: bytes, *, keep: bool) -> None:
        """Of Owner."""
        ticket, connection.ticket = connection.ticket, None
        if not keep:
            connection.close()
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._rest(connection)
        if ticket is not None:  # it is: a connection without one calls that malformed
            self._finish(ticket, status, body, None)

    def lost(self, connection: Connection, kind: str) -> None:
        """Of Owner."""
        self._all.discard(connection)
        ticket, connection.ticket = connection.ticket, None
        if ticket is None:
            if connection in self._idle:
                self._idle.remove(connection)
        elif not self._closing:
            self._finish(ticket, 0, b"", kind)
        self._open_if_wanted()

    def _finish(self, ticket: Ticket, status: int, body: bytes, failure: str | None) -> None:
        self._under_way -= 1
        self._done(ticket, status, body, failure)

    def _open_if_wanted(self) -> None:
        wanted = not self._closing and len(self._opening) < len(self._waiting)
        if wanted and len(self._all) + len(self._opening) < self._limit:
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _send(self, connection: Connection, ticket: Ticket) -> None:
        ticket.sent = time.monotonic()
        left = self._deadline - (ticket.sent - ticket.intended)
        connection.send(ticket, ticket.request.render(max(1, round(left * 1000))))

    async def _connect(self) -> Connection:
        async with asyncio.timeout(self._timeout):
            _, connection = await self._loop.create_connection(
                lambda: Connection(self), self._target.host, self._target.port
            )
        if connection.closed:
            raise ConnectionResetError("closed as soon as it was open")
        return connection

    async def _open(self) -> None:
        try:
            connection = await self._connect()
        except ConnectionRefusedError:
            self._fail_first(CONNECT_REFUSED)
        except TimeoutError:
            self._fail_first(CONNECT_TIMEOUT)
        except OSError:
            self._fail_first(CONNECT_ERROR)
        else:
            self._add(connection)

    def _add(self, connection: Connection) -> None:
        self._all.add(connection)
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._rest(connection)

    def _rest(self, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def _fail_first(self, kind: str) -> None:
        if self._waiting:
            self._finish(self._waiting.popleft(), 0, b"", kind)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.result()  # a fault of this program must not stay unseen
        self._open_if_wanted()

    def _sweep(self) -> None:
        """Give up what waited too long; end connections that were idle for so long that the server may hang up."""
        now = time.monotonic()
        for connection in list(self._all):
            if connection.ticket is not None and now - connection.ticket.intended > self._timeout:
                connection.close(kind=TIMEOUT)
        while self._waiting and now - self._waiting[0].intended > self._timeout:
            self._finish(self._waiting.popleft(), 0, b"", NO_CONNECTION)
        while self._idle and now - self._idle[0].idle_since > _IDLE_SECONDS:
            self._idle[0].close()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
