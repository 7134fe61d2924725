"""Run an engine in this process until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import structlog
import uvloop

from serving.engine import InProcessEngine
from serving.interpreter import settle
from serving.logs import configure_logs
from serving.metrics import EngineMetrics
from serving.remote.address import claimed
from serving.remote.server import EngineServer
from serving.tracing import start_tracing

if TYPE_CHECKING:
    from pathlib import Path

    from serving.settings import Settings

_log = structlog.stdlib.get_logger(__name__)


def run_engine(settings: Settings, path: Path) -> None:
    """Decode for front-ends until SIGTERM or SIGINT; requests under way are answered.

    Args:
        settings: those of the engine among them: registry, state, decoder, limits, polling and draining.
        path: the socket to listen on.

    Raises:
        ConfigError, UnavailableError: see `serving.remote.address.claimed`.
    """
    configure_logs(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, path))


async def _run(settings: Settings, path: Path) -> None:
    metrics = EngineMetrics()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        bound = stack.enter_context(claimed(path))  # first: it refuses a second engine before anything is loaded
        from serving.reload import BundleWatcher  # with torch and the decoders

        settle()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        engine = InProcessEngine(
            metrics,
            queue_limit=settings.queue_limit,
            batch_limit=settings.batch_limit,
            torch_threads=settings.torch_threads,
            small=settings.small_beam < settings.beam,
        )
        stack.push_async_callback(asyncio.to_thread, engine.close)
        watcher = BundleWatcher(settings, engine, metrics)
        stack.push_async_callback(asyncio.to_thread, watcher.close)
        await watcher.look()
        tracing = start_tracing("windfire-engine") if settings.tracing else None
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        server = EngineServer(engine, watcher, clock=time.monotonic, tracing=tracing)
        stack.push_async_callback(server.close)
        await server.start(bound)
        watching = asyncio.create_task(watcher.watch(settings.bundle_poll, server.publish))
        stack.push_async_callback(_cancelled, watching)
        _log.info("engine_listening", path=str(path))
        await stop.wait()
        _log.info("engine_draining")
        await server.drain(delay=settings.drain_delay.total_seconds(), grace=settings.drain_timeout.total_seconds())
    _log.info("engine_ended")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
