"""`windfire import` as a user meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from recsys.records import TablesManifest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.recsys.datasets.importing.conftest import Workplace


def windfire(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from windfire.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-c", code, "import", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def log(place: Workplace) -> Path:
    return place.write("log.csv", "user_id,item_id,time,page\nu,1,1700000000,a\nu,2,later,a\n")


def test_import(place: Workplace, log: Path) -> None:
    done = windfire("csv", log, "--out", place.out)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "log.csv:3: time: 'later' is not a time in s since 1970" in done.stdout
    assert "ignored columns: page" in done.stdout
    assert TablesManifest.load(place.out).counts["events"].written == 1


def test_check_writes_nothing(place: Workplace, log: Path) -> None:
    done = windfire("csv", log, "--check", "--out", place.out)
    assert done.returncode == 0
    assert "2023-11-14T22:13:20+00:00" in done.stdout
    assert [path.name for path in place.folder.iterdir()] == ["log.csv"]


def test_an_error_is_one_clear_line(place: Workplace, log: Path) -> None:
    done = windfire("jsonl", log, "--out", place.out)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("windfire: bad_input: the log is empty or has no readable row")


def test_a_place_that_cannot_be_written_is_one_clear_line(place: Workplace, log: Path) -> None:
    done = windfire("csv", log, "--out", log / "tables")
    assert done.returncode == 2
    assert re.fullmatch(r"windfire: io: \w.* \[path = '.*log\.csv.*'\] Remedy: .*", done.stderr.strip())
