"""Journeys through the real application, by hand and by locust."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.journeys import JOURNEYS, Journey, JourneyError, Person, Step

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"browse", "scroll", "recommend", "similar", "events", "recommend again"}


@pytest.fixture
def person() -> Person:
    return Person(np.random.default_rng(5), "run1", 3, lambda: "user-07", ["home"], n=5, pages=3)


def walk(journey: Journey, ask: Callable[[Step], dict[str, Any] | None]) -> list[Step]:
    """Send each step's answer until the journey ends."""
    steps = [next(journey)]
    try:
        while True:
            steps.append(journey.send(ask(steps[-1])))
    except StopIteration:
        return steps


@pytest.fixture
def ask(service: str) -> Iterator[Callable[[Step], dict[str, Any] | None]]:
    """Asks the real application; what is tolerated gives no answer."""
    with httpx.Client(base_url=service) as client:

        def post(step: Step) -> dict[str, Any] | None:
            response = client.post(step.path, json=step.body)
            assert response.status_code in {200, *step.tolerated}, response.text
            return {200: response.json()}.get(response.status_code)

        yield post


def test_every_journey_through_the_real_application(
    ask: Callable[[Step], dict[str, Any] | None], person: Person
) -> None:
    looked = ["recommend", "similar", "events", "recommend again"]
    walked = {name: [step.name for step in walk(journey(person), ask)] for name, journey in JOURNEYS.items()}
    assert walked == {
        "new_visitor": ["browse", *looked],
        "returning_user": ["browse", *looked],
        "heavy_scroller": ["browse", "scroll", "scroll", *looked],
    }


def stub(step: Step) -> dict[str, Any]:
    """A catalogue of 40 items that keeps its promises except that it forgets clicks."""
    denied = set(step.body.get("filters", {}).get("deny", ())) | {step.body.get("item_id")}
    items = [{"item_id": f"i{n}"} for n in range(40) if f"i{n}" not in denied]
    return {"request_id": "r", "accepted": len(step.body.get("events", ())), "items": items[: step.body.get("n", 0)]}


def broken(name: str, answer: dict[str, Any] | None) -> Callable[[Step], dict[str, Any] | None]:
    return lambda step: answer if step.name == name else stub(step)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("none", None, "was clicked and came again"),
        ("browse", {"items": []}, "empty"),
        ("recommend again", {"items": []}, "empty"),
        ("recommend", {"items": [{"item_id": "a"}, {"item_id": "a"}]}, "twice"),
        ("scroll", {"items": [{"item_id": "i0"}]}, "came again"),
        ("events", {"accepted": 0}, "0 were accepted"),
        ("events", None, "None were accepted"),
        ("similar", {"items": [{"item_id": f"i{n}"} for n in range(40)]}, "like itself"),
    ],
)
def test_a_broken_promise_ends_the_journey(
    person: Person, name: str, answer: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(JourneyError, match=message):
        walk(JOURNEYS["heavy_scroller"](person), broken(name, answer))


def test_a_server_without_similar_items_is_no_error(person: Person) -> None:
    again = {"items": [{"item_id": "another"}]}
    answers = {"similar": None, "recommend again": again}
    steps = walk(JOURNEYS["returning_user"](person), lambda step: answers.get(step.name, stub(step)))
    assert [step.name for step in steps] == ["browse", "recommend", "similar", "events", "recommend again"]


def test_ids_are_new_for_every_visitor_and_event(person: Person) -> None:
    again = {"items": [{"item_id": "another"}]}
    steps = [
        step
        for _ in range(3)
        for step in walk(
            JOURNEYS["new_visitor"](person), lambda step: {"recommend again": again}.get(step.name, stub(step))
        )
    ]
    visitors = {step.body["user_id"] for step in steps if step.name == "recommend"}
    events = [row["event_id"] for step in steps if step.name == "events" for row in step.body["events"]]
    assert len(visitors) == 3
    assert len(set(events)) == len(events) == 3 * 6
    assert all("user_id" not in step.body for step in steps if step.name == "browse")
    assert {step.body["scene"] for step in steps if step.path == "/v1/recommend"} == {"home"}


def test_locust_walks_every_journey_without_an_error(service: str, tmp_path: Path) -> None:
    config = tmp_path / "load.yaml"
    config.write_text(
        "workload: {users: {pattern: 'user-{:02d}', count: 30}, n: 5}\ndeadline: 10\ntimeout: 20\n"
        "journeys: {weights: {new_visitor: 1, returning_user: 1, heavy_scroller: 1}, think: 0.05, pages: 3}\n"
    )
    command = [sys.executable, "-m", "windfire", "loadtest", "journeys", "--config", str(config), "--url", service]
    done = subprocess.run(
        [*command, "--users", "3", "--seconds", "4", "--csv", str(tmp_path / "locust")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "locust_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert set(rows) == NAMES | {"Aggregated"}
    assert {row["Failure Count"] for name, row in rows.items() if name != "similar"} == {"0"}
    assert int(rows["Aggregated"]["Request Count"]) > 20
