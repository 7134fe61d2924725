"""The door before the whole application: who waited too long is refused before anything is read of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serving.app import create_app
from serving.ladder.admission import GUARDED, WAITED, Admission
from serving.ladder.door import Door
from serving.metrics import Metrics
from serving.settings import Settings


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers what the door has written down."""
    await JSONResponse({"waited": scope.get(WAITED)})(scope, receive, send)


def through(
    path: str, *, seconds: float, soon: list[Callable[[], None]], metrics: Metrics
) -> tuple[httpx.Response, httpx.Response]:
    """Two requests of one turn of a loop, which then takes so long."""
    clock = Clock()
    app = Admission(told, Door(1.0, clock=clock, soon=soon.append), metrics)

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            first, second = (asyncio.create_task(client.post(path)) for _ in range(2))
            for _ in range(50):  # both have come
                await asyncio.sleep(0)
            clock.now += seconds
            for call in list(soon):
                call()
            return await first, await second

    return asyncio.run(scenario())


@pytest.mark.parametrize("path", sorted(GUARDED))
def test_who_cannot_be_answered_in_time_is_told_at_once(path: str) -> None:
    metrics = Metrics()
    first, second = through(path, seconds=0.6, soon=[], metrics=metrics)
    assert (first.status_code, first.json()) == (200, {"waited": 0.0})
    assert (second.status_code, second.headers["retry-after"]) == (503, "1")
    assert (second.json()["code"], second.json()["retryable"]) == ("unavailable", True)
    counted = f'windfire_request_seconds_count{{route="{path}",status="503",tier=""}} 1.0'
    assert counted in metrics.render().decode()


def test_the_wait_at_the_door_counts_against_the_deadline() -> None:
    _, second = through("/v1/recommend", seconds=0.015, soon=[], metrics=Metrics())
    assert second.json()["waited"] == pytest.approx(0.015)


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/events"])
def test_what_has_no_deadline_passes_by(path: str) -> None:
    answers = through(path, seconds=0.6, soon=[], metrics=Metrics())
    assert [answer.json() for answer in answers] == [{"waited": None}] * 2


def test_the_application_has_the_door_before_everything_else(server_settings: Settings) -> None:
    outermost: Any = create_app(server_settings).user_middleware[0].cls
    assert outermost is Admission
