"""Run the application under uvicorn until a signal ends it."""

from __future__ import annotations

import math
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import uvicorn

from recsys.errors import UnavailableError
from serving.app import create_app
from serving.draining import DrainingServer
from serving.interpreter import settle
from serving.logs import configure_logs
from serving.security.connections import connection_limits, guarded_protocol

if TYPE_CHECKING:
    from types import FrameType

    from serving.settings import Settings
    from serving.worker_values import WorkerValues


class _SingleServer(DrainingServer):
    """The one server of a process. Ctrl-C waits for requests, and for nobody who might still send one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        if sig == signal.SIGINT:
            self.hurry()
        super().handle_exit(sig, frame)


def uvicorn_config(settings: Settings, values: WorkerValues | None = None) -> uvicorn.Config:
    """The application as uvicorn runs it.

    Args:
        settings: of the server, or of the worker.
        values: see `create_app`.
    """
    app = create_app(settings, values=values)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded_protocol(connection_limits(settings, app.state.metrics)),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive.total_seconds()),
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout.total_seconds()),
    )


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered.

    Raises:
        UnavailableError: the server did not start.
    """
    configure_logs(settings.log_level)
    server = _SingleServer(uvicorn_config(settings), settings.drain_delay.total_seconds())
    settle(model=settings.engine_socket is None)
    with suppress(SystemExit):  # uvicorn's way to say that the start failed, a taken port for instance
        server.run()
    if not server.started:
        raise UnavailableError("the server did not start", remedy="the log line before this one says why")
