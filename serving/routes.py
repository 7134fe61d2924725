"""The routes of the HTTP API."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from recsys.catalog import CatalogFilter
from recsys.errors import UnavailableError
from recsys.event_log import Exposure
from serving.engine import EngineRequest
from serving.errors import MALFORMED, TOO_LARGE, UNAVAILABLE, documented, json_response
from serving.middleware import REQUEST_ID, TIER
from serving.schemas import (
    EventsAnswer,
    EventsRequest,
    Health,
    Readiness,
    RecommendAnswer,
    RecommendRequest,
)
from serving.services import Services, services_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.engine import EngineAnswer

router = APIRouter()
_log = structlog.stdlib.get_logger(__name__)
_BODY_ERRORS = documented(MALFORMED, TOO_LARGE, UNAVAILABLE)
ServicesOf = Annotated[Services, Depends(services_of)]


@router.post("/v1/recommend", response_model=RecommendAnswer, responses=_BODY_ERRORS, tags=["recommend"])
async def recommend(body: RecommendRequest, request: Request, services: ServicesOf) -> Response:
    """Recommend items to a known user, behind an inline history, or to anybody."""
    now = time.time_ns() // 1_000
    answer = await _unless_gone(request, services.engine.recommend(_engine_request(body, services, now)))
    request_id = request.scope[REQUEST_ID]
    request.scope[TIER] = answer.served_by.value
    _count(services, answer, request_id)
    await _expose(services, _exposure(body, answer, request_id, now))
    return json_response(_answer_body(body, answer, request_id))


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
async def readyz(services: ServicesOf) -> Response:
    """Say whether requests should be sent here, why not, and what runs."""
    readiness = services.readiness()
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


async def _unless_gone(request: Request, answering: Coroutine[Any, Any, EngineAnswer]) -> EngineAnswer:
    """Wait for an answer; a client that goes away takes its request out of the engine's queue.

    Raises:
        ClientDisconnect: it has gone.
    """
    work = asyncio.create_task(answering)
    gone = asyncio.ensure_future(request.receive())  # the body is read: the only message left is the disconnect
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


def _engine_request(body: RecommendRequest, services: Services, now: int) -> EngineRequest:
    history = body.history
    if history is None:
        # A read of the memory-mapped store takes less time than a hop to another thread and back.
        stored = services.histories.get(body.user_id).events if body.user_id is not None else ()
        history = [event.item_id for event in stored]
    filters = body.filters
    return EngineRequest(
        history=history,
        n=body.n,
        time=now,
        scene=body.scene,
        conditions=CatalogFilter(
            categories=tuple(tuple(path) for path in filters.categories),
            brands=tuple(filters.brands),
            price_min_micros=filters.price_min_micros,
            price_max_micros=filters.price_max_micros,
        ),
        allow=filters.allow,
        deny=filters.deny,
        exclude_seen=body.exclude_seen,
        deadline=time.monotonic() + services.settings.deadline.total_seconds(),
    )


def _answer_body(body: RecommendRequest, answer: EngineAnswer, request_id: str) -> dict[str, Any]:
    items = []
    for position, item in enumerate(answer.items):
        shown = {"item_id": item.item_id, "position": position, "score": item.score, "source": item.source}
        if item.title is not None:
            shown["title"] = item.title
        items.append(shown)
    counts = answer.counts
    return {
        "request_id": request_id,
        "served_by": answer.served_by.value,
        "decoder": answer.decoder,
        "bundle_version": answer.bundle_version,
        "catalog_version": answer.catalog_version,
        "arms": {},
        "truncated": answer.truncated,
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


def _exposure(body: RecommendRequest, answer: EngineAnswer, request_id: str, now: int) -> Exposure:
    return Exposure(
        request_id=request_id,
        user_id=body.user_id,
        time=now,
        scene=body.scene,
        items=[item.item_id for item in answer.items],
        positions=list(range(len(answer.items))),
        scores=[item.score for item in answer.items],
        sources=[item.source for item in answer.items],
        propensities=[1.0] * len(answer.items),  # the ranking draws nothing at random
        served_by=answer.served_by.value,
        decoder=answer.decoder,
        bundle_version=answer.bundle_version,
        catalog_version=answer.catalog_version,
        arms={},
    )


async def _expose(services: Services, exposure: Exposure) -> None:
    """Queue the exposure; where the settings ask for it, wait until it is on the disk."""
    try:
        written = services.exposures.submit(exposure)
    except UnavailableError:
        services.metrics.exposures_dropped.inc()
        if services.settings.exposure_sync:
            raise
        return
    if services.settings.exposure_sync:
        await asyncio.wrap_future(written)


def _count(services: Services, answer: EngineAnswer, request_id: str) -> None:
    metrics = services.metrics
    metrics.unknown_items.inc(answer.counts.history_unknown)
    for source in {item.source for item in answer.items}:
        metrics.items.labels(source).inc(sum(item.source == source for item in answer.items))
    if answer.ineligible:
        metrics.ineligible.inc(answer.ineligible)
        _log.error("ineligible_items_caught", request_id=request_id, count=answer.ineligible)
