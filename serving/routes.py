"""The routes of the HTTP API."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import structlog
from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from feature_store.reading import Status
from feature_store.standard import recent_items
from recsys.catalog import CatalogFilter
from recsys.errors import UnavailableError
from recsys.event_log import Exposure
from serving.departure import departure_of
from serving.engine import EngineRequest, Refusal, Seek
from serving.errors import (
    MALFORMED,
    NOT_IN_BUNDLE,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN_ITEM,
    documented,
    envelope,
    json_response,
)
from serving.ladder.admission import WAITED
from serving.ladder.deadline import Deadline, DeadlineMs
from serving.layout import Layout
from serving.middleware import REQUEST_ID, TIER
from serving.paging import Page
from serving.schemas import (
    EventsAnswer,
    EventsRequest,
    Filters,
    FoundAnswer,
    Health,
    HistorySource,
    Readiness,
    RecommendAnswer,
    RecommendRequest,
    SearchRequest,
    SimilarRequest,
)
from serving.security.auth import may_see_details
from serving.services import Services, services_of
from serving.timing import EXPOSURE, FEATURES, timed, timed_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from serving.engine import EngineAnswer

router = APIRouter()
_log = structlog.stdlib.get_logger(__name__)
_BODY_ERRORS = documented(MALFORMED, TOO_LARGE, UNAVAILABLE)
_SEARCH_ERRORS = documented(MALFORMED, TOO_LARGE, NOT_IN_BUNDLE, UNAVAILABLE)
_SIMILAR_ERRORS = documented(MALFORMED, TOO_LARGE, UNKNOWN_ITEM, NOT_IN_BUNDLE, UNAVAILABLE)
_AS_RANKED: Final = Layout()
ServicesOf = Annotated[Services, Depends(services_of)]


@router.post("/v1/recommend", response_model=RecommendAnswer, responses=_BODY_ERRORS, tags=["recommend"])
async def recommend(
    body: RecommendRequest, request: Request, services: ServicesOf, deadline_ms: DeadlineMs = None
) -> Response:
    """Recommend items to a known user, behind an inline history, or to anybody."""
    now, deadline = (
        time.time_ns() // 1_000,
        Deadline.within(deadline_ms, services.settings, waited=_waited(request), turn=services.ladder.turn),
    )
    history = await _history(body, services, deadline)
    page = body.cursor or Page(request.scope[REQUEST_ID])
    wanted = _engine_request(body, history, page, now, deadline.engine)
    ladder = services.ladder
    answering = ladder.recommend(wanted, deadline, user_id=body.user_id, history_missing=history.missing)
    answer = await _unless_gone(request, answering)
    request.scope[TIER] = answer.served_by.value
    _count(services, answer, request.scope[REQUEST_ID])
    shown = _exposure(answer, page, now, user_id=body.user_id, scene=body.scene, layout=wanted.layout)
    await _expose(services, shown)
    return json_response(_answer_body(body, history, answer, page))


@router.post("/v1/similar", response_model=FoundAnswer, responses=_SIMILAR_ERRORS, tags=["retrieval"])
async def similar(
    body: SimilarRequest, request: Request, services: ServicesOf, deadline_ms: DeadlineMs = None
) -> Response:
    """Find items like an item, by the vectors of the bundle's indexes."""
    return await _found(body, Seek(item_id=body.item_id, vectors=body.vectors), request, services, deadline_ms)


@router.post("/v1/search", response_model=FoundAnswer, responses=_SEARCH_ERRORS, tags=["retrieval"])
async def search(
    body: SearchRequest, request: Request, services: ServicesOf, deadline_ms: DeadlineMs = None
) -> Response:
    """Find items for a text, by the text encoder that belongs to the bundle's text vectors."""
    return await _found(body, Seek(text=body.text), request, services, deadline_ms)


@router.post("/v1/events", response_model=EventsAnswer, responses=_BODY_ERRORS, tags=["events"])
async def events(body: EventsRequest, services: ServicesOf) -> Response:
    """Take a batch of events; the answer comes when the accepted rows are on the disk."""
    results = await asyncio.wrap_future(services.events.submit(body.events))
    totals = {"accepted": 0, "duplicate": 0, "rejected": 0}
    for result in results:
        totals[result.status] += 1
    for status, total in totals.items():
        services.metrics.events.labels(status).inc(total)
    rows = [result.model_dump(exclude_none=True) for result in results]
    return json_response({**totals, "results": rows})


