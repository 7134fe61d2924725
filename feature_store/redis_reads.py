"""Reads from one Redis server over connections of our own, for coroutines: MGET and nothing else.

redis-py's coroutines cost a read several times the processor time of the read itself. Here a read is one write, one
wait and one parsed reply. What redis-py does besides, following Sentinels and Clusters or writing, is left to it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, ResponseError

from feature_store.opening import CLIENT_NAME, MAX_CONNECTIONS

if TYPE_CHECKING:
    from feature_store.opening import RedisAddress, Timeouts

# As redis-py has it: seconds until an idle connection is probed, between two probes, and how many; where there are any.
_PROBES: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_ALIVE: Final = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _PROBES.items() if hasattr(socket, name)),
]
_NOTHING: Final = object()  # of a reply that is not there as a whole


class RedisReads:
    """Values by key from one server; connections are opened as they are needed and kept.

    A connection serves one read at a time. One whose read is given up is closed: a late answer is never taken for
    another read's. Nothing is tried twice.

    Args:
        address: of a single server.
        timeouts: for a connection, and for an answer.
    """

    def __init__(self, address: RedisAddress, timeouts: Timeouts) -> None:
        ((self._host, self._port),) = address.hosts
        self._connect, self._answer = timeouts.connect.total_seconds(), timeouts.answer.total_seconds()
        login = [address.user, address.password] if address.user else [address.password]
        self._greeting: list[tuple[str | int, ...]] = [
            *([("AUTH", *login)] if any(login) else []),
            ("CLIENT", "SETNAME", CLIENT_NAME),
            *([("SELECT", address.database)] if address.database else []),
        ]
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def get(self, keys: list[bytes], deadline: float | None) -> list[bytes | None]:
        """The values of keys; a key of another type counts as absent.

        Args:
            keys: at least one.
            deadline: seconds, connecting included.

        Raises:
            TimeoutError: the deadline passed, or a timeout.
            OSError: there is no connection.
            redis.RedisError: the server answers with an error, or there are too many connections.
        """
        connection = self._kept()
        if connection is not None:
            seconds = self._answer if deadline is None else min(deadline, self._answer)
            return await self._asked(connection, keys, seconds)
        async with asyncio.timeout(deadline):
            return await self._asked(await self._opened(), keys, self._answer)

    async def close(self) -> None:
        """Close all connections."""
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()

    async def _asked(self, connection: _Connection, keys: list[bytes], seconds: float) -> list[bytes | None]:
        self._busy.add(connection)
        try:
            values: list[bytes | None] = await connection.ask(("MGET", *keys), seconds)
        finally:
            self._busy.discard(connection)
            if not connection.lost:
                self._idle.append(connection)
        return values

    def _kept(self) -> _Connection | None:
        """An idle connection; what the server has closed meanwhile is dropped."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                return connection
        return None

    async def _opened(self) -> _Connection:
        if len(self._busy) >= MAX_CONNECTIONS:
            raise MaxConnectionsError("Too many connections")
        connection = _Connection()
        self._busy.add(connection)
        try:
            async with asyncio.timeout(self._connect):
                await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
            for command in self._greeting:
                await connection.ask(command, self._answer)
        except BaseException:
            connection.abort()
            raise
        finally:
            self._busy.discard(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, which is asked one thing at a time.

    Attributes:
        lost: it is closed, or about to be.
    """

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Any] | None = None
        self.lost = False

    async def ask(self, command: tuple[str | int | bytes, ...], seconds: float) -> Any:
        """The reply to a command; the connection is closed where it does not come.

        Raises:
            TimeoutError: not within so many seconds.
            OSError: the connection is lost.
            redis.RedisError: it is an error.
        """
        if self.lost or self._transport is None:
            raise RedisConnectionError("the server has closed the connection")
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        timer = loop.call_later(seconds, _expire, waiting)
        try:
            self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub: one part
            reply = await waiting
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._waiting = None
        if isinstance(reply, hiredis.ReplyError):
            raise ResponseError(str(reply))
        return reply

    def abort(self) -> None:
        """Close it at once."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._transport = transport
        for level, option, value in _ALIVE:
            transport.get_extra_info("socket").setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`; what nobody asked for ends the connection."""
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
        except hiredis.HiredisError as error:
            self._fail(RedisConnectionError(f"the server does not speak Redis: {error}"))
            return
        if reply is _NOTHING:
            return
        if self._waiting is None or self._waiting.done() or self._reader.has_data():
            self._fail(RedisConnectionError("the server says what it was not asked"))
            return
        self._waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._fail(RedisConnectionError(f"the connection is lost: {exc}"))

    def _fail(self, error: Exception) -> None:
        self.abort()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


def _expire(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError("the server does not answer in time"))
