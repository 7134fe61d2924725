"""What the ladder costs a request while the engine is well: an instant engine, asked as it is and through the ladder.

`python -m benchmarks.ladder_cost` prints microseconds of CPU per request, the median of rounds in which the ways take
turns: 20 items, a history of 50. `kept` is a user whose last answer is kept; `header` an empty route that has
X-Deadline-Ms read by the framework.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import uvloop
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table
from starlette.responses import Response

from feature_store.reading import Reading, Reason, missing
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, SlateItem
from serving.ladder.deadline import Deadline, DeadlineMs
from serving.ladder.fallback import Fallback
from serving.ladder.ladder import Ladder
from serving.ladder.metrics import LadderMetrics
from serving.schemas import ServedBy
from serving.settings import Settings
from serving.worker_values import Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping


_ITEMS: Final = [SlateItem(f"item-{n:07d}", -float(n), "nezha", f"A title of item {n}") for n in range(20)]
_ANSWER: Final = EngineAnswer(_ITEMS, ServedBy.NEZHA, "nezha", "b1", "b1.0", False, EngineCounts(50, 0, 0, 0))
_REQUEST: Final = EngineRequest(history=[f"item-{n:07d}" for n in range(50)], n=20, time=0)


class _Instant:
    """Answers at once."""

    versions: EngineVersions | None = EngineVersions("b1", "b1.0", "nezha")

    async def recommend(self, request: EngineRequest) -> EngineAnswer:  # noqa: ARG002 - as in the protocol
        return _ANSWER


class _NoHistories:
    """Nobody reads one here."""

    deadline = 0.0

    async def of(self, user_id: str, within: float = 0.0) -> Reading:  # noqa: ARG002 - the protocol's names
        return missing(Reason.ABSENT)


def _application(*, header: bool) -> FastAPI:
    app = FastAPI()

    async def plain() -> Response:
        return Response(b"")

    async def timed(deadline_ms: DeadlineMs = None) -> Response:
        return Response(b"" if deadline_ms else b"none")

    app.add_api_route("/", timed if header else plain)
    return app


async def _receive() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(_: MutableMapping[str, Any]) -> None:
    return


def _get(app: FastAPI) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        headers = [(b"content-type", b"application/json"), (b"x-deadline-ms", b"200")]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
        await app(scope, _receive, _send)

    return call


def ways() -> dict[str, Callable[[], Awaitable[object]]]:
    """What is compared, by name; in pairs, the bare way first."""
    settings, engine = Settings(deadline=timedelta(seconds=2)), _Instant()
    ladder = Ladder(settings, LadderMetrics(Registry()), engine, _NoHistories(), Fallback(minimum=0.0))

    def through(user_id: str | None) -> Callable[[], Awaitable[object]]:
        async def call() -> object:
            deadline = Deadline.within(None, settings)
            request = EngineRequest(history=_REQUEST.history, n=20, time=0, deadline=deadline.engine)
            return await ladder.recommend(request, deadline, user_id=user_id)

        return call

    async def bare() -> object:
        deadline = time.monotonic() + settings.deadline.total_seconds()
        return await engine.recommend(EngineRequest(history=_REQUEST.history, n=20, time=0, deadline=deadline))

    return {
        "engine": bare,
        "ladder": through(None),
        "ladder, kept": through("ann"),
        "route": _get(_application(header=False)),
        "route, header": _get(_application(header=True)),
    }


async def measure(calls: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU per call of each way, the median of rounds."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, call in ways().items():
            await call()
            began = time.process_time()
            for _ in range(calls):
                await call()
            found.setdefault(name, []).append((time.process_time() - began) / calls * 1e6)
    return {name: median(values) for name, values in found.items()}


def main(
    calls: Annotated[int, typer.Option(help="Per round.")] = 2_000,
    rounds: Annotated[int, typer.Option(help="In which all take turns.")] = 9,
) -> None:
    """Measure and print."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(calls, rounds))
    table = Table("way", "microseconds of CPU")
    for name, value in found.items():
        table.add_row(name, f"{value:.1f}")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    typer.run(main)
