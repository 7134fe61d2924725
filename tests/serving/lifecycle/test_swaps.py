"""Bundles that come and go under requests: nothing fails, nothing is mixed, what goes is given back."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from itertools import count
from typing import Any

import pytest

from recsys.bundle.gate import Gate
from recsys.bundle.pointers import CANARY, SHADOW, Share, clear_share, write_share
from recsys.bundle.promotion import promote, roll_back
from serving.engine import EngineAnswer, EngineRequest, InProcessEngine
from serving.lifecycle.deployment import Deployment
from serving.lifecycle.workers import live_workers

NOW = 1_800_000_000_000_000

Rig = Any  # see conftest


def asked(number: int) -> EngineRequest:
    history = [f"{name}-{(7 * number + step) % 48:02d}" for step in range(3) for name in ("item", "next")]
    return EngineRequest(
        history=history, n=10, time=NOW, request_id=f"request-{number}", unit=f"user-{number % 40}", scene="home"
    )


def mixed(versions: Any, answer: EngineAnswer) -> bool:
    """Whether an answer holds what its bundle does not have, or too little."""
    prefix = "next-" if answer.bundle_version == versions.renamed else "item-"
    whole = answer.catalog_version == f"{answer.bundle_version}.0" and answer.ineligible == 0
    return not whole or len(answer.items) != 10 or not all(item.item_id.startswith(prefix) for item in answer.items)


async def crowd(engine: InProcessEngine, numbers: Any, answers: list[EngineAnswer], until: asyncio.Event) -> None:
    while not until.is_set():
        answers.append(await engine.recommend(asked(next(numbers))))


def test_ten_swaps_and_two_rollbacks_under_requests(rig: Rig, versions: Any) -> None:
    registry, gate = versions.registry, Gate({})
    answers: list[EngineAnswer] = []

    async def scenario() -> list[str]:
        await rig.watcher.look()
        numbers, over = count(), asyncio.Event()
        clients = [asyncio.create_task(crowd(rig.engine, numbers, answers, over)) for _ in range(8)]
        served = []
        for version in [versions.renamed, versions.good, versions.renamed, versions.worse, versions.old] * 2:
            promote(registry, version, gate)
            await rig.watcher.look()
            served.append(version)
            answers.extend([await rig.engine.recommend(asked(next(numbers))) for _ in range(20)])
        for _ in range(2):
            served.append(roll_back(registry))
            await rig.watcher.look()
            await rig.engine.recommend(asked(0))
        over.set()
        await asyncio.gather(*clients)  # a request that failed would raise here
        return served

    served = asyncio.run(scenario())
    assert served[-2:] == [versions.worse, versions.renamed]
    assert [answer for answer in answers if mixed(versions, answer)] == []
    assert set(Counter(answer.bundle_version for answer in answers)) == {
        versions.old, versions.good, versions.worse, versions.renamed,
    }  # fmt: skip
    assert rig.count("windfire_bundle_reloads_total", result="loaded") == 13
    assert rig.count("windfire_bundle_reloads_total", result="refused") == 0


def test_what_was_replaced_is_given_back(rig: Rig, versions: Any) -> None:
    """Without the help of the collector of cycles: memory maps and weights go with the last batch."""

    async def scenario() -> None:
        await rig.watcher.look()
        await rig.engine.recommend(asked(1))
        promote(versions.registry, versions.renamed, Gate({}))
        await rig.watcher.look()
        await rig.engine.recommend(asked(2))

    gc.disable()
    try:
        asyncio.run(rig.watcher.look())
        deployment = rig.engine.recommender
        assert isinstance(deployment, Deployment)
        old = deployment.main
        gone = [weakref.ref(each) for each in (old, old._bundle, old._decoder, old.items)]  # type: ignore[attr-defined]
        del deployment, old
        asyncio.run(scenario())
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()


def test_a_canary_answers_its_users_and_nobody_else(rig: Rig, versions: Any) -> None:
    share = Share(versions.renamed, 0.4, "pepper")
    write_share(versions.registry, CANARY, share)

    async def scenario() -> list[tuple[EngineRequest, EngineAnswer]]:
        await rig.watcher.look()
        requests = [asked(number) for number in range(120)]
        return list(zip(requests, await asyncio.gather(*map(rig.engine.recommend, requests)), strict=True))

    pairs = asyncio.run(scenario())
    assert [answer for _, answer in pairs if mixed(versions, answer)] == []
    for request, answer in pairs:
        taken = share.takes(request.unit or "")
        expected = (versions.renamed, "canary") if taken else (versions.old, "control")
        assert (answer.bundle_version, answer.arms["bundle"]) == expected
    arms = Counter(answer.arms["bundle"] for _, answer in pairs)
    assert min(arms.values()) >= 3
    assert {arm: rig.count("windfire_arm_answers_total", arm=arm) for arm in arms} == arms
    assert rig.engine.versions is not None
    assert (rig.engine.versions.bundle, rig.engine.versions.canary) == (versions.old, versions.renamed)


def test_a_promoted_canary_is_not_loaded_again_and_ends(rig: Rig, versions: Any) -> None:
    write_share(versions.registry, CANARY, Share(versions.renamed, 0.5, ""))

    async def scenario() -> tuple[Any, Any, EngineAnswer]:
        await rig.watcher.look()
        before = rig.engine.recommender
        promote(versions.registry, versions.renamed, Gate({}))
        await rig.watcher.look()
        return before, rig.engine.recommender, await rig.engine.recommend(asked(1))

    before, after, answer = asyncio.run(scenario())
    assert after.main is before.canary.recommender
    assert (after.canary, answer.arms, answer.bundle_version) == (None, {}, versions.renamed)


def test_a_canary_that_is_taken_away_leaves_everybody_with_the_served_one(rig: Rig, versions: Any) -> None:
    write_share(versions.registry, CANARY, Share(versions.renamed, 1.0, ""))

    async def scenario() -> list[EngineAnswer]:
        await rig.watcher.look()
        answers = [await rig.engine.recommend(asked(1))]
        clear_share(versions.registry, CANARY)
        await rig.watcher.look()
        return [*answers, await rig.engine.recommend(asked(1))]

    first, second = asyncio.run(scenario())
    assert (first.bundle_version, first.arms) == (versions.renamed, {"bundle": "canary"})
    assert (second.bundle_version, second.arms) == (versions.old, {})


@pytest.mark.parametrize("pointer", [CANARY, SHADOW])
def test_a_damaged_bundle_beside_the_served_one_is_named_and_left_out(rig: Rig, versions: Any, pointer: str) -> None:
    write_share(versions.registry, pointer, Share(versions.good, 1.0, ""))
    (versions.registry.path(versions.good) / "codes.npy").write_bytes(b"spoiled")

    async def scenario() -> EngineAnswer:
        await rig.watcher.look()
        answer: EngineAnswer = await rig.engine.recommend(asked(1))
        return answer

    answer = asyncio.run(scenario())
    assert (answer.bundle_version, answer.arms) == (versions.old, {})
    (report,) = live_workers(versions.registry.root)
    assert (report.bundle, report.canary, report.shadow, report.refused) == (versions.old, None, None, None)
    assert "codes.npy" in (report.beside_refused or "")
    assert pointer in (report.beside_refused or "")


def test_a_spoiled_pointer_changes_nothing(rig: Rig, versions: Any) -> None:
    write_share(versions.registry, CANARY, Share(versions.renamed, 1.0, ""))

    async def scenario() -> tuple[EngineAnswer, EngineAnswer]:
        await rig.watcher.look()
        first = await rig.engine.recommend(asked(1))
        (versions.registry.root / CANARY).write_text('{"version": "../../etc", "share": 1, "salt": ""}')
        await rig.watcher.look()
        return first, await rig.engine.recommend(asked(1))

    first, second = asyncio.run(scenario())
    assert first.bundle_version == second.bundle_version == versions.renamed
    (report,) = live_workers(versions.registry.root)
    assert "a version is made of" in (report.beside_refused or "")


def test_a_canary_that_was_ended_answers_nobody_while_another_bundle_loads(
    rig: Rig, versions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def loads_for_long(_: str) -> None:
        entered.set()
        await asyncio.Event().wait()

    async def scenario() -> tuple[str | None, str | None]:
        write_share(versions.registry, CANARY, Share(versions.renamed, 1.0, "salt"))
        await rig.watcher.look()
        before = rig.engine.versions.canary
        clear_share(versions.registry, CANARY)
        write_share(versions.registry, SHADOW, Share(versions.good, 1.0, "salt"))
        monkeypatch.setattr(rig.watcher, "_load", loads_for_long)
        looking = asyncio.create_task(rig.watcher.look())
        await entered.wait()
        after = rig.engine.versions.canary
        looking.cancel()
        return before, after

    assert asyncio.run(scenario()) == (versions.renamed, None)
