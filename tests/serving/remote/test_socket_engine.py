"""Front-end and engine on a real socket, in one event loop; a scripted model stands in for a bundle."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recsys.catalog.changes import Delete, Upsert
from recsys.errors import InputError, UnavailableError
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, InProcessEngine, SlateItem
from serving.item_changes import ItemChange, ItemChanged
from serving.metrics import EngineMetrics, Metrics
from serving.remote import EngineServer, SocketEngine
from serving.remote.address import claimed
from serving.remote.wire import VERSION, Ask, Cancel, Counted, EngineFaultError, Hello, Status, frame
from serving.schemas import ServedBy

TICK = 0.05


class Scripted:
    """Answers with the request's n in place of a catalog version; waits at a gate; n = 13 and 14 fail."""

    def __init__(self, name: str = "one", title: str = "") -> None:
        self.versions = EngineVersions(name, f"{name}.0", "nezha")
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.deadlines: list[float | None] = []
        self.title = title

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        self.batches.append([request.n for request in requests])
        self.deadlines += [request.deadline for request in requests]
        self.entered.set()
        assert self.gate.wait(10)
        ns = [request.n for request in requests]
        if 13 in ns:
            raise ValueError("thirteen")
        if 14 in ns:
            raise InputError("fourteen", field="n", value=14, remedy="ask for less")
        items = [SlateItem("a", 0.5, "nezha", self.title)]
        counts = EngineCounts(0, 0, 0, 0)
        return [EngineAnswer(items, ServedBy.NEZHA, None, self.versions.bundle, str(n), True, counts) for n in ns]


class Keeper:
    """Knows what it is told."""

    trouble: str | None = None
    refused: str | None = None

    async def figures(self) -> bytes:
        return b"windfire_engine_queue 0.0\n"

    async def change(self, change: ItemChange) -> ItemChanged:
        if change.only_new:
            raise InputError("not new", field="item_id", value=change.change.item_id)
        return ItemChanged(outcome="created", catalog_version=change.change.item_id)


class Engine:
    """An engine process without the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = EngineMetrics()
        self.core = InProcessEngine(self.metrics, queue_limit=8, batch_limit=4, torch_threads=1)
        self.keeper = Keeper()
        self.model = Scripted()
        self.core.swap(self.model)
        self.server = EngineServer(self.core, self.keeper, clock=time.monotonic, tick=TICK)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        with claimed(self.path) as bound:
            await self.server.start(bound)
            try:
                yield self
            finally:
                self.model.gate.set()
                await self.server.close()
                await asyncio.to_thread(self.core.close)

    def queued(self) -> float | None:
        return self.metrics.registry.get_sample_value("windfire_engine_queue")


@asynccontextmanager
async def front_end(path: Path, tick: float = TICK, ahead: float = 0.0) -> AsyncIterator[SocketEngine]:
    """A client; its clock may be ahead of the engine's."""
    client = SocketEngine(path, Metrics(), tick=tick, clock=lambda: time.monotonic() + ahead)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def request(n: int, deadline: float | None = None) -> EngineRequest:
    return EngineRequest(history=["a", "b"], n=n, time=0, deadline=deadline)


def asked(client: SocketEngine, n: int) -> asyncio.Task[EngineAnswer]:
    return asyncio.create_task(client.recommend(request(n)))


async def busy(engine: Engine, client: SocketEngine) -> asyncio.Task[EngineAnswer]:
    """The model stands at its gate with request 1."""
    first = asked(client, 1)
    assert await asyncio.to_thread(engine.model.entered.wait, 10)
    return first


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


