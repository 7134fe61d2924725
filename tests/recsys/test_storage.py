"""Directories that are replaced as a whole, also by a run that is killed half way."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from recsys.storage import restore_directory, staged_directory

if TYPE_CHECKING:
    from pathlib import Path

DIES_BETWEEN_THE_RENAMES = """
import os, pathlib, sys
from recsys.storage import staged_directory

rename = pathlib.Path.rename
def dying(path, target):
    if path.name.startswith(".staged-"):
        os.kill(os.getpid(), 9)
    return rename(path, target)
pathlib.Path.rename = dying
with staged_directory(pathlib.Path(sys.argv[1])) as staged:
    (staged / "new").touch()
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A directory that a run had moved aside, and not yet replaced, when it was killed."""
    final = tmp_path / "final"
    with staged_directory(final) as staged:
        (staged / "old").touch()
    done = subprocess.run([sys.executable, "-c", DIES_BETWEEN_THE_RENAMES, str(final)])
    assert done.returncode == -signal.SIGKILL
    assert not final.exists()
    return final


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_moved_aside_is_put_back(killed: Path) -> None:
    restore_directory(killed)
    assert names(killed) == ["old"]


def test_a_failing_run_after_a_killed_one_leaves_the_previous_directory(killed: Path) -> None:
    with pytest.raises(RuntimeError), staged_directory(killed):
        raise RuntimeError
    assert names(killed) == ["old"]
    assert names(killed.parent) == ["final"]


def test_the_next_run_replaces_it_and_leaves_no_litter(killed: Path) -> None:
    with staged_directory(killed) as staged:
        (staged / "newer").touch()
    assert names(killed) == ["newer"]
    assert names(killed.parent) == ["final"]


def test_a_replacement_that_fails_puts_the_previous_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    with staged_directory(final) as staged:
        (staged / "old").touch()
    rename = type(final).rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.startswith(".staged-"):
            raise OSError("full")
        return rename(path, target)

    monkeypatch.setattr(type(final), "rename", failing)
    with pytest.raises(OSError, match="full"), staged_directory(final):
        pass
    assert names(final) == ["old"]
    assert names(tmp_path) == ["final"]
