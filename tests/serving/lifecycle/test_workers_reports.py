from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import MutableMapping
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from serving.lifecycle.workers import Reporter, WorkerReport, born, live_workers


def put(registry: Path, **values: Any) -> WorkerReport:
    known: dict[str, Any] = {"host": "here", "pid": os.getpid(), "born": born(os.getpid()), "beat": 100.0}
    report = WorkerReport(**known | values)
    (registry / "workers").mkdir(exist_ok=True)
    (registry / "workers" / f"{report.name}.json").write_bytes(msgspec.json.encode(report))
    return report


def test_a_report_lives_as_long_as_its_process(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    reporter.say(bundle="v1", refused_version="v2", refused="codes.npy is missing", refused_stamp="7")
    (report,) = live_workers(tmp_path)
    assert (report.pid, report.bundle, report.refused) == (os.getpid(), "v1", "codes.npy is missing")
    assert (report.refuses("v2", "7"), report.refuses("v2", "8"), report.refuses("v1", "7")) == (True, False, False)
    reporter.say(bundle="v2", refused_version=None, refused=None, refused_stamp=None)
    assert [report.bundle for report in live_workers(tmp_path)] == ["v2"]
    reporter.close()
    assert live_workers(tmp_path) == []
    reporter.say(bundle="v3")
    assert live_workers(tmp_path) == [], "a report that comes late does not come back"


def test_dead_processes_and_reused_numbers_are_recognised(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    alive = put(tmp_path)
    put(tmp_path, pid=process.pid, born="5")
    assert live_workers(tmp_path, host="here") == [alive]
    assert [path.name for path in (tmp_path / "workers").iterdir()] == [f"{alive.name}.json"]
    put(tmp_path, born="1")
    assert live_workers(tmp_path, host="here") == []


def test_workers_of_other_hosts_live_while_they_give_signs(tmp_path: Path) -> None:
    fresh = put(tmp_path, host="there", pid=1, beat=100.0)
    put(tmp_path, host="gone", pid=1, beat=60.0)
    (tmp_path / "workers" / "half.json").write_text('{"host": "x"')
    assert live_workers(tmp_path, now=101.0, host="here") == [fresh]
    assert (tmp_path / "workers" / "gone-1.json").exists(), "only its own host can know"


def test_a_sign_of_life_is_written_now_and_then(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, clock=count(0, 2).__next__, host="here")
    beats = []
    for _ in range(6):
        reporter.say(bundle="v1")
        beats += [report.beat for report in live_workers(tmp_path, host="here")]
    assert beats == [0, 0, 0, 6, 6, 6]


def test_a_registry_that_cannot_be_written_is_logged_once(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    (tmp_path / "file").write_text("")
    reporter = Reporter(tmp_path / "file")
    reporter.say(bundle="v1")
    reporter.say(bundle="v2")
    reporter.close()
    assert [line["event"] for line in log_lines] == ["worker_not_reported"]


def test_engines_of_one_process_have_names_of_their_own(tmp_path: Path) -> None:
    one, other, third = (Reporter(tmp_path) for _ in range(3))
    one.say(bundle="v1")
    other.say(bundle="v2")
    assert [report.bundle for report in live_workers(tmp_path)] == ["v1", "v2"]
    third.close()
    one.close()
    assert [(report.bundle, report.number) for report in live_workers(tmp_path)] == [("v2", 2)]
    other.say(bundle="v3")
    assert [report.bundle for report in live_workers(tmp_path)] == ["v3"]