def with_engine(path: Path, scenario: Callable[[Engine, SocketEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Engine(path).running() as engine, front_end(path) as client:
            await scenario(engine, client)

    asyncio.run(run())


def test_requests_of_two_front_ends_are_decoded_together(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        async with front_end(path) as other:
            first = await busy(engine, client)
            rest = [asked(client, 2), asked(other, 3)]
            await until(lambda: engine.queued() == 2)
            engine.model.gate.set()
            answers = await asyncio.gather(first, *rest)
            assert [answer.catalog_version for answer in answers] == ["1", "2", "3"]
            assert sorted(engine.model.batches[1]) == [2, 3]

    with_engine(path, scenario)


def test_who_is_cancelled_is_not_decoded(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        first = await busy(engine, client)
        gone, stays = asked(client, 2), asked(client, 3)
        await until(lambda: engine.queued() == 2)
        gone.cancel()
        await asyncio.sleep(0)
        while not await client.figures():  # what comes back behind the cancelling says that it has arrived
            pass
        engine.model.gate.set()
        await asyncio.gather(first, stays)
        assert engine.model.batches == [[1], [3]]

    with_engine(path, scenario)


def test_a_front_end_that_goes_takes_its_requests_along(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        first = await busy(engine, client)
        async with front_end(path) as other:
            gone = asked(other, 2)
            await until(lambda: engine.queued() == 1)
        with pytest.raises(UnavailableError, match="went away"):
            await gone
        stays = asked(client, 3)
        await until(lambda: engine.queued() == 2)
        engine.model.gate.set()
        await asyncio.gather(first, stays)
        assert engine.model.batches == [[1], [3]]

    with_engine(path, scenario)


def test_a_deadline_means_the_same_to_two_clocks(path: Path) -> None:
    async def run() -> None:
        async with Engine(path).running() as engine, front_end(path, ahead=1_000.0) as client:
            engine.model.gate.set()
            await client.recommend(request(1, deadline=time.monotonic() + 1_000 + 5))
            (deadline,) = engine.model.deadlines
            assert deadline is not None
            assert 0 < deadline - time.monotonic() <= 5
            with pytest.raises(UnavailableError, match="the request's deadline"):
                await client.recommend(request(2, deadline=time.monotonic() + 1_000 - 1))

    asyncio.run(run())


def test_errors_keep_their_class_and_faults_their_words(path: Path, log_lines: list[MutableMapping[str, Any]]) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.model.gate.set()
        with pytest.raises(EngineFaultError, match="ValueError: thirteen"):
            await client.recommend(request(13))
        with pytest.raises(InputError, match=r"fourteen \[n = 14\] Remedy: ask for less"):
            await client.recommend(request(14))
        assert (await client.recommend(request(2))).catalog_version == "2"

    with_engine(path, scenario)
    assert len([line for line in log_lines if line["event"] == "request_failed"]) == 2


def test_a_full_queue_refuses_and_recovers(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        tasks = [await busy(engine, client), *(asked(client, n) for n in range(2, 10))]
        await until(lambda: engine.queued() == 8)
        with pytest.raises(UnavailableError, match="too many requests"):
            await client.recommend(request(11))
        engine.model.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.catalog_version for answer in answers] == [str(n) for n in range(1, 10)]

    with_engine(path, scenario)


def test_versions_and_refusals_are_known_at_once(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        assert client.versions == engine.model.versions
        assert (client.trouble, client.refused) == (None, None)
        engine.core.swap(Scripted("two"))
        engine.keeper.refused = "codes.npy differs"
        engine.server.publish()
        await until(lambda: client.versions == EngineVersions("two", "two.0", "nezha"))
        assert client.refused == "codes.npy differs"

    with_engine(path, scenario)


def test_the_counters_of_the_engine_can_be_asked(path: Path) -> None:
    async def run() -> None:
        async with front_end(path) as client:
            assert await client.figures() == b""
            async with Engine(path).running():
                await until(lambda: client.trouble is None)
                assert await client.figures() == b"windfire_engine_queue 0.0\n"

    asyncio.run(run())


def test_a_change_of_an_item_travels_and_so_does_its_refusal(path: Path) -> None:
    async def scenario(_: Engine, client: SocketEngine) -> None:
        change = Upsert(item_id="a", time=0, title="Å", category_path=("x", "y"), attributes={"k": "v"})
        changed = await client.change(ItemChange(change=change))
        assert changed == ItemChanged(outcome="created", catalog_version="a")
        assert (await client.change(ItemChange(change=Delete(item_id="b", time=0)))).catalog_version == "b"
        with pytest.raises(InputError, match="not new"):
            await client.change(ItemChange(change=change, only_new=True))
        with pytest.raises(InputError, match="cannot travel"):
            await client.change(ItemChange(change=Delete(item_id="\ud800", time=0)))

    with_engine(path, scenario)


def test_a_change_that_the_engine_lost_is_an_error(path: Path) -> None:
    async def run() -> None:
        async with front_end(path) as client:
            with pytest.raises(UnavailableError):
                await client.change(ItemChange(change=Delete(item_id="b", time=0)))

    asyncio.run(run())


def test_an_engine_that_dies_and_comes_back(path: Path, log_lines: list[MutableMapping[str, Any]]) -> None:
    async def run() -> None:
        metrics = Metrics()
        client = SocketEngine(path, metrics, tick=TICK)

        def connected() -> float | None:
            return metrics.registry.get_sample_value("windfire_engine_connected")

        await client.start()
        assert (client.versions, connected()) == (None, 0)
        assert (client.trouble or "").startswith(f"engine_unreachable: {path}: No such file")
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await client.recommend(request(1))
        async with Engine(path).running() as engine:
            await until(lambda: client.trouble is None)
            assert connected() == 1
            under_way = [await busy(engine, client), asked(client, 2)]
            await until(lambda: engine.queued() == 1)
            await engine.server.close()
            ended = await asyncio.gather(*under_way, return_exceptions=True)
            assert [str(error) for error in ended] == ["the engine went away before its answer"] * 2
            assert client.trouble == f"engine_unreachable: {path}: it hung up"
        assert metrics.registry.get_sample_value("windfire_engine_lost_total") == 2
        async with Engine(path).running() as engine:
            engine.model.gate.set()
            await until(lambda: client.trouble is None)
            assert (await client.recommend(request(3))).catalog_version == "3"
        await client.close()

    asyncio.run(run())
    events = [line["event"] for line in log_lines]
    assert events.count("engine_connected") == 2


def test_draining_answers_what_is_under_way_and_refuses_the_rest(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        first = await busy(engine, client)
        draining = asyncio.create_task(engine.server.drain(delay=0.6, grace=10))
        await until(lambda: client.trouble == "engine_draining: the engine process is being stopped")
        assert client.versions == engine.model.versions
        second = asked(client, 2)  # still taken: the front-end's load balancer may not have looked yet
        await until(lambda: engine.queued() == 1)
        await asyncio.sleep(0.65)
        with pytest.raises(UnavailableError, match="stopping"):
            await client.recommend(request(3))
        engine.model.gate.set()
        assert [answer.catalog_version for answer in await asyncio.gather(first, second)] == ["1", "2"]
        await draining
        await until(lambda: client.versions is None)

    with_engine(path, scenario)


def test_draining_does_not_wait_for_ever(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        first = await busy(engine, client)
        await asyncio.wait_for(engine.server.drain(delay=0, grace=0.05), 5)
        with pytest.raises(UnavailableError, match="went away"):
            await first

    with_engine(path, scenario)


def test_draining_leaves_who_never_reads(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.model.gate.set()
        engine.model.title = "x" * 8_000_000  # far more than the socket holds
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dumb:
            dumb.setblocking(False)
            await loop.sock_connect(dumb, str(path))
            await loop.sock_sendall(dumb, frame(Hello()) + frame(Ask.of(1, request(2), 0.0)))
            await until(lambda: engine.model.batches == [[2]])
            await client.figures()  # behind the answer to the other
            await asyncio.wait_for(engine.server.drain(delay=0, grace=0.2), 5)

    faults: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with Engine(path).running() as engine, front_end(path) as client:
            await scenario(engine, client)

    asyncio.run(run())
    assert faults == []


def test_only_recommendations_that_the_engine_lost_are_counted(path: Path) -> None:
    async def run() -> None:
        async with Engine(path).running() as engine:
            client = SocketEngine(path, metrics, tick=60.0)
            await client.start()
            first = await busy(engine, client)
            await client.close()
            assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], UnavailableError)
        assert lost() == 0, "an own close loses nothing"

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(READY)
            await reader.readuntil(b"windfire.engine")
            await reader.read(1_000)  # the rest of the hello, and what asks for the figures
            writer.close()

        server = await served(path, talk)
        await client.start()
        assert await client.figures() == b""
        await client.close()
        server.close()
        assert lost() == 0, "figures are no recommendation"

    metrics = Metrics()

    def lost() -> float | None:
        return metrics.registry.get_sample_value("windfire_engine_lost_total")

    asyncio.run(run())


def test_an_answer_of_a_type_that_cannot_travel_is_an_error_of_its_request(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.model.gate.set()
        engine.model.title = object()  # type: ignore[assignment]
        with pytest.raises(EngineFaultError, match="TypeError"):
            await client.recommend(request(1))
        engine.model.title = "x"
        assert (await client.recommend(request(2))).catalog_version == "2"

    with_engine(path, scenario)


def test_an_answer_that_is_too_large_is_an_error_of_its_request(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.core.swap(large)
        with pytest.raises(InputError, match="a message of"):
            await client.recommend(request(1))
        engine.core.swap(engine.model)
        engine.model.gate.set()
        assert (await client.recommend(request(2))).catalog_version == "2"

    monkeypatch.setattr("serving.remote.wire.MAX_FRAME", 10_000)
    large = Scripted(title="x" * 10_001)
    large.gate.set()
    with_engine(path, scenario)


async def served(
    path: Path, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
) -> Any:
    """Something that listens and is no engine."""
    return await asyncio.start_unix_server(talk, str(path))


READY = bytes(frame(Hello())) + bytes(frame(Status(None, None, draining=False)))


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (bytes(frame(Hello(VERSION + 1))), f"speaks version {VERSION + 1}"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "was announced"),
        (b"", "does not answer"),
        (READY, "no sign of life"),
    ],
    ids=["version", "http", "dumb", "silent"],
)
def test_what_is_no_engine_is_named(path: Path, says: bytes, why: str) -> None:
    async def run() -> None:
        writers = []

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.write(says)

        server = await served(path, talk)
        async with front_end(path, tick=0.01) as client:
            await until(lambda: why in (client.trouble or ""))
        server.close()
        for writer in writers:
            writer.close()

    asyncio.run(run())


def test_the_pauses_between_tries_double(path: Path) -> None:
    async def run() -> None:
        tries = []

        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tries.append(time.monotonic())
            writer.close()

        server = await served(path, talk)
        async with front_end(path):
            await until(lambda: len(tries) == 5)
        server.close()
        assert tries[4] - tries[0] > 0.05 + 0.1 + 0.2 + 0.4

    asyncio.run(run())


def test_a_refusal_that_no_text_can_carry_is_told_nevertheless(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.keeper.refused = "no such file: \udcff"
        await until(lambda: client.refused == "no such file: ?")  # with the next sign of life

    with_engine(path, scenario)


def test_an_answer_that_was_never_asked_breaks_the_connection(path: Path) -> None:
    async def run() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(READY)
            await reader.read(1_000)
            writer.write(bytes(frame(Counted(7, b""))))
            await reader.read()
            writer.close()

        server = await served(path, talk)
        async with front_end(path) as client:
            await until(lambda: "never asked" in (client.trouble or ""))
        server.close()

    asyncio.run(run())


def test_an_engine_that_does_not_read_is_not_flooded(path: Path) -> None:
    async def run() -> None:
        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(READY)

        writers: list[asyncio.StreamWriter] = []
        server = await served(path, talk)
        async with front_end(path, tick=60.0) as client:
            big = EngineRequest(history=["x" * 1_000_000], n=1, time=0)
            tasks = [asyncio.create_task(client.recommend(big)) for _ in range(30)]
            done, waiting = await asyncio.wait(tasks, timeout=0.5)
            assert 3 <= len(waiting) <= 10
            assert {str(task.exception()) for task in done} == {"the engine does not keep up with its requests"}
        await asyncio.wait(waiting)
        assert {str(task.exception()) for task in waiting} == {"the engine went away before its answer"}
        server.close()
        for writer in writers:
            writer.close()

    asyncio.run(run())


def test_a_front_end_that_does_not_read_its_answers_may_not_ask(path: Path) -> None:
    """What it asks stays in the socket: neither the queue nor the memory of the engine grows."""

    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.model.gate.set()
        engine.model.title = "x" * 100_000
        loop = asyncio.get_running_loop()

        def decoded(count: int) -> bool:
            return sum(map(len, engine.model.batches)) == count

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as greedy:
            greedy.setblocking(False)
            await loop.sock_connect(greedy, str(path))
            await loop.sock_sendall(greedy, frame(Hello()))

            async def ask_on() -> None:
                for n in range(1, 61):
                    await loop.sock_sendall(greedy, frame(Ask.of(n, request(n + 100), 0.0)))
                    await until(partial(decoded, n), seconds=1.0)

            with pytest.raises(TimeoutError):
                await ask_on()
            assert (await client.recommend(request(2))).catalog_version == "2"

    with_engine(path, scenario)


def test_a_number_that_is_asked_twice_breaks_the_connection(
    path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        ask = frame(Ask.of(1, request(1), 0.0))
        writer.write(frame(Hello()) + ask + ask)
        assert await asyncio.wait_for(reader.read(), 10)  # to the end
        writer.close()
        assert client.trouble is None

    with_engine(path, scenario)
    assert [line["error"] for line in log_lines if line["event"] == "front_end_lost"] == ["request 1 was asked twice"]


def test_a_cancelling_that_comes_too_late_changes_nothing(path: Path) -> None:
    async def scenario(engine: Engine, client: SocketEngine) -> None:
        engine.model.gate.set()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(frame(Hello()) + frame(Cancel(9)) + frame(Ask.of(10, request(5), 0.0)))
        received = b""
        async with asyncio.timeout(10):
            while b"one\xa15" not in received:
                received += await reader.read(1_000)
        writer.close()

    with_engine(path, scenario)
