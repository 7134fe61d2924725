"""The real engine process: kill -9, SIGTERM, bundles that come and go, memory.

`WINDFIRE_FUZZ_EXAMPLES=10000 pytest tests/serving/remote/test_engine_process.py` kills and asks more often.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry, publish_run
from recsys.catalog import CatalogFilter
from recsys.errors import OverloadedError, UnavailableError
from serving.app import create_app
from serving.engine import EngineAnswer, EngineRequest
from serving.metrics import Metrics
from serving.remote import SocketEngine
from serving.settings import Settings

Start = Callable[..., Any]
EXAMPLES = int(os.environ.get("WINDFIRE_FUZZ_EXAMPLES", "300"))
KILLS = 1 + EXAMPLES // 3_000
PER_LIFE = 400 + EXAMPLES // 4  # requests between two kills
ITEMS = [f"item-{n:02d}" for n in range(48)]
IDS = np.array([*ITEMS, "nobody", "\u00eftem-12"])
ALWAYS = 4 * 10**15  # later than any time that is asked for


@dataclass
class Churn:
    """Three bundles that differ in what may be shown.

    Attributes:
        registry: of its own.
        rows: of the items table by version.
    """

    registry: Registry
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture
def churn(served_registry: Registry, tiny_work: Path, tiny_run: Path, tmp_path: Path) -> Churn:
    """What `served_registry` has, everything, and everything but that half is gone in a few seconds."""
    root = tmp_path / "registry"
    shutil.copytree(served_registry.root, root)
    registry = Registry(root)
    publish_run(registry, run=tiny_run, work=tiny_work, created=datetime(2026, 2, 1, tzinfo=UTC))
    work = tmp_path / "work"
    shutil.copytree(tiny_work, work)
    part = work / "items" / "data" / "part-0.parquet"
    table = pq.read_table(part)
    soon = time.time_ns() // 1_000 + 4_000_000
    ends = pa.array(
        [soon if n % 2 else None for n in range(table.num_rows)], table.schema.field("available_until").type
    )
    place = table.column_names.index("available_until")
    pq.write_table(table.set_column(place, table.schema.field(place), ends), part)
    publish_run(registry, run=tiny_run, work=work, created=datetime(2026, 3, 1, tzinfo=UTC))
    return Churn(registry, {version: registry.open(version).items.to_pylist() for version in registry.versions()})


def drawn(rng: np.random.Generator) -> EngineRequest:
    """Any request; it must begin soon."""

    def some(most: int) -> list[str]:
        names: list[str] = rng.choice(IDS, size=int(rng.integers(most))).tolist()
        return names

    def perhaps(share: float, value: Any, other: Any = None) -> Any:
        return value if rng.random() < share else other

    conditions = CatalogFilter(
        categories=perhaps(0.2, (("All", "Group 1"),), ()),
        brands=perhaps(0.2, ("Brand 1", "Brand 2"), ()),
        price_min_micros=perhaps(0.2, int(rng.integers(40_000_000))),
        price_max_micros=perhaps(0.2, int(rng.integers(50_000_000))),
    )
    return EngineRequest(
        history=some(int(rng.choice([2, 10, 300]))),
        n=int(rng.integers(1, 60)),
        time=time.time_ns() // 1_000,
        scene=perhaps(0.5, "home"),
        conditions=conditions,
        allow=perhaps(0.3, some(40)),
        deny=some(10),
        exclude_seen=bool(rng.random() < 0.5),
        deadline=time.monotonic() + float(rng.exponential(0.3)),
    )


def eligible(rows: list[dict[str, Any]], request: EngineRequest) -> set[str]:
    """The definition, row by row."""
    rules = request.conditions
    refused = {*request.deny, *(request.history if request.exclude_seen else ())}
    low, high = rules.price_min_micros or 0, rules.price_max_micros
    priced = rules.price_min_micros is not None or high is not None
    return {
        row["item_id"]
        for row in rows
        if row["item_id"] not in refused
        and (request.allow is None or row["item_id"] in request.allow)
        and (row["available_from"] or 0) <= request.time < (row["available_until"] or ALWAYS)
        and (not rules.brands or row["brand"] in rules.brands)
        and (not rules.categories or tuple((row["category_path"] or ())[:2]) in rules.categories)
        and (
            not priced
            or low
            <= (-1 if row["price_micros"] is None else row["price_micros"])
            <= (high or 0 if high is not None else ALWAYS)
        )
    }


def faults(churn: Churn, request: EngineRequest, answer: EngineAnswer, until: int) -> list[str]:
    """What is wrong with an answer that was there at a time; such a slate fits hardly any other request."""
    shown = [item.item_id for item in answer.items]
    rows = churn.rows[answer.bundle_version]
    may = eligible(rows, request)
    lasting = may & eligible(rows, replace(request, time=until))  # what is gone while a request waits is not shown
    found = {
        "repeated": len(set(shown)) < len(shown),
        "ineligible": not set(shown) <= may,
        "too few": len(shown) < min(request.n, len(lasting)),
        "too many": len(shown) > request.n,
        "another's history": answer.counts.history != len(request.history),
        "mixed versions": answer.catalog_version != f"{answer.bundle_version}.0",
        "caught late": answer.ineligible != 0,
    }
    return [name for name, true in found.items() if true]


async def connected(path: Path) -> SocketEngine:
    client = SocketEngine(path, Metrics())
    await client.start()
    return client


async def ready(engine: Any, *clients: SocketEngine) -> None:
    """Wait as long as a start takes on a busy machine, unless the process has ended."""
    async with asyncio.timeout(200):
        while engine.process.poll() is None and None in [client.versions for client in clients]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert engine.process.poll() is None


class Crowd:
    """Sends random requests and gives some of them up; remembers what was asked and what came of it."""

    def __init__(self, clients: list[SocketEngine], rng: np.random.Generator) -> None:
        self.clients = clients
        self.rng = rng
        self.asked: list[EngineRequest] = []
        self.until: dict[int, int] = {}  # when a request was answered, by its place
        self.tasks: list[asyncio.Task[EngineAnswer]] = []

    async def send(self, count: int, gap: float) -> None:
        rng = self.rng
        for _ in range(count):
            self.asked.append(drawn(rng))
            client = self.clients[int(rng.integers(len(self.clients)))]
            self.tasks.append(asyncio.create_task(self._ask(client, len(self.asked) - 1)))
            await asyncio.sleep(float(rng.exponential(gap)))
            for task in rng.choice(np.array(self.tasks[-5:], dtype=object), size=int(rng.random() < 0.1)):
                task.cancel()

    async def _ask(self, client: SocketEngine, place: int) -> EngineAnswer:
        answer = await client.recommend(self.asked[place])
        self.until[place] = time.time_ns() // 1_000
        return answer

    async def ended(self) -> list[EngineAnswer | BaseException]:
        async with asyncio.timeout(60):
            return await asyncio.gather(*self.tasks, return_exceptions=True)


def test_kills_and_swaps_leave_one_answer_or_one_error(start_engine: Start, churn: Churn, tmp_path: Path) -> None:
    path, rng = tmp_path / "engine.sock", np.random.default_rng(11)
    quick = {"WINDFIRE_ENGINE": "torch", "WINDFIRE_BUNDLE_POLL": "PT0.02S", "WINDFIRE_QUEUE_LIMIT": "16"}

    def start(*, wait: bool = False) -> Any:
        return start_engine(registry=churn.registry.root, path=path, wait=wait, **quick)

    async def churning() -> None:
        while True:
            for version in churn.rows:
                churn.registry.set_current(version)
                await asyncio.sleep(0.15)

    async def scenario(engine: Any) -> tuple[Crowd, list[EngineAnswer | BaseException]]:
        clients = [await connected(path) for _ in range(2)]
        crowd = Crowd(clients, rng)
        churner = asyncio.create_task(churning())
        for _ in range(KILLS):
            await crowd.send(PER_LIFE, gap=0.002)
            engine.kill()
            await crowd.send(20, gap=0.001)
            engine = start()
            await ready(engine, *clients)
        await crowd.send(PER_LIFE, gap=0.002)
        ended = await crowd.ended()
        churner.cancel()
        for client in clients:
            assert client._link is not None
            assert client._link._pending == {}
            await client.close()
        return crowd, ended

    crowd, ended = asyncio.run(scenario(start(wait=True)))
    kinds = dict.fromkeys((EngineAnswer, OverloadedError, UnavailableError, asyncio.CancelledError), 0)
    for outcome in ended:
        kinds[type(outcome)] += 1  # no other kind
    answered = [(place, outcome) for place, outcome in enumerate(ended) if isinstance(outcome, EngineAnswer)]
    judged = [faults(churn, crowd.asked[place], answer, crowd.until[place]) for place, answer in answered]
    assert [found for found in judged if found] == []
    assert {answer.bundle_version for _, answer in answered} == set(churn.rows)
    assert kinds[EngineAnswer] > len(ended) // 4
    lost = sum("went away" in str(outcome) or "be reached" in str(outcome) for outcome in ended)
    assert lost >= 15 * KILLS


def test_memory_stays_flat(shared_engine: Any) -> None:
    """Warmed up, it grows by the masks of filters never asked for before, about 200 bytes each until they are full."""
    process, rng = psutil.Process(shared_engine.process.pid), np.random.default_rng(12)
    asked = 1_000 + 5 * EXAMPLES

    async def scenario() -> tuple[int, int]:
        client = await connected(shared_engine.socket)
        sizes = []
        for count in (1_000, asked):
            crowd = Crowd([client], rng)
            await crowd.send(count, gap=0.0005)
            await crowd.ended()
            sizes.append(process.memory_info().rss)
        await client.close()
        return sizes[0], sizes[1]

    warm, later = asyncio.run(scenario())
    assert later - warm < (3 << 20) + 300 * asked


def test_sigterm_answers_all_that_was_asked_before_the_end(start_engine: Start) -> None:
    engine = start_engine(WINDFIRE_ENGINE="torch", WINDFIRE_DRAIN_DELAY="PT0.3S")

    async def scenario() -> list[EngineAnswer | BaseException]:
        client = await connected(engine.socket)
        crowd = Crowd([client], np.random.default_rng(13))
        await crowd.send(50, gap=0.001)
        engine.process.send_signal(signal.SIGTERM)
        while client.trouble is None:
            await crowd.send(1, gap=0.002)
        told = client.trouble
        await crowd.send(20, gap=0.001)
        assert told.startswith("engine_draining")
        ended = await crowd.ended()
        await asyncio.to_thread(engine.process.wait, 20)
        await client.close()
        return ended

    ended = asyncio.run(scenario())
    refusals = {str(outcome) for outcome in ended if isinstance(outcome, UnavailableError)}
    assert {refusal for refusal in refusals if "deadline" not in refusal} == set()
    assert engine.process.returncode == 0
    assert not engine.socket.exists()
    lines = [json.loads(line) for line in engine.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] in {"warning", "error"}] == []
    assert [line["event"] for line in lines][-1] == "engine_ended"


def test_a_second_engine_ends_with_a_clear_line(start_engine: Start, shared_engine: Any) -> None:
    second = start_engine(path=shared_engine.socket, wait=False)
    assert second.process.wait(60) == 2
    assert "windfire: unavailable: another process listens on this socket" in second.log.read_text()
    assert shared_engine.socket.exists()


def test_a_front_end_says_why_it_is_not_ready(start_engine: Start, server_settings: Settings, tmp_path: Path) -> None:
    registry = tmp_path / "empty"
    path = tmp_path / "engine.sock"

    def until(client: TestClient, reason: str) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            answer: dict[str, Any] = client.get("/readyz").json()
            if [each for each in answer["reasons"] if each.startswith(reason)]:
                return answer
            time.sleep(0.01)
        pytest.fail(f"{reason} was not among {answer}")

    with TestClient(create_app(server_settings.model_copy(update={"engine_socket": path}))) as client:
        assert client.get("/readyz").status_code == 503
        until(client, f"engine_unreachable: {path}: No such file or directory")
        assert client.post("/v1/recommend", json={}).json()["served_by"] == "popular_scene"  # from the tables alone
        assert "windfire_engine_connected 0.0" in client.get("/metrics").text
        engine = start_engine(registry=registry, path=path, WINDFIRE_BUNDLE_POLL="PT0.02S")
        until(client, "no_bundle")
        (registry / "CURRENT").parent.mkdir(exist_ok=True)
        (registry / "CURRENT").write_text("../elsewhere")
        until(client, "bundle_refused")
        text = client.get("/metrics").text
        assert "windfire_engine_connected 1.0" in text
        assert 'windfire_bundle_reloads_total{result="refused"} 1.0' in text
        engine.kill()
        until(client, f"engine_unreachable: {path}")


def test_front_ends_share_an_engine(shared_engine: Any, server_settings: Settings, tmp_path: Path) -> None:
    def settings(name: str) -> Settings:
        return server_settings.model_copy(update={"engine_socket": shared_engine.socket, "state": tmp_path / name})

    with TestClient(create_app(settings("a"))) as one, TestClient(create_app(settings("b"))) as two:
        bodies = [client.post("/v1/recommend", json={"history": ["item-11"]}).json() for client in (one, two)]
        assert bodies[0]["items"] == bodies[1]["items"] != []
        assert one.get("/readyz").json() == two.get("/readyz").json()
        decoded = [
            [line for line in client.get("/metrics").text.splitlines() if line.startswith("windfire_decode_batch_sum")]
            for client in (one, two)
        ]
        assert decoded[0] == decoded[1] != []


def test_a_front_end_process_that_is_killed_harms_nobody(
    start_server: Start, shared_engine: Any, server_settings: Settings
) -> None:
    server = start_server(WINDFIRE_ENGINE_SOCKET=str(shared_engine.socket))
    loaded = {Path(entry.path).name for entry in psutil.Process(server.process.pid).memory_maps()}
    assert not {name for name in loaded if "torch" in name}, "a front-end loads no model"
    ask = {"history": ["item-11"]}
    items = httpx.post(f"{server.url}/v1/recommend", json=ask).json()["items"]
    server.process.kill()
    server.process.wait()
    with TestClient(create_app(server_settings.model_copy(update={"engine_socket": shared_engine.socket}))) as other:
        assert other.post("/v1/recommend", json=ask).json()["items"] == items != []
