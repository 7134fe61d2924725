from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from feature_store.embedded import EmbeddedFeatureStore
from feature_store.standard import USER_RECENT
from feature_store.store import Merge
from feature_store.streaming import HistoryStream
from recsys.bundle import Registry, publish_run
from recsys.datasets.prepared import load_sequences
from recsys.errors import DataError, InputError, UnavailableError, WindfireError
from recsys.event_log import ConsumerOffsets, EventLog
from recsys.records import EVENTS
from recsys.storage import write_json_atomically
from serving.histories import consumer_name
from windfire.commands.demo import app, require_port, serve
from windfire.demo import Demo, Journal, Step, command
from windfire.demo_answers import Answer, choose_users, faults


def step(home: Path, ran: list[str], **changed: Any) -> Step:
    def run() -> None:
        ran.append("step")
        (home / "result").touch()

    fields: dict[str, Any] = {"name": "step", "run": run, "settings": ("a",), "inputs": (home / "in.csv",)}
    return Step(**{**fields, "result": home / "result", **changed})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "in.csv").write_text("one")
    return tmp_path


def test_a_step_is_done_once(home: Path) -> None:
    ran: list[str] = []
    assert Journal(home / "journal.json").do(step(home, ran)) is not None
    assert Journal(home / "journal.json").do(step(home, ran)) is None
    assert ran == ["step"]


def test_a_step_is_done_again_when_something_changed(home: Path) -> None:
    ran: list[str] = []
    journal = Journal(home / "journal.json")
    journal.do(step(home, ran))
    (home / "in.csv").write_text("two")
    journal.do(step(home, ran))
    journal.do(step(home, ran, settings=("b",)))
    (home / "result").unlink()
    journal.do(step(home, ran, settings=("b",)))
    assert len(ran) == 4
    assert journal.do(step(home, ran, settings=("b",))) is None


def test_a_failed_step_is_not_remembered(home: Path) -> None:
    journal = Journal(home / "journal.json")
    with pytest.raises(DataError, match="left no result"):
        journal.do(step(home, [], result=home / "other"))
    assert journal.do(step(home, [])) is not None


def test_how_long_a_job_took_is_no_reason_to_do_the_next_again(home: Path) -> None:
    jobs = home / "work"
    one = step(home, [], inputs=(jobs,))
    write_json_atomically(jobs / "clean" / "manifest.json", {"content": "x", "seconds": 1})
    before = one.fingerprint()
    write_json_atomically(jobs / "clean" / "manifest.json", {"content": "x", "seconds": 2})
    assert one.fingerprint() == before
    write_json_atomically(jobs / "clean" / "manifest.json", {"content": "y", "seconds": 2})
    assert one.fingerprint() != before


def test_a_failed_command_is_named() -> None:
    with pytest.raises(WindfireError, match=r"windfire publish --registry nowhere.* status 2"):
        command("publish", "--registry", "nowhere")()


def test_the_steps_follow_the_source(home: Path) -> None:
    config = home / "demo.yaml"
    config.touch()
    tables = home / "tables"
    names = {
        source: [each.name for each in Demo(home, source, None, config).first_steps()]
        for source in (None, home / "in.csv", tables.parent)
    }
    assert list(names.values()) == [
        ["simulate", "offline", "histories"],
        ["import", "offline", "histories"],
        ["offline", "histories"],
    ]
    assert Demo(home, home, None, config).tables == home


def test_histories_that_are_made_anew_get_the_event_log_again(home: Path) -> None:
    demo = Demo(home, home, None, home / "demo.yaml")
    (home / "events").mkdir()
    pq.write_table(pa.Table.from_pylist([], schema=EVENTS), home / "events" / "part-0.parquet")
    offsets = ConsumerOffsets(demo.state / "offsets")
    log = EventLog(demo.state / "events")
    log.append([{"user_id": "ann", "item_id": "i", "action": "click"}])
    offsets.commit(consumer_name(), log.records.end)
    demo.first_steps()[-1].run()
    store = EmbeddedFeatureStore(demo.state / "features")
    assert HistoryStream(log, store, offsets, USER_RECENT, name=consumer_name()).catch_up() == 1
    store.close()
    log.close()


