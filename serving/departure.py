"""Whether the client of a request is still there.

ASGI has a message for it, for which a task of its own must wait beside every request. The connection knows it anyhow:
ours says it to whoever watches. Under another server the task waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

DEPARTURE: Final = "windfire.departure"  # in the ASGI scope


class WatchesClient(Protocol):
    """Tells when a client goes away."""

    def watch(self, call: Callable[[], None]) -> None:
        """Have something called when it goes; at once where it has gone."""

    def unwatch(self, call: Callable[[], None]) -> None:
        """Have it called no more."""


class Departure:
    """Of the client of one connection. Single-threaded."""

    __slots__ = ("_calls", "_gone")

    def __init__(self) -> None:
        self._calls: dict[Callable[[], None], None] = {}  # more than one where requests are pipelined
        self._gone = False

    def watch(self, call: Callable[[], None]) -> None:
        """See `WatchesClient`."""
        if self._gone:
            call()
        else:
            self._calls[call] = None

    def unwatch(self, call: Callable[[], None]) -> None:
        """See `WatchesClient`."""
        self._calls.pop(call, None)

    def tell(self) -> None:
        """The connection is lost."""
        self._gone, calls = True, self._calls
        self._calls = {}
        for call in calls:
            call()


class _Asked:
    """Waits for ASGI's message; for a request whose body is read, so that it is the only one left."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._waiting: asyncio.Future[Any] | None = None

    def watch(self, call: Callable[[], None]) -> None:
        self._waiting = asyncio.ensure_future(self._request.receive())
        self._waiting.add_done_callback(lambda waiting: None if waiting.cancelled() else call())

    def unwatch(self, _: Callable[[], None]) -> None:
        if self._waiting is not None:
            self._waiting.cancel()


def departure_of(request: Request) -> WatchesClient:
    """Who tells of a request's client."""
    departure: Departure | None = request.scope.get(DEPARTURE)
    return _Asked(request) if departure is None else departure
