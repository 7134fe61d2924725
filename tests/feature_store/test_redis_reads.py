"""Reads over connections of our own: what is said to the server, and what becomes of one that says something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError, ResponseError

from benchmarks.redis_server import RedisServer
from feature_store import redis_reads
from feature_store.opening import CLIENT_NAME, RedisAddress, Timeouts, open_async_store
from feature_store.redis_reads import RedisReads

PATIENT = Timeouts(connect=timedelta(seconds=20), answer=timedelta(seconds=20))
HASTY = Timeouts(connect=timedelta(seconds=20), answer=timedelta(milliseconds=500))
OK = b"+OK\r\n"


class Script:
    """A server that answers each thing it is sent with the next of some bytes, on every connection from the start.

    Attributes:
        came: what it was sent.
        writers: one per connection.
    """

    def __init__(self, *replies: bytes) -> None:
        self._replies = replies
        self.came: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._heard = asyncio.Event()

    async def until(self, count: int) -> None:
        """Wait until so much has come."""
        while len(self.came) < count:
            self._heard.clear()
            await self._heard.wait()

    @asynccontextmanager
    async def reads(self, timeouts: Timeouts = PATIENT, login: str = "", path: str = "/0") -> AsyncIterator[RedisReads]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reads = RedisReads(RedisAddress.parse(f"redis://{login}127.0.0.1:{port}{path}"), timeouts)
        try:
            yield reads
        finally:
            await reads.close()
            server.close()
            for writer in self.writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        for reply in self._replies:
            self.came.append(await reader.read(10_000))
            self._heard.set()
            writer.write(reply)
        await reader.read()
        writer.close()


def array(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)


def test_a_connection_says_who_it_is_and_is_kept() -> None:
    async def read() -> list[Any]:
        async with Script(OK, OK, OK, array(b"1"), array(b"2", b"3")).reads(login="ann:se%3Acret@", path="/7") as reads:
            return [await reads.get([b"a"], None), await reads.get([b"b", b"c"], 5)]

    assert asyncio.run(read()) == [[b"1"], [b"2", b"3"]]


@pytest.mark.parametrize(
    ("login", "path", "greeting"),
    [
        ("", "/0", []),
        (":word@", "/0", [array(b"AUTH", b"word")]),
        ("ann:se%3Acret@", "/7", [array(b"AUTH", b"ann", b"se:cret"), array(b"SELECT", b"7")]),
    ],
)
def test_the_greeting(login: str, path: str, greeting: list[bytes]) -> None:
    script = Script(*[OK] * (len(greeting) + 1), array(b"1"))

    async def read() -> None:
        async with script.reads(login=login, path=path) as reads:
            await reads.get([b"a"], None)

    asyncio.run(read())
    name = array(b"CLIENT", b"SETNAME", CLIENT_NAME.encode())
    assert script.came == [*greeting[:1], name, *greeting[1:], array(b"MGET", b"a")]


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([b"-NOAUTH first\r\n"], ResponseError),
        ([OK, b"-LOADING\r\n"], ResponseError),
        ([OK, b"nonsense\r\n"], RedisConnectionError),
        ([OK, array(b"1") + array(b"2")], RedisConnectionError),
    ],
)
def test_what_is_no_answer_is_an_error(replies: list[bytes], error: type[RedisError]) -> None:
    async def read() -> None:
        async with Script(*replies).reads() as reads:
            await reads.get([b"a"], None)

    with pytest.raises(error):
        asyncio.run(read())


def test_an_error_costs_no_connection_and_nonsense_does() -> None:
    async def connections(script: Script) -> tuple[int, Any]:
        async with script.reads() as reads:
            with pytest.raises(RedisError):
                await reads.get([b"a"], None)
            return len(script.writers), await reads.get([b"b"], None)

    assert asyncio.run(connections(Script(OK, b"-LOADING\r\n", array(b"1")))) == (1, [b"1"])


def test_an_answer_may_come_in_pieces() -> None:
    script = Script(OK, b"*2\r\n$3\r\nab")

    async def read() -> Any:
        async with script.reads() as reads:
            reading = asyncio.create_task(reads.get([b"a", b"b"], None))
            await script.until(2)
            for piece in (b"c\r", b"\n$-1\r", b"\n"):
                await asyncio.sleep(0.01)
                script.writers[0].write(piece)
            return await reading

    assert asyncio.run(read()) == [b"abc", None]


@pytest.mark.parametrize("deadline", [None, 5])
def test_a_late_answer_ends_its_connection(deadline: float | None) -> None:
    script = Script(OK, b"", array(b"late"))

    async def read() -> list[bytes]:
        async with script.reads(HASTY) as reads:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await reads.get([b"a"], deadline)
            return [each for each in script.came if each]

    greeting = array(b"CLIENT", b"SETNAME", CLIENT_NAME.encode())
    assert asyncio.run(read()) == [greeting, array(b"MGET", b"a")] * 2


def test_a_read_that_is_cancelled_ends_its_connection() -> None:
    script = Script(OK, b"", array(b"late"))

    async def read() -> int:
        async with script.reads() as reads:
            for asked in (2, 4):
                reading = asyncio.create_task(reads.get([b"a"], None))
                await script.until(asked)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            return len(script.writers)

    assert asyncio.run(read()) == 2


def test_a_connection_that_the_server_closed_or_wrote_to_is_not_asked_again() -> None:
    script = Script(OK, array(b"1"), array(b"never"))

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(array(b"unasked"))

    async def read() -> list[Any]:
        found = []
        async with script.reads() as reads:
            for do in (close, write, close):
                found.append(await reads.get([b"a"], None))
                await do(script.writers[-1])
                await asyncio.sleep(0.05)
        return found

    assert asyncio.run(read()) == [[b"1"]] * 3


def test_a_server_that_goes_away_meanwhile_is_an_error() -> None:
    script = Script(OK, b"")

    async def read() -> None:
        async with script.reads() as reads:
            reading = asyncio.create_task(reads.get([b"a"], None))
            await script.until(2)
            script.writers[0].close()
            await reading

    with pytest.raises(RedisConnectionError):
        asyncio.run(read())


def test_an_idle_connection_is_probed() -> None:
    async def read() -> list[int]:
        async with Script(OK, array(b"1")).reads() as reads:
            await reads.get([b"a"], None)
            handle = reads._idle[0]._transport.get_extra_info("socket")  # type: ignore[union-attr]
            return [handle.getsockopt(level, option) for level, option, _ in redis_reads._ALIVE]

    assert asyncio.run(read()) == [1, 30, 5, 3]


def test_there_are_not_more_connections_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reads, "MAX_CONNECTIONS", 2)

    async def read() -> list[Any]:
        async with Script(OK, b"").reads(HASTY) as reads:
            return await asyncio.gather(*(reads.get([b"a"], None) for _ in range(3)), return_exceptions=True)

    assert [type(each) for each in asyncio.run(read())] == [TimeoutError, TimeoutError, MaxConnectionsError]


def test_a_real_server_takes_the_login_the_name_and_the_database(own_server: RedisServer) -> None:
    with redis.Redis(port=own_server.port, db=3) as client:
        client.set("a", b"3")
        client.rpush("list", "x")
        client.config_set("requirepass", "word")
        store = open_async_store(f"redis://:word@127.0.0.1:{own_server.port}/3", PATIENT)

        async def read() -> tuple[Any, list[str]]:
            reads = store._reads
            assert reads is not None
            values = await reads.get([b"a", b"list", b"absent"], 5)
            names = [each["name"] for each in client.client_list()]
            await store.close()
            return values, names

        values, names = asyncio.run(read())
    assert values == [b"3", None, None]
    assert CLIENT_NAME in names
