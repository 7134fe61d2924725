"""One envelope for every error: {code, message, retryable} and the field where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route

from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.routing import BaseRoute

RETRY_AFTER_SECONDS: Final = 1
_MAX_TEXT: Final = 300


class ErrorBody(BaseModel):
    """What every answer with a status of 400 and above carries."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(description="A stable word for programs.", examples=["malformed"])
    message: str = Field(description="What happened, for people.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    field: str | None = Field(default=None, description="The offending field, as a dotted path.", examples=["body.n"])


class Problem(NamedTuple):
    """A documented kind of error."""

    status: int
    code: str
    retryable: bool
    description: str


MALFORMED: Final = Problem(422, "malformed", False, "The request is no JSON, or a field does not fit its form.")
TOO_LARGE: Final = Problem(413, "too_large", False, "The body is over 1 MiB.")
NOT_FOUND: Final = Problem(404, "not_found", False, "No such path.")
UNKNOWN_ITEM: Final = Problem(404, "unknown_item", False, "The catalog does not have this item.")
ITEM_EXISTS: Final = Problem(409, "item_exists", False, "The catalog has this item, and only a new one was wanted.")
NO_ITEM_ENCODER: Final = Problem(
    409, "no_item_encoder", False, "New items cannot be encoded with this bundle (docs/catalogue.md)."
)
NOT_IN_BUNDLE: Final = Problem(
    501, "not_in_bundle", False, "The bundle has no index, or no text encoder, or the settings leave them out."
)
FORBIDDEN: Final = Problem(
    403,
    "forbidden",
    False,
    "The key lacks the scope of this route, or only this machine may ask a server without keys.",
)
METHOD: Final = Problem(405, "method_not_allowed", False, "The path does not know this method.")
INTERNAL: Final = Problem(500, "internal", False, "A fault of the server; its log has the details.")
UNAVAILABLE: Final = Problem(
    503, "unavailable", True, "Not ready, overloaded, stopping, or the disk refuses; try again after Retry-After."
)
NO_ANSWER: Final = 499  # in the metrics only, as in nginx: the client left, or the server stopped, before an answer
_BY_STATUS: Final = {
    problem.status: problem for problem in (MALFORMED, TOO_LARGE, FORBIDDEN, NOT_FOUND, METHOD, UNAVAILABLE)
}


def documented(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these errors and the ones that any route may answer."""
    said: dict[int, list[str]] = {}
    for problem in (*problems, INTERNAL):
        said.setdefault(problem.status, []).append(problem.description)
    return {status: {"model": ErrorBody, "description": " ".join(words)} for status, words in said.items()}


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer made by orjson."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")


def envelope(
    problem: Problem, message: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as an answer."""
    body: dict[str, Any] = {"code": problem.code, "message": message, "retryable": problem.retryable}
    if field is not None:
        body["field"] = field
    extra = dict(headers or {})
    if problem.retryable:
        extra.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return json_response(body, problem.status, extra)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Put every error that a route may raise into the envelope.

    Args:
        app: whose.
        routes: of the API.
    """

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = error.errors()[0]
        path = _printable(".".join(str(part) for part in first["loc"]))
        return envelope(MALFORMED, _printable(f"{path}: {first['msg']}"), field=path)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        return envelope(UNAVAILABLE, error.message)  # field and remedy are the operator's: they name directories

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=NO_ANSWER)  # nobody reads it; the metrics do

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        # The framework says 400 where a body cannot be read as JSON for another reason than its syntax.
        problem = _BY_STATUS.get(MALFORMED.status if error.status_code == 400 else error.status_code)
        if problem is None:
            problem = Problem(error.status_code, "http_error", False, "")
        headers = {"Allow": _methods([*app.routes, *routes], request)} if problem is METHOD else error.headers
        return envelope(problem, problem.description or str(error.detail), headers=headers)


def _methods(routes: Sequence[BaseRoute], request: Request) -> str:
    """All methods of a path; the framework names those of its first route only."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL
        for method in route.methods or ()
    }
    return ", ".join(sorted(found))


def _printable(text: str) -> str:
    """Names of fields come from the request: cut, and without lone surrogates, which JSON cannot carry."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode()
