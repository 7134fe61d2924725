"""The front-end's end of the socket: an engine that answers elsewhere."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from recsys.errors import UnavailableError
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
    Figures,
    FromEngine,
    Speaker,
    Status,
    engine_messages,
    frame,
)
from serving.timing import traceparent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.engine import EngineAnswer, EngineRequest, EngineVersions
    from serving.item_changes import ItemChange, ItemChanged
    from serving.metrics import Metrics

SILENCE: Final = 10  # ticks without a sign of life after which an engine counts as gone
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries to connect
_UNSENT: Final = 4 << 20  # bytes that may wait for an engine that does not read
_LOST: Final = UnavailableError("the engine went away before its answer")
_log = structlog.stdlib.get_logger(__name__)


class SocketEngine:
    """Asks an engine process over one connection, on which any number of requests are under way at once.

    A request is sent once. Where the connection breaks before its answer, it ends in an `UnavailableError`: whether the
    engine has decoded it is not known, so whoever wants another try must ask again. In the background the connection is
    made anew.

    Args:
        path: where the engine listens.
        metrics: the front-end's; says whether the engine can be asked and counts what was lost.
        tick: seconds between two looks for a sign of life; at least those between two signs.
        clock: monotonic seconds, those of the deadlines.
    """

    def __init__(
        self, path: Path, metrics: Metrics, *, tick: float = TICK, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._tick = tick
        self._clock = clock
        self._link: _Link | None = None
        self._why = "it was not tried yet"
        self._keeping: asyncio.Task[None] | None = None
        metrics.connected.set(0)

    @property
    def versions(self) -> EngineVersions | None:
        """What the engine runs; None while it cannot be asked."""
        return None if self._link is None or self._link.status is None else self._link.status.versions

    @property
    def refused(self) -> str | None:
        """See `serving.engine.EngineKeeper`."""
        return None if self._link is None or self._link.status is None else self._link.status.refused

    @property
    def trouble(self) -> str | None:
        """See `serving.engine.EngineKeeper`."""
        if self._link is None or self._link.status is None:
            return f"engine_unreachable: {self._path}: {self._why}"
        return "engine_draining: the engine process is being stopped" if self._link.status.draining else None

    async def start(self) -> None:
        """Try to connect, and where that fails go on trying in the background until `close`."""
        first = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(first))
        await first.wait()

    async def close(self) -> None:
        """Hang up; what is under way ends in an `UnavailableError`."""
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping

    async def recommend(self, request: EngineRequest) -> EngineAnswer:
        """See `serving.engine.Engine`.

        Raises:
            UnavailableError: the engine cannot be reached, does not keep up, refuses, or went away before its answer.
            InputError: the request is too large to travel.
            EngineFaultError: the engine failed.
        """
        link = self._reachable()
        number = link.next_number()
        asked = Ask.of(number, request, self._clock(), traceparent())
        message = await link.ask(number, frame(asked), missed=self._metrics.lost.inc)
        if isinstance(message, Answered):
            return message.answer
        raise _unexpected(message)

    async def change(self, change: ItemChange) -> ItemChanged:
        """See `serving.item_changes.Changes`.

        Raises:
            UnavailableError: the engine cannot be reached or went away before its answer, with or without the change.
            InputError: a value is out of its range, or the change is too large to travel.
            EngineFaultError: the engine failed.
        """
        link = self._reachable()
        number = link.next_number()
        message = await link.ask(number, frame(Change(number, change)))
        if isinstance(message, Changed):
            return message.changed
        raise _unexpected(message)

    async def figures(self) -> bytes:
        """See `serving.engine.EngineKeeper`."""
        try:
            link = self._reachable()
            number = link.next_number()
            async with asyncio.timeout(self._tick):
                message = await link.ask(number, frame(Figures(number)))
        except (UnavailableError, TimeoutError):
            return b""
        return message.text if isinstance(message, Counted) else b""

    def _reachable(self) -> _Link:
        if self._link is None:
            raise UnavailableError("the engine cannot be reached")
        if self._link.full:
            raise UnavailableError("the engine does not keep up with its requests")
        return self._link

    async def _keep(self, first: asyncio.Event) -> None:
        """Connect, stay until the connection is lost, pause, again."""
        pause = _FIRST_PAUSE
        while True:
            link = _Link()
            try:
                if await self._connect(link):
                    first.set()
                    pause = _FIRST_PAUSE
                    await self._stay(link)
            finally:
                self._link = None
                self._metrics.connected.set(0)
                first.set()
                await link.end()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _connect(self, link: _Link) -> bool:
        """One try; whether the engine can be asked now."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENCE * self._tick):
                await loop.create_unix_connection(lambda: link, str(self._path))
                await asyncio.wait((link.ready, link.lost), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self._because("it does not answer")
        except OSError as error:
            self._because(error.strerror or str(error))
        else:
            if link.ready.done() and not link.lost.done():
                self._link, self._why = link, ""
                self._metrics.connected.set(1)
                _log.info("engine_connected", path=str(self._path))
                return True
            self._because(link.broken or "it hung up")
        return False

    async def _stay(self, link: _Link) -> None:
        """Until the connection is lost, or no sign of life came for too many ticks."""
        quiet = 0
        while quiet < SILENCE:
            # Ticks are counted, not seconds: after a halt of this process the first tick finds what has come meanwhile.
            if (await asyncio.wait((link.lost,), timeout=self._tick))[0]:
                break
            quiet = 0 if link.alive else quiet + 1
            link.alive = False
        else:
            link.hang_up(f"it gave no sign of life for {SILENCE * self._tick:g} seconds")
        self._because(link.broken or "it hung up")

    def _because(self, why: str) -> None:
        if why != self._why:
            _log.warning("engine_unreachable", path=str(self._path), error=why)
        self._why = why


class _Link(Speaker):
    """One connection to an engine, from its making to its loss."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self._asked = 0
        self._ours = False  # the end is this side's wish
        self._pending: dict[int, tuple[asyncio.Future[FromEngine], Callable[[], None]]] = {}
        self.status: Status | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.full = False
        self.alive = True

    def next_number(self) -> int:
        self._asked += 1
        return self._asked

    async def ask(self, number: int, sent: bytearray, *, missed: Callable[[], None] = lambda: None) -> FromEngine:
        """Write a framed request and wait for what answers it; whoever is cancelled takes it back.

        Args:
            number: of the request.
            sent: its frame.
            missed: called where the engine goes away before its answer.
        """
        if self.transport is None or self.lost.done():
            raise UnavailableError("the engine cannot be reached")
        answer: asyncio.Future[FromEngine] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer, missed
        self.transport.write(sent)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._pending.pop(number, None) is not None:
                self.send(Cancel(number))
            raise

    async def end(self) -> None:
        """Hang up and wait until that is known."""
        self._ours = self.broken is None
        self.abort()
        if self.transport is not None:
            await self.lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=_UNSENT)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def heard(self, body: bytes) -> None:
        message = engine_messages.decode(body)
        self.alive = True
        if isinstance(message, Status):
            self.status = message
            if not self.ready.done():
                self.ready.set_result(None)
            return
        if message.number > self._asked:
            raise BrokenWireError(f"request {message.number} was answered and never asked")
        answer, _ = self._pending.pop(message.number, (None, None))
        if answer is not None and not answer.done():  # else it was taken back while its answer was on the way
            answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.broken is None and exc is not None:
            self.broken = str(exc)
        # Errors are handed over as results: nobody may be left to retrieve an exception.
        for number, (answer, missed) in self._pending.items():
            if not answer.done():
                answer.set_result(Failed.of(number, _LOST))
                if not self._ours:
                    missed()
        self._pending.clear()
        if not self.lost.done():
            self.lost.set_result(None)


def _unexpected(message: FromEngine) -> Exception:
    return message.error() if isinstance(message, Failed) else BrokenWireError("the answer is of another kind")
