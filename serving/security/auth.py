"""Who may ask what: pure ASGI middleware in front of everything that reads a body."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

import structlog

from serving.errors import FORBIDDEN, METHOD, NOT_FOUND, Problem, envelope
from serving.security.keys import Refusal, Scope
from serving.security.scopes import ScopeTable

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Send
    from starlette.types import Scope as Connection

    from serving.metrics import Metrics
    from serving.security.keys import Holder, KeyRing

UNAUTHORIZED: Final = Problem(401, "unauthorized", False, "No key, or one that is unknown or has expired.")
RATE_LIMITED: Final = Problem(
    429, "rate_limited", True, "The key asks more often than it may; try again after Retry-After."
)
HOLDER: Final = "windfire.key"
"""Where in the ASGI scope the `Holder` of the request's key stands."""
REFRESH_SECONDS: Final = 1.0
"""How long a revoked key may be taken on."""

_SAID: Final = {
    Refusal.ABSENT: "give a key in the header `Authorization: Bearer wf_...`",
    Refusal.UNKNOWN: "the key is not known",
    Refusal.EXPIRED: "the key has expired",
}
_log = structlog.stdlib.get_logger(__name__)


async def watch(ring: KeyRing) -> None:
    """Read the key file again whenever it changes, until cancelled."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        before = ring.trouble
        if await asyncio.to_thread(ring.refresh):
            _log.info("keys_loaded", keys=len(ring))
        elif ring.trouble is not None and ring.trouble != before:
            _log.error("keys_refused", error=ring.trouble)


class Authenticate:
    """Asks for a key with the route's scope; nothing of a refused request is read or acted on.

    Args:
        app: what stands behind.
        ring: of keys; None lets everybody through.
        metrics: counts refusals.
        table: the scopes of the routes.
    """

    def __init__(
        self, app: ASGIApp, *, ring: KeyRing | None, metrics: Metrics, table: ScopeTable | None = None
    ) -> None:
        self._app = app
        self._ring = ring
        self._metrics = metrics
        self._table = table or ScopeTable()

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if self._ring is None or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there are none, and none without a scope
        elif refused := self._refusal(scope, self._ring):
            problem, message, headers = refused
            self._metrics.refusals.labels(problem.code).inc()
            await envelope(problem, message, headers=headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Connection, ring: KeyRing) -> tuple[Problem, str, dict[str, str]] | None:
        """Why a request goes no further; None where it does."""
        rules = self._table.rules(scope["path"])
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        holder = ring.holder(header)
        if not isinstance(holder, Refusal):
            scope[HOLDER] = holder
        wanted = rules.get(scope["method"], Scope.ADMIN)  # of what is not declared: a key, whichever
        if wanted is None:
            return None
        if isinstance(holder, Refusal):
            return UNAUTHORIZED, _SAID[holder], {"WWW-Authenticate": 'Bearer realm="windfire"'}
        if holder.bucket is not None and (wait := holder.bucket.take()):
            return RATE_LIMITED, RATE_LIMITED.description, {"Retry-After": str(math.ceil(wait))}
        if not rules:
            return NOT_FOUND, NOT_FOUND.description, {}
        if scope["method"] not in rules:
            return METHOD, METHOD.description, {"Allow": ", ".join(sorted(rules))}
        if wanted not in holder.scopes:
            return FORBIDDEN, f"the key lacks the scope {wanted.value}", {}
        return None


def may_see_details(scope: Connection, ring: KeyRing | None) -> bool:
    """Whether who asks may see what names files and directories: everybody on an open server, else an administrator."""
    holder: Holder | None = scope.get(HOLDER)
    return ring is None or (holder is not None and Scope.ADMIN in holder.scopes)
