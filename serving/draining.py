"""uvicorn, stopping so that a client which keeps its connections and never tries again loses no request.

uvicorn closes idle connections at once when it stops: a request that is on its way over one of them is lost, because
nobody may send it again unasked. Here an idle connection is kept for as long as uvicorn keeps one at all. Whoever sends
something over it is answered, told that the connection ends (`Connection: close`), and goes elsewhere.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.departure import DEPARTURE, Departure

if TYPE_CHECKING:
    import socket


class _State(ServerState):
    """What the connections of one server share.

    Attributes:
        ending: every answer ends its connection.
        changed: set where the last connection ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ending = False
        self.changed = asyncio.Event()


class DrainingProtocol(HttpToolsProtocol):
    """One connection. It knows whether a request is under way, from the request's first byte on."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._begun = False
        self._departure = Departure()

    @property
    def idle(self) -> bool:
        """Whether no request is under way, neither here nor in the kernel's buffer."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return not self._begun and not answering and not self._unread()

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        self._begun = True
        super().on_message_begin()
        self.scope[DEPARTURE] = self._departure  # type: ignore[typeddict-unknown-key]  # ASGI lets servers add keys

    def on_headers_complete(self) -> None:
        """A request is handed to the application; while the server ends, it is this connection's last one."""
        super().on_headers_complete()
        self._begun = False
        self.end_with_the_answer()

    def end_with_the_answer(self) -> None:
        """While the server ends, let the answer that is being made close the connection, and say so."""
        ending = isinstance(self.server_state, _State) and self.server_state.ending
        if ending and self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is there. A long one has stopped the reading, without which nobody hears the client hang up."""
        super().on_message_complete()
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        self._departure.tell()
        if not self.connections and isinstance(self.server_state, _State):
            self.server_state.changed.set()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for too long, but not over a request that nobody has read yet."""
        if self.idle:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close when idle, else after the answer."""
        if self.idle:
            super().shutdown()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def _unread(self) -> bool:
        """Whether the kernel holds bytes that this process has not read; a closed socket holds none."""
        handle: socket.socket | None = self.transport.get_extra_info("socket")
        if handle is None or self.transport.is_closing() or handle.fileno() < 0:
            return False
        (waiting,) = struct.unpack("i", fcntl.ioctl(handle.fileno(), termios.FIONREAD, b"\0" * 4))
        return bool(waiting)


class DrainingServer(uvicorn.Server):
    """Stops in three steps: a pause for the load balancer, no new connections, then what is under way.

    Args:
        config: with `DrainingProtocol`, and a time limit for requests in flight.
        drain_delay: seconds of the pause, in which new connections are still taken.
    """

    def __init__(self, config: uvicorn.Config, drain_delay: float) -> None:
        super().__init__(config)
        self.server_state: _State = _State()
        self.delay = drain_delay
        self.unready = True  # whether to say so in /readyz; one of several workers leaves the service ready
        self.gentle = True  # whether idle connections are given time; see `hurry`

    def hurry(self) -> None:
        """Wait for requests that are under way only."""
        self.gentle = False
        self.server_state.changed.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop as uvicorn does."""
        state = self.lifespan.state
        state["services"].draining = self.unready
        self.server_state.ending = True
        self._end_with_their_answers()
        await asyncio.sleep(self.delay)
        for server in self.servers:
            server.close()
        limit = self.config.timeout_graceful_shutdown
        if self.gentle and limit:
            spent = await self._idle_ones_leave(min(self.config.timeout_keep_alive, limit))
            self.config.timeout_graceful_shutdown = max(1, math.ceil(limit - spent))
        await super().shutdown(sockets)

    def _end_with_their_answers(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, DrainingProtocol):
                connection.end_with_the_answer()

    async def _idle_ones_leave(self, most: float) -> float:
        """Wait until every connection has ended, for no longer than an idle one may last anyway; returns seconds."""
        state, began = self.server_state, time.monotonic()
        await asyncio.sleep(0)  # what was accepted a moment ago is known only now
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                while state.connections and self.gentle:
                    state.changed.clear()
                    await state.changed.wait()
        return time.monotonic() - began
