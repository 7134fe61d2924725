"""The application: routes, middleware and the parts that live as long as it does."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute

from recsys.errors import UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog, ExposureLog, GroupWriter
from serving.direct import Direct
from serving.engine import InProcessEngine
from serving.errors import install
from serving.histories import RETRY_SECONDS, open_histories
from serving.item_routes import router as item_router
from serving.journal import EventIntake, ExposureWriter
from serving.ladder.admission import Admission
from serving.ladder.door import Door
from serving.ladder.fallback import Fallback
from serving.ladder.keeper import FallbackKeeper
from serving.ladder.ladder import Ladder
from serving.ladder.metrics import LadderMetrics
from serving.lifecycle.admin_routes import router as admin_router
from serving.metrics import EngineMetrics, Metrics
from serving.middleware import BodyLimit, Observe
from serving.remote import SocketEngine
from serving.routes import router
from serving.schemas import RecommendRequest
from serving.security.auth import Authenticate, watch
from serving.security.keys import open_ring
from serving.security.retention import keep_removing
from serving.security.scopes import describe
from serving.security.user_data import history_part, log_part
from serving.security.user_routes import router as user_router
from serving.services import Services, State
from serving.tracing import start_tracing
from serving.watching import RequestWatch
from serving.workers.neighbours import Neighbours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from serving.engine import Engine, EngineKeeper
    from serving.histories import Histories
    from serving.schemas import EventResult, EventRow
    from serving.settings import Settings
    from serving.worker_values import WorkerValues

_log = structlog.stdlib.get_logger(__name__)


def create_app(settings: Settings, *, engine: Engine | None = None, values: WorkerValues | None = None) -> FastAPI:
    """Build the application; nothing is opened before it starts.

    Args:
        settings: see `serving.settings`.
        engine: answers recommendations; None takes the one whose socket the settings name, else makes one in this
            process that follows the registry.
        values: where metrics are kept by one of several workers.

    Raises:
        ConfigError: see `serving.security.keys.open_ring` and `serving.tracing.start_tracing`.
    """
    metrics = Metrics(values)
    counted = LadderMetrics(metrics.registry)
    door = Door(settings.deadline.total_seconds(), refused=counted.refused.inc)
    ring = open_ring(settings)
    tracing = start_tracing("windfire-front-end") if settings.tracing else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            services = await _start(stack, settings, metrics, engine, counted, door)
            services.keys = ring
            if ring is None:
                _log.info("server_open", host=settings.host, reason="no key file: whoever reaches it may ask anything")
            else:
                _log.info("keys_loaded", keys=len(ring))
                stack.push_async_callback(_cancel, asyncio.create_task(watch(ring)))
            yield {"services": services}

    app = FastAPI(
        title="Windfire",
        version=version("windfire"),
        summary="Generative recommendation over HTTP.",
        lifespan=lifespan,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # serving.tracing and serving.metrics know more
    )
    app.include_router(router)
    app.include_router(item_router)
    app.include_router(user_router)
    app.include_router(admin_router)
    install(app, [*router.routes, *item_router.routes, *user_router.routes, *admin_router.routes])
    _declare_scopes(app, keys=ring is not None)
    app.state.metrics = metrics
    app.add_middleware(Direct, route=_route("/v1/recommend"), model=RecommendRequest, handlers=app.exception_handlers)
    app.add_middleware(BodyLimit)
    app.add_middleware(Authenticate, ring=ring, metrics=metrics)  # before a body is read
    watch_requests = RequestWatch(metrics, settings.slow_request, tracing)
    app.add_middleware(Observe, metrics=metrics, watch=watch_requests)
    app.add_middleware(Admission, door=door, metrics=metrics)  # added last, therefore the outer one
    return app


def _route(path: str) -> APIRoute:
    (route,) = (route for route in router.routes if isinstance(route, APIRoute) and route.path == path)
    return route


def _declare_scopes(app: FastAPI, *, keys: bool) -> None:
    """Let the OpenAPI document say which key each operation wants."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        made = app.openapi_schema is None
        document = plain()
        return describe(document, keys=keys) if made else document

    app.openapi = described  # type: ignore[method-assign]


