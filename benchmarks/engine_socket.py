"""What the way to an engine process costs: the same instant model in this process and behind a socket, in turn.

`python -m benchmarks.engine_socket` prints microseconds per request, one at a time and sixteen at once, answers of
10 and of 500 items, a history of 50. The model takes no time: all of it is queue, hops between threads, and socket.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from recsys.errors import UnavailableError
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, InProcessEngine, SlateItem
from serving.item_changes import ItemChange, ItemChanged
from serving.metrics import EngineMetrics, Metrics
from serving.remote import EngineServer, SocketEngine
from serving.remote.address import claimed
from serving.schemas import ServedBy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from serving.engine import Engine

_SHAPES: Final = ((1, 10), (16, 10), (1, 500))  # requests at once, items per answer
_HISTORY: Final = [f"item-{n:07d}" for n in range(50)]


class _Instant:
    """Answers from a list made before."""

    versions = EngineVersions("none", "none.0", "none")

    def __init__(self) -> None:
        self._items = [SlateItem(f"item-{n:07d}", -float(n), "nezha", f"A title of item {n}") for n in range(500)]

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        counts = EngineCounts(len(_HISTORY), 0, 0, 0)
        return [
            EngineAnswer(self._items[: each.n], ServedBy.NEZHA, "none", "none", "none.0", False, counts)
            for each in requests
        ]


class _Keeper:
    trouble: str | None = None
    refused: str | None = None

    async def figures(self) -> bytes:
        return b""

    async def change(self, change: ItemChange) -> ItemChanged:
        raise UnavailableError("there is no catalogue", value=change.change.item_id)


def _engine() -> InProcessEngine:
    engine = InProcessEngine(EngineMetrics(), queue_limit=64, batch_limit=8, torch_threads=1)
    engine.swap(_Instant())
    return engine


async def _serve(path: Path) -> None:
    """The engine process; ends with its parent, whose pipe it reads."""
    engine = _engine()
    with claimed(path) as bound:
        server = EngineServer(engine, _Keeper(), clock=time.monotonic)
        await server.start(bound)
        await asyncio.to_thread(sys.stdin.read)
        await server.close()
    engine.close()


@asynccontextmanager
async def _process(path: Path) -> AsyncIterator[SocketEngine]:
    command = [sys.executable, "-m", "benchmarks.engine_socket", "--serve", str(path)]
    child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    client = SocketEngine(path, Metrics())
    await client.start()
    async with asyncio.timeout(60):
        while client.versions is None:  # noqa: ASYNC110 - it says so to a load balancer only
            await asyncio.sleep(0.01)
    try:
        yield client
    finally:
        await client.close()
        await child.communicate(b"")  # the end of its input


async def _microseconds(engine: Engine, at_once: int, n: int) -> float:
    request = EngineRequest(history=_HISTORY, n=n, time=0, deadline=time.monotonic() + 60)
    started = time.perf_counter()
    await asyncio.gather(*(engine.recommend(request) for _ in range(at_once)))
    return (time.perf_counter() - started) / at_once * 1e6


async def _measure(rounds: int, path: Path) -> Table:
    table = Table("at once", "items", "in process, µs", "socket, µs", "difference, µs")
    own = _engine()
    async with _process(path) as remote:
        for at_once, n in _SHAPES:
            pairs = [
                (await _microseconds(own, at_once, n), await _microseconds(remote, at_once, n)) for _ in range(rounds)
            ]
            here, there = (median(column) for column in zip(*pairs[rounds // 10 :], strict=True))
            table.add_row(str(at_once), str(n), f"{here:.0f}", f"{there:.0f}", f"{there - here:.0f}")
    own.close()
    return table


def main(
    rounds: Annotated[int, typer.Option(min=10, help="Requests, or groups of them, per engine and shape.")] = 2_000,
    serve: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time an instant model in this process and behind a socket."""
    if serve is not None:
        uvloop.run(_serve(serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        Console(highlight=False).print(uvloop.run(_measure(rounds, Path(folder) / "engine.sock")))


if __name__ == "__main__":
    typer.run(main)
