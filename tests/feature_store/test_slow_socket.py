"""A network that stalls, or brings an answer byte by byte, between the store and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from benchmarks.redis_server import RedisServer
from feature_store.fields import Field, Kind
from feature_store.opening import Timeouts, open_async_store, open_store
from feature_store.reading import Reading, Reason
from feature_store.store import Write, now_micros
from feature_store.views import View

COUNTS = View("counts", "user", (Field("clicks", Kind.INT64),), 1, "team")
PATIENT = Timeouts(connect=timedelta(seconds=20), answer=timedelta(seconds=20))


class Slow:
    """A proxy; `pause` seconds before every `size` bytes that the server answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pause, self.size = 0.0, 65_536
        self.connections: list[asyncio.Future[Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self.port)
        work = asyncio.gather(self.forward(reader, downstream), self.answer(upstream, writer))
        self.connections.append(work)
        with suppress(ConnectionError, asyncio.CancelledError):
            await work
        writer.close()
        downstream.close()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            for start in range(0, len(data), self.size):
                await asyncio.sleep(self.pause)
                writer.write(data[start : start + self.size])
                await writer.drain()


@asynccontextmanager
async def behind(server: RedisServer) -> AsyncIterator[tuple[Slow, str]]:
    """The proxy and its address."""
    slow = Slow(server.port)
    listening = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
    yield slow, f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    listening.close()
    for work in slow.connections:
        work.cancel()
    await asyncio.gather(*slow.connections, return_exceptions=True)


Read = Callable[[str, float], Awaitable[list[Reading]]]


async def timed(read: Read, entity: str, deadline: float) -> tuple[Reading, float]:
    began = time.monotonic()
    (reading,) = await read(entity, deadline)
    return reading, time.monotonic() - began


@pytest.mark.parametrize(("pause", "size"), [(1.0, 65_536), (0.02, 1)])
def test_coroutines_wait_no_longer_than_the_deadline_in_all(server: RedisServer, pause: float, size: int) -> None:
    async def talk() -> tuple[Any, ...]:
        async with behind(server) as (slow, address):
            store = open_async_store(address, PATIENT)
            await store.put([Write(COUNTS, f"slow{n}", {"clicks": n}, now_micros()) for n in (1, 2)])
            slow.pause, slow.size = pause, size

            async def read(entity: str, deadline: float) -> list[Reading]:
                return await store.read([(COUNTS, entity)], deadline=deadline)

            late, seconds = await timed(read, "slow1", 0.1)
            slow.pause, slow.size = 0.0, 65_536
            after, _ = await timed(read, "slow2", 20)
            await store.close()
            return late.reason, seconds < 0.9, after.values

    assert asyncio.run(talk()) == (Reason.DEADLINE, True, {"clicks": 2})


def test_threads_do_not_wait_for_a_stalled_answer_and_do_not_take_it_later(server: RedisServer) -> None:
    async def talk() -> tuple[Any, ...]:
        async with behind(server) as (slow, address):
            store = open_store(address, PATIENT)
            writes = [Write(COUNTS, f"slow{n}", {"clicks": n}, now_micros()) for n in (1, 2)]
            await asyncio.to_thread(store.put, writes)
            slow.pause = 1.0

            async def read(entity: str, deadline: float) -> list[Reading]:
                return await asyncio.to_thread(store.read, [(COUNTS, entity)], deadline=deadline)

            late, seconds = await timed(read, "slow1", 0.1)
            slow.pause = 0.0
            after, _ = await timed(read, "slow2", 20)
            await asyncio.to_thread(store.close)
            return late.reason, seconds < 0.9, after.values

    assert asyncio.run(talk()) == (Reason.DEADLINE, True, {"clicks": 2})
