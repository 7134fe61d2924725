"""Pure ASGI middleware: the body's limit, and what is observed around every request.

Starlette's BaseHTTPMiddleware is avoided on purpose: it hides the client's disconnect from the route.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

import structlog

from serving.errors import INTERNAL, NO_ANSWER, TOO_LARGE, envelope

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.metrics import Metrics
    from serving.watching import RequestWatch

MAX_BODY_BYTES: Final = 1 << 20
REQUEST_ID: Final = "windfire.request_id"
TIER: Final = "windfire.tier"
_HEADER: Final = b"x-request-id"

_log = structlog.stdlib.get_logger(__name__)


class BodyLimit:
    """Answers 413 to a body over the limit, whether its length was announced or it comes in chunks.

    The body is read here, before the application sees the request: nothing of a refused request is acted on.
    """

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        parts: list[bytes] = []
        size = int(announced) if announced.isdigit() else 0
        more = size <= self._limit
        received = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            more = message.get("more_body", False) and received <= self._limit
        if max(size, received) > self._limit:
            # Closing spares reading the rest of a body that nobody wants.
            response = envelope(TOO_LARGE, f"the body is over {self._limit} bytes", headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        body: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        await self._app(scope, replay, send)


class Observe:
    """Names, times and counts every request; a fault of the application becomes a 500 without internals."""

    def __init__(self, app: ASGIApp, metrics: Metrics, watch: RequestWatch) -> None:
        self._app = app
        self._metrics = metrics
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = uuid.uuid4().hex
        started = time.perf_counter()
        watched = self._watch.begin(scope, started)
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                others = [header for header in message["headers"] if header[0] != _HEADER]
                message["headers"] = [*others, (_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            # The template: a path may name a user.
            stages = watched.times.milliseconds()
            _log.exception("request_failed", request_id=request_id, route=_route(scope), stages=stages)
            if status:
                raise  # half an answer is out: only the broken connection can still say so
            await envelope(INTERNAL, INTERNAL.description)(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - started
            route, tier = _route(scope), scope.get(TIER, "")
            self._metrics.observe(route, tier, status or NO_ANSWER, seconds)
            self._watch.end(watched, request_id, route, tier, status or NO_ANSWER, seconds)


def _route(scope: Scope) -> str:
    """The template of a request's route."""
    template: str = getattr(scope.get("route"), "path", "unmatched")
    return template
