from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recsys.bundle import Bundle, load_decoder
from recsys.catalog import CatalogFilter
from recsys.decoding.decoder import Decoder
from recsys.errors import DataError
from serving.engine import EngineAnswer, EngineRequest, Seek, SlateItem
from serving.lifecycle.recent import RecentRequests
from serving.lifecycle.warm_up import fault, smoke, warm_up
from serving.stages import BundleRecommender

NOW = 1_800_000_000_000_000


def request(*history: str, **more: Any) -> EngineRequest:
    return EngineRequest(history=history, n=more.pop("n", 5), time=NOW, **more)


def ring(path: Path, limit: int = 3, step: float = 1.0) -> RecentRequests:
    """Its clock goes on by a step at each look."""
    return RecentRequests(path, limit, clock=count(1.0, step).__next__)


def test_the_ring_survives_a_restart_and_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "state" / "recent"
    recent = ring(path)
    conditions = CatalogFilter(brands=("Brand 1",), categories=(("All",),), price_min_micros=1, price_max_micros=9)
    for n in range(4):
        recent.note([request(f"item-{n}", unit="ann", request_id="r-77", scene="home", conditions=conditions)])
    recent.save()
    assert b"ann" not in path.read_bytes()
    assert b"r-77" not in path.read_bytes()
    again = ring(path).recorded(5)
    assert again == [
        EngineRequest(history=[f"item-{n}"], n=5, time=5, scene="home", conditions=conditions) for n in (1, 2, 3)
    ]


def test_a_burst_fills_one_place_and_odd_requests_none(tmp_path: Path) -> None:
    recent = ring(tmp_path / "recent", step=0.01)
    recent.note([request("a", seek=Seek(text="x")), request("b", allow=["c"]), request("d"), request("e")])
    for n in range(4):
        recent.note([request(f"burst-{n}")])
    assert [each.history for each in recent.recorded(NOW)] == [("d",)]
    none = ring(tmp_path / "other", limit=0)
    none.note([request("a")])
    assert none.recorded(NOW) == []


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01\x02", msgspec.msgpack.encode([["a", 1]])])
def test_a_spoiled_file_is_logged_and_forgotten(
    tmp_path: Path, content: bytes, log_lines: list[MutableMapping[str, Any]]
) -> None:
    path = tmp_path / "recent"
    path.write_bytes(content)
    assert ring(path).recorded(NOW) == []
    assert [line["event"] for line in log_lines] == ["recent_requests_not_read"]


def test_a_disk_that_refuses_is_logged(tmp_path: Path, log_lines: list[MutableMapping[str, Any]]) -> None:
    (tmp_path / "file").write_text("")
    recent = ring(tmp_path / "file" / "recent")
    recent.note([request("a")])
    recent.save()
    assert [line["event"] for line in log_lines] == ["recent_requests_not_read", "recent_requests_not_saved"]


def test_a_good_bundle_answers_within_number_and_time(recommender: BundleRecommender) -> None:
    requests = [request(f"item-{n:02d}") for n in range(40)]
    assert warm_up(recommender, requests, seconds=60.0) == (done := warm_up(recommender, requests, seconds=60.0))
    assert (done.answered, done.left_out) == (40, 0)
    slow = warm_up(recommender, requests, seconds=2.5, clock=count().__next__)
    assert (slow.answered, slow.left_out) == (16, 24), "no batch begins behind the end"
    smoke(recommender, ["item-06"])


SPOILED: dict[str, Callable[[EngineAnswer], EngineAnswer]] = {
    "it names another bundle": lambda answer: msgspec.structs.replace(answer, bundle_version="other"),
    "too many items": lambda answer: msgspec.structs.replace(answer, items=[*answer.items, *answer.items]),
    "an item stands twice": lambda answer: msgspec.structs.replace(answer, items=answer.items[:1] * 2),
    "a score is no number": lambda answer: msgspec.structs.replace(
        answer, items=[SlateItem("item-11", float("nan"), "nezha", None)]
    ),
    "an item may not be shown": lambda answer: msgspec.structs.replace(answer, ineligible=1),
    "an item is not in the catalogue": lambda answer: msgspec.structs.replace(
        answer, items=[SlateItem("nowhere", 1.0, "nezha", None)]
    ),
    "it is empty": lambda answer: msgspec.structs.replace(answer, items=[]),
}


