"""The engine's end of the socket: many front-ends, one queue."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from recsys.errors import InputError, UnavailableError
from serving.remote.wire import (
    TICK,
    Answered,
    Ask,
    BrokenWireError,
    Cancel,
    Change,
    Changed,
    Counted,
    Failed,
    Speaker,
    Status,
    front_end_messages,
    printable,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from serving.engine import EngineAnswer, EngineKeeper, InProcessEngine
    from serving.item_changes import ItemChanged
    from serving.tracing import Tracing

    Work = asyncio.Future[EngineAnswer] | asyncio.Task[bytes] | asyncio.Task[ItemChanged]

_log = structlog.stdlib.get_logger(__name__)


class EngineServer:
    """Lets front-ends ask an engine.

    Requests of all front-ends wait in the engine's one queue, so that those which arrive together are decoded
    together, whoever sent them.

    Args:
        engine: decodes; its `close` is the caller's.
        keeper: knows of refused bundles and has the counters.
        clock: monotonic seconds, those of the engine.
        tick: seconds between two signs of life.
        tracing: gets a span of each request that belongs to a trace.
    """

    def __init__(
        self,
        engine: InProcessEngine,
        keeper: EngineKeeper,
        *,
        clock: Callable[[], float],
        tick: float = TICK,
        tracing: Tracing | None = None,
    ) -> None:
        self._engine = engine
        self._keeper = keeper
        self._clock = clock
        self._tick = tick
        self._tracing = tracing
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._beating: asyncio.Task[None] | None = None
        self._said: Status | None = None
        self._draining = self._ended = False

    @property
    def status(self) -> Status:
        """What front-ends are told."""
        refused = self._keeper.refused
        return Status(self._engine.versions, None if refused is None else printable(refused), self._draining)

    async def start(self, bound: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Link(self), sock=bound)
        self._beating = asyncio.create_task(self._beat())

    def publish(self) -> None:
        """Tell every front-end how the engine is, if that has changed."""
        status = self.status
        if status != self._said:
            self._tell(status)

    async def drain(self, *, delay: float, grace: float) -> None:
        """Say that the end is near, answer on for a while, then refuse, finish what is under way and hang up.

        Args:
            delay: seconds during which requests are still taken, so that those who send them can look away.
            grace: seconds that requests under way and their answers may take.
        """
        self._draining = True
        self.publish()
        await asyncio.sleep(delay)
        self._ended = True
        if self._server is not None:
            self._server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                for link in list(self._links):
                    await link.finish()
        await self.close()

    async def close(self) -> None:
        """Hang up at once."""
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.abort()
            await asyncio.wait((link.lost,))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._tick)
            self._tell(self.status)

    def _tell(self, status: Status) -> None:
        self._said = status
        for link in list(self._links):
            link.tell(status)

    def admit(self, link: _Link) -> None:
        """A front-end has come."""
        self._links.add(link)

    def dismiss(self, link: _Link) -> None:
        """A front-end has gone."""
        self._links.discard(link)

    def submit(self, ask: Ask) -> asyncio.Future[EngineAnswer]:
        """Queue a request; see `InProcessEngine.submit`."""
        if self._ended:
            raise UnavailableError("the engine is stopping")
        answer = self._engine.submit(ask.request(self._clock()))
        if self._tracing is not None and ask.traceparent is not None:
            answer.add_done_callback(partial(_trace, self._tracing, ask.traceparent, time.time_ns()))
        return answer

    async def figures(self) -> bytes:
        """The engine's counters."""
        return await self._keeper.figures()

    async def change(self, asked: Change) -> ItemChanged:
        """Make a change of an item; every front-end is told of the catalogue that holds it."""
        if self._ended:
            raise UnavailableError("the engine is stopping")
        changed = await self._keeper.change(asked.asked)
        self.publish()
        return changed


def _trace(tracing: Tracing, traceparent: str, began: int, answer: asyncio.Future[EngineAnswer]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        tracing.engine(traceparent, began, answer.result())


class _Link(Speaker):
    """One front-end."""

    def __init__(self, server: EngineServer) -> None:
        super().__init__()
        self._server = server
        self._pending: dict[int, Work] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._welcomed = self._paused = False

    def tell(self, status: Status) -> None:
        """Send a status, unless the front-end does not read: it gets a newer one when it does."""
        if self._welcomed and not self._paused:
            self.send(status)

    async def finish(self) -> None:
        """Wait for the answers under way, then hang up behind the last of them."""
        await self._idle.wait()
        if self.transport is not None:
            self.transport.close()
            await asyncio.wait((self.lost,))  # a timeout that ends this leaves the future alone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.broken is not None or exc is not None:
            _log.warning("front_end_lost", error=self.broken or str(exc))
        self._server.dismiss(self)
        for work in list(self._pending.values()):
            work.cancel()
        self._pending.clear()
        self._idle.set()
        if not self.lost.done():
            self.lost.set_result(None)

    # A front-end that does not read its answers may not ask for more.
    def pause_writing(self) -> None:
        self._paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def welcome(self) -> None:
        self._welcomed = True
        self.tell(self._server.status)

    def heard(self, body: bytes) -> None:
        message = front_end_messages.decode(body)
        if isinstance(message, Cancel):
            unwanted = self._pending.get(message.number)
            if unwanted is not None:  # else its answer is on the way
                unwanted.cancel()
            return
        if message.number in self._pending:
            raise BrokenWireError(f"request {message.number} was asked twice")
        work: Work
        try:
            if isinstance(message, Ask):
                work = self._server.submit(message)
                work.add_done_callback(partial(self._done, message.number, Answered))
            elif isinstance(message, Change):
                work = asyncio.create_task(self._server.change(message))
                work.add_done_callback(partial(self._done, message.number, Changed))
            else:
                work = asyncio.create_task(self._server.figures())
                work.add_done_callback(partial(self._done, message.number, Counted))
        except UnavailableError as error:
            self.send(Failed.of(message.number, error))
            return
        self._pending[message.number] = work
        self._idle.clear()

    def _done(self, number: int, kind: type[Answered | Counted | Changed], work: asyncio.Future[Any]) -> None:
        self._pending.pop(number, None)
        if not self._pending:
            self._idle.set()
        error = None if work.cancelled() else work.exception()
        if work.cancelled() or self.lost.done():
            return
        if error is None:
            self._answer(number, kind(number, work.result()))
            return
        if not isinstance(error, UnavailableError):
            _log.error("request_failed", exc_info=error)
        self.send(Failed.of(number, error))

    def _answer(self, number: int, answer: Answered | Counted | Changed) -> None:
        try:
            self.send(answer)
        except (InputError, TypeError) as error:  # too large, or of a type that cannot travel; a failure always fits
            _log.error("answer_not_sent", error=str(error))
            self.send(Failed.of(number, error))
