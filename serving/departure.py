"""Whether the client of a request is still there.

ASGI has a message for it, for which a task of its own must wait beside every request. Our connections say it to the
request that they serve. Under another server the task waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

DEPARTURE: Final = "windfire.departure"  # in the ASGI scope


class WatchesClient(Protocol):
    """Tells one request when its client goes away."""

    def watch(self, call: Callable[[], None]) -> bool:
        """Have something called when it goes; False: it has gone already, and nothing will be called."""

    def unwatch(self) -> None:
        """Have it called no more."""


class Departure:
    """Of the client of one connection, which serves one request after the other. Single-threaded."""

    __slots__ = ("_call", "_gone")

    def __init__(self) -> None:
        self._call: Callable[[], None] | None = None
        self._gone = False

    def watch(self, call: Callable[[], None]) -> bool:
        """See `WatchesClient`."""
        self._call = None if self._gone else call
        return not self._gone

    def unwatch(self) -> None:
        """See `WatchesClient`."""
        self._call = None

    def tell(self) -> None:
        """The connection is lost."""
        self._gone, call, self._call = True, self._call, None
        if call is not None:
            call()


class _Asked:
    """Waits for ASGI's message; for a request whose body is read, so that it is the only one left."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._waiting: asyncio.Future[Any] | None = None

    def watch(self, call: Callable[[], None]) -> bool:
        self._waiting = asyncio.ensure_future(self._request.receive())
        self._waiting.add_done_callback(lambda waiting: None if waiting.cancelled() else call())
        return True

    def unwatch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()


def departure_of(request: Request) -> WatchesClient:
    """Who tells of a request's client."""
    departure: Departure | None = request.scope.get(DEPARTURE)
    return _Asked(request) if departure is None else departure
