"""The real engine process, stopped and killed below a front-end that answers on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry
from recsys.catalog.changes import Delete
from recsys.catalog.log import CatalogLog
from serving.app import create_app
from serving.settings import Settings

Start = Callable[..., Any]
ASK = {"history": ["item-11", "item-12"], "n": 5}
PATIENCE = 60.0  # seconds for what takes well under one on an idle machine


def tier(client: TestClient, **rest: Any) -> str:
    response = client.post("/v1/recommend", json={**ASK, **rest})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert len(answer["items"]) == 5
    return str(answer["served_by"])


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_an_engine_that_stalls_comes_back_and_dies_is_never_missed(
    start_engine: Start, served_registry: Registry, server_settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    engine = start_engine(WINDFIRE_CATALOG_LOG=str(log))
    settings = server_settings.model_copy(
        update={
            "engine_socket": engine.socket,
            "deadline": timedelta(seconds=2),
            "fallback_reserve": timedelta(seconds=0.5),
            "breaker_failures": 1,
            "breaker_pause": timedelta(seconds=0.2),
        }
    )
    with TestClient(create_app(settings)) as client:
        until(lambda: tier(client, user_id="ann") in ("nezha", "nezha_small"))
        os.kill(engine.process.pid, signal.SIGSTOP)
        try:
            assert tier(client, user_id="ann") == "cached"
            assert {tier(client) for _ in range(3)} == {"item_to_item"}
            assert tier(client, history=[], scene="home") == "popular_scene"
            with CatalogLog(log).writing() as writer:  # another engine of the machine goes on
                writer.append([Delete(item_id="item-10", time=1)])
            answer = client.post("/v1/recommend", json={**ASK, "filters": {"allow": ["item-10", "item-14"]}}).json()
            assert [item["item_id"] for item in answer["items"]] == ["item-14"]
        finally:
            os.kill(engine.process.pid, signal.SIGCONT)
        until(lambda: tier(client) in ("nezha", "nezha_small"))
        engine.kill()
        assert {tier(client) for _ in range(3)} == {"item_to_item"}
        assert client.get("/readyz").json()["reasons"][0].startswith("engine_unreachable")


def test_servers_of_one_engine_may_stay_ready_while_it_is_away(
    served_registry: Registry, server_settings: Settings, tmp_path: Path
) -> None:
    nowhere = {"engine_socket": tmp_path / "nobody.sock"}
    lenient = server_settings.model_copy(update={**nowhere, "ready_without_engine": True})
    with TestClient(create_app(lenient)) as client:
        readiness = client.get("/readyz")
        assert (readiness.status_code, readiness.json()["reasons"]) == (200, [])
        assert readiness.json()["warnings"][0].startswith("engine_unreachable")
        assert tier(client) == "item_to_item"
    empty = lenient.model_copy(update={"registry": tmp_path / "empty", "state": tmp_path / "other"})
    with TestClient(create_app(empty)) as client:
        readiness = client.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.json()["reasons"][0].startswith("engine_unreachable")
    strict = server_settings.model_copy(update={**nowhere, "state": tmp_path / "third"})
    with TestClient(create_app(strict)) as client:
        assert client.get("/readyz").status_code == 503
        assert tier(client) == "item_to_item"


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["killed", "stalled"])
def test_under_load_no_request_fails_and_the_model_is_back_soon(
    start_engine: Start, start_server: Start, fault: str
) -> None:
    engine = start_engine()
    server = start_server(
        WINDFIRE_ENGINE_SOCKET=str(engine.socket), WINDFIRE_DEADLINE="PT1S", WINDFIRE_BREAKER_PAUSE="PT0.2S"
    )

    begins: dict[str, Callable[[], object]] = {
        "killed": engine.kill,
        "stalled": lambda: os.kill(engine.process.pid, signal.SIGSTOP),
    }
    ends: dict[str, Callable[[], object]] = {
        "killed": lambda: start_engine(path=engine.socket),
        "stalled": lambda: os.kill(engine.process.pid, signal.SIGCONT),
    }

    async def load(client: httpx.AsyncClient, seconds: float) -> Counter[str]:
        """So many requests at once that the machine's speed does not matter, one behind the other."""
        tiers: Counter[str] = Counter()
        last = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < last:
                response = await client.post("/v1/recommend", json=ASK)
                assert response.status_code == 200, response.text
                answer = response.json()
                assert len(answer["items"]) == 5
                tiers[answer["served_by"]] += 1

        await asyncio.gather(*(one() for _ in range(8)))
        return tiers

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            before = await load(client, 2)
            begins[fault]()
            during = await load(client, 5)
            await asyncio.to_thread(ends[fault])
            latest = time.monotonic() + PATIENCE
            while not (after := await load(client, 1)).keys() & {"nezha", "nezha_small"}:
                assert time.monotonic() < latest, after
            assert before.keys() & {"nezha", "nezha_small"}
            assert set(during) <= {"item_to_item", "popular_memory"}  # the latter where a busy machine has no time

    asyncio.run(scenario())
