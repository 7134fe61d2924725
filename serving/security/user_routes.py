"""The routes about what is held of single users."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from recsys.errors import UnavailableError
from serving.errors import MALFORMED, UNAVAILABLE, documented, json_response
from serving.middleware import REQUEST_ID
from serving.security.scopes import USER_ID
from serving.services import Services, services_of

_PATIENCE: Final = 30.0  # seconds; every segment of the logs is searched
_LINES: Final = "application/x-ndjson"
router = APIRouter()
ServicesOf = Annotated[Services, Depends(services_of)]
UserId = Annotated[
    str,
    Path(
        pattern=r"^[^\x00]{1,256}$",
        description="1 to 256 characters, no NUL; not `/export` at its end.",
        examples=["u1"],
    ),
]


class Forgotten(BaseModel):
    """What was erased of a user."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    erased: dict[str, int] = Field(
        description="How much each part held: entries of the history, records of the logs.",
        examples=[{"history": 12, "event": 40, "exposure": 7}],
    )


@router.delete(
    f"/v1/users/{USER_ID}",
    response_model=Forgotten,
    responses=documented(MALFORMED, UNAVAILABLE),
    tags=["users"],
)
async def forget_user(user_id: UserId, request: Request, services: ServicesOf) -> Response:
    """Erase all that is held of a user; repeat it until it is answered with 200."""
    try:
        async with asyncio.timeout(_PATIENCE):
            erased = await services.users.forget(user_id)
    except TimeoutError:
        raise UnavailableError("the erasure takes longer and goes on; ask again to learn of its end") from None
    return json_response({"request_id": request.scope[REQUEST_ID], "erased": erased})


@router.get(
    f"/v1/users/{USER_ID}/export",
    response_class=StreamingResponse,
    responses={
        **documented(MALFORMED, UNAVAILABLE),
        200: {
            "content": {_LINES: {"schema": {"type": "string"}}},
            "description": "One JSON document per line; the last one has the kind `end` and the counts.",
        },
    },
    tags=["users"],
)
async def export_user(user_id: UserId, services: ServicesOf) -> Response:
    """Hand over all that is held of a user, as JSON lines."""
    pieces = services.users.export(user_id)
    first = await asyncio.to_thread(next, pieces)  # so that an outage is an error and no broken answer
    return StreamingResponse(chain((first,), pieces), media_type=_LINES)
