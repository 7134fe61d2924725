"""The door: who cannot be answered in time is told at once, before anything is done for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from serving.errors import UNAVAILABLE, envelope

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.ladder.door import Door
    from serving.metrics import Metrics

WAITED: Final = "windfire.waited"  # in the scope: seconds at the door
GUARDED: Final = frozenset({"/v1/recommend", "/v1/similar", "/v1/search"})  # answers with a deadline


class Admission:
    """Answers 503 with Retry-After where the door lets nobody in; ASGI middleware, the outermost one.

    Args:
        app: what is behind the door.
        door: says who may begin.
        metrics: counts who is refused.
    """

    def __init__(self, app: ASGIApp, door: Door, metrics: Metrics) -> None:
        self._app, self._door, self._metrics = app, door, metrics
        self._refusal = envelope(UNAVAILABLE, "the server has more requests than it can answer in time")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] in GUARDED:
            began = time.perf_counter()
            waited = await self._door.enter()
            if waited is None:
                self._metrics.observe(scope["path"], "", UNAVAILABLE.status, time.perf_counter() - began)
                await self._refusal(scope, receive, send)
                return
            scope[WAITED] = waited
        await self._app(scope, receive, send)