async def _start(
    stack: AsyncExitStack,
    settings: Settings,
    metrics: Metrics,
    engine: Engine | None,
    counted: LadderMetrics,
    door: Door,
) -> Services:
    """Open everything in the order of need; the stack closes it in reverse."""
    event_log = EventLog(settings.state / "events")  # first: its lock refuses a second server on the same state
    stack.callback(event_log.close)
    histories = open_histories(settings, event_log, ConsumerOffsets(settings.state / "offsets"), metrics)
    stack.push_async_callback(histories.close)
    await asyncio.to_thread(histories.start)
    stack.callback(histories.save)
    intake = EventIntake(event_log, histories, skew=settings.event_clock_skew)
    events = GroupWriter("windfire-events", intake.write, limit=settings.event_queue_limit)
    stack.callback(events.close)
    stack.push_async_callback(_cancel, asyncio.create_task(_retry(histories, events)))
    exposure_log = ExposureLog(settings.state / "exposures")
    stack.callback(exposure_log.close)
    for records in (event_log.records, exposure_log.records):
        if records.cut_bytes:
            _log.warning("log_end_cut", directory=str(records.directory), bytes=records.cut_bytes)
    exposures = GroupWriter(
        "windfire-exposures",
        ExposureWriter(exposure_log, metrics).write,
        limit=settings.exposure_queue_limit,
        linger=0.0 if settings.exposure_sync else settings.exposure_flush.total_seconds(),
    )
    stack.callback(exposures.close)
    keeper: EngineKeeper | None = None
    if engine is None:
        engine, keeper = await _start_engine(stack, settings, metrics)
    fallback = await _start_fallback(stack, settings, engine, keeper)
    ladder = Ladder(settings, counted, engine, histories, fallback, door)
    services = Services(settings, metrics, engine, histories, event_log, events, exposures, keeper, ladder)
    stack.callback(services.users.close)
    services.users.add(history_part(histories))
    neighbours = Neighbours(settings)
    services.users.add(log_part("event", event_log.records, neighbours))
    services.users.add(log_part("exposure", exposure_log.records, neighbours))
    services.users.add_cache(ladder.forget)
    answering = neighbours.answer(services.users.forget_own, services.users.empty_caches)
    stack.push_async_callback(_cancel, asyncio.create_task(answering))
    removing = keep_removing(settings, event_log.records, exposure_log.records)
    stack.push_async_callback(_cancel, asyncio.create_task(removing))
    return services


async def _start_engine(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> tuple[Engine, EngineKeeper]:
    """The engine of another process where the settings name its socket, else one in this process."""
    if settings.engine_socket is not None:
        remote = SocketEngine(settings.engine_socket, metrics)
        stack.push_async_callback(remote.close)
        await remote.start()
        return remote, remote
    from serving.reload import BundleWatcher  # with torch and the decoders, which a front-end without a model spares

    own = EngineMetrics(metrics.registry.values)
    engine = InProcessEngine(
        own,
        queue_limit=settings.queue_limit,
        batch_limit=settings.batch_limit,
        torch_threads=settings.torch_threads,
        small=settings.small_beam < settings.beam,
    )
    stack.callback(engine.close)
    watcher = BundleWatcher(settings, engine, own)
    stack.callback(watcher.close)
    await watcher.look()
    stack.push_async_callback(_cancel, asyncio.create_task(watcher.watch(settings.bundle_poll)))
    return engine, watcher


async def _start_fallback(
    stack: AsyncExitStack, settings: Settings, engine: Engine, keeper: EngineKeeper | None
) -> Fallback:
    """What answers without the engine; it is opened before the first request."""
    fallback = Fallback(minimum=settings.fallback_minimum.total_seconds())
    stack.callback(fallback.close)
    tables = FallbackKeeper(settings, engine, keeper, fallback)
    await tables.look()
    stack.push_async_callback(_cancel, asyncio.create_task(tables.watch()))
    return fallback


async def _retry(histories: Histories, events: GroupWriter[list[EventRow], list[EventResult]]) -> None:
    """Let histories that are behind catch up, in the thread that writes them, although nobody sends an event."""
    while True:
        await asyncio.sleep(RETRY_SECONDS)
        if histories.behind:
            with suppress(UnavailableError):
                await asyncio.wrap_future(events.submit([]))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
