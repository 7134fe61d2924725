from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle.pointers import SHADOW, Share, write_share
from serving.engine import EngineAnswer, EngineCounts, EngineRequest, EngineVersions, Seek, SlateItem
from serving.lifecycle.deployment import Canary, Deployment
from serving.lifecycle.metrics import LifecycleMetrics
from serving.lifecycle.shadow import Shadow
from serving.lifecycle.shadow_log import ShadowLog, ShadowRecord, read_shadow
from serving.schemas import ServedBy
from serving.worker_values import Registry


class Scripted:
    """Answers with its own name as the item; waits at a gate; fails for one n."""

    def __init__(self, name: str) -> None:
        self.versions = EngineVersions(name, f"{name}.0", "nezha")
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.fails: int | None = 13

    def recommend(self, requests: Sequence[EngineRequest]) -> list[EngineAnswer]:
        assert self.gate.wait(10)
        self.asked += [request.n for request in requests]
        if any(request.n == self.fails for request in requests):
            raise ValueError("thirteen")
        item, counts = SlateItem(self.versions.bundle, 1.0, "nezha", None), EngineCounts(0, 0, 0, 0)
        bundle, catalog = self.versions.bundle, self.versions.catalog
        return [EngineAnswer([item], ServedBy.NEZHA, "nezha", bundle, catalog, True, counts) for _ in requests]


