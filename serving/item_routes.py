"""The routes that change items; the next request sees the change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import Response

from recsys.catalog.changes import Delete, Upsert, check_change
from recsys.errors import InputError, UnavailableError
from serving.errors import (
    ITEM_EXISTS,
    MALFORMED,
    NO_ITEM_ENCODER,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN_ITEM,
    documented,
    envelope,
    json_response,
)
from serving.item_changes import ItemChange, ItemChanged
from serving.item_schemas import ItemAnswer, ItemBody
from serving.middleware import REQUEST_ID
from serving.services import Services, services_of

if TYPE_CHECKING:
    from serving.errors import Problem

_PATIENCE: Final = 30.0  # seconds; a language model and a slow disk may take some of them
router = APIRouter()
ServicesOf = Annotated[Services, Depends(services_of)]
# A catalog takes 256 bytes. JSON schema counts characters, of which one has up to four.
ItemId = Annotated[
    str,
    Path(
        pattern=r"^([ -~]{1,256}|[^\x00]{1,64})$",
        description="1 to 256 printable ASCII characters, or up to 64 of any kind but NUL.",
        examples=["B0000530ED"],
    ),
]
OnlyNew = Annotated[
    str,
    Header(
        alias="If-None-Match",
        pattern=r"^\*?$",
        description="With `*` an item that is there is left alone, and the answer is 409.",
    ),
]
_PUT_ERRORS = {
    **documented(MALFORMED, TOO_LARGE, ITEM_EXISTS, NO_ITEM_ENCODER, UNAVAILABLE),
    201: {"model": ItemAnswer, "description": "The item was not there before."},
}


@router.put("/v1/items/{item_id}", response_model=ItemAnswer, responses=_PUT_ERRORS, tags=["items"])
async def put_item(
    item_id: ItemId, body: ItemBody, request: Request, services: ServicesOf, only_new: OnlyNew = ""
) -> Response:
    """Add an item, or replace its attributes; it may be recommended by the next request."""
    fields = body.model_dump()
    fields["category_path"] = tuple(fields["category_path"])
    change = ItemChange(change=Upsert(item_id=item_id, time=0, **fields), only_new=bool(only_new))
    return await _changed(change, request, services)


@router.delete(
    "/v1/items/{item_id}",
    response_model=ItemAnswer,
    responses=documented(MALFORMED, UNKNOWN_ITEM, UNAVAILABLE),
    tags=["items"],
)
async def delete_item(item_id: ItemId, request: Request, services: ServicesOf) -> Response:
    """Take an item out of the catalogue; no later request is answered with it."""
    return await _changed(ItemChange(change=Delete(item_id=item_id, time=0)), request, services)


async def _changed(change: ItemChange, request: Request, services: Services) -> Response:
    if services.keeper is None:
        raise UnavailableError("the engine takes no changes of items")
    try:
        check_change(change.change)
        async with asyncio.timeout(_PATIENCE):
            changed = await services.keeper.change(change)
    except TimeoutError:
        raise UnavailableError("the change was not confirmed in time; it may have been made all the same") from None
    except InputError as error:
        return envelope(MALFORMED, error.message, field=_place(error.field))
    return _answer(change.change.item_id, changed, request.scope[REQUEST_ID])


def _answer(item_id: str, changed: ItemChanged, request_id: str) -> Response:
    refusals: dict[str, tuple[Problem, str, str | None]] = {
        "exists": (ITEM_EXISTS, ITEM_EXISTS.description, "path.item_id"),
        "missing": (UNKNOWN_ITEM, UNKNOWN_ITEM.description, "path.item_id"),
        "no_encoder": (NO_ITEM_ENCODER, f"{NO_ITEM_ENCODER.description} {changed.reason}".strip(), None),
        "no_words": (MALFORMED, "title, category, brand and text of a new item hold no word", "body.text"),
    }
    if changed.outcome in refusals:
        problem, message, field = refusals[changed.outcome]
        return envelope(problem, message, field=field)
    body: dict[str, Any] = {
        "request_id": request_id,
        "item_id": item_id,
        "result": changed.outcome,
        "catalog_version": changed.catalog_version,
    }
    return json_response(body, 201 if changed.outcome == "created" else 200)


def _place(field: str | None) -> str:
    """Where in the request a field of a change stands."""
    return "path.item_id" if field == "item_id" else f"body.{field}"