@router.get("/healthz", response_model=Health, responses=documented(), tags=["operation"])
async def healthz() -> Response:
    """Say that the process answers."""
    return json_response({"status": "ok"})


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={**documented(), 503: {"model": Readiness, "description": "Requests should go elsewhere."}},
    tags=["operation"],
)
async def readyz(request: Request, services: ServicesOf) -> Response:
    """Say whether requests should be sent here, why not, and what runs; why in full only to an administrator's key."""
    readiness = services.readiness(details=may_see_details(request.scope, services.keys))
    return json_response(readiness.model_dump(), 200 if readiness.ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**documented(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["operation"],
)
async def metrics(services: ServicesOf) -> Response:
    """Show counters in the Prometheus text format."""
    return Response(await services.figures(), media_type="text/plain; version=0.0.4; charset=utf-8")


@timed_engine
async def _unless_gone(request: Request, answering: Coroutine[Any, Any, EngineAnswer]) -> EngineAnswer:
    """Wait for an answer; a client that goes away takes its request out of the engine's queue.

    Raises:
        ClientDisconnect: it has gone.
    """
    left, serving, departure = False, asyncio.current_task(), departure_of(request)

    def leave() -> None:
        nonlocal left
        if serving is not None:
            left = serving.cancel()

    if not departure.watch(leave):
        answering.close()
        raise ClientDisconnect
    try:
        return await answering
    except asyncio.CancelledError:
        if left and serving is not None and not serving.uncancel():  # else somebody else has cancelled it, too
            raise ClientDisconnect from None
        raise
    finally:
        departure.unwatch()


async def _found(
    body: SimilarRequest | SearchRequest, seek: Seek, request: Request, services: Services, deadline_ms: int | None
) -> Response:
    """Ask the indexes; what they cannot answer is an error with a documented code."""
    now = time.time_ns() // 1_000
    wanted = EngineRequest(
        history=(),
        n=body.n,
        time=now,
        conditions=_conditions(body.filters),
        allow=body.filters.allow,
        deny=body.filters.deny,
        deadline=Deadline.within(
            deadline_ms, services.settings, waited=_waited(request), turn=services.ladder.turn
        ).answer,
        seek=seek,
    )
    answer = await _unless_gone(request, services.ladder.seek(wanted))
    request_id = request.scope[REQUEST_ID]
    request.scope[TIER] = answer.served_by.value
    if answer.refusal is not None:
        return _REFUSED[answer.refusal]()
    _count(services, answer, request_id)
    await _expose(services, _exposure(answer, Page(request_id), now))
    items = _answer_items(answer)
    return json_response(
        {
            "request_id": request_id,
            "served_by": answer.served_by.value,
            "bundle_version": answer.bundle_version,
            "catalog_version": answer.catalog_version,
            "truncated": answer.truncated,
            "items": items,
            "counts": {
                "requested": body.n,
                "returned": len(items),
                "filter_unknown": answer.counts.filter_unknown,
            },
        }
    )


_REFUSED: Final[dict[Refusal, Callable[[], Response]]] = {
    "unknown_item": lambda: envelope(UNKNOWN_ITEM, UNKNOWN_ITEM.description, field="body.item_id"),
    "no_index": lambda: envelope(NOT_IN_BUNDLE, "the bundle has no index over such vectors"),
    "no_encoder": lambda: envelope(NOT_IN_BUNDLE, "no text encoder is loaded for the bundle's text vectors"),
}


def _waited(request: Request) -> float:
    waited: float = request.scope.get(WAITED, 0.0)
    return waited


def _conditions(filters: Filters) -> CatalogFilter:
    return CatalogFilter(
        categories=tuple(tuple(path) for path in filters.categories),
        brands=tuple(filters.brands),
        price_min_micros=filters.price_min_micros,
        price_max_micros=filters.price_max_micros,
    )


class _History(NamedTuple):
    """Item ids, oldest first; where they come from; why there are no stored ones."""

    items: Sequence[str]
    source: HistorySource
    missing: str | None = None


@timed(FEATURES)
async def _history(body: RecommendRequest, services: Services, deadline: Deadline) -> _History:
    """The history in the body, else the stored one, else none."""
    if body.history is not None:
        return _History(body.history, HistorySource.REQUEST)
    if body.user_id is None:
        return _History((), HistorySource.NONE)
    reading = await services.ladder.history(body.user_id, deadline)
    if reading.status is Status.MISSING:
        return _History((), HistorySource.NONE, reading.reason.value.replace(" ", "_"))
    return _History(recent_items(reading), HistorySource.STORE)


def _engine_request(body: RecommendRequest, history: _History, page: Page, now: int, deadline: float) -> EngineRequest:
    filters, caps = body.filters, body.caps
    return EngineRequest(
        history=history.items,
        n=min(body.n, page.left),
        time=now,
        scene=body.scene,
        conditions=_conditions(filters),
        allow=filters.allow,
        deny=filters.deny,
        exclude_seen=body.exclude_seen,
        deadline=deadline,
        layout=Layout(caps.brand, caps.category, caps.category_depth, body.diversity),
        shown=page.shown,
        request_id=page.request_id,
        unit=body.user_id or page.request_id,
    )


def _answer_items(answer: EngineAnswer, first: int = 0) -> list[dict[str, Any]]:
    items = []
    for position, item in enumerate(answer.items, first):
        shown = {"item_id": item.item_id, "position": position, "score": item.score, "source": item.source}
        if item.title is not None:
            shown["title"] = item.title
        items.append(shown)
    return items


def _answer_body(body: RecommendRequest, history: _History, answer: EngineAnswer, page: Page) -> dict[str, Any]:
    items, counts = _answer_items(answer, len(page.shown)), answer.counts
    following = page.next([item.item_id for item in answer.items]) if answer.more and items else None
    return {
        "request_id": page.request_id,
        "served_by": answer.served_by.value,
        "decoder": answer.decoder,
        "bundle_version": answer.bundle_version,
        "catalog_version": answer.catalog_version,
        "arms": answer.arms,
        "truncated": len(items) < body.n,
        "next_cursor": None if following is None else following.cursor(),
        "history_source": history.source.value,
        "history_missing": history.missing,
        "items": items,
        "counts": {
            "requested": body.n,
            "returned": len(items),
            "history": counts.history,
            "history_unknown": counts.history_unknown,
            "history_cut": counts.history_cut,
            "filter_unknown": counts.filter_unknown,
        },
    }


def _exposure(
    answer: EngineAnswer,
    page: Page,
    now: int,
    *,
    user_id: str | None = None,
    scene: str | None = None,
    layout: Layout = _AS_RANKED,
) -> Exposure:
    first = len(page.shown)
    return Exposure(
        request_id=page.request_id,
        user_id=user_id,
        time=now,
        scene=scene,
        items=[item.item_id for item in answer.items],
        positions=list(range(first, first + len(answer.items))),
        scores=[item.score for item in answer.items],
        sources=[item.source for item in answer.items],
        propensities=[1.0] * len(answer.items),  # the ranking draws nothing at random
        served_by=answer.served_by.value,
        decoder=answer.decoder,
        bundle_version=answer.bundle_version,
        catalog_version=answer.catalog_version,
        arms=answer.arms,
        page=page.number,
        caps=layout.described(),
        diversity=layout.diversity,
    )


@timed(EXPOSURE)
async def _expose(services: Services, exposure: Exposure) -> None:
    """Queue the exposure; where the settings ask for it, wait until it is on the disk."""
    sync, written = services.settings.exposure_sync, None
    try:
        if sync:
            written = services.exposures.submit(exposure)
        else:
            services.exposures.post(exposure)
    except UnavailableError:
        services.metrics.exposures_dropped.inc()
        if sync:
            raise
    if written is not None:
        await asyncio.wrap_future(written)


def _count(services: Services, answer: EngineAnswer, request_id: str) -> None:
    metrics = services.metrics
    metrics.unknown_items.inc(answer.counts.history_unknown)
    for source, count in Counter([item.source for item in answer.items]).items():
        metrics.items.labels(source).inc(count)
    if answer.ineligible:
        metrics.ineligible.inc(answer.ineligible)
        _log.error("ineligible_items_caught", request_id=request_id, count=answer.ineligible)