class Stage:
    """A deployment with a shadow, of scripted recommenders."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.live, self.other = Scripted("live"), Scripted("other")
        self.waiting = 0
        self.registry = Registry()
        self.metrics = LifecycleMetrics(self.registry)
        self.shadow = Shadow(
            Share("other", 1.0, ""),
            self.other,
            log=ShadowLog(state),
            waiting=lambda: self.waiting,
            torch_threads=1,
            metrics=self.metrics,
        )
        self.deployment = Deployment(self.live, shadow=self.shadow, metrics=self.metrics)

    def count(self, result: str) -> float:
        return self.registry.get_sample_value("windfire_shadow_total", {"result": result}) or 0.0

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not true() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert true()

    def records(self) -> list[ShadowRecord]:
        self.shadow.close()
        return list(read_shadow(self.state))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "state")
    yield stage
    stage.other.gate.set()


def request(n: int, request_id: str | None = "r", **more: Any) -> EngineRequest:
    return EngineRequest(history=(), n=n, time=n, request_id=request_id, **more)


def test_both_answers_are_written_down_and_one_is_shown(stage: Stage) -> None:
    answers = stage.deployment.recommend([request(1, "r-1", scene="home"), request(2, "r-2")])
    assert [[item.item_id for item in answer.items] for answer in answers] == [["live"], ["live"]]
    stage.until(lambda: stage.count("answered") == 2)
    first, second = stage.records()
    assert (first.request_id, first.n, first.time, first.scene) == ("r-1", 1, 1, "home")
    assert (first.live.items, first.shadow.items, second.request_id) == (["live"], ["other"], "r-2")
    assert (first.live.batch, first.shadow.batch, first.shadow.bundle) == (2, 1, "other")


def test_nobody_waits_for_the_shadow(stage: Stage) -> None:
    stage.other.gate.clear()
    answers = [stage.deployment.recommend([request(1)]) for _ in range(100)]
    assert len(answers) == 100
    assert stage.count("dropped") >= 100 - 32 - 1
    stage.other.gate.set()
    stage.until(lambda: stage.count("answered") + stage.count("dropped") == 100)


def test_it_is_given_up_while_requests_wait_for_the_model(stage: Stage) -> None:
    stage.waiting = 1
    stage.deployment.recommend([request(1), request(2)])
    stage.until(lambda: stage.count("dropped") == 2)
    assert stage.other.asked == []
    assert stage.records() == []


def test_what_it_raises_is_its_answer(stage: Stage) -> None:
    stage.shadow.offer([request(13)], stage.live.recommend([request(1)]), 0.5)
    stage.until(lambda: stage.count("failed") == 1)
    (record,) = stage.records()
    assert (record.shadow.error, record.shadow.items, record.live.items) == ("ValueError: thirteen", [], ["live"])


def test_what_cannot_be_joined_or_is_not_sampled_is_left_alone(stage: Stage) -> None:
    stage.shadow.share = Share("other", 0.3, "salt")
    names = [f"r-{n}" for n in range(60)]
    for name in names:
        stage.deployment.recommend([request(1, name)])
        stage.until(stage.shadow._queue.empty)
    stage.deployment.recommend([request(1, None), request(1, names[0], seek=Seek(text="x"))])
    sampled = [name for name in names if stage.shadow.share.takes(name)]
    stage.until(lambda: stage.count("answered") + stage.count("dropped") == len(sampled))
    assert [record.request_id for record in stage.records()] == sampled
    assert 0 < len(sampled) < 60


def test_canaries_answers_are_not_compared(stage: Stage) -> None:
    canary = Canary(Share("canary", 1.0, ""), Scripted("canary"))
    deployment = Deployment(stage.live, canary=canary, shadow=stage.shadow, metrics=stage.metrics)
    (answer, anonymous) = deployment.recommend([request(1, unit="ann"), request(2, "r-2")])
    assert (answer.bundle_version, answer.arms) == ("canary", {"bundle": "canary"})
    assert (anonymous.bundle_version, anonymous.arms) == ("live", {})
    stage.until(lambda: stage.count("answered") == 1)
    assert [record.request_id for record in stage.records()] == ["r-2"]


def test_users_of_a_canary_that_fails_are_answered_under_their_arm(stage: Stage) -> None:
    stage.live.fails = None
    deployment = Deployment(stage.live, canary=Canary(Share("other", 1.0, ""), stage.other), metrics=stage.metrics)
    answers = [deployment.recommend([request(n, unit="ann")])[0] for n in (12, 13)]
    assert [(answer.bundle_version, answer.arms["bundle"]) for answer in answers] == [
        ("other", "canary"),
        ("live", "canary"),
    ]
    assert stage.registry.get_sample_value("windfire_canary_failures_total") == 1


def test_several_processes_of_one_state_write_beside_each_other(tmp_path: Path) -> None:
    logs = [ShadowLog(tmp_path) for _ in range(3)]
    for log in logs:
        log.close()
    assert sorted(path.name for path in (tmp_path / "shadow").iterdir()) == ["000", "001", "002"]
    ShadowLog(tmp_path).close()
    assert len(list((tmp_path / "shadow").iterdir())) == 3, "what is free is used again"


def test_a_real_shadow_beside_a_real_bundle(rig: Any, versions: Any) -> None:
    write_share(versions.registry, SHADOW, Share(versions.renamed, 1.0, ""))

    async def scenario() -> list[EngineAnswer]:
        await rig.watcher.look()
        answers = []
        for n in range(6):
            wanted = EngineRequest(history=["item-11", "next-12"], n=5, time=1, request_id=f"r-{n}", unit="ann")
            answers.append(await rig.engine.recommend(wanted))
            await asyncio.sleep(0.05)
        return answers

    answers = asyncio.run(scenario())
    assert {answer.bundle_version for answer in answers} == {versions.old}
    assert rig.engine.versions.shadow == versions.renamed
    assert (
        f'windfire_bundle_beside{{role="shadow",version="{versions.renamed}"}} 1.0'
        in asyncio.run(rig.watcher.figures()).decode()
    )
    rig.watcher.close()
    records = list(read_shadow(rig.settings.state))
    assert records != []
    assert {record.live.bundle for record in records} == {versions.old}
    assert all(item.startswith("next-") for record in records for item in record.shadow.items)
    assert all(len(record.shadow.items) == 5 and not record.shadow.error for record in records)