@pytest.mark.parametrize("wrong", SPOILED)
def test_every_fault_is_named(recommender: BundleRecommender, wrong: str) -> None:
    asked = request("item-06")
    (answer,) = recommender.recommend([asked])
    assert fault(recommender, asked, answer) is None
    assert fault(recommender, asked, SPOILED[wrong](answer)) == wrong


def test_a_seen_item_is_a_fault_where_it_may_not_come_back(recommender: BundleRecommender) -> None:
    asked = request("item-06", exclude_seen=False)
    (answer,) = recommender.recommend([asked])
    seen = request(answer.items[0].item_id)
    assert fault(recommender, seen, answer) == "an item may not be shown"
    assert fault(recommender, replace(seen, exclude_seen=False), answer) is None


def test_an_empty_answer_is_right_where_nothing_is_left(recommender: BundleRecommender) -> None:
    everything = request(*(f"item-{n:02d}" for n in range(48)))
    nothing_fits = request(conditions=CatalogFilter(brands=("nobody",)))
    answers = recommender.recommend([everything, nothing_fits])
    assert [len(answer.items) for answer in answers] == [0, 0]
    assert warm_up(recommender, [everything, nothing_fits], seconds=60.0).answered == 2


class Ruined:
    """A decoder whose scores are no numbers."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.name = decoder.name

    def decode(self, *arguments: Any, **named: Any) -> Any:
        answer = self._decoder.decode(*arguments, **named)
        return replace(answer, ranked=[replace(each, scores=each.scores * float("nan")) for each in answer.ranked])


def test_a_model_without_scores_is_refused(served_bundle: Bundle) -> None:
    ruined = BundleRecommender(served_bundle, Ruined(load_decoder(served_bundle)), beam=10)
    with pytest.raises(DataError, match="a score is no number") as raised:
        warm_up(ruined, [request("item-06")], seconds=60.0)
    assert raised.value.value == served_bundle.manifest.version


def test_a_bundle_that_fails_on_recorded_requests_is_not_seen(
    rig: Any, versions: Any, monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """It answers smoke, and not what users have asked."""
    honest = BundleRecommender.recommend

    def failing(self: BundleRecommender, requests: list[EngineRequest]) -> list[EngineAnswer]:
        ill = self.versions.bundle == versions.good and any(each.scene == "home" for each in requests)
        return [SPOILED["it is empty"](answer) if ill else answer for answer in honest(self, requests)]

    monkeypatch.setattr(BundleRecommender, "recommend", failing)

    async def scenario() -> list[EngineAnswer]:
        await rig.watcher.look()
        answers = [await rig.engine.recommend(request("item-06", scene="home"))]
        versions.registry.set_current(versions.good)
        await rig.watcher.look()
        return [*answers, await rig.engine.recommend(request("item-06", scene="home"))]

    answers = asyncio.run(scenario())
    assert [answer.bundle_version for answer in answers] == [versions.old] * 2
    assert "it is empty (1 items of history, n 5, scene home)" in rig.watcher.refused
    assert [line["event"] for line in log_lines if line["log_level"] == "error"] == ["bundle_refused"]


def test_recorded_requests_are_replayed_after_a_restart(
    rig: Any, versions: Any, log_lines: list[MutableMapping[str, Any]]
) -> None:
    async def scenario() -> None:
        await rig.watcher.look()
        await rig.engine.recommend(request("item-06"))

    asyncio.run(scenario())
    rig.watcher._recent.save()
    again = type(rig)(versions, rig.settings)
    asyncio.run(again.watcher.look())
    again.close()
    answered = [line["answered"] for line in log_lines if line["event"] == "bundle_warmed_up"]
    assert answered == [0, 1]
