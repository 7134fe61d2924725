"""Run the application under uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn

from recsys.errors import UnavailableError
from serving.app import create_app
from serving.connections import connection_limits, guarded_protocol
from serving.logs import configure_logs

if TYPE_CHECKING:
    import socket

    from serving.settings import Settings


class _DrainingServer(uvicorn.Server):
    """After SIGTERM: not ready, a pause for the load balancer, then no new connections, then the rest."""

    def __init__(self, config: uvicorn.Config, drain_delay: float) -> None:
        super().__init__(config)
        self._drain_delay = drain_delay

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop as uvicorn does."""
        state: dict[str, Any] = self.lifespan.state
        state["services"].draining = True
        await asyncio.sleep(self._drain_delay)
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered.

    Raises:
        UnavailableError: the server did not start.
    """
    configure_logs(settings.log_level)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded_protocol(connection_limits(settings, app.state.metrics)),
        timeout_keep_alive=math.ceil(settings.keep_alive.total_seconds()),
        backlog=4096,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout.total_seconds()),
    )
    server = _DrainingServer(config, settings.drain_delay.total_seconds())
    with suppress(SystemExit):  # uvicorn's way to say that the start failed, a taken port for instance
        server.run()
    if not server.started:
        raise UnavailableError("the server did not start", remedy="the log line before this one says why")
