"""One route without the framework: the requests of which most are, and which need nothing that it does.

A request goes straight to the endpoint where its headers and its body are of the plainest form and the body fits its
model. Everything else takes the usual way, as if nobody had looked at it: whatever is refused is refused by the
framework, in its words.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import TypeAdapter
from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi.routing import APIRoute
    from pydantic import BaseModel
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_JSON: Final = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_TYPE, _DEADLINE = b"content-type", b"x-deadline-ms"
_DIGITS: Final = 9  # of a deadline; a longer one is none of the plainest form
_FRAMEWORK: Final = "fastapi.telemetry"  # in the scope of a request that the framework wants to see
_LARGEST: Final = 64 << 10  # bytes of a body; what does not fit is read a second time by the framework


class _Head(NamedTuple):
    """What the endpoint is told of the headers."""

    deadline_ms: int | None


_WITHOUT: Final = _Head(None)


class Direct:
    """Serves one POST route of a JSON body and the header X-Deadline-Ms; the other requests pass.

    Args:
        app: the usual way.
        route: whose endpoint takes `body`, `request`, `services` and `deadline_ms`.
        model: of its body.
        handlers: of exceptions, by type; those of the application.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        route: APIRoute,
        model: type[BaseModel],
        handlers: Mapping[Any, Callable[[Request, Any], Any]],
    ) -> None:
        self._app = app
        self._route, self._path = route, route.path
        self._validate = TypeAdapter(model).validate_python
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        head = _plain_head(scope) if scope["type"] == "http" and scope["path"] == self._path else None
        if head is None:
            await self._app(scope, receive, send)
            return
        came = await receive()
        body = self._fitting(came)
        if body is not None:
            await self._answer(body, head, scope, receive, send)
            return
        message: Message | None = came

        async def again() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            first, message = message, None
            return first

        await self._app(scope, again, send)

    def _fitting(self, message: Message) -> BaseModel | None:
        """The body, if it is there as a whole and fits; looked at just as the framework does."""
        data = message.get("body", b"")
        if message.get("more_body", False) or len(data) > _LARGEST:
            return None
        try:
            body: BaseModel = self._validate(json.loads(data), from_attributes=True)
        except (ValueError, RecursionError):  # a ValidationError is a ValueError
            return None
        return body

    async def _answer(self, body: BaseModel, head: _Head, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response: Response = await self._route.endpoint(
                body=body, request=request, services=scope["state"]["services"], deadline_ms=head.deadline_ms
            )
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise
            response = await handler(request, error)  # all of ours are coroutine functions
        await response(scope, receive, send)


def _plain_head(scope: Scope) -> _Head | None:
    """What a head of the plainest form says; None for any other."""
    if scope["method"] != "POST" or scope.get("root_path") or _FRAMEWORK in scope:
        return None
    kind = deadline = None
    for name, value in scope["headers"]:
        if name == _TYPE:
            if kind is not None or value not in _JSON:
                return None
            kind = value
        elif name == _DEADLINE:
            if deadline is not None or not value.isdigit() or value.startswith(b"0") or len(value) > _DIGITS:
                return None
            deadline = int(value)
    return None if kind is None else _WITHOUT if deadline is None else _Head(deadline)