@pytest.mark.parametrize("data", [(), ("--data", ".")])
def test_a_mapping_without_a_log_is_refused(home: Path, data: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="belongs to a log"):
        CliRunner().invoke(app, ["--mapping", str(home / "in.csv"), *data], catch_exceptions=False)


def test_users_to_show_are_spread(tiny_work: Path) -> None:
    sequences = load_sequences(tiny_work)
    chosen = choose_users(sequences, 3)
    lengths = np.diff(sequences.offsets)
    assert len(set(chosen)) == 3
    assert all(5 <= lengths[user] <= 20 for user in chosen)
    assert len(choose_users(sequences, 1_000)) == sequences.users


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_a_taken_port_is_refused_at_once(taken_port: int) -> None:
    with pytest.raises(UnavailableError, match="--port"):
        require_port(taken_port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prepared(tmp_path: Path, tiny_work: Path, tiny_run: Path) -> Demo:
    demo = Demo(tmp_path, None, None, tmp_path / "demo.yaml")
    shutil.copytree(tiny_work, demo.work)
    publish_run(Registry(demo.registry), run=tiny_run, work=demo.work, created=datetime(2026, 1, 1, tzinfo=UTC))
    sequences = load_sequences(demo.work)
    store = EmbeddedFeatureStore(demo.state / "features")
    for user, user_id in enumerate(sequences.user_ids):
        items = sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]].tolist()
        events = [
            {"time": t, "seq": t, "event_id": f"{user_id}-{t}", "item_id": f"item-{n:02d}", "action": "click"}
            for t, n in enumerate(items)
        ]
        store.merge([Merge(USER_RECENT, str(user_id), events)])
    store.close()
    return demo


def test_the_server_answers_and_is_checked(prepared: Demo) -> None:
    output = io.StringIO()
    serve(prepared, free_port(), once=True, console=Console(file=output, width=200))
    shown = output.getvalue()
    assert shown.count("served_by nezha") == 3
    assert "Title " in shown
    assert "median of 50 requests" in shown
    assert "all answers checked" in shown


def test_a_server_that_cannot_start_shows_its_log(prepared: Demo, taken_port: int) -> None:
    (prepared.home / "registry" / "CURRENT").write_text("../evil\n")
    with pytest.raises(WindfireError, match="version"):
        serve(prepared, free_port(), once=True, console=Console(file=io.StringIO()))
    with pytest.raises(UnavailableError, match="taken"):
        serve(prepared, taken_port, once=True, console=Console(file=io.StringIO()))


def answer(items: list[str], *, status: int = 200, served_by: str = "nezha") -> Answer:
    body = {"items": [{"item_id": item} for item in items], "served_by": served_by}
    return Answer("ann", ["item-00"], status, body, 1.0)


GOOD = [f"item-{n:02d}" for n in range(1, 11)]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (answer(GOOD, status=500), "HTTP status 500"),
        (answer(GOOD[:9]), "9 items instead of 10"),
        (answer([*GOOD[:9], GOOD[0]]), "stands twice"),
        (answer([*GOOD[:9], "item-00"]), "items of the history"),
        (answer([*GOOD[:9], "item-99"]), "not in the catalog"),
        (answer(GOOD, served_by="popular_scene"), "served by popular_scene"),
    ],
)
def test_faults_are_found(tiny_registry: Registry, given: Answer, fault: str) -> None:
    bundle = tiny_registry.open_current()
    assert faults(answer(GOOD), bundle) == []
    assert fault in " ".join(faults(given, bundle))


def test_faults_end_the_check_with_a_status(prepared: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windfire.demo_answers.faults", lambda *_: ["ann: wrong"])
    output = io.StringIO()
    with pytest.raises(typer.Exit) as raised:
        serve(prepared, free_port(), once=True, console=Console(file=output))
    assert raised.value.exit_code == 1
    assert "ann: wrong" in output.getvalue()
