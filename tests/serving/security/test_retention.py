from __future__ import annotations

import time
from collections.abc import MutableMapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from recsys.errors import UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog, read_events
from recsys.event_log.segments import segment_files
from serving.app import create_app
from serving.histories import consumer_name
from serving.settings import Settings
from windfire.commands.retention import app

DAY = 86_400_000_000


def old_events(state: Path, *, merged: int) -> None:
    """Three events of 30 days ago, of which a history has taken so many."""
    ago = time.time_ns() // 1_000 - 30 * DAY
    with closing(EventLog(state / "events", clock=lambda: ago)) as log:
        log.append([{"event_id": f"e{n}", "user_id": "ann", "item_id": "item-11", "action": "click"} for n in range(3)])
    ConsumerOffsets(state / "offsets").commit(consumer_name(), merged)


def held(state: Path) -> int:
    return len(list(read_events(state / "events", segment_files(state / "events")[0][0])))


def run(state: Path) -> str:
    result = CliRunner().invoke(app, ["--state", str(state)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(("period", "merged", "left"), [("P10D", 3, 0), ("P10D", 2, 3), ("P60D", 3, 3), ("", 3, 3)])
def test_the_command_keeps_what_is_young_or_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: str, merged: int, left: int
) -> None:
    old_events(tmp_path, merged=merged)
    monkeypatch.setenv("WINDFIRE_EVENT_RETENTION", period)
    said = run(tmp_path)
    assert held(tmp_path) == left
    assert said == f"segments removed: {int(left == 0)} of events, 0 of exposures\n"
    assert run(tmp_path) == "segments removed: 0 of events, 0 of exposures\n"


def test_a_server_removes_by_itself_and_goes_on(
    server_settings: Settings, log_lines: list[MutableMapping[str, Any]]
) -> None:
    old_events(server_settings.state, merged=3)
    settings = server_settings.model_copy(update={"event_retention": timedelta(days=10)})
    with TestClient(create_app(settings)) as client:
        deadline = time.monotonic() + 30
        while held(settings.state):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        row = {"event_id": "new", "user_id": "ann", "item_id": "item-12", "action": "click"}
        assert client.post("/v1/events", json={"events": [row]}).json()["accepted"] == 1
        assert client.post("/v1/recommend", json={"user_id": "ann"}).json()["history_source"] == "store"
        with pytest.raises(UnavailableError, match="another writer"):
            CliRunner().invoke(app, ["--state", str(settings.state)], catch_exceptions=False)
    assert [row["event_id"] for _, row in read_events(settings.state / "events", 3)] == ["new"]
    with TestClient(create_app(settings)) as client:  # the start needs none of what is gone
        assert client.get("/readyz").json()["warnings"] == []
    assert {line["event"] for line in log_lines} >= {"segments_removed"}
