"""A TCP proxy on loopback that delays answers or resets connections when it is told to; a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from benchmarks.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

T = TypeVar("T")
_HOST: Final = "127.0.0.1"
_BYTES: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)  # closing sends a reset


class Proxy:
    """Passes bytes on; has an event loop and a thread of its own, so that it does not wait for its client.

    Args:
        port: of the server behind it.

    Attributes:
        port: of its own.
        delay: seconds before each piece of an answer is passed on.
        reset: whether connections are reset instead of answered.
    """

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.reset = False
        self._behind = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """For `open_store`, where Redis is behind it."""
        return f"redis://{_HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._in_loop(asyncio.start_server(self._accept, _HOST, self.port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError):
            behind_reader, behind_writer = await asyncio.open_connection(_HOST, self._behind)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, behind_writer, answers=False))
                    group.create_task(self._pass(behind_reader, writer, answers=True))
            except* (OSError, _EndedError):
                pass
            finally:
                behind_writer.close()
        _close(writer, reset=self.reset)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(_BYTES):
            if answers and self.reset:
                break
            if answers and self.delay:
                await asyncio.sleep(self.delay)
            sink.write(data)
            await sink.drain()
        raise _EndedError


class _EndedError(Exception):
    """One side is done."""


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    handle: socket.socket | None = writer.get_extra_info("socket")
    if reset and handle is not None:
        with suppress(OSError):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.close()
