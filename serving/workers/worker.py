"""One of several workers: a whole server on a socket that it shares with the others."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from recsys.errors import WindfireError
from serving.draining import DrainingServer
from serving.logs import configure_logs
from serving.worker_values import WorkerValues
from serving.workers.folders import metrics_folder, worker_settings
from serving.workers.talk import Word, hear, say

if TYPE_CHECKING:
    import socket
    from multiprocessing.connection import Connection
    from types import FrameType

    import uvicorn

    from serving.settings import Settings

_log = structlog.stdlib.get_logger(__name__)


def work(settings: Settings, number: int, listening: socket.socket, parent: Connection) -> None:
    """Prepare, wait for the word to go, and serve until the parent says otherwise; the target of a process.

    Args:
        settings: of all workers.
        number: of this one, from 0.
        listening: bound; every worker accepts from it.
        parent: the pipe to it. Its end is the parent's end: the worker drains and ends, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent says what follows
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logs(settings.log_level, worker=number)
    from serving.interpreter import settle
    from serving.runner import uvicorn_config  # all that serving needs, which takes most of a start

    say(parent, Word.PREPARED)
    if hear(parent) is not Word.GO:
        return
    os.set_blocking(parent.fileno(), False)  # a parent that is stopped must not stop this process
    values = WorkerValues(metrics_folder(settings), str(number))
    try:
        config = uvicorn_config(worker_settings(settings, number), values)
    except WindfireError as error:
        _log.error("worker_refused", code=error.code, error=str(error))
        raise SystemExit(1) from None
    settle(model=settings.engine_socket is None)
    server = _WorkerServer(config, settings.drain_delay.total_seconds(), parent, values)
    with suppress(SystemExit):  # uvicorn's way to say that the start failed; its log line says why
        server.run(sockets=[listening])
    if not server.started:
        raise SystemExit(1)


class _WorkerServer(DrainingServer):
    """Drains when its parent says so. SIGTERM is a wish that the parent hears first: it may be draining everybody."""

    def __init__(self, config: uvicorn.Config, drain_delay: float, parent: Connection, values: WorkerValues) -> None:
        super().__init__(config, drain_delay)
        self._parent = parent
        self._values = values

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once of these the others get to know this one's gauges, and the parent that it lives."""
        if counter % 10 == 0:
            self._values.refresh()
            say(self._parent, Word.ALIVE)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell the parent."""
        asyncio.get_running_loop().add_reader(self._parent.fileno(), self._told)
        await super().startup(sockets)
        if self.started:
            say(self._parent, Word.UP)

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        """Pass a signal on."""
        if sig == signal.SIGTERM:
            say(self._parent, Word.LEAVING)

    def _told(self) -> None:
        word = hear(self._parent)
        if word is None:
            asyncio.get_running_loop().remove_reader(self._parent.fileno())
        if word is not Word.STOP:  # the others, or a new parent's workers, take what this one does not
            self.unready, self.delay = False, 0.0
        self.should_exit = True
