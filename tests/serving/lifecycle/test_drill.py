"""A bundle that is worse on purpose: stopped, watched in the shadow, forced through, seen, and rolled back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from recsys.errors import GateError
from serving.app import create_app
from serving.settings import Settings
from windfire.commands import bundles


def call(*arguments: object) -> str:
    done = CliRunner().invoke(bundles.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def browse(client: TestClient, users: int) -> list[dict[str, Any]]:
    """Everybody asks and clicks on the first item that is shown; an answer a user."""
    answers = []
    for n in range(users):
        user = f"user-{n}"
        answer = client.post("/v1/recommend", json={"user_id": user, "history": [f"item-{5 + n % 40:02d}"], "n": 5})
        answers.append(answer.json())
        click = {"event_id": f"{time.time_ns()}-{n}", "user_id": user, "action": "click"}
        row = click | {"item_id": answers[-1]["items"][0]["item_id"], "request_id": answers[-1]["request_id"]}
        assert client.post("/v1/events", json={"events": [row]}).json()["accepted"] == 1
    return answers


def offered(client: TestClient) -> float:
    """Requests that the shadow has answered or dropped."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("windfire_shadow_total{"))


def test_a_worse_bundle_is_stopped_watched_forced_and_rolled_back(versions: Any, server_settings: Settings) -> None:
    root = versions.registry.root
    changes = {"registry": root, "bundle_poll": timedelta(milliseconds=20), "exposure_flush": timedelta(0)}
    settings = server_settings.model_copy(update=changes)
    with pytest.raises(GateError, match=r"0\.1000 -> 0\.0200"):
        call("promote", "--registry", root, "--version", versions.worse)
    assert f"CURRENT {versions.old}" in call("status", "--registry", root)

    with TestClient(create_app(settings)) as client:

        def ready() -> dict[str, Any]:
            state: dict[str, Any] = client.get("/readyz").json()
            return state

        call("shadow", "--registry", root, "--version", versions.worse)
        until(lambda: ready()["shadow_version"] == versions.worse)
        answers = browse(client, 30)
        assert {answer["bundle_version"] for answer in answers} == {versions.old}, "it is never shown"
        until(lambda: offered(client) == 30)
        call("shadow", "--registry", root, "--off")
        until(lambda: ready()["shadow_version"] is None)
        report = json.loads(call("shadow-report", "--state", settings.state, "--json"))
        live, shadow, both = (report["columns"][name] for name in ("live", "shadow", "both"))
        assert (report["shadow"], report["served"]) == (versions.worse, [versions.old])
        assert 0 < both["clicks_later"] == report["requests"] <= 30
        assert live["clicks_held"] == 1.0 > shadow["clicks_held"] + 0.3
        assert both["overlap"] < 0.9
        assert (shadow["errors"], shadow["empty"], shadow["ineligible_items"]) == (0, 0, 0)
        assert "clicks_held" in call("shadow-report", "--state", settings.state)

        forced = call("promote", "--registry", root, "--version", versions.worse, "--force", "a drill")
        assert "gate: forced: valid.ndcg@10 0.1000 -> 0.0200 (-80.0%, allowed -5.0%)" in forced
        until(lambda: ready()["bundle_version"] == versions.worse)
        assert {answer["bundle_version"] for answer in browse(client, 3)} == {versions.worse}
        assert f"serving {versions.old}" in call("rollback", "--registry", root)
        until(lambda: ready()["bundle_version"] == versions.old)
    written = [json.loads(line) for line in call("moves", "--registry", root).splitlines()]
    assert [(move["kind"], move["to"], move.get("reason")) for move in written] == [
        ("promote", versions.worse, "a drill"),
        ("roll_back", versions.old, None),
    ]


def test_a_canary_is_reported_by_arm_and_rolled_back(versions: Any, server_settings: Settings) -> None:
    root = versions.registry.root
    changes = {"registry": root, "bundle_poll": timedelta(milliseconds=20), "exposure_flush": timedelta(0)}
    settings = server_settings.model_copy(update=changes)
    with TestClient(create_app(settings)) as client:
        call("canary", "--registry", root, "--version", versions.renamed, "--share", "0.4", "--salt", "s")
        until(lambda: client.get("/readyz").json()["canary_version"] == versions.renamed)
        arms = [answer["arms"]["bundle"] for answer in browse(client, 60)]
        assert f"canary {versions.renamed} ended" in call("rollback", "--registry", root)
        until(lambda: client.get("/readyz").json()["canary_version"] is None)
        assert client.post("/v1/recommend", json={"user_id": "user-1"}).json()["arms"] == {}
    assert versions.registry.current() == versions.old
    report = json.loads(call("canary-report", "--state", settings.state, "--json"))
    columns = report["columns"]
    assert report["canary"] == versions.renamed
    assert columns["canary"]["answers"] == arms.count("canary") > 0
    assert columns["control"]["answers"] > 0
    assert columns["canary"]["clicks_per_answer"] == columns["control"]["clicks_per_answer"] == 1.0
    assert (columns["difference"]["clicks_per_answer"], columns["canary"]["failures"]) == (0.0, 0)
