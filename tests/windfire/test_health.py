from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from windfire import health
from windfire.commands.doctor import app
from windfire.health import CONSTRAINTS, Finding, Status, check_machine, check_packages, check_port, check_writable


def test_this_machine_can_run_the_main_job(tmp_path: Path) -> None:
    findings = check_machine(tmp_path / "not" / "there", 0)
    assert [finding for finding in findings if finding.status is Status.FAIL] == []
    assert {"python", "packages", "java", "memory", "cores", "disk", "port", "redis", "gpu"} <= {
        f.name for f in findings
    }


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = check_port(taken.getsockname()[1])
    assert finding.status is Status.WARN
    assert "--port" in finding.remedy


def test_other_versions_are_named(tmp_path: Path) -> None:
    pins = CONSTRAINTS.read_text().replace("numpy==", "numpy==0.")
    (tmp_path / "constraints.txt").write_text(pins)
    finding = check_packages(tmp_path / "constraints.txt")
    assert finding.status is Status.WARN
    assert "numpy" in finding.detail


def test_missing_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "requires", lambda _: ["numpy", "not-there>=1", "neither; extra == 'dev'"])
    finding = check_packages(CONSTRAINTS)
    assert (finding.status, finding.detail) == (Status.FAIL, "missing: not-there")


def test_a_java_home_without_java_fails_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_JAVA_HOME", str(tmp_path))
    java = {finding.name: finding for finding in check_machine(tmp_path, 0)}["java"]
    assert java.status is Status.FAIL
    assert "WINDFIRE_JAVA_HOME" in java.detail
    assert java.remedy


def test_a_directory_that_cannot_be_written() -> None:
    finding = check_writable("work directory", Path("/proc/self/nothing"))
    assert finding.status is Status.FAIL
    assert finding.remedy


def test_doctor_answers_json_and_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["--work", str(tmp_path), "--port", "0", "--json"])
    assert done.exit_code == 0
    assert {row["status"] for row in json.loads(done.stdout)["findings"]} <= {"ok", "warn"}
    monkeypatch.setattr(health, "check_machine", lambda *_: [Finding("java", Status.FAIL, "gone", "bring it back")])
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 1
    assert "bring it back" in done.stdout
