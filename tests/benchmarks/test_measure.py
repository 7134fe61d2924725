from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.measure import CommandError, run_measured

if TYPE_CHECKING:
    from pathlib import Path

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def test_the_time_of_grandchildren_is_counted(tmp_path: Path) -> None:
    inner = BURN.format(seconds=0.4)
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    found = run_measured([sys.executable, "-c", outer], log=tmp_path / "log.txt")
    assert 0.4 <= found.cpu_seconds < 3
    assert found.seconds >= 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
def test_the_time_of_orphans_is_counted(tmp_path: Path) -> None:
    inner = BURN.format(seconds=0.6)
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)"
    found = run_measured([sys.executable, "-c", outer], log=tmp_path / "log.txt")
    assert found.cpu_seconds >= 0.6


def test_a_failed_command_shows_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"status 3(.|\n)*no such luck"):
        run_measured([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"], log=tmp_path / "a" / "log")


def test_children_from_before_are_not_waited_for(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        began = time.monotonic()
        run_measured([sys.executable, "-c", "pass"], log=tmp_path / "log.txt")
        assert time.monotonic() - began < 30
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
