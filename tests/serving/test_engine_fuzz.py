"""Random arrivals, lengths, deadlines, cancellations, swaps and failures, against every implementation of `Engine`.

`WINDFIRE_FUZZ_EXAMPLES=10000 pytest tests/serving/test_engine_fuzz.py` is the long run. Engines that are killed:
`remote/test_engine_process.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import OverloadedError, UnavailableError
from serving.engine import (
    Engine,
    EngineAnswer,
    EngineCounts,
    EngineRequest,
    EngineVersions,
    InProcessEngine,
    SlateItem,
)
from serving.item_changes import ItemChange, ItemChanged
from serving.metrics import EngineMetrics, Metrics
from serving.remote import EngineServer, SocketEngine
from serving.remote.address import claimed
from serving.remote.wire import EngineFaultError
from serving.schemas import ServedBy

COUNT = max(400, int(os.environ.get("WINDFIRE_FUZZ_EXAMPLES", "0")))
FAULTY = 13  # the request that the model fails for
Reach = Callable[[InProcessEngine, Path], AbstractAsyncContextManager[list[Engine]]]


class Echo:
    """Answers with the request's own history; slow now and then."""

    def __init__(self, seed: int) -> None:
        self.versions = EngineVersions(f"v{seed}", f"v{seed}.0", "nezha")
        self.rng = np.random.default_rng(seed)

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        time.sleep(float(self.rng.exponential(0.001)))
        return [self.answer(request) for request in requests]

    def answer(self, request: EngineRequest) -> EngineAnswer:
        if request.n == FAULTY:
            raise ValueError("thirteen")
        items = [SlateItem(item, 0.0, "nezha", None) for item in request.history]
        counts = EngineCounts(len(items), 0, 0, 0)
        versions = self.versions
        return EngineAnswer(items, ServedBy.NEZHA, None, versions.bundle, versions.catalog, False, counts)


@asynccontextmanager
async def in_process(core: InProcessEngine, _: Path) -> AsyncIterator[list[Engine]]:
    yield [core]


class Keeper:
    """Knows nothing."""

    trouble: str | None = None
    refused: str | None = None

    async def figures(self) -> bytes:
        return b""

    async def change(self, change: ItemChange) -> ItemChanged:
        raise UnavailableError("there is no catalogue", value=change.change.item_id)


@asynccontextmanager
async def over_a_socket(core: InProcessEngine, folder: Path) -> AsyncIterator[list[Engine]]:
    """Two front-ends on one engine; at the end nobody remembers a request."""
    with claimed(folder / "engine.sock") as bound:
        server = EngineServer(core, Keeper(), clock=time.monotonic)
        await server.start(bound)
        clients = [SocketEngine(folder / "engine.sock", Metrics()) for _ in range(2)]
        for client in clients:
            await client.start()
        yield [*clients]
        links = [*server._links, *(client._link for client in clients)]
        assert [link._pending for link in links if link is not None] == [{}] * 4
        for client in clients:
            await client.close()
        await server.close()


def asked(n: int, rng: np.random.Generator) -> EngineRequest:
    history = [f"{n}:{place}" for place in range(int(rng.exponential(40)))]
    deadline = time.monotonic() + float(rng.exponential(0.01))
    return EngineRequest(history=history, n=n, time=n, deadline=deadline)


@pytest.mark.parametrize("reach", [in_process, over_a_socket])
@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_with_its_own_answer_or_an_error(reach: Reach, seed: int, tmp_path: Path) -> None:
    """At last the engine is closed under way."""
    rng = np.random.default_rng(seed)
    metrics = EngineMetrics()
    core = InProcessEngine(metrics, queue_limit=20, batch_limit=4, torch_threads=1)
    core.swap(Echo(seed))
    requests = [asked(n, rng) for n in range(COUNT)]  # the deadlines are made anew when the requests are sent

    async def one(engine: Engine, n: int) -> EngineAnswer:
        requests[n] = asked(n, rng)
        return await engine.recommend(requests[n])

    async def scenario() -> list[EngineAnswer | BaseException]:
        tasks = []
        async with reach(core, tmp_path) as engines:
            for n in range(COUNT):
                tasks.append(asyncio.create_task(one(engines[int(rng.integers(len(engines)))], n)))
                await asyncio.sleep(float(rng.exponential(0.0005)))
                for task in rng.choice(np.array(tasks[-20:], dtype=object), size=int(rng.random() < 0.1)):
                    task.cancel()
                for other in range(int(rng.random() < 0.05)):
                    core.swap(Echo(100 + other))
            closing = asyncio.create_task(asyncio.to_thread(core.close))
            ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            await closing
        return ended

    ended = asyncio.run(scenario())
    known = (
        EngineAnswer, UnavailableError, OverloadedError, ValueError, EngineFaultError, asyncio.CancelledError,
    )  # fmt: skip
    kinds = dict.fromkeys(known, 0)
    for outcome in ended:
        kinds[type(outcome)] += 1  # no other kind
    answered = {n: outcome for n, outcome in enumerate(ended) if isinstance(outcome, EngineAnswer)}
    assert [n for n, got in answered.items() if [item.item_id for item in got.items] != requests[n].history] == []
    assert {answer.bundle_version for answer in answered.values()} <= {f"v{seed}", "v100"}
    assert FAULTY not in answered
    assert kinds[EngineAnswer] > COUNT // 8
    assert kinds[OverloadedError] > 0
    assert metrics.registry.get_sample_value("windfire_engine_queue") == 0
