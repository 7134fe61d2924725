"""A user is forgotten in the logs of all workers, whichever is asked."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from recsys.errors import UnavailableError
from recsys.event_log import EventLog, read_events
from serving.user_data import log_part
from serving.workers.erasing import Erasures

if TYPE_CHECKING:
    from pathlib import Path


def fill(log: EventLog, name: str, count: int) -> None:
    rows = [
        {"event_id": f"{name}{user}{n}", "user_id": user, "item_id": "i", "action": "click", "time": n}
        for n in range(count)
        for user in ("ann", "bob")
    ]
    log.append(rows)


def users(folder: Path) -> set[str]:
    return {record["user_id"] for _, record in read_events(folder)}


class Living:
    """A worker with an event log, who looks for notes in a thread of its own."""

    def __init__(self, state: Path, number: int, *, patience: float = 60.0) -> None:
        self.log = EventLog(state / f"worker-{number}" / "events")
        fill(self.log, f"w{number}", 1 + number)
        part = log_part("event", self.log.records)
        self.end = Erasures(state, number, 2, {"event": part.forget}, lambda _: None, patience=patience)
        self.event, _ = self.end.parts()
        self.told: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def _follow(self) -> None:
        while not self._stop.wait(0.01):
            self.told += self.end.look()

    def start(self, stack: ExitStack) -> Living:
        stack.callback(self.log.close)
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(self._stop.set)
        return self


def test_whoever_is_asked_all_logs_forget(tmp_path: Path) -> None:
    for folder, count in ((tmp_path / "events", 4), (tmp_path / "worker-7" / "events", 5)):  # of earlier times
        log = EventLog(folder)
        fill(log, folder.parent.name, count)
        log.close()
    with ExitStack() as stack:
        first, second = (Living(tmp_path, number).start(stack) for number in range(2))
        assert len(list(first.event.held("ann"))) == 4 + 5 + 2
        assert first.event.forget("ann") == 4 + 5 + 2
        assert (first.told, second.told) == ([], ["ann"])
        assert list(first.event.held("ann")) == []
        assert len(list(second.event.held("ann"))) == 1  # its own is the other part's to erase
        assert second.event.forget("ann") == 1
        assert first.event.forget("ann") == 0
        assert len(list(first.event.held("bob"))) == 11
    assert list((tmp_path / "erasures").iterdir()) == []
    for folder in (tmp_path / "events", *tmp_path.glob("worker-*/events")):
        assert users(folder) == {"bob"}


def test_a_worker_that_is_away_erases_when_it_is_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = Living(tmp_path, 0, patience=0.05).start(stack)
        with pytest.raises(UnavailableError, match="ask again"):
            first.event.forget("ann")
        second = Living(tmp_path, 1)
        assert second.end.look() == ["ann"]
        assert second.end.look() == []
        second.log.close()
    assert users(tmp_path / "worker-1" / "events") == {"bob"}
